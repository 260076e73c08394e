"""Memories in and out: whole copies, and a portable form that needs no engine to read."""

from __future__ import annotations

from megacontext.transfer.backup import backup_memory
from megacontext.transfer.portable import ImportReport, export_store, import_lines

__all__ = ["ImportReport", "backup_memory", "export_store", "import_lines"]
