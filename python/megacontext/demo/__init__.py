"""The demo: a small frozen model answers from a history a hundred times its working budget."""
