"""Random rows of 4 KiB into the caller's buffer, all in memory already."""

from __future__ import annotations

from pathlib import Path

import lmdb
import numpy as np
import torch

from benchmarks.harness import Bench, Case
from benchmarks.storage.bench_append import scratch
from megacontext_ext import Store

TESTS = "tests/ext/test_store.py"
WIDTH = 1024  # float32: 4 KiB a row
BATCH = 1024
# torch.index_select of a memory map is one memcpy a row; ours checks bounds and pages besides.
GOALS = {"torch memory map": 1 / 1.2, "LMDB": 3.0, "numpy memory map": 1.0}


def run(bench: Bench) -> None:
    rows = 2048 if bench.smoke else 65_536
    with scratch() as directory:
        values = np.random.default_rng(0).standard_normal((rows, WIDTH), np.float32)
        _run_rows(bench, directory, values)


def _run_rows(bench: Bench, directory: Path, values: np.ndarray) -> None:
    rows = len(values)
    store = Store.create(directory / "store", {"model": "bench"})
    store.add_partition("rows")
    store.append_tokens(0, np.zeros(32 * rows, np.uint32))
    store.define_rows("gist", 1, "f32", WIDTH)
    store.put_rows("gist", 0, 0, values)
    store.checkpoint()
    plain = directory / "rows.f32"
    values.tofile(plain)
    peer = lmdb.open(str(directory / "lmdb"), map_size=1 << 40, sync=False, readahead=False)
    with peer.begin(write=True) as transaction:
        for i, row in enumerate(values):
            transaction.put(i.to_bytes(8, "big"), row.tobytes(), append=True)

    random = np.random.default_rng(1)
    indices = random.integers(0, rows, BATCH).astype(np.uint64)
    partitions = np.zeros(BATCH, np.uint32)
    out = np.empty((BATCH, WIDTH), np.float32)
    mapped = np.memmap(plain, np.float32, mode="r", shape=(rows, WIDTH))
    tensor = torch.from_file(str(plain), size=rows * WIDTH, dtype=torch.int32).view(rows, WIDTH)
    torch_indices = torch.from_numpy(indices.astype(np.int64))
    torch_out = torch.empty(BATCH, WIDTH, dtype=torch.int32)
    keys = [int(i).to_bytes(8, "big") for i in indices]

    def gather_lmdb() -> np.ndarray:
        with peer.begin(buffers=True) as transaction:
            for place, key in enumerate(keys):
                out[place] = np.frombuffer(transaction.get(key), np.float32)
        return out

    expected = values[indices]
    assert np.array_equal(store.gather_rows("gist", partitions, indices, out), expected)
    assert np.array_equal(gather_lmdb(), expected)
    params = {"rows": BATCH, "of": rows, "row_bytes": WIDTH * 4}
    measured = bench.compare(
        Case("gather", params, 2 * BATCH * WIDTH * 4),
        lambda: store.gather_rows("gist", partitions, indices, out) is None,
        {
            "torch memory map": lambda: (
                torch.index_select(tensor, 0, torch_indices, out=torch_out) is None
            ),
            "numpy memory map": lambda: (
                np.take(mapped, indices, axis=0, out=out, mode="clip") is None
            ),
            "LMDB": lambda: gather_lmdb() is None,
        },
        GOALS,
    )
    for name, samples in measured.items():
        print(f"    {samples.median / BATCH * 1e6:8.2f} us a row  {name}")
    store.close()
    peer.close()
