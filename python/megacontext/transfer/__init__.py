"""Memories in and out: a portable form of one line a thing, that needs no engine to read."""

from __future__ import annotations

from megacontext.transfer.portable import ImportReport, export_store, import_lines

__all__ = ["ImportReport", "export_store", "import_lines"]
