"""The loop: ingest, refocus, assemble, decode."""

from __future__ import annotations

from megacontext.runtime.answer import Answer, AnswerStats, SourceSpan
from megacontext.runtime.assemble import Assembled, Assembler, EntryRun, merge_runs
from megacontext.runtime.gist_records import GistRecord, ShownGists, read_records
from megacontext.runtime.history import SKETCH_ROWS, StoreHistory
from megacontext.runtime.ingest import Ingestor, IngestProgress, IngestReport, SourceState
from megacontext.runtime.parts import Parts
from megacontext.runtime.session import Session
from megacontext.runtime.sources import (
    Source,
    file_source,
    folder_sources,
    iterator_source,
    text_source,
)

__all__ = [
    "SKETCH_ROWS",
    "Answer",
    "AnswerStats",
    "Assembled",
    "Assembler",
    "EntryRun",
    "GistRecord",
    "IngestProgress",
    "IngestReport",
    "Ingestor",
    "Parts",
    "Session",
    "ShownGists",
    "Source",
    "SourceSpan",
    "SourceState",
    "StoreHistory",
    "file_source",
    "folder_sources",
    "iterator_source",
    "merge_runs",
    "read_records",
    "text_source",
]
