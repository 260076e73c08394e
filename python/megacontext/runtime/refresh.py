"""Gist rows of several versions side by side: what is missing, made lazily or in the background.

A version is a row family of its own, named `<name>@<version>`. Rows of a family are made front to
back in each source, so how far it has come is its row count: whatever interrupts a refresh, the
next one goes on there, and an edit, which cuts the rows behind it, makes them due again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from megacontext.config import K
from megacontext.models import TokenArray
from megacontext_ext import Store
from megacontext_ext.errors import InvalidArgument
from megacontext_ext.store import SCALED_DTYPES, FloatDtype, RowDtype

# Tokens whose rows are made and committed at once.
_BATCH_TOKENS = 1 << 16


class RowMaker(Protocol):
    """Makes the rows of one version of one kind of gist."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def lod(self) -> int: ...
    @property
    def dtype(self) -> RowDtype: ...
    @property
    def width(self) -> int: ...

    def rows(self, tokens: TokenArray) -> NDArray[Any]:
        """Rows [N, width] of whole nodes from their tokens [N, K**lod]; in `dtype` (bf16: its bits
        as uint16), float32 where that is q8, e4m3 or q4."""
        ...


@dataclass(frozen=True, slots=True)
class Stale:
    """Whole nodes [start, end) of one source that lack rows."""

    partition: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class RefreshReport:
    """Rows made, and rows still due when it stopped."""

    made: int
    left: int
    seconds: float


def family_name(name: str, version: str) -> str:
    """The row family of one version. Raises: InvalidArgument for an empty part or one with `@`."""
    for part in (name, version):
        if not part or "@" in part:
            raise InvalidArgument(f"[family_name] parts must be words without '@', got {part!r}")
    return f"{name}@{version}"


def versions(store: Store, name: str) -> list[str]:
    """Versions of `name` that the store has rows of, oldest first."""
    families = (family.name.rpartition("@") for family in store.row_families())
    return [version for known, at, version in families if at and known == name]


def drop_version(store: Store, name: str, version: str) -> None:
    """Take a version away. Its bytes go at the next checkpoint. Raises: NotFound."""
    store.drop_rows(family_name(name, version))


def stale(store: Store, maker: RowMaker) -> list[Stale]:
    """Sources with whole nodes that lack rows of the maker's version; all of them before it was
    ever used. Hidden sources wait until they are shown."""
    family = family_name(maker.name, maker.version)
    known = any(found.name == family for found in store.row_families())
    found = []
    for partition in store.partitions():
        start = store.row_count(family, partition.id) if known else 0
        end = partition.token_count // K**maker.lod
        if start < end and not partition.hidden:
            found.append(Stale(partition.id, start, end))
    return found


def lazy_rows(store: Store, maker: RowMaker, partition: int, start: int, end: int) -> NDArray[Any]:
    """Rows of whole nodes [start, end), [end - start, width]: stored ones read, others made, not
    kept."""
    family, span = family_name(maker.name, maker.version), K**maker.lod
    known = any(found.name == family for found in store.row_families())
    there = min(max(store.row_count(family, partition) if known else 0, start), end)
    dtype: FloatDtype | None = "f32" if maker.dtype in SCALED_DTYPES else None
    stored = [store.read_rows(family, partition, start, there, dtype)] if there > start else []
    if there < end:
        tokens = store.read_tokens(partition, there * span, end * span)
        stored.append(maker.rows(tokens.reshape(-1, span)))
    return np.concatenate(stored) if stored else np.zeros((0, maker.width))


def refresh(
    store: Store,
    maker: RowMaker,
    *,
    seconds: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    lock: threading.RLock | None = None,
) -> RefreshReport:
    """Make rows that are due, batch by batch, each durable before the next begins.

    Args:
        seconds: begin no further batch after this time.
        stop: asked before each batch.
        lock: held while reading and writing, not while computing. Who else writes to the store
            holds it too; a batch whose tokens were edited meanwhile is thrown away.
    """
    began, made, guard = time.perf_counter(), 0, lock or threading.RLock()
    with guard:
        store.define_rows(
            family_name(maker.name, maker.version), maker.lod, maker.dtype, maker.width
        )
    while not stop() and (seconds is None or time.perf_counter() - began < seconds):
        with guard:
            due = stale(store, maker)
        if not due:
            break
        made += _make_batch(store, maker, due[0], guard)
    with guard:
        left = sum(item.end - item.start for item in stale(store, maker))
    return RefreshReport(made, left, time.perf_counter() - began)


def _make_batch(store: Store, maker: RowMaker, due: Stale, guard: threading.RLock) -> int:
    """Rows made: 0 when the source changed meanwhile."""
    family, span = family_name(maker.name, maker.version), K**maker.lod
    end = min(due.end, due.start + max(_BATCH_TOKENS // span, 1))

    def tokens() -> TokenArray | None:
        known = {p.id: p.token_count for p in store.partitions()}
        if known.get(due.partition, 0) < end * span:
            return None
        return store.read_tokens(due.partition, due.start * span, end * span)

    with guard:
        before = tokens()
    if before is None:
        return 0
    rows = maker.rows(before.reshape(-1, span))
    with guard:
        now = tokens()
        same = now is not None and np.array_equal(now, before)
        if not same or store.row_count(family, due.partition) != due.start:
            return 0
        store.put_rows(family, due.partition, due.start, np.ascontiguousarray(rows))
        store.commit()
    return end - due.start


class BackgroundRefresh:
    """`refresh` on a thread of its own. `stop()` ends it after the batch in work; what it made
    stays, and another refresh goes on from there."""

    def __init__(self, store: Store, maker: RowMaker, lock: threading.RLock) -> None:
        self._stopping = threading.Event()
        self._report: RefreshReport | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(
            target=self._run, args=(store, maker, lock), name="megacontext-refresh", daemon=True
        )
        self._thread.start()

    def _run(self, store: Store, maker: RowMaker, lock: threading.RLock) -> None:
        try:
            self._report = refresh(store, maker, stop=self._stopping.is_set, lock=lock)
        except Exception as error:  # told to the one who waits
            self._error = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def wait(self, seconds: float | None = None) -> RefreshReport | None:
        """The report once it is done, None when it is not yet. Raises: what the work raised."""
        self._thread.join(seconds)
        if self._error is not None:
            raise self._error
        return self._report

    def stop(self) -> RefreshReport | None:
        """End it and wait."""
        self._stopping.set()
        return self.wait()
