"""gist_pool against what PyTorch users write: a view and a mean, or a softmax and a product."""

from __future__ import annotations

import torch

from benchmarks.harness import Bench, Case
from megacontext_ext import ops

TESTS = "tests/kernels/test_gist_pool.py"
BLOCK_SIZE = 32
# Goal: twice torch.mean on one CPU thread. On a GPU both are bound by memory: no slower.
MEAN_GOAL = {"cpu": 2.0, "cuda": 1.0}


def _torch_attention(blocks: torch.Tensor, query: torch.Tensor, scale: float) -> torch.Tensor:
    shares = torch.softmax((blocks @ query).float() * scale, dim=-1).to(blocks.dtype)
    return torch.bmm(shares.unsqueeze(1), blocks).squeeze(1)


def _sizes(bench: Bench) -> list[tuple[int, int]]:
    """Blocks, width. On a GPU beyond the L2 cache, on a CPU beyond the last cache and within."""
    if bench.smoke:
        return [(4, 64)]
    return [(65536, 1024), (16384, 576)] if bench.device == "cuda" else [(2048, 576), (256, 2048)]


def run(bench: Bench) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for blocks, width in _sizes(bench):
            _run_size(bench, blocks, width, dtype)
    _run_overhead(bench)


def _run_size(bench: Bench, blocks: int, width: int, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    rows = torch.randn(blocks * BLOCK_SIZE, width, device=bench.device).to(dtype)
    query = torch.randn(width, device=bench.device).to(dtype)
    grad = torch.randn(blocks, width, device=bench.device).to(dtype)
    view = rows.view(blocks, BLOCK_SIZE, width)
    params = {"N": blocks, "K": BLOCK_SIZE, "D": width, "dtype": name}
    moved = (rows.numel() + grad.numel()) * rows.element_size()
    count, scale = rows.numel(), width**-0.5
    tag = f"{name} D={width}"
    bench.compare(
        Case(f"mean {tag}", params, moved, count, "float32"),
        lambda: ops.gist_pool(rows, BLOCK_SIZE),
        {"torch mean": lambda: view.mean(1)},
        {"torch mean": MEAN_GOAL[bench.device]},
    )
    bench.compare(
        Case(f"attention {tag}", params, moved, 4 * count, "float32"),
        lambda: ops.gist_pool(rows, BLOCK_SIZE, query=query, scale=scale),
        {"torch softmax and bmm": lambda: _torch_attention(view, query, scale)},
        {"torch softmax and bmm": 1.5},
    )
    backward = torch.ops.megacontext.gist_pool_backward
    leaf = view.detach().requires_grad_()
    bench.compare(
        Case(f"mean backward {tag}", params, moved, count, "float32"),
        lambda: backward(grad, rows, BLOCK_SIZE, None, None, 1.0, True, False, False)[0],
        {"torch mean backward": lambda: torch.autograd.grad(leaf.mean(1), leaf, grad)[0]},
    )
    leaves = (leaf, query.clone().requires_grad_())
    bench.compare(
        Case(f"attention backward {tag}", params, moved + rows.numel() * rows.element_size()),
        lambda: backward(grad, rows, BLOCK_SIZE, None, query, scale, True, False, True),
        {
            "torch, forward too": lambda: torch.autograd.grad(
                _torch_attention(leaves[0], leaves[1], scale), leaves, grad
            )
        },
    )
    bench.compare(
        Case(f"tree {tag}", params, moved),
        lambda: ops.gist_pool_tree(rows, BLOCK_SIZE)[0],
        {"torch mean, one LOD": lambda: view.mean(1)},
    )


def _run_overhead(bench: Bench) -> None:
    """A call with almost no work: what the way from Python to the kernel costs."""
    rows = torch.randn(BLOCK_SIZE, 16, device=bench.device)
    gists = torch.empty(1, 16, device=bench.device)
    view = rows.view(1, BLOCK_SIZE, 16)
    raw = torch.ops.megacontext.gist_pool.default
    out = torch.ops.megacontext.gist_pool_out.default
    params = {"N": 1, "K": BLOCK_SIZE, "D": 16, "dtype": "float32"}
    with torch.no_grad():
        bench.compare(
            Case("call, operator", params),
            lambda: raw(rows, BLOCK_SIZE),
            {"torch mean": lambda: view.mean(1)},
        )
        bench.compare(
            Case("call, wrapper", params),
            lambda: ops.gist_pool(rows, BLOCK_SIZE),
            {"torch mean": lambda: view.mean(1)},
        )
        bench.compare(
            Case("call, no allocation", params),
            lambda: out(rows, BLOCK_SIZE, None, None, 1.0, gists),
            {"torch mean": lambda: view.mean(1)},
        )
