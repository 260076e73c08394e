"""Whether cost stays flat: append, open, gather and memory of stores of 1M, 10M and 100M tokens.

Tokens are the bytes of Python's own sources, repeated. `python -m benchmarks.storage.bench_scale
raw.jsonl scale.png` draws the curves of a result folder.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.harness import Bench, Case
from benchmarks.storage.bench_append import scratch
from megacontext_ext import Store

TESTS = "tests/ext/test_store.py"
PIECE = 1_000_000  # tokens a commit
ROW_BYTES = 64  # a row a block
BATCH = 1024


def real_ids(count: int) -> np.ndarray:
    text = b"".join(
        path.read_bytes() for path in sorted(Path(json.__file__).parent.parent.glob("*.py"))
    )
    return np.resize(np.frombuffer(text, np.uint8), count).astype(np.uint32)


def anonymous_bytes() -> int:
    """Memory of this process that is not a mapped file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


def run(bench: Bench) -> None:
    sizes = (20_000, 40_000) if bench.smoke else (1_000_000, 10_000_000, 100_000_000)
    costs = [_run_size(bench, tokens) for tokens in sizes]
    for name in ("append", "open", "gather"):
        bench.record_ratio(f"{name}: smallest over largest", costs[0][name] / costs[-1][name])


def _append(path: Path, tokens: int) -> list[float]:
    """Seconds of each piece, its share of sealing included."""
    ids = real_ids(min(PIECE, tokens))
    rows = np.zeros((len(ids) // 32, ROW_BYTES), np.uint8)
    seconds = []
    with Store.create(path, {"model": "bench"}) as store:
        store.add_partition("all")
        store.define_rows("row", 1, "u8", ROW_BYTES)
        for piece in range(tokens // len(ids)):
            start = time.perf_counter()
            store.append_tokens(0, ids)
            rows[:, 0] = piece % 251
            store.put_rows("row", 0, piece * len(rows), rows)
            store.commit()
            seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        store.checkpoint()
        seconds[-1] += time.perf_counter() - start
    return seconds


def _run_size(bench: Bench, tokens: int) -> dict[str, float]:
    params = {"tokens": tokens}
    with scratch() as directory:
        appends = _append(directory / "store", tokens)
        each = sum(appends) / tokens
        bench.record(Case("append a million tokens", params), "megacontext", [each * 1e6])
        random = np.random.default_rng(0)
        opens, gathers, grown = [], [], 0
        for _ in range(3 if bench.smoke else 9):
            before = anonymous_bytes()
            start = time.perf_counter()
            store = Store.open(directory / "store", read_only=True)
            first = store.read_tokens(0, tokens // 2, tokens // 2 + 32)
            opens.append(time.perf_counter() - start)
            grown = max(grown, anonymous_bytes() - before)
            assert len(first) == 32
            indices = random.integers(0, store.row_count("row", 0), BATCH).astype(np.uint64)
            out = np.empty((BATCH, ROW_BYTES), np.uint8)
            partitions = np.zeros(BATCH, np.uint32)
            store.gather_rows("row", partitions, indices, out)  # pages checked here
            start = time.perf_counter()
            for _ in range(10):
                store.gather_rows("row", partitions, indices, out)
            gathers.append((time.perf_counter() - start) / 10)
            store.close()
        bench.record(Case("open and read 32", params), "megacontext", opens)
        bench.record(Case("gather 1,024 rows", params), "megacontext", gathers)
        bench.record(Case("memory of opening, MB", params), "megacontext", [grown / 1e6])
        print(f"    {grown / 1e6:.1f} MB of memory grew by opening {tokens:,} tokens")
        return {"append": each, "open": min(opens), "gather": min(gathers)}


def draw(raw: Path, picture: Path) -> None:
    """The last run of this benchmark in `raw`, one curve a case, relative to its smallest size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = [json.loads(line) for line in raw.read_text().splitlines()]
    curves: dict[str, dict[int, float]] = {}
    for record in records:
        if record["kind"] == "line" and record["bench"] == "storage/scale":
            curves.setdefault(record["case"], {})[record["params"]["tokens"]] = record["median_s"]
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, points in curves.items():
        sizes = sorted(points)
        first = points[sizes[0]] or 1.0
        axes.plot(sizes, [points[size] / first for size in sizes], marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="cost over that of 1M tokens")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
