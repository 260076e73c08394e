"""The loop: ingest, refocus, assemble, decode."""

from __future__ import annotations

from megacontext.runtime.access import ACCESS_ROWS, AccessCounts, read_counts
from megacontext.runtime.answer import Answer, AnswerStats, SourceSpan
from megacontext.runtime.assemble import Assembled, Assembler, EntryRun, merge_runs
from megacontext.runtime.gist_records import GistRecord, ShownGists, read_records
from megacontext.runtime.history import SKETCH_ROWS, StoreHistory
from megacontext.runtime.ingest import Ingestor, IngestProgress, IngestReport, SourceState
from megacontext.runtime.parts import Parts
from megacontext.runtime.refresh import (
    BackgroundRefresh,
    RefreshReport,
    RowMaker,
    drop_version,
    family_name,
    lazy_rows,
    refresh,
    stale,
    versions,
)
from megacontext.runtime.session import Session
from megacontext.runtime.source_info import (
    SourceInfo,
    SourceQuery,
    SpanNote,
    annotate,
    source_info,
    source_infos,
    update_metadata,
)
from megacontext.runtime.sources import (
    Source,
    file_source,
    folder_sources,
    iterator_source,
    text_source,
)

__all__ = [
    "ACCESS_ROWS",
    "SKETCH_ROWS",
    "AccessCounts",
    "Answer",
    "AnswerStats",
    "Assembled",
    "Assembler",
    "BackgroundRefresh",
    "EntryRun",
    "GistRecord",
    "IngestProgress",
    "IngestReport",
    "Ingestor",
    "Parts",
    "RefreshReport",
    "RowMaker",
    "Session",
    "ShownGists",
    "Source",
    "SourceInfo",
    "SourceQuery",
    "SourceSpan",
    "SourceState",
    "SpanNote",
    "StoreHistory",
    "annotate",
    "drop_version",
    "family_name",
    "file_source",
    "folder_sources",
    "iterator_source",
    "lazy_rows",
    "merge_runs",
    "read_counts",
    "read_records",
    "refresh",
    "source_info",
    "source_infos",
    "stale",
    "text_source",
    "update_metadata",
    "versions",
]
