"""Ingest one line of 100 MB without white space: memory must stay bounded.

Peer: 1 GB of resident memory above the model's. The smoke size is 1 MB.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.harness import Bench, Case
from megacontext import memory as memories
from megacontext.models import load

TESTS = ["tests/python/runtime/test_pieces.py"]

PORTION = "abcdefgh" * 8192  # 64 KiB


def run(bench: Bench) -> None:
    base = load("smollm2")
    process = psutil.Process()
    bare, peak = process.memory_info().rss, 0
    megabytes = 1 if bench.smoke else 100

    def note(_: object) -> None:
        nonlocal peak
        peak = max(peak, process.memory_info().rss)

    def line() -> Iterator[str]:
        for _ in range(megabytes * 16):
            yield PORTION

    with (
        tempfile.TemporaryDirectory() as folder,
        memories.open(Path(folder) / "m", base) as memory,
    ):
        began = time.perf_counter()
        (report,) = memory.ingest(line(), source="line", progress=note)
        seconds = time.perf_counter() - began
        assert report.characters == megabytes << 20
    case = Case("one line", {"megabytes": megabytes, "tokens": report.total_tokens})
    bench.record(case, "megacontext", [seconds])
    print(f"    peak {(peak - bare) / 1e6:,.0f} MB above the model's {bare / 1e6:,.0f} MB")
    bench.record_ratio("1 GB over peak memory", 1e9 / max(peak - bare, 1), 1.0)
