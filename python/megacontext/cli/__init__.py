"""The `megacontext` command."""

from __future__ import annotations

from megacontext.cli.main import main

__all__ = ["main"]
