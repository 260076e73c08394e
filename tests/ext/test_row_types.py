"""Rows of q8, e4m3 and q4: written from floats, read as floats or as they lie, and re-encoded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import megacontext_ext as mx
from megacontext_ext import errors, ops
from tests.ext.test_store_tools import run

WIDTH, ROWS = 192, 100
# Relative root mean squared error on gaussian rows: a little more than what is measured.
MOST_ERROR = {"f16": 0.0003, "bf16": 0.002, "q8": 0.007, "e4m3": 0.03, "q4": 0.11}
SCALED = ("q8", "e4m3", "q4")
FLOATS = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}


@pytest.fixture
def store(tmp_path):
    with mx.Store.create(tmp_path / "memory", {"model": "none"}) as made:
        made.append_tokens(made.add_partition("a"), np.arange(ROWS * 32))
        yield made


def gaussian(rows: int = ROWS, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((rows, width), np.float32)


def as_float32(rows: np.ndarray) -> np.ndarray:
    if rows.dtype == np.uint16:
        return torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16).float().numpy()
    return rows.astype(np.float32)


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    got, wanted = as_float32(got).astype(np.float64), wanted.astype(np.float64)
    return float(np.sqrt(((got - wanted) ** 2).mean() / (wanted**2).mean()))


@pytest.mark.parametrize("dtype", MOST_ERROR)
def test_float_rows_come_back_rounded_in_every_float_dtype(store, dtype):
    store.define_rows("gist", 1, dtype, WIDTH)
    rows = gaussian()
    store.put_rows("gist", 0, 0, rows[:60])
    store.checkpoint()
    store.put_rows("gist", 0, 60, rows[60:])
    exact = store.read_rows("gist", 0, 0, ROWS, dtype="f32")
    assert exact.dtype == np.float32
    error = relative_error(exact, rows)
    assert MOST_ERROR[dtype] / 2 < error < MOST_ERROR[dtype]
    indices = np.array([99, 0, 59, 60, 3, 3])
    for name, kind in FLOATS.items():
        read = store.read_rows("gist", 0, 0, ROWS, dtype=name)
        assert (read.shape, read.dtype) == ((ROWS, WIDTH), kind)
        assert relative_error(read, exact) < 0.003
        gathered = store.gather_rows("gist", np.zeros(6, int), indices, np.empty((6, WIDTH), kind))
        np.testing.assert_array_equal(gathered, read[indices])
    (family,) = store.row_families()
    assert (family.dtype, family.width) == (dtype, WIDTH)
    store.check()


@pytest.mark.parametrize("dtype", SCALED)
@pytest.mark.parametrize("group", [None, 64])
def test_rows_as_they_lie_go_out_and_in_again(store, dtype, group):
    store.define_rows("gist", 1, dtype, WIDTH, group)
    store.define_rows("copy", 1, dtype, WIDTH, group)
    store.put_rows("gist", 0, 0, gaussian())
    family = store.row_families()[0]
    groups = 3 if group or dtype == "q4" else 1
    assert family.group_size == WIDTH // groups
    assert family.row_bytes == 4 * groups + (WIDTH // 2 if dtype == "q4" else WIDTH)
    raw = store.read_rows("gist", 0, 0, ROWS)
    assert (raw.dtype, raw.shape) == (np.uint8, (ROWS, family.row_bytes))
    store.put_rows("copy", 0, 0, raw)
    out = np.empty((2, family.row_bytes), np.uint8)
    floats = np.empty((3, WIDTH), np.float16)
    store.gather([("copy", [0, 0], [5, 99], out), ("gist", [0, 0, 0], [1, 2, 3], floats)])
    np.testing.assert_array_equal(out, raw[[5, 99]])
    np.testing.assert_array_equal(floats, store.read_rows("copy", 0, 1, 4, dtype="f16"))
    largest = {"q8": 127, "e4m3": 448, "q4": 7}[dtype]
    scales = raw[:, : 4 * groups].copy().view(np.float32)
    expected = np.abs(gaussian()).reshape(ROWS, groups, -1).max(2) / np.float32(largest)
    np.testing.assert_array_equal(scales, expected)


@pytest.mark.parametrize(("dtype", "code"), [("q8", torch.int8), ("e4m3", torch.float8_e4m3fn)])
def test_codes_and_scales_are_those_of_the_kernels(store, dtype, code):
    """So that rows can go from the disk to a device and be decoded there."""
    store.define_rows("gist", 1, dtype, WIDTH, 64)
    store.put_rows("gist", 0, 0, gaussian())
    raw = store.read_rows("gist", 0, 0, ROWS)
    pool, scales = torch.zeros(ROWS, 3, 64).to(code), torch.zeros(ROWS, 3)
    pages = torch.from_numpy(gaussian().reshape(ROWS, 3, 64))
    ops.page_scatter(pages, torch.arange(ROWS), pool, scales=scales)
    np.testing.assert_array_equal(raw[:, :12].copy().view(np.float32), scales.numpy())
    np.testing.assert_array_equal(raw[:, 12:], pool.view(torch.uint8).reshape(ROWS, WIDTH).numpy())
    back = ops.page_gather(pool, torch.arange(ROWS), scales=scales, dtype=torch.float32)
    np.testing.assert_array_equal(
        store.read_rows("gist", 0, 0, ROWS, dtype="f32"), back.reshape(ROWS, WIDTH).numpy()
    )


def test_reencoding_keeps_the_dtype_and_tells_what_it_changed(store):
    store.define_rows("gist", 1, "bf16", WIDTH)
    store.put_rows("gist", 0, 0, gaussian())
    before = store.read_rows("gist", 0, 0, ROWS)
    old = store.snapshot()
    done = store.reencode("gist", "q8", group_size=64)
    assert done.rows == ROWS
    assert 0.4 < done.bytes_after / done.bytes_before < 0.65
    assert done.saved_bytes == done.bytes_before - done.bytes_after
    after = store.read_rows("gist", 0, 0, ROWS)
    assert after.dtype == np.uint16
    exact = store.read_rows("gist", 0, 0, ROWS, dtype="f32")
    assert done.relative_error == pytest.approx(relative_error(exact, as_float32(before)), rel=1e-3)
    assert done.largest_error == pytest.approx(np.abs(exact - as_float32(before)).max(), rel=1e-3)
    np.testing.assert_array_equal(old.read_rows("gist", 0, 0, ROWS), before)
    assert store.reencode("gist", "q8", group_size=64).rows == 0
    counted = {m.name: m.value for m in store.metrics() if not m.labels}
    assert (counted["reencode_count"], counted["reencoded_rows"]) == (1, ROWS)
    assert counted["reencode_saved_bytes"] == done.saved_bytes
    store.put_rows("gist", 0, 3, np.full((1, WIDTH), 0x3F81, np.uint16))  # exact again
    assert store.read_rows("gist", 0, 3, 4).tolist() == [[0x3F81] * WIDTH]
    with mx.Store.open(store.path, read_only=True) as reader:
        np.testing.assert_array_equal(
            reader.read_rows("gist", 0, 4, ROWS), store.read_rows("gist", 0, 4, ROWS)
        )


CALLS = [
    (lambda s: s.define_rows("x", 1, "q8", 8, 9), "group"),
    (lambda s: s.define_rows("x", 1, "f32", 8, 4), "group 4"),
    (lambda s: s.define_rows("gist", 1, "q8", WIDTH, 32), "must stay lod 1 q8 width 192 group 192"),
    (lambda s: s.put_rows("gist", 0, 0, np.full((1, WIDTH), np.nan, np.float32)), "row 0 must be"),
    (lambda s: s.put_rows("gist", 0, 0, np.full((1, WIDTH + 4), 255, np.uint8)), "scale 0"),
    (lambda s: s.put_rows("gist", 0, 0, np.zeros((1, WIDTH), np.uint8)), "float32, float16"),
    (lambda s: s.put_rows("gist", 0, 0, np.zeros((1, WIDTH), np.float64)), "float64"),
    (lambda s: s.read_rows("gist", 0, 0, 0, dtype="i8"), "are q8, got i8"),
    (lambda s: s.read_rows("bytes", 0, 0, 0, dtype="f32"), "are u8, got f32"),
    (lambda s: s.reencode("bytes", "q8"), "are u8 width 4"),
    (lambda s: s.reencode("gist", "int8"), "q8, e4m3 or q4, got 'int8'"),
]


@pytest.mark.parametrize(("call", "message"), CALLS, ids=[m for _, m in CALLS])
def test_what_cannot_be_is_refused_with_the_numbers(store, call, message):
    store.define_rows("gist", 1, "q8", WIDTH)
    store.define_rows("bytes", 1, "u8", 4)
    with pytest.raises(errors.InvalidArgument, match=message):
        call(store)
    assert store.row_count("gist", 0) == 0


def test_the_tools_know_the_types(store):
    store.define_rows("gist", 1, "bf16", WIDTH)
    store.define_rows("small", 1, "q4", WIDTH)
    store.put_rows("gist", 0, 0, gaussian())
    store.put_rows("small", 0, 0, gaussian())
    store.reencode("gist", "e4m3")
    store.close()
    text = run("mc_dump", store.path).stdout
    assert "define family 4 'small' lod 1 q4 width 192 group 64" in text
    assert "rows of family 3 lod 1 e4m3 group 192, 196 bytes each" in text
    assert "rows of family 4 lod 1 q4 group 64, 108 bytes each" in text
    assert run("mc_check", store.path).returncode == 0
