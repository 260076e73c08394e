"""The store through its Python door: every method, and a table of bad calls."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import megacontext_ext as mx
from megacontext_ext import errors
from megacontext_ext.store import NO_CHAR_START

IDENTITY = {"model": "a", "tokenizer": "b"}


@pytest.fixture
def store(tmp_path):
    with mx.Store.create(tmp_path / "memory", IDENTITY) as opened:
        yield opened


def reopened(store: mx.Store) -> mx.Store:
    store.close()
    return mx.Store.open(store.path)


def test_tokens_come_back_and_full_blocks_are_reported(store):
    notes = store.add_partition("notes.txt", '{"kind": "note"}')
    tokens = np.arange(1000, 1100, dtype=np.uint32)
    assert store.append_tokens(notes, tokens[:31]) == (0, 0)
    assert store.append_tokens(notes, tokens[31:32]) == (0, 1)
    assert store.append_tokens(notes, tokens[32:]) == (1, 3)
    assert store.token_count(notes) == 100
    np.testing.assert_array_equal(store.read_tokens(notes, 5, 77), tokens[5:77])
    with reopened(store) as again:
        np.testing.assert_array_equal(again.read_tokens(notes, 0, 100), tokens)
        assert again.identity == IDENTITY
        again.check()


def test_partitions_have_their_own_timelines(store):
    ids = [store.add_partition(f"source {i}") for i in range(5)]
    for i in ids:
        store.append_tokens(i, np.full(i * 7, i, np.uint32))
    store.set_metadata(3, '{"tag": 1}')
    with reopened(store) as again:
        found = again.partitions()
        assert [(p.id, p.token_count) for p in found] == [(i, i * 7) for i in ids]
        assert found[3].metadata_json == '{"tag": 1}'
        assert again.find_partition("source 4") == found[4]
        assert again.find_partition("source 5") is None


def test_char_starts_are_kept_for_each_block_also_a_partial_one(store):
    p = store.add_partition("a")
    starts = np.cumsum(np.arange(70)).astype(np.uint64)
    store.append_tokens(p, np.zeros(40, np.uint32), starts[:40])
    store.append_tokens(p, np.zeros(30, np.uint32), starts[40:])
    store.append_tokens(p, np.zeros(60, np.uint32))
    got = store.block_char_starts(p, 0, 5)
    assert got.tolist() == [*starts[[0, 32, 64]].tolist(), NO_CHAR_START, NO_CHAR_START]


@pytest.mark.parametrize(
    ("dtype", "numpy_dtype"),
    [("f32", "f4"), ("bf16", "u2"), ("f16", "f2"), ("i8", "i1"), ("u8", "u1")],
)
def test_rows_of_every_dtype_are_appended_overwritten_and_gathered(store, dtype, numpy_dtype):
    p = store.add_partition("a")
    store.append_tokens(p, np.zeros(32 * 50, np.uint32))
    store.define_rows("gist", 1, dtype, 7)
    rows = np.arange(50 * 7).reshape(50, 7).astype(numpy_dtype)
    store.put_rows("gist", p, 0, rows[:20])
    store.put_rows("gist", p, 20, rows[20:])
    store.checkpoint()
    rows[10:15] += 1
    store.put_rows("gist", p, 10, rows[10:15])
    indices = np.array([49, 0, 12, 12, 33])
    for opened in (store, reopened(store)):
        assert opened.row_count("gist", p) == 50
        np.testing.assert_array_equal(opened.read_rows("gist", p, 3, 47), rows[3:47])
        out = np.zeros((5, 7), numpy_dtype)
        opened.gather_rows("gist", np.zeros(5, np.uint32), indices, out)
        np.testing.assert_array_equal(out, rows[indices])
        assert opened.row_families() == [mx.RowFamily("gist", 1, dtype, 7)]


def test_search_finds_a_block_before_and_after_sealing_and_reopening(store):
    p = store.add_partition("a")
    store.append_tokens(p, np.zeros(32 * 10, np.uint32))
    store.index_text(p, 0, [f"common words {i}" for i in range(5)])
    store.index_text(p, 5, ["the needle", "common", "needles needle", "", "common words"])
    assert store.indexed_blocks(p) == 10

    def hits(opened):
        partitions, blocks, scores = opened.search("Needle?", 5)
        assert partitions.dtype == np.uint32
        assert scores.dtype == np.float32
        return partitions.tolist(), blocks.tolist(), scores.tolist()

    expected = hits(store)
    assert sorted(expected[1]) == [5, 7]
    store.checkpoint()
    assert hits(store) == expected
    with reopened(store) as again:
        assert hits(again) == expected
        again.check()


def test_a_snapshot_stays_while_the_store_goes_on(store):
    p = store.add_partition("a")
    store.define_rows("gist", 1, "f32", 4)
    store.append_tokens(p, np.arange(64, dtype=np.uint32))
    store.put_rows("gist", p, 0, np.ones((2, 4), np.float32))
    store.index_text(p, 0, ["apple", "pear"])
    old = store.snapshot()
    before = old.search("apple", 9)
    store.append_tokens(p, np.arange(64, 640, dtype=np.uint32))
    store.put_rows("gist", p, 0, np.zeros((2, 4), np.float32))
    store.index_text(p, 2, ["apple"] * 10)
    store.add_partition("b")
    for _ in range(2):
        assert old.token_count(p) == 64
        assert len(old.partitions()) == 1
        assert old.indexed_blocks(p) == 2
        assert old.read_rows("gist", p, 0, 2).min() == 1
        for was, now in zip(before, old.search("apple", 9), strict=True):
            np.testing.assert_array_equal(was, now)
        store.checkpoint()
    store.close()
    assert old.read_tokens(p, 0, 64).tolist() == list(range(64))


def test_a_reader_in_another_process_sees_what_is_there(store):
    p = store.add_partition("a")
    store.append_tokens(p, np.arange(100, dtype=np.uint32))
    store.commit()
    code = (
        "import sys, megacontext_ext as mx\n"
        "store = mx.Store.open(sys.argv[1], read_only=True)\n"
        "print(store.token_count(0), store.read_tokens(0, 0, 100).sum())\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, store.path], check=True, capture_output=True, text=True
    ).stdout
    assert shown.split() == ["100", str(sum(range(100)))]


def test_a_second_writer_is_refused_until_the_first_is_done(store):
    with pytest.raises(errors.StoreLocked):
        mx.Store.open(store.path)
    with reopened(store) as again:
        assert not again.read_only


def test_stats_count_what_was_done(store):
    p = store.add_partition("a")
    store.append_tokens(p, np.zeros(100, np.uint32))
    store.commit()
    stats = store.stats()
    assert stats["tokens"] == 100
    assert stats["partitions"] == 1
    assert stats["syncs"] == 1
    store.checkpoint()
    assert store.stats()["segments"] == 2
    assert store.stats()["unsealed_bytes"] == 0


def test_opening_what_is_not_a_store(tmp_path):
    with pytest.raises(errors.NotFound):
        mx.Store.open(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(errors.NotFound):
        mx.Store.open(empty)
    (tmp_path / "file").write_text("x")
    with pytest.raises(errors.Corruption):
        mx.Store.open(tmp_path)
    with pytest.raises(errors.InvalidArgument):
        mx.Store.create(tmp_path, IDENTITY)
    assert os.listdir(empty) == []
    with mx.Store.open_or_create(empty, IDENTITY) as made:
        made.add_partition("a")
    with mx.Store.open_or_create(empty, IDENTITY) as again:
        assert len(again.partitions()) == 1
    with pytest.raises(errors.InvalidArgument, match="must not be a store already"):
        mx.Store.create(empty, IDENTITY)


def test_another_models_store_is_refused_with_both_values(store):
    store.close()
    with pytest.raises(errors.InvalidArgument, match=r"'model' must be 'a'.*got 'z'"):
        mx.Store.open(store.path, identity={"model": "z"})


def test_a_newer_store_is_refused(store, tmp_path):
    store.close()
    manifest = Path(store.path) / "MANIFEST"
    raw = bytearray(manifest.read_bytes())
    raw[8] = 9
    raw[28:32] = _crc32c(bytes(raw[:28])).to_bytes(4, "little")
    manifest.write_bytes(raw)
    with pytest.raises(errors.Unsupported, match="newer"):
        mx.Store.open(store.path)


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


BAD_CALLS = [
    (lambda s: s.append_tokens(9, [1]), errors.NotFound, "partition must be < 1, got 9"),
    (lambda s: s.append_tokens(0, [-1]), errors.InvalidArgument, r"\[0, 4294967295\]"),
    (lambda s: s.append_tokens(0, [2**32]), errors.InvalidArgument, "4294967296"),
    (lambda s: s.append_tokens(0, [0.5]), errors.InvalidArgument, "integers"),
    (lambda s: s.append_tokens(0, [[1]]), errors.InvalidArgument, "1-d"),
    (lambda s: s.append_tokens(0, [1, 2], [3]), errors.InvalidArgument, "2 values, got 1"),
    (lambda s: s.append_tokens(0, [1], []), errors.InvalidArgument, "1 values, got 0"),
    (lambda s: s.read_tokens(0, 0, 65), errors.InvalidArgument, r"\[0, 64\), got \[0, 65\)"),
    (lambda s: s.read_tokens(0, 2, 1), errors.InvalidArgument, r"got \[2, 1\)"),
    (lambda s: s.read_tokens(0, 0, 2**60), errors.InvalidArgument, "range must lie"),
    (lambda s: s.block_char_starts(0, 0, 3), errors.InvalidArgument, "range must lie"),
    (lambda s: s.add_partition("a"), errors.InvalidArgument, "'a' again"),
    (lambda s: s.set_metadata(4, "{}"), errors.NotFound, "got 4"),
    (lambda s: s.define_rows("g", 1, "f32", 9), errors.InvalidArgument, "must stay"),
    (lambda s: s.define_rows("h", 1, "i32", 9), errors.InvalidArgument, "f32, bf16"),
    (lambda s: s.define_rows("h", 1, "f32", 0), errors.InvalidArgument, "width 0"),
    (lambda s: s.define_rows("h", 9, "f32", 1), errors.InvalidArgument, "lod must be <= 8"),
    (lambda s: s.define_rows("", 1, "f32", 1), errors.InvalidArgument, "name must"),
    (lambda s: s.put_rows("h", 0, 0, np.ones((1, 4), "f4")), errors.NotFound, "'h'"),
    (lambda s: s.put_rows("g", 0, 2, np.ones((1, 4), "f4")), errors.InvalidArgument, "append at 1"),
    (lambda s: s.put_rows("g", 0, 0, np.ones((2, 4), "f4")), errors.InvalidArgument, "append at 1"),
    (lambda s: s.put_rows("g", 0, 1, np.ones((2, 4), "f4")), errors.InvalidArgument, "< 2"),
    (lambda s: s.put_rows("g", 0, 1, np.ones((1, 4), "f8")), errors.InvalidArgument, "float64"),
    (lambda s: s.put_rows("g", 0, 1, np.ones((1, 5), "f4")), errors.InvalidArgument, r"\[1, 5\]"),
    (
        lambda s: s.put_rows("g", 0, 1, np.ones((1, 8), "f4")[:, ::2]),
        errors.InvalidArgument,
        "contig",
    ),
    (lambda s: s.read_rows("g", 0, 0, 2), errors.InvalidArgument, "range must lie"),
    (lambda s: s.row_count("tokens", 0), errors.NotFound, "'tokens'"),
    (lambda s: s.index_text(0, 1, ["x"]), errors.InvalidArgument, "first_block must be 0, got 1"),
    (lambda s: s.index_text(0, 0, ["x"] * 3), errors.InvalidArgument, "< 2, got 3"),
    (lambda s: s.search("x", 3, partition=7), errors.NotFound, "got 7"),
    (
        lambda s: s.gather_rows("g", [0, 0], [0], np.zeros((1, 4), "f4")),
        errors.InvalidArgument,
        "same length",
    ),
    (
        lambda s: s.gather_rows("g", [0], [1], np.zeros((1, 4), "f4")),
        errors.InvalidArgument,
        r"indices\[0\] must be < 1, got 1",
    ),
    (lambda s: s.gather_rows("g", [3], [0], np.zeros((1, 4), "f4")), errors.NotFound, "got 3"),
    (
        lambda s: s.gather_rows("g", [0], [0], np.zeros((1, 8), "f4")[:, ::2]),
        errors.InvalidArgument,
        "not contiguous",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS)
def test_a_bad_call_says_what_is_wrong_and_changes_nothing(store, call, error, message):
    store.add_partition("a")
    store.append_tokens(0, np.arange(64))
    store.define_rows("g", 1, "f32", 4)
    store.put_rows("g", 0, 0, np.ones((1, 4), np.float32))
    with pytest.raises(error, match=message):
        call(store)
    assert store.token_count(0) == 64
    assert store.row_count("g", 0) == 1
    assert store.indexed_blocks(0) == 0
    store.check()


def test_writing_to_a_closed_or_read_only_store_is_refused(store):
    store.add_partition("a")
    store.close()
    store.close()
    with pytest.raises(errors.InvalidArgument, match="must be open"):
        store.append_tokens(0, [1])
    with (
        mx.Store.open(store.path, read_only=True) as reader,
        pytest.raises(errors.InvalidArgument, match="read_only"),
    ):
        reader.append_tokens(0, [1])


def test_an_empty_append_and_a_single_token_work(store):
    p = store.add_partition("")
    assert store.append_tokens(p, []) == (0, 0)
    assert store.append_tokens(p, [2**32 - 1]) == (0, 0)
    store.index_text(p, 0, ["word"])
    with reopened(store) as again:
        assert again.read_tokens(p, 0, 1).tolist() == [2**32 - 1]
        assert again.search("word", 1)[1].tolist() == [0]


def test_metrics_say_what_was_done_with_units(store):
    p = store.add_partition("a")
    store.append_tokens(p, np.arange(64, dtype=np.uint32))
    store.commit()
    found = {(m.name, *sorted(m.labels.items())): m for m in store.metrics()}
    assert found["token_count",].value == 64
    assert found["commit_count",].kind == "counter"
    latency = found["commit_latency_us",]
    assert latency.kind == "histogram"
    assert latency.unit == "us"
    assert latency.count == 1
    assert 1 <= latency.quantile(0.5) <= 2 * latency.bucket_bounds[-1]
    assert all(m.help and m.unit for m in found.values())
