"""Rows of several versions: made in steps that may stop anywhere, due again after an edit."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from megacontext.config import K
from megacontext.runtime import (
    BackgroundRefresh,
    drop_version,
    family_name,
    lazy_rows,
    refresh,
    stale,
    versions,
)
from megacontext.runtime.refresh import Stale
from megacontext_ext import Store
from megacontext_ext.errors import InvalidArgument, NotFound


class SumMaker:
    """Sum and largest token of a node, times the version."""

    name, dtype, width = "sum", "f32", 2

    def __init__(self, version: str = "1", lod: int = 1) -> None:
        self.version, self.lod = version, lod
        self.calls = 0
        self.before_return = lambda: None

    def rows(self, tokens):
        self.calls += 1
        self.before_return()
        both = np.stack([tokens.sum(axis=1), tokens.max(axis=1)], axis=1)
        return (both * int(self.version)).astype(np.float32)


@pytest.fixture
def store(tmp_path, monkeypatch):
    # By name: the package has a function of the same name.
    monkeypatch.setattr(sys.modules["megacontext.runtime.refresh"], "_BATCH_TOKENS", 10 * K)
    with Store.create(tmp_path / "m", {"model": "none"}) as opened:
        for name, count in {"a": 1000, "b": 33, "c": 5}.items():
            opened.append_tokens(opened.add_partition(name), np.arange(count))
        yield opened


def expected(store: Store, maker: SumMaker, partition: int):
    span = K**maker.lod
    nodes = store.token_count(partition) // span
    return maker.rows(store.read_tokens(partition, 0, nodes * span).reshape(-1, span))


def test_all_rows_come_whatever_interrupts(store):
    maker = SumMaker("2")
    assert stale(store, maker) == [Stale(0, 0, 31), Stale(1, 0, 1)]
    asked = iter([False, True])
    first = refresh(store, maker, stop=lambda: next(asked))
    assert (first.made, first.left) == (10, 22)
    store.close()
    with Store.open(store.path) as opened:
        second = refresh(opened, maker)
        assert (second.made, second.left) == (22, 0)
        assert refresh(opened, maker).made == 0
        for partition in (0, 1):
            nodes = opened.token_count(partition) // K
            rows = opened.read_rows(family_name("sum", "2"), partition, 0, nodes)
            np.testing.assert_array_equal(rows, expected(opened, maker, partition))


def test_no_time_makes_nothing(store):
    assert refresh(store, SumMaker(), seconds=0.0).made == 0


def test_versions_lie_side_by_side_and_one_can_go(store):
    for version in ("1", "2"):
        refresh(store, SumMaker(version))
    assert versions(store, "sum") == ["1", "2"]
    old = store.stats()["segment_bytes"]
    store.checkpoint()
    sealed = store.stats()["segment_bytes"]
    assert sealed > old
    drop_version(store, "sum", "1")
    store.checkpoint()
    assert store.stats()["segment_bytes"] < sealed
    assert versions(store, "sum") == ["2"]
    np.testing.assert_array_equal(
        store.read_rows("sum@2", 0, 0, 31), expected(store, SumMaker("2"), 0)
    )
    with pytest.raises(NotFound):
        drop_version(store, "sum", "1")
    with pytest.raises(InvalidArgument):
        family_name("a@b", "1")


@pytest.mark.parametrize("lod", [0, 1, 2])
def test_an_edit_makes_only_dirty_nodes_due(store, lod):
    store.append_tokens(0, np.arange(4000))
    maker = SumMaker("3", lod)
    refresh(store, maker)
    store.replace_tail(0, 2500, np.full(3000, 9))
    kept, nodes = 2500 // K**lod, 5500 // K**lod
    assert stale(store, maker) == [Stale(0, kept, nodes)]
    assert refresh(store, maker).made == nodes - kept
    np.testing.assert_array_equal(store.read_rows("sum@3", 0, 0, nodes), expected(store, maker, 0))


def test_rows_may_be_made_when_they_are_wanted(store):
    maker = SumMaker()
    whole = expected(store, maker, 0)
    np.testing.assert_array_equal(lazy_rows(store, maker, 0, 3, 9), whole[3:9])
    store.define_rows("sum@1", 1, "f32", 2)
    store.put_rows("sum@1", 0, 0, np.zeros((5, 2), np.float32))
    mixed = lazy_rows(store, maker, 0, 3, 9)
    np.testing.assert_array_equal(mixed[:2], 0)
    np.testing.assert_array_equal(mixed[2:], whole[5:9])


@pytest.mark.parametrize("dtype", ["q8", "e4m3", "q4"])
def test_a_version_may_keep_its_rows_in_fewer_bits(store, dtype):
    maker = SumMaker("4")
    maker.dtype = dtype
    whole = expected(store, maker, 0)
    refresh(store, maker)
    rows = store.read_rows("sum@4", 0, 0, 31, dtype="f32")
    assert 0 < (np.abs(rows - whole).max(axis=1) / whole.max(axis=1)).max() < 0.1
    store.append_tokens(0, np.arange(64))  # two nodes that have no rows yet
    lazy = lazy_rows(store, maker, 0, 29, 33)
    assert (lazy.dtype, lazy.shape) == (np.float32, (4, 2))
    np.testing.assert_array_equal(lazy[:2], rows[29:])
    np.testing.assert_array_equal(lazy[2:], expected(store, maker, 0)[31:])


def test_an_edit_while_a_batch_is_computed_throws_it_away(store):
    maker, lock, edits = SumMaker(), threading.RLock(), iter([5])

    def edit() -> None:
        for token in edits:
            with lock:
                store.replace_tail(0, 100, np.full(900, token))

    maker.before_return = edit
    refresh(store, maker, lock=lock)
    maker.before_return = lambda: None
    np.testing.assert_array_equal(store.read_rows("sum@1", 0, 0, 31), expected(store, maker, 0))


def test_in_the_background_it_goes_on_beside_edits_and_stops_when_told(store):
    lock = threading.RLock()
    store.append_tokens(0, np.arange(20_000))
    work = BackgroundRefresh(store, SumMaker(), lock)
    for token in range(20):
        with lock:
            store.replace_tail(0, 300 + 32 * token, np.full(5000, token))
    work.stop()
    assert not work.running
    refresh(store, SumMaker())
    nodes = store.token_count(0) // K
    rows = store.read_rows("sum@1", 0, 0, nodes)
    np.testing.assert_array_equal(rows, expected(store, SumMaker(), 0))


def test_what_a_background_refresh_raises_is_told(store):
    maker = SumMaker()

    def fail() -> None:
        raise RuntimeError("no weights")

    maker.before_return = fail
    with pytest.raises(RuntimeError, match="no weights"):
        BackgroundRefresh(store, maker, threading.RLock()).wait()
