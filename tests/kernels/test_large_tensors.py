"""Addresses beyond 2^31 elements: pools of memory that is backed only where it is touched."""

from __future__ import annotations

import mmap
from typing import Any

import pytest
import torch
from torch import Tensor

from megacontext_ext.entry_table import EntryTable
from megacontext_ext.reference import focused_attention as attention
from tests.tolerances import assert_close


def sparse(device: Any, *shape: int) -> Tensor:
    """Zeros in bfloat16; pages of host memory that nobody touches take no space."""
    if device.place == "cuda":
        return torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
    count = 1
    for size in shape:
        count *= size
    return torch.frombuffer(mmap.mmap(-1, 2 * count), dtype=torch.bfloat16).view(shape)


@pytest.fixture(autouse=True)
def _only_levels_that_differ(device: Any) -> None:
    if device.name == "cpu_avx2":
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
