"""Cold reads through the Python door: gathers over families, prefetches awaited and cancelled."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

import megacontext_ext as mx
from megacontext_ext import errors

ROWS = 500
WIDTH = 1024  # f32: a page a row


def options(mode: str = "direct", **settings) -> mx.StoreOptions:
    return mx.StoreOptions(read_mode=mode, page_cache_bytes=1 << 20, **settings)


@pytest.fixture
def filled(tmp_path):
    path = tmp_path / "memory"
    values = np.random.default_rng(0).standard_normal((2, ROWS, WIDTH), np.float32)
    with mx.Store.create(path, {"model": "m"}) as store:
        store.define_rows("gist", 1, "f32", WIDTH)
        store.define_rows("small", 2, "u8", 5)
        for p in (store.add_partition("a"), store.add_partition("b")):
            store.append_tokens(p, np.zeros(32 * ROWS, np.uint32))
            store.put_rows("gist", p, 0, values[p])
            store.put_rows("small", p, 0, np.full((ROWS // 32, 5), p + 1, np.uint8))
        store.checkpoint()
    return path, values


def metric(store: mx.Store, name: str) -> int:
    return next(m.value for m in store.metrics() if m.name == name)


@pytest.mark.parametrize("mode", ["auto", "mapped", "direct"])
@pytest.mark.parametrize("engine", ["auto", "threads"])
def test_one_call_gathers_over_families_whatever_the_way_of_reading(filled, mode, engine):
    path, values = filled
    random = np.random.default_rng(1)
    partitions, indices = random.integers(0, 2, 300), random.integers(0, ROWS, 300)
    gists, small = np.empty((300, WIDTH), np.float32), np.empty((4, 5), np.uint8)
    with mx.Store.open(path, options=options(mode, read_engine=engine)) as store:
        for _ in range(2):
            store.gather(
                [("gist", partitions, indices, gists), ("small", [0, 1, 1, 0], [3, 2, 1, 0], small)]
            )
            np.testing.assert_array_equal(gists, values[partitions, indices])
            assert small[:, 0].tolist() == [1, 2, 2, 1]
        np.testing.assert_array_equal(store.read_rows("gist", 1, 7, 300), values[1, 7:300])
        rows = metric(store, "mapped_rows") + metric(store, "cold_rows")
        assert rows == 2 * 304 + 293
        assert (metric(store, "disk_pages") > 0) == (mode == "direct")


def test_children_of_blocks_are_one_read_each(filled):
    path, values = filled
    blocks = np.array([9, 0, 4])
    children = (blocks[:, None] * 32 + np.arange(32)).reshape(-1)
    out = np.empty((96, WIDTH), np.float32)
    with mx.Store.open(path, options=options()) as store:
        store.gather_rows("gist", np.zeros(96, np.uint32), children, out)
        np.testing.assert_array_equal(out, values[0, children])
        assert metric(store, "disk_read_count") == 3
        engines = {m.labels["engine"] for m in store.metrics() if m.name == "read_depth"}
        assert engines <= {"io_uring", "threads"}
        by_family = {
            m.labels["family"]: m.value for m in store.metrics() if m.name == "family_read_bytes"
        }
        assert by_family["gist"] == out.nbytes


def test_a_prefetch_is_waited_for_awaited_by_many_and_makes_the_gather_warm(filled):
    path, values = filled
    out = np.empty((60, WIDTH), np.float32)

    async def fetch(store: mx.Store) -> None:
        prefetch = store.prefetch([("gist", np.ones(60, int), np.arange(60) * 3)])
        assert await asyncio.gather(prefetch, prefetch, asyncio.sleep(0)) == [True, True, None]
        assert prefetch.done
        assert await prefetch

    with mx.Store.open(path, options=options()) as store:
        asyncio.run(fetch(store))
        pages = metric(store, "disk_pages")
        store.gather_rows("gist", np.ones(60, np.uint32), np.arange(60) * 3, out)
        assert metric(store, "disk_pages") == pages
        np.testing.assert_array_equal(out, values[1, : 60 * 3 : 3])
        assert store.prefetch([]).wait() is True


def test_prefetches_are_bounded_cancelled_and_end_with_the_store(filled):
    path, _ = filled
    store = mx.Store.open(path, options=options(prefetch_bytes=100 * 4096))
    everything = ("gist", np.zeros(ROWS, int), np.arange(ROWS))
    with pytest.raises(errors.OverBudget, match="prefetch"):
        store.prefetch([everything])
    with pytest.raises(errors.InvalidArgument, match=r"indices\[0\] must be < 500, got 500"):
        store.prefetch([("gist", [0], [500])])
    waiting = [
        store.prefetch([("gist", np.zeros(8, int), np.arange(8) + 8 * i)]) for i in range(10)
    ]
    waiting[-1].cancel()
    waiter = threading.Thread(target=waiting[-2].wait)
    waiter.start()
    store.close()
    waiter.join(30)
    assert not waiter.is_alive()
    assert all(isinstance(prefetch.wait(), bool) for prefetch in waiting)
    with pytest.raises(errors.InvalidArgument, match="open"):
        store.prefetch([("gist", [0], [1])])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"read_mode": "fast"}, "read_mode must be one of auto, mapped, direct, got 'fast'"),
        ({"read_engine": "aio"}, "read_engine must be one of"),
        ({"read_depth": 0}, "read_depth must be 1 to 4096, got 0"),
    ],
)
def test_bad_settings_say_what_is_allowed(filled, settings, message):
    with pytest.raises(errors.InvalidArgument, match=message):
        mx.Store.open(filled[0], options=mx.StoreOptions(**settings))


def test_a_wrong_out_is_refused_before_anything_is_read(filled):
    with mx.Store.open(filled[0], options=options()) as store:
        with pytest.raises(errors.InvalidArgument, match="contiguous"):
            store.gather([("gist", [0], [0], np.empty((1, WIDTH), np.float64))])
        with pytest.raises(errors.InvalidArgument, match="out must have 1 rows"):
            store.gather([("gist", [0], [0], np.empty((2, WIDTH), np.float32))])
