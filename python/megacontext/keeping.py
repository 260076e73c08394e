"""The life of what a memory holds: edited, forgotten, described, refreshed, copied."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from megacontext.curate import forget_traces
from megacontext.remote import EraseReport, erase_everywhere
from megacontext.runtime import (
    BackgroundRefresh,
    Ingestor,
    IngestReport,
    Parts,
    RefreshReport,
    RowMaker,
    SourceInfo,
    SourceQuery,
    SpanNote,
    annotate,
    file_source,
    refresh,
    source_info,
    source_infos,
    text_source,
    update_metadata,
)
from megacontext.transfer import ImportReport, backup_memory, export_store, import_lines
from megacontext_ext import Store
from megacontext_ext.errors import InvalidArgument, NotFound


class Keeping:
    """What a `Memory` does besides taking in and answering."""

    _store: Store
    _parts: Parts
    _ingestor: Ingestor | None
    # Held by whoever writes: a background refresh works on another thread.
    _lock: threading.RLock
    _background: list[BackgroundRefresh]

    def sources(
        self,
        *,
        tag: str | None = None,
        path: str | None = None,
        trust_at_least: float | None = None,
        since: str | None = None,
        hidden: bool = False,
    ) -> list[str]:
        """Names of the sources, in the order of their ingestion, of which all that is given holds.

        Args:
            tag: of the source or of a span of it.
            path: glob over the path, or the name where there is none.
            since: ISO 8601, of the "time" of its metadata.
            hidden: only archived and deleted ones, instead of only the others.
        """
        query = SourceQuery(tag, path, trust_at_least, since, hidden)
        return [info.source for info in source_infos(self._store) if query.holds(info)]

    def info(self, source: str) -> SourceInfo:
        """What is known of a source. Raises: NotFound."""
        return source_info(self._store, source)

    def describe_source(self, source: str, **changes: Any) -> SourceInfo:
        """Set "tags", "time", "trust" or any other field of a source's metadata; None removes it.

        Raises: NotFound, InvalidArgument for tags that are no words or a trust outside [0, 1].
        """
        self._writer("describe_source")
        with self._lock:
            return update_metadata(self._store, source, **changes)

    def annotate(
        self, source: str, start: int, end: int, tags: Iterable[str] = (), note: str = ""
    ) -> SourceInfo:
        """Say something of tokens [start, end) of a source. An edit before `end` takes it away.

        Raises: NotFound, InvalidArgument for a span outside the source.
        """
        self._writer("annotate")
        with self._lock:
            return annotate(self._store, source, SpanNote(start, end, tuple(tags), note))

    def replace(
        self, source: str, text: str | Path, metadata: dict[str, Any] | None = None
    ) -> IngestReport:
        """Edit a source: it becomes `text` (a `Path` is read), as if that had been ingested.

        Only what follows the block of the first change is stored and indexed anew; gists before it
        are kept. One change: after a crash the source is the old one or the new one, whole.

        Raises: NotFound for an unknown source, InvalidArgument for a read-only memory.
        """
        ingestor = self._writer("replace")
        given = file_source(text, source) if isinstance(text, Path) else text_source(source, text)
        with self._lock:
            report = ingestor.replace(given, metadata)
        self._parts.history.forget(report.partition)
        self._parts.access.forget(report.partition)
        return report

    def forget(self, source: str, *, purge: bool = True, everywhere: bool = False) -> None:
        """Erase a source: text, rows, terms, name and metadata. It is gone for every later reader
        when this returns. With `purge` so are its bytes from every file of the memory (cost: one
        rewrite of the files that held any); without, they go with the next `purge`. With
        `everywhere` they also go from the object stores, see `purge`.

        Raises: NotFound for an unknown source, InvalidArgument for a read-only memory; as `purge`.
        """
        self._writer("forget")
        with self._lock:
            known = self._store.find_partition(source)
            if known is None:
                raise NotFound(f"[forget] source must be known, got {source!r}")
            self._store.erase_partition(known.id)
            self._store.commit()
            self._parts.history.refresh()
            self._parts.access.forget(known.id)
            forget_traces(self._store.path, source)
            if purge or everywhere:
                self.purge(everywhere=everywhere)

    def purge(self, *, everywhere: bool = False) -> EraseReport | None:
        """Give back the bytes of everything that was erased, replaced or dropped.

        Args:
            everywhere: also at every object store that this memory was ever pushed to, mirrors
                included: the purged state is published, and everything else there is removed.

        Raises: with `everywhere`, ErasureIncomplete when a store could not be cleaned (`remaining`
        names what may still be there; call again when it is back), Fenced when another machine is
        the writer now. This memory itself is purged all the same.
        """
        self._writer("purge")
        with self._lock:
            self._store.purge()
            return erase_everywhere(self._store.path) if everywhere else None

    def refresh(self, maker: RowMaker, seconds: float | None = None) -> RefreshReport:
        """Make the rows that `maker`'s version lacks, until all are there or the time is over; the
        next call goes on."""
        self._writer("refresh")
        return refresh(self._store, maker, seconds=seconds, lock=self._lock)

    def refresh_in_background(self, maker: RowMaker) -> BackgroundRefresh:
        """The same on a thread of its own; closing the memory ends it after the batch in work."""
        self._writer("refresh")
        self._background.append(BackgroundRefresh(self._store, maker, self._lock))
        return self._background[-1]

    def backup(self, path: str | Path) -> None:
        """Copy the memory as it is now to a new directory, what lies beside it included, and check
        the copy; see `backup_memory`."""
        backup_memory(self._store, path)

    def export(self, out: TextIO, *, text: bool = True) -> int:
        """Write sources, tokens and metadata as JSON lines; returns the number of sources."""
        return export_store(self._store, out, self._parts.base.tokenizer if text else None)

    def import_lines(self, lines: Iterable[str]) -> ImportReport:
        """Take in what `export` wrote; see transfer/README.md."""
        ingestor = self._writer("import_lines")
        with self._lock:
            return import_lines(lines, self._store, ingestor, self._parts.base.tokenizer.hash)

    def _writer(self, verb: str) -> Ingestor:
        if self._ingestor is None:
            raise InvalidArgument(f"[{verb}] store must be open for writing, {self._store.path} "
                                  "is open read-only")  # fmt: skip
        return self._ingestor

    def _end_work(self) -> None:
        """Stop refreshes and keep what was counted."""
        for work in self._background:
            work.stop()
        if self._ingestor is not None:
            self._parts.access.keep(self._store)
