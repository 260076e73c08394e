"""MegaContext as a client of HELM. Imported by HELM in its own virtual environment (README.md)."""
