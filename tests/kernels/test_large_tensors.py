"""Addresses beyond 2^31 elements: pools of memory that is backed only where it is touched."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megacontext_ext import ops
from megacontext_ext.entry_table import EntryTable
from megacontext_ext.reference import block_encoder as encoder
from megacontext_ext.reference import focused_attention as attention
from tests.tolerances import assert_close


def sparse(device: Any, *shape: int) -> Tensor:
    """Zeros in bfloat16; pages of host memory that nobody writes take no space."""
    if device.place == "cuda":
        return torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
    count = 1
    for size in shape:
        count *= size
    # Private: reading a page that nobody wrote maps the page of zeros. Shared memory would grow.
    pages = mmap.mmap(-1, 2 * count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=torch.bfloat16).view(shape)


def fastest_cpu() -> str:
    """Name of the device with the best instruction set of this CPU."""
    before = ops.cpu_level()
    best = next(
        level for level in ("amx", "avx512", "avx2", "portable") if ops.set_cpu_level(level)
    )
    ops.set_cpu_level(before)
    return f"cpu_{best}"


def needs_memory(device: Any, gib: int) -> None:
    """Skips where outputs of `gib` GiB do not fit with what else may be there."""
    if device.place == "cuda":
        wanted, free = 3 * gib, torch.cuda.mem_get_info()[0] >> 30  # inputs have pages there
    else:
        kib = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        wanted, free = 2 * gib, int(kib[1]) >> 20 if kib else 0  # a second worker may run one too
    if free < wanted:
        pytest.skip(f"needs {wanted} GiB of free memory, {free} are free")


@pytest.fixture
def large_outputs(device: Any) -> Iterator[None]:
    """Runs where the gigabytes that an operator writes fit, on one CPU level, without NaN in them.

    The memory is fresh and zero; a last row that nobody wrote would show as well.
    """
    if device.name not in (fastest_cpu(), "cuda_emu", "cuda"):
        pytest.skip("the other levels are compiled from the same source")
    needs_memory(device, 5)
    device.ops.set_heeds_fill(False)
    yield
    device.ops.set_heeds_fill(True)


@pytest.fixture(autouse=True)
def _only_levels_that_differ(device: Any) -> None:
    if device.name == "cpu_avx2" and fastest_cpu() != device.name:
        pytest.skip("addresses are made by the code that the other levels share")


def test_gist_pool_reads_the_last_of_two_billion_elements(device: Any) -> None:
    width = (1 << 20) + 8
    rows = sparse(device, 2 * 1024, width)
    weights = torch.zeros(2 * 1024)
    weights[-2:] = torch.tensor([1.0, 3.0])  # a row of weight 0 is not read
    rows[-2, -8:], rows[-1, -8:] = 4.0, 8.0
    assert rows.numel() > 2**31
    gists = device.ops.gist_pool(rows, 1024, device.put(weights), None, 1.0)
    assert gists[1, -8:].tolist() == [7.0] * 8
    assert not gists[0].any()
    assert not gists[1, :-8].any()


def test_focused_attention_reads_pages_beyond_two_billion_elements(device: Any) -> None:
    width, pages = 256, (1 << 18) + 2
    keys, values = (sparse(device, pages, 1, 32, width) for _ in range(2))
    last = torch.randn(2, 2, 1, 32, width).bfloat16()
    keys[-2:], values[-2:] = last[0].to(keys.device), last[1].to(keys.device)
    assert keys.numel() > 2**31
    q = torch.randn(3, 2, width).bfloat16()
    table = EntryTable.from_pages(torch.tensor([pages - 1, pages - 2], dtype=torch.int32))
    starts = torch.tensor([0, 3], dtype=torch.int32)
    counts, blocks = attention.make_read_plan(table, starts, None, None, None, 0)
    near = EntryTable.from_pages(torch.tensor([1, 0], dtype=torch.int32))
    tensors = (table.rows, None, None, starts, None, counts, blocks, None, None, None)
    out, _ = device.ops.focused_attention(
        device.put(q), keys, values, *(device.put(t) for t in tensors), 0.1, 0.0, 0, 3
    )
    small = (table.rows - (pages - 2) * 32, *tensors[1:])
    assert torch.equal(small[0], near.rows)
    expected, _ = device.ops.focused_attention(
        *(device.put(t) for t in (q, last[0], last[1], *small)), 0.1, 0.0, 0, 3
    )
    assert torch.equal(out, expected)
    assert_close(out.mean(), expected.double().mean(), kind="product")


@pytest.mark.parametrize("queries", [1, 2])
def test_score_topk_reads_rows_beyond_two_billion_elements(device: Any, queries: int) -> None:
    if device.name == "cuda_emu" and queries > 1:
        pytest.skip(
            "tensor cores take rows of up to 2048 elements: a million of them, too slow here"
        )
    width = 2048 if queries > 1 else 12288
    count = (1 << 31) // width + 2
    rows = sparse(device, count, width)
    rows[-1, -1], rows[-2, -1] = 3.0, 5.0
    assert rows.numel() > 2**31
    mask = torch.zeros(count, dtype=torch.bool)
    mask[-2:] = True  # a masked row is not read
    asked = torch.ones(queries, width)
    values, indices = device.ops.score_topk(device.put(asked), rows, 2, None, device.put(mask))
    assert values.tolist() == [[5.0, 3.0]] * queries
    assert indices.tolist() == [[count - 2, count - 1]] * queries


@pytest.mark.parametrize("pairs", [8, 9])
def test_gaussian_rope_turns_rows_beyond_two_billion_elements(device: Any, pairs: int) -> None:
    """In place, where the columns that are not turned are not touched either."""
    x = sparse(device, 1, 1, 3, 1 << 30)
    turned = x[0, 0, :, : 2 * pairs]
    turned[2] = torch.randn(2 * pairs).bfloat16().to(x.device)
    cos, sin = (device.put(torch.randn(1, 3, pairs)) for _ in range(2))
    small = turned[2].clone().view(1, 1, 1, -1), *(device.put(t[:, 2:]) for t in (cos, sin))
    device.ops.gaussian_rope_inplace(x, cos, sin, False)
    assert torch.equal(turned[2], device.ops.gaussian_rope(*small, False).view(-1))
    assert not turned[:2].any()


def test_gradients_of_rope_tables_read_rows_beyond_two_billion_elements(device: Any) -> None:
    pairs = 9
    grad, x = (sparse(device, 1, 1, 3, 1 << 30) for _ in range(2))
    small = [torch.randn(1, 1, 1, 2 * pairs).bfloat16() for _ in range(2)]
    for large, values in zip((grad, x), small, strict=True):
        large[0, 0, 2, : 2 * pairs] = values.view(-1).to(large.device)
    got = device.ops.gaussian_rope_tables_backward(grad, x, 1, pairs)
    want = device.ops.gaussian_rope_tables_backward(*(device.put(t) for t in small), 1, pairs)
    for ours, expected in zip(got, want, strict=True):
        assert torch.equal(ours[:, 2:], expected)
        assert not ours[:, :2].any()


@pytest.mark.slow
@pytest.mark.usefixtures("large_outputs")
def test_gaussian_rope_writes_beyond_two_billion_elements(device: Any) -> None:
    if device.name == "cuda_emu":
        pytest.skip("half a billion emulated threads: the test in place takes the same addresses")
    rows, width, pairs = 2049, 1 << 20, 8
    x = sparse(device, 1, 1, rows, width)
    x[0, 0, -1] = torch.randn(width).bfloat16().to(x.device)
    cos, sin = (device.put(torch.randn(1, rows, pairs)) for _ in range(2))
    out = device.ops.gaussian_rope(x, cos, sin, False)
    last = (device.put(t) for t in (x[:, :, -1:], cos[:, -1:], sin[:, -1:]))
    assert torch.equal(out[:, :, -1:], device.ops.gaussian_rope(*last, False))
    assert not out[0, 0, :2].any()


# Of the pieces of block_encoder every element is written, so these take gigabytes; the matrix
# products between them are torch's. Rows are long, so that few of them reach the last element.
ENCODER_ROWS, ENCODER_WIDTH = 2049, 1 << 20


def with_last_row(device: Any, *shape: int) -> tuple[Tensor, Tensor]:
    """Zeros but for the last row, and that row alone."""
    large = sparse(device, *shape)
    last = device.put(torch.randn(1, shape[-1]).bfloat16())
    large[-1:] = last
    assert large.numel() > 2**31
    return large, last


@pytest.mark.slow
@pytest.mark.usefixtures("large_outputs")
def test_add_norm_and_its_gradient_reach_beyond_two_billion_elements(device: Any) -> None:
    x, last = with_last_row(device, ENCODER_ROWS, ENCODER_WIDTH)
    gain = device.put(torch.randn(ENCODER_WIDTH).bfloat16())
    _, y, inverse = device.ops.add_norm(x, None, gain, 1e-6)
    _, small_y, small_inverse = device.ops.add_norm(last, None, gain, 1e-6)
    assert torch.equal(y[-1:], small_y)
    assert torch.equal(inverse[-1:], small_inverse)
    assert not y[:2].any()
    del y
    grad, small_grad = with_last_row(device, ENCODER_ROWS, ENCODER_WIDTH)
    got = device.ops.add_norm_backward(grad, None, x, gain, inverse)
    want = device.ops.add_norm_backward(small_grad, None, last, gain, small_inverse)
    assert torch.equal(got[0][-1:], want[0])
    assert not got[0][:2].any()
    assert torch.equal(got[1], want[1])


@pytest.mark.slow
@pytest.mark.usefixtures("large_outputs")
def test_gated_act_and_its_gradient_reach_beyond_two_billion_elements(device: Any) -> None:
    gate_up, last = with_last_row(device, ENCODER_ROWS, ENCODER_WIDTH)
    out = device.ops.gated_act(gate_up)
    assert torch.equal(out[-1:], device.ops.gated_act(last))
    assert not out[:2].any()
    del out
    grad = sparse(device, ENCODER_ROWS, ENCODER_WIDTH // 2)
    small_grad = device.put(torch.randn(1, ENCODER_WIDTH // 2).bfloat16())
    grad[-1:] = small_grad
    got = device.ops.gated_act_backward(grad, gate_up)
    assert torch.equal(got[-1:], device.ops.gated_act_backward(small_grad, last))
    assert not got[:2].any()


@pytest.mark.slow
@pytest.mark.usefixtures("large_outputs")
def test_window_attention_and_its_gradient_reach_beyond_two_billion_elements(device: Any) -> None:
    if device.name == "cuda_emu":
        pytest.skip("0.3 TFLOP of emulated mma.sync: hours")
    width, head_width = 256, 64
    rows = ((1 << 31) // (3 * width) // 32 + 1) * 32
    table = device.put(encoder.rope_table(head_width))
    qkv, grad = sparse(device, rows, 3 * width), sparse(device, rows, width)
    last = [device.put(torch.randn(32, size).bfloat16()) for size in (3 * width, width)]
    qkv[-32:], grad[-32:] = last
    assert qkv.numel() > 2**31
    out = device.ops.window_attention(qkv, table)
    assert torch.equal(out[-32:], device.ops.window_attention(last[0], table))
    assert not out[:32].any()
    got = device.ops.window_attention_backward(grad, qkv, table)
    want = device.ops.window_attention_backward(last[1], last[0], table)
    assert torch.equal(got[-32:], want)
    assert not got[:32].any()
