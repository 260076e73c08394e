"""Reading and checking every byte of a store on one core, from memory."""

from __future__ import annotations

import zlib

import numpy as np

from benchmarks.harness import Bench, Case
from benchmarks.storage.bench_append import scratch
from benchmarks.storage.bench_gather_cold import WIDTH, Ours
from megacontext_ext import Store

TESTS = "tests/ext/test_store.py"
GOAL_BYTES_PER_S = 1e9


def run(bench: Bench) -> None:
    rows = 2048 if bench.smoke else 65_536
    with scratch() as directory:
        values = np.random.default_rng(0).standard_normal((rows, WIDTH), np.float32)
        Ours("megacontext", "mapped").fill(directory, values)
        plain = values.tobytes()
        with Store.open(directory / "store", read_only=True) as store:
            store_bytes = int(store.stats()["segment_bytes"])
            measured = bench.compare(
                Case("scrub", {"bytes": store_bytes}),
                lambda: store.check(),
                {"zlib.crc32 of the rows": lambda: zlib.crc32(plain) < 0},
            )
        rate = store_bytes / measured["megacontext"].median
        print(f"    {rate / 1e9:.2f} GB/s")
        bench.record_ratio("scrub vs 1 GB/s", rate / GOAL_BYTES_PER_S, 1.0)
