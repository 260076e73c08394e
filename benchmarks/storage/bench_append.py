"""Durable appends of 4 KiB rows against LMDB: each commit is on the disk when it returns.

"commit of N rows" times every commit on its own; its median leaves out the one in some sixty that
seals 64 MiB. "sustained" is all of it. "longest commit" is what a writer waits at worst when its
segments become so many that they are merged, by a thread beside it or by itself.
"""

from __future__ import annotations

import mmap
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, cycle
from pathlib import Path

import lmdb
import numpy as np

from benchmarks.harness import Bench, Case
from megacontext_ext import Store, StoreOptions

TESTS = "tests/ext/test_store.py"
ROW_BYTES = 4096
# A bare pre-written log file reached 1.5-4.8x, 2.7-3.9x and 9.5-16x of LMDB on a machine like this.
GOALS = {1: 1.3, 32: 2.5, 256: 8.0}
ROUNDS, COMMITS_A_ROUND = 15, 20


@contextmanager
def scratch() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="mc_bench_"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def run(bench: Bench) -> None:
    for pages in (1, 32) if bench.smoke else (1, 32, 256):
        with scratch() as directory:
            _run_commits(bench, directory, pages)
    with scratch() as directory:
        _run_sustained(bench, directory)
    with scratch() as directory:
        _run_merging(bench, directory)
    with scratch() as directory:
        _run_limit(bench, directory)


def _open_both(directory: Path, pages: int) -> tuple[Store, lmdb.Environment]:
    store = Store.create(directory / "store", {"model": "bench"})
    store.add_partition("rows")
    store.define_rows("page", 0, "u8", ROW_BYTES)
    store.append_tokens(0, np.zeros(4_000_000 if pages > 8 else 1_000_000, np.uint32))
    store.checkpoint()
    # Its best settings: pages are taken from the end, nothing is copied twice.
    peer = lmdb.open(
        str(directory / "lmdb"),
        map_size=1 << 40,
        subdir=True,
        sync=True,
        metasync=True,
        writemap=False,
    )
    return store, peer


def _run_commits(bench: Bench, directory: Path, pages: int) -> None:
    store, peer = _open_both(directory, pages)
    rows = np.random.default_rng(0).integers(0, 256, (pages, ROW_BYTES), np.uint8)
    blobs = [row.tobytes() for row in rows]
    ours, theirs = count(0, pages), count(0, pages)

    def append() -> None:
        store.put_rows("page", 0, next(ours), rows)
        store.commit()

    def put() -> None:
        first = next(theirs)
        with peer.begin(write=True) as transaction:
            for i, blob in enumerate(blobs):
                transaction.put((first + i).to_bytes(8, "big"), blob, append=True)

    case = Case(
        f"commit of {pages} rows", {"rows": pages, "row_bytes": ROW_BYTES}, pages * ROW_BYTES
    )
    ours_s, theirs_s = [], []
    for _ in range(1 if bench.smoke else ROUNDS):
        ours_s += _seconds_each(append, 2 if bench.smoke else COMMITS_A_ROUND)
        theirs_s += _seconds_each(put, 2 if bench.smoke else COMMITS_A_ROUND)
    bench.record(case, "megacontext", ours_s)
    bench.record(case, "LMDB", theirs_s)
    ratio = statistics.median(theirs_s) / statistics.median(ours_s)
    bench.record_ratio(f"commit of {pages} rows vs LMDB", ratio, GOALS[pages])
    store.close()
    peer.close()


def _seconds_each(call: Callable[[], None], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def _run_sustained(bench: Bench, directory: Path) -> None:
    """All of it, sealing into segments included: what a long ingest sees."""
    pages, commits = (32, 2) if bench.smoke else (256, 192)
    store, peer = _open_both(directory, pages)
    rows = np.random.default_rng(0).integers(0, 256, (pages, ROW_BYTES), np.uint8)
    blobs = [row.tobytes() for row in rows]
    ours, theirs = [], []
    for round_ in range(1 if bench.smoke else 3):
        start = time.perf_counter()
        for i in range(commits):
            store.put_rows("page", 0, (round_ * commits + i) * pages, rows)
            store.commit()
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        for i in range(commits):
            first = (round_ * commits + i) * pages
            with peer.begin(write=True) as transaction:
                for j, blob in enumerate(blobs):
                    transaction.put((first + j).to_bytes(8, "big"), blob, append=True)
        theirs.append(time.perf_counter() - start)
    case = Case("sustained", {"rows": pages, "commits": commits}, pages * commits * ROW_BYTES)
    bench.record(case, "megacontext", ours)
    bench.record(case, "LMDB", theirs)
    bench.record_ratio("sustained vs LMDB", statistics.median(theirs) / statistics.median(ours))
    store.close()
    peer.close()


def _run_merging(bench: Bench, directory: Path) -> None:
    """Commits until segments have been merged twice over."""
    rows = np.random.default_rng(0).integers(0, 256, (256, ROW_BYTES), np.uint8)
    # Smoke: the same with small segments.
    unsealed, commits = (4 << 20, 48) if bench.smoke else (64 << 20, 768)
    longest = {}
    for merges in ("inline", "beside"):
        options = StoreOptions(unsealed_bytes=unsealed, merges=merges)
        with Store.create(directory / merges, {"model": "bench"}, options) as store:
            store.add_partition("rows")
            store.define_rows("page", 0, "u8", ROW_BYTES)
            store.append_tokens(0, np.zeros(commits * len(rows), np.uint32))
            store.checkpoint()
            seconds = []
            for number in range(commits):
                began = time.perf_counter()
                store.put_rows("page", 0, number * len(rows), rows)
                store.commit()
                seconds.append(time.perf_counter() - began)
        longest[merges] = max(seconds)
        case = Case("longest commit", {"commits": commits}, rows.nbytes)
        bench.record(case, f"merges {merges}", [longest[merges]])
    bench.record_ratio(
        "longest commit, merged inline over beside", longest["inline"] / longest["beside"]
    )


def _run_limit(bench: Bench, directory: Path) -> None:
    """What the disk takes for the bytes of a commit, in a file whose blocks were written before."""
    byte_count, length = 256 * ROW_BYTES, (4 if bench.smoke else 64) << 20
    path = directory / "ring"
    path.write_bytes(bytes(length))
    block = mmap.mmap(-1, byte_count)  # aligned, as direct writes want it
    block.write(np.random.default_rng(0).bytes(byte_count))
    cached = os.open(path, os.O_WRONLY)
    direct = os.open(path, os.O_WRONLY | os.O_DIRECT)
    os.fsync(cached)
    offsets = cycle(range(0, length, byte_count))

    def write_and_sync() -> None:
        os.pwritev(cached, [block], next(offsets))
        os.fdatasync(cached)

    def write_durably() -> None:
        os.pwritev(direct, [block], next(offsets), os.RWF_DSYNC)

    case = Case("the bytes of 256 rows, bare", {"bytes": byte_count}, byte_count)
    for name, call in (("pwrite, fdatasync", write_and_sync), ("direct, durable", write_durably)):
        bench.record(case, name, _seconds_each(call, 2 if bench.smoke else 60))
    os.close(cached)
    os.close(direct)
