"""page_gather and page_scatter against index_select, index_copy_ and a product with scales."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from benchmarks.harness import Bench, Case
from megacontext_ext import ops

TESTS = "tests/kernels/test_page_gather.py"
# No slower than index_select, whose copy is a memcpy on CPU; decoding saves a pass over memory.
GATHER_GOAL = {"cpu": 1.0, "cuda": 1.0}


def run(bench: Bench) -> None:
    if bench.smoke:
        sizes = [(64, 16, 256)]
    elif bench.device == "cuda":
        sizes = [(1 << 18, 1 << 16, 4096), (1 << 14, 1 << 12, 32 * 1024)]
    else:
        sizes = [(1 << 16, 1024, 4096), (1 << 12, 256, 32 * 1024)]
    for pages, count, page_bytes in sizes:
        _run_copy(bench, pages, count, page_bytes)
    for code in (torch.int8, torch.float8_e4m3fn):
        _run_codes(bench, *sizes[0], code)


def _indices(bench: Bench, pages: int, count: int) -> list[Iterator[torch.Tensor]]:
    """The same 16 choices in turn for each of three contestants: pages come from memory."""
    choices = [torch.randperm(pages, device=bench.device)[:count] for _ in range(16)]
    return [itertools.cycle(choices) for _ in range(3)]


def _run_copy(bench: Bench, pages: int, count: int, page_bytes: int) -> None:
    width = page_bytes // 2
    pool = torch.zeros(pages, width, device=bench.device, dtype=torch.bfloat16)
    pool.view(torch.int16).copy_(torch.arange(pages, device=bench.device)[:, None] % 30000)
    indices = _indices(bench, pages, count)
    rows = torch.empty(count, width, device=bench.device, dtype=torch.bfloat16)
    params = {"P": pages, "N": count, "bytes": page_bytes}
    moved = 2 * count * page_bytes
    # index_select is quickest on 4-byte elements.
    words, word_rows = pool.view(torch.int32), rows.view(torch.int32)
    bench.compare(
        Case(f"gather {page_bytes} B", params, moved),
        lambda: ops.page_gather_out(pool, next(indices[0]), rows),
        {
            "torch index_select": lambda: torch.index_select(
                words, 0, next(indices[1]), out=word_rows
            ),
            "torch index": lambda: pool[next(indices[2])],
        },
        {"torch index_select": GATHER_GOAL[bench.device]},
    )
    _compare_scatter(bench, params, moved, (rows, next(indices[0]), pool))


def _compare_scatter(bench: Bench, params: dict, moved: int, tensors: tuple) -> None:
    rows, index, pool = tensors
    words, word_rows = pool.view(torch.int32), rows.view(torch.int32)

    def copy() -> None:
        words.index_copy_(0, index, word_rows)

    bench.compare(
        Case(f"scatter {params['bytes']} B", params, moved),
        lambda: ops.page_scatter(rows, index, pool),
        {"torch index_copy_": copy},
    )


def _run_codes(bench: Bench, pages: int, count: int, page_bytes: int, code: torch.dtype) -> None:
    width = page_bytes // 2
    name = str(code).removeprefix("torch.")
    pool = torch.zeros(pages, width, device=bench.device, dtype=code)
    scales = torch.rand(pages, device=bench.device)
    index = torch.randperm(pages, device=bench.device)[:count]
    values = torch.randn(count, width, device=bench.device).to(torch.bfloat16)
    ops.page_scatter(values, index, pool, scales=scales)
    rows = torch.empty_like(values)
    params = {"P": pages, "N": count, "D": width, "code": name, "dtype": "bfloat16"}
    moved = 3 * count * width

    def torch_decode() -> torch.Tensor:
        return (pool[index].float() * scales[index][:, None]).to(torch.bfloat16)

    def torch_encode() -> torch.Tensor:
        largest = 127.0 if code == torch.int8 else 448.0
        scale = values.abs().amax(-1).float() / largest
        codes = values.float() / scale[:, None]
        codes = codes.round() if code == torch.int8 else codes
        pool.view(torch.uint8)[index] = codes.to(code).view(torch.uint8)
        scales[index] = scale
        return scales

    bench.compare(
        Case(f"gather {name}", params, moved),
        lambda: ops.page_gather_out(pool, index, rows, scales=scales),
        {"torch index and multiply": torch_decode},
        {"torch index and multiply": 1.5},
    )
    bench.compare(
        Case(f"scatter {name}", params, moved),
        lambda: ops.page_scatter(values, index, pool, scales=scales),
        {"torch quantise and index": torch_encode},
        {"torch quantise and index": 1.5},
    )
