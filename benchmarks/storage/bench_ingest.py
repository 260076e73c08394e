"""Tokens, character starts and text of blocks made durable, against SQLite with FTS5."""

from __future__ import annotations

import sqlite3
from itertools import count
from pathlib import Path

import numpy as np

from benchmarks.harness import Bench, Case
from benchmarks.storage.bench_append import scratch
from megacontext_ext import Store

TESTS = "tests/ext/test_store.py"
BLOCK = 32
WORDS_A_BLOCK = 24


def block_texts(blocks: int) -> list[str]:
    """Words with the frequencies of a language: rank r about as often as 1/r."""
    random = np.random.default_rng(0)
    ranks = random.zipf(1.2, (blocks, WORDS_A_BLOCK)) % 30_000
    return [" ".join(f"w{rank:x}ord" for rank in row) for row in ranks]


def run(bench: Bench) -> None:
    blocks = 64 if bench.smoke else 2048
    with scratch() as directory:
        _run_documents(bench, directory, blocks)


def _run_documents(bench: Bench, directory: Path, blocks: int) -> None:
    texts = block_texts(blocks)
    tokens = np.random.default_rng(1).integers(0, 50_000, blocks * BLOCK).astype(np.uint32)
    starts = (np.arange(len(tokens)) * 4).astype(np.uint64)
    store = Store.create(directory / "store", {"model": "bench"})
    peer = sqlite3.connect(directory / "peer.db")
    peer.execute("pragma journal_mode=wal")
    peer.execute("pragma synchronous=full")
    peer.execute("create table block(id integer primary key, tokens blob, start integer)")
    peer.execute("create virtual table text using fts5(body, content='')")
    ours, theirs = count(), count(0, blocks)
    blobs = [tokens[i : i + BLOCK].tobytes() for i in range(0, len(tokens), BLOCK)]

    def ingest() -> None:
        partition = store.add_partition(f"document {next(ours)}")
        store.append_tokens(partition, tokens, starts)
        store.index_text(partition, 0, texts)
        store.commit()

    def insert() -> None:
        first = next(theirs)
        ids = range(first, first + blocks)
        peer.executemany(
            "insert into block values (?, ?, ?)",
            zip(ids, blobs, starts[::BLOCK].tolist(), strict=True),
        )
        peer.executemany(
            "insert into text(rowid, body) values (?, ?)", zip(ids, texts, strict=True)
        )
        peer.commit()

    measured = bench.compare(
        Case("ingest a document", {"tokens": len(tokens), "blocks": blocks}),
        ingest,
        {"SQLite FTS5": insert},
        {"SQLite FTS5": 1.0},
    )
    for name, samples in measured.items():
        print(f"    {len(tokens) / samples.median:12,.0f} tokens/s  {name}")
    store.close()
    peer.close()
