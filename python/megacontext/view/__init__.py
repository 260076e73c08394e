"""Pictures of what is in focus."""

from __future__ import annotations

from megacontext.view.picture import SpanShown, save_png, terminal_bar

__all__ = ["SpanShown", "save_png", "terminal_bar"]
