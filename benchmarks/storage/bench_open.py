"""From nothing to the first answer: open a store of many tokens and read 32 of them."""

from __future__ import annotations

import lmdb
import numpy as np

from benchmarks.harness import Bench, Case
from benchmarks.storage.bench_append import scratch
from megacontext_ext import Store

TESTS = "tests/ext/test_store.py"
BLOCK = 32


def run(bench: Bench) -> None:
    for tokens in (10_000,) if bench.smoke else (1_000_000, 10_000_000, 100_000_000):
        _run_size(bench, tokens)


def _run_size(bench: Bench, tokens: int) -> None:
    with scratch() as directory:
        path = directory / "store"
        ids = np.arange(min(tokens, 1_000_000), dtype=np.uint32)
        with Store.create(path, {"model": "bench"}) as store:
            store.add_partition("rows")
            for _ in range(tokens // len(ids)):
                store.append_tokens(0, ids)
            store.checkpoint()
        peer_path = str(directory / "lmdb")
        blocks = min(tokens // BLOCK, 1_000_000)  # LMDB's time does not depend on it
        with (
            lmdb.open(peer_path, map_size=1 << 40, sync=False) as peer,
            peer.begin(write=True) as transaction,
        ):
            for i in range(blocks):
                at = i * BLOCK % len(ids)
                transaction.put(i.to_bytes(8, "big"), ids[at : at + BLOCK].tobytes(), append=True)
        plain = directory / "tokens.u32"
        np.tile(ids, tokens // len(ids)).tofile(plain)
        start = tokens // 2 // BLOCK * BLOCK

        def read_store() -> int:
            with Store.open(path, read_only=True) as store:
                return int(store.read_tokens(0, start, start + BLOCK)[0])

        def read_lmdb() -> int:
            with (
                lmdb.open(peer_path, readonly=True, lock=False) as peer,
                peer.begin() as transaction,
            ):
                key = (blocks // 2).to_bytes(8, "big")
                return len(np.frombuffer(transaction.get(key), np.uint32))

        def read_plain() -> int:
            return int(np.memmap(plain, np.uint32, mode="r")[start : start + BLOCK].copy()[0])

        assert read_store() == read_plain()
        bench.compare(
            Case(f"open {tokens:,} tokens", {"tokens": tokens}),
            read_store,
            {"LMDB": read_lmdb, "numpy memory map": read_plain},
        )
