"""Memory without end for frozen language models."""
