"""Random rows of 4 KiB that are not in memory, against every peer and against what fio reaches."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.harness import Bench, Case
from benchmarks.storage.bench_append import scratch
from benchmarks.storage.peers import Gather, Peer, forget, installed_peers
from megacontext_ext import Store, StoreOptions

TESTS = "tests/ext/test_store_reads.py"
WIDTH = 1024  # float32: 4 KiB a row
BATCH = 1024
DEPTH = 64
FIO_SECONDS = 3
GOAL_OF_FIO = 0.9


class Ours(Peer):
    """The store with one way of reading; `direct` keeps no page cache, so that it stays cold."""

    def __init__(self, name: str, mode: str, engine: str = "auto") -> None:
        self.name = name
        self.options = StoreOptions(
            read_mode=mode, read_engine=engine, read_depth=DEPTH, page_cache_bytes=0
        )

    def fill(self, directory: Path, values: np.ndarray) -> None:
        if (directory / "store").exists():
            return
        with Store.create(directory / "store", {"model": "bench"}) as store:
            store.add_partition("rows")
            store.append_tokens(0, np.zeros(32 * len(values), np.uint32))
            store.define_rows("gist", 1, "f32", values.shape[1])
            for first in range(0, len(values), 4096):
                store.put_rows("gist", 0, first, values[first : first + 4096])
            store.checkpoint()

    @contextmanager
    def opened(self, directory: Path, values: np.ndarray) -> Iterator[Gather]:
        with Store.open(directory / "store", read_only=True, options=self.options) as store:
            partitions = np.zeros(1 << 16, np.uint32)
            yield lambda indices, out: store.gather_rows(
                "gist", partitions[: len(indices)], indices, out
            )


OURS = [
    Ours("megacontext", "direct"),
    Ours("pread threads", "direct", "threads"),
    Ours("through page cache", "auto"),
    Ours("mapped", "mapped"),
]


def cold_rounds(
    bench: Bench, case: Case, directory: Path, values: np.ndarray, peers: list[Peer], batches: list
) -> dict[str, float]:
    """Median seconds of each peer: caches dropped, opened, then one timed gather; interleaved.

    Each round begins with another peer: what a disk did last counts for what comes next.
    """
    samples: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for place, indices in enumerate(batches):
        out = np.ones((len(indices), values.shape[1]), values.dtype)  # its memory is there
        first = place * len(peers) // len(batches)
        for peer in peers[first:] + peers[:first]:
            samples[peer.name].append(_cold_seconds(peer, directory, values, indices, out))
            assert np.array_equal(out, values[indices]), peer.name
    for name, seconds in samples.items():
        bench.record(case, name, seconds)
        median = statistics.median(seconds)
        rate = len(batches[0]) * values.itemsize * values.shape[1] / median
        print(f"    {median / len(batches[0]) * 1e6:8.2f} us a row, {rate / 1e9:.2f} GB/s  {name}")
    return {name: statistics.median(seconds) for name, seconds in samples.items()}


def _cold_seconds(
    peer: Peer, directory: Path, values: np.ndarray, indices: np.ndarray, out: np.ndarray
) -> float:
    """In a function of its own: a mapping that someone still holds is not dropped, and would warm
    the next peer."""
    forget(directory)
    with peer.opened(directory, values) as gather:
        start = time.perf_counter()
        gather(indices, out)
        return time.perf_counter() - start


def fio_bytes_per_s(path: Path, block_bytes: int, depth: int) -> float | None:
    """Random reads around the page cache with io_uring; None, and a line, without fio."""
    if shutil.which("fio") is None:
        print("  fio: left out, it is not installed (Debian: fio)")
        return None
    command = ["fio", "--name=cold", "--ioengine=io_uring", "--direct=1", "--rw=randread"]
    command += [f"--filename={path}", f"--bs={block_bytes}", f"--iodepth={depth}", "--readonly"]
    command += ["--time_based", f"--runtime={FIO_SECONDS}", "--output-format=json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["jobs"][0]["read"]["bw_bytes"])


def run(bench: Bench) -> None:
    rows, rounds = (2048, 1) if bench.smoke else (98_304, 5)
    batch = 64 if bench.smoke else BATCH
    with scratch() as directory:
        values = np.random.default_rng(0).standard_normal((rows, WIDTH), np.float32)
        peers = OURS + installed_peers()
        for peer in peers:
            peer.fill(directory, values)
        random = np.random.default_rng(1)
        batches = [random.choice(rows, batch, False).astype(np.uint64) for _ in range(rounds)]
        params = {"rows": batch, "of": rows, "row_bytes": WIDTH * 4, "depth": DEPTH}
        case = Case("cold gather", params, cold=True)
        before = None if bench.smoke else fio_bytes_per_s(directory / "rows.bin", 4096, DEPTH)
        medians = cold_rounds(bench, case, directory, values, peers, batches)
        for name, median in medians.items():
            if name != "megacontext":
                bench.record_ratio(f"cold gather vs {name}", median / medians["megacontext"])
        if before is not None:
            steady = Case("steady cold gather", params, cold=True)
            ours = batch * WIDTH * 4 / _steady_seconds(bench, steady, directory, values)
            after = fio_bytes_per_s(directory / "rows.bin", 4096, DEPTH)
            fio = statistics.mean([before, after or before])
            print(f"    {4096 / fio * 1e6:8.2f} us a row  fio, depth {DEPTH}")
            bench.record_ratio("steady cold gather vs fio", ours / fio, GOAL_OF_FIO)
            first = batch * WIDTH * 4 / medians["megacontext"]
            bench.record_ratio("cold gather vs fio", first / fio, GOAL_OF_FIO)


def _steady_seconds(bench: Bench, case: Case, directory: Path, values: np.ndarray) -> float:
    """Like fio, which runs for seconds: one gather after the other, no row twice."""
    batch = case.params["rows"]
    order = np.random.default_rng(2).permutation(len(values)).astype(np.uint64)
    out = np.ones((batch, values.shape[1]), values.dtype)
    seconds = []
    forget(directory)
    with OURS[0].opened(directory, values) as gather:
        for first in range(0, min(len(order), 40 * batch), batch):
            start = time.perf_counter()
            gather(order[first : first + batch], out)
            seconds.append(time.perf_counter() - start)
    bench.record(case, OURS[0].name, seconds)
    return statistics.median(seconds)
