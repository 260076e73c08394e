"""Stores that released versions wrote open for ever.

`stores/v1` was written by `write_store` below with the first version of the format, `stores/v2` by
it and `take_away` with the second, `stores/v2-scaled` by these and `put_scaled` with its first
feature. They are never written again: a new format adds a folder.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import megacontext_ext as mx

STORES = Path(__file__).parent / "stores"
DTYPES = {"f32": "f4", "bf16": "u2", "f16": "f2", "i8": "i1", "u8": "u1"}
SCALED = {"q8": 0.006, "e4m3": 0.05, "q4": 0.1}  # the largest error of `scaled_rows`
OPTIONS = mx.StoreOptions(wal_first_file_bytes=16384, wal_most_file_bytes=16384)
TEXTS = [f"block number {i}" for i in range(32)]
TAIL_TEXTS = ["only here: quokka", "and more"]


def rows_of(dtype: str) -> np.ndarray:
    return (np.arange(32 * 4).reshape(32, 4) % 100).astype(DTYPES[dtype])


def write_store(path: Path) -> None:
    """Sealed segments of every row type and postings, then a WAL with every kind of change."""
    with mx.Store.create(path, {"model": "golden", "tokenizer": "none"}, OPTIONS) as store:
        first = store.add_partition("first.txt", '{"kind": "golden"}')
        store.append_tokens(first, np.arange(1000) * 3, np.arange(1000) * 4)
        for dtype in DTYPES:
            store.define_rows(dtype, 1, dtype, 4)
            store.put_rows(dtype, first, 0, rows_of(dtype))
        store.index_text(first, 0, TEXTS)
        store.checkpoint()
        store.define_rows("late", 2, "u8", 1)
        store.put_rows("f32", first, 5, np.full((2, 4), -1, np.float32))
        second = store.add_partition("second.txt")
        store.set_metadata(second, '{"late": true}')
        store.append_tokens(second, np.arange(70))
        store.index_text(second, 0, TAIL_TEXTS)


def take_away(path: Path) -> None:
    """What version 2 brought: cuts in the manifest and in the WAL, flags, sources that come and go
    without changing what `compare` looks at."""
    with mx.Store.open(path, options=OPTIONS) as store:
        third = store.add_partition("third.txt")
        store.append_tokens(third, np.arange(200))
        store.index_text(third, 0, ["quokka"] * 6)
        fourth = store.add_partition("fourth.txt")
        store.define_rows("gone", 1, "u32", 1)
        store.checkpoint()
        store.replace_tail(third, 40, [7, 8, 9], [1, 2, 3], '{"edited": true}')
        store.drop_rows("gone")
        store.checkpoint()
        store.replace_tail(third, 35, [1])
        store.clear_rows("late", 0)
        store.set_hidden(third, True)
        store.erase_partition(fourth)


def scaled_rows() -> np.ndarray:
    return np.sin(np.arange(32 * 10, dtype=np.float32)).reshape(32, 10)


def put_scaled(path: Path) -> None:
    """Families of scaled types, sealed and in the WAL, and a plain one that was re-encoded."""
    with mx.Store.open(path, options=OPTIONS) as store:
        for dtype in SCALED:
            store.define_rows(dtype, 1, dtype, 10, 4)
            store.put_rows(dtype, 0, 0, scaled_rows()[:20])
        store.define_rows("cold", 1, "bf16", 10)
        store.put_rows("cold", 0, 0, scaled_rows()[:20])
        store.reencode("cold", "q8")
        for name in (*SCALED, "cold"):
            store.put_rows(name, 0, 20, scaled_rows()[20:])
        store.define_rows("late-q8", 1, "q8", 10)
        store.put_rows("late-q8", 0, 0, scaled_rows()[:1])


def compare_scaled(store: mx.Store) -> None:
    for name, most_error in {**SCALED, "cold": 0.01, "late-q8": 0.01}.items():
        rows = store.read_rows(name, 0, 0, store.row_count(name, 0), dtype="f32")
        assert len(rows) == (1 if name == "late-q8" else 32)
        error = np.abs(rows - scaled_rows()[: len(rows)]).max()
        assert most_error / 20 < error < most_error
    assert store.read_rows("cold", 0, 0, 32).dtype == np.uint16
    families = {family.name: family for family in store.row_families()}
    assert [families[name].group_size for name in (*SCALED, "cold", "late-q8")] == [4, 4, 4, 0, 10]


def compare_taken(store: mx.Store) -> None:
    third = store.partition(2)
    assert (third.source, third.token_count, third.hidden) == ("third.txt", 36, True)
    assert third.metadata_json == '{"edited": true}'
    assert store.read_tokens(2, 0, 36).tolist() == [*range(35), 1]
    assert store.indexed_blocks(2) == 1
    assert store.find_partition("fourth.txt") is None


def compare(store: mx.Store) -> None:
    assert store.identity == {"model": "golden", "tokenizer": "none"}
    first, second, *_ = store.partitions()
    assert (first.source, first.metadata_json, first.token_count) == (
        "first.txt",
        '{"kind": "golden"}',
        1000,
    )
    assert (second.source, second.metadata_json, second.token_count) == (
        "second.txt",
        '{"late": true}',
        70,
    )
    assert store.read_tokens(0, 0, 1000).tolist() == list(range(0, 3000, 3))
    assert store.read_tokens(1, 0, 70).tolist() == list(range(70))
    assert store.block_char_starts(0, 0, 32).tolist() == list(range(0, 4096, 128))
    for dtype in DTYPES:
        expected = rows_of(dtype)
        if dtype == "f32":
            expected[5:7] = -1
        np.testing.assert_array_equal(store.read_rows(dtype, 0, 0, 32), expected)
    assert [f.name for f in store.row_families()][:6] == [*DTYPES, "late"]
    assert store.search("quokka", 3)[0].tolist() == [1]
    assert store.search("17", 3)[1].tolist() == [17]
    store.check()


@pytest.mark.parametrize("version", sorted(p.name for p in STORES.iterdir()))
def test_a_store_of_every_released_format_opens_reads_and_grows(version, tmp_path):
    with mx.Store.open(STORES / version, read_only=True) as store:
        compare(store)
        if version != "v1":
            compare_taken(store)
        if version == "v2-scaled":
            compare_scaled(store)
    copy = tmp_path / version
    shutil.copytree(STORES / version, copy)
    with mx.Store.open(copy) as store:
        compare(store)
        store.append_tokens(1, [70])
        store.checkpoint()
        if version == "v2-scaled":
            compare_scaled(store)
        assert store.read_tokens(1, 69, 71).tolist() == [69, 70]
        store.check()


def test_the_writer_of_the_golden_store_still_means_the_same(tmp_path):
    write_store(tmp_path / "fresh")
    take_away(tmp_path / "fresh")
    put_scaled(tmp_path / "fresh")
    with mx.Store.open(tmp_path / "fresh") as store:
        compare(store)
        compare_taken(store)
        compare_scaled(store)
