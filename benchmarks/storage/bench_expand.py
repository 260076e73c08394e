"""Expanding blocks: the 32 children of each of 256 random nodes, cold, in one call."""

from __future__ import annotations

import statistics

import numpy as np

from benchmarks.harness import Bench, Case
from benchmarks.storage.bench_append import scratch
from benchmarks.storage.bench_gather_cold import OURS, WIDTH, cold_rounds, fio_bytes_per_s
from benchmarks.storage.peers import Lmdb, NumpyMap, TorchMap

TESTS = "tests/ext/test_store_reads.py"
CHILDREN = 32
GOAL_OF_DEVICE = 0.8
BLOCK_BYTES = CHILDREN * WIDTH * 4


def run(bench: Bench) -> None:
    rows, rounds, blocks = (2048, 1, 8) if bench.smoke else (65_536, 5, 256)
    with scratch() as directory:
        values = np.random.default_rng(0).standard_normal((rows, WIDTH), np.float32)
        peers = [*OURS, Lmdb(), NumpyMap(), TorchMap()]
        for peer in peers:
            peer.fill(directory, values)
        random = np.random.default_rng(1)
        batches = []
        for _ in range(rounds):
            nodes = random.choice(rows // CHILDREN, blocks, replace=False).astype(np.uint64)
            batches.append(
                (nodes[:, None] * CHILDREN + np.arange(CHILDREN, dtype=np.uint64)).ravel()
            )
        params = {"blocks": blocks, "block_bytes": BLOCK_BYTES}
        case = Case("expand", params, cold=True)
        before = None if bench.smoke else fio_bytes_per_s(directory / "rows.bin", BLOCK_BYTES, 64)
        medians = cold_rounds(bench, case, directory, values, peers, batches)
        for name, median in medians.items():
            if name != "megacontext":
                bench.record_ratio(f"expand vs {name}", median / medians["megacontext"])
        if before is not None:
            after = fio_bytes_per_s(directory / "rows.bin", BLOCK_BYTES, 64)
            device = statistics.mean([before, after or before])
            print(f"    {device / 1e9:.2f} GB/s  fio, blocks of {BLOCK_BYTES >> 10} KiB")
            ours = blocks * BLOCK_BYTES / medians["megacontext"]
            bench.record_ratio("expand vs device", ours / device, GOAL_OF_DEVICE)
