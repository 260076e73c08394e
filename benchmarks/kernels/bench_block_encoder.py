"""block_encoder against the same transformer in plain PyTorch, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Bench, Case
from megacontext_ext import ops

TESTS = "tests/kernels/test_block_encoder.py"
LAYERS = 2
WINDOW = 32
# Least ratio wanted against the better of eager and compiled, by width; 1 is parity.
BF16_GOAL = {"cpu": {128: 1.4, 256: 1.2}, "cuda": {1024: 1.5, 2048: 1.5}}


def plain_encoder(x: Tensor, weights: ops.BlockEncoderWeights) -> tuple[Tensor, Tensor]:
    """What a PyTorch user writes at best: rms_norm, scaled_dot_product_attention, silu."""
    count, _, width = x.shape
    head_width = weights.table.shape[1]
    cosine, sine = (half.to(x.dtype) for half in weights.table.chunk(2, dim=1))
    cosine, sine = torch.cat([cosine, cosine], 1), torch.cat([sine, sine], 1)

    def rotate(rows: Tensor) -> Tensor:
        low, high = rows.chunk(2, dim=-1)
        return rows * cosine + torch.cat([-high, low], dim=-1) * sine

    rows = x.reshape(-1, width)
    for layer in weights.layers:
        y = F.rms_norm(rows, (width,), layer.attention_norm, 1e-6)
        heads = F.linear(y, layer.qkv).view(count, WINDOW, 3, -1, head_width)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(rotate(q), rotate(k), v)
        rows = rows + F.linear(attended.transpose(1, 2).reshape(-1, width), layer.out)
        y = F.rms_norm(rows, (width,), layer.mlp_norm, 1e-6)
        gate, up = F.linear(y, layer.gate_up).chunk(2, dim=-1)
        rows = rows + F.linear(F.silu(gate) * up, layer.down)
    encoded = F.rms_norm(rows, (width,), weights.final_norm, 1e-6).view(x.shape)
    return encoded, encoded.mean(1)


def forward_flops(windows: int, weights: ops.BlockEncoderWeights) -> float:
    rows = windows * WINDOW
    products = sum(t.numel() for layer in weights.layers for t in layer if t.dim() == 2)
    width = weights.final_norm.numel()
    return 2.0 * rows * products + LAYERS * 4.0 * rows * WINDOW * width


def _sizes(bench: Bench) -> list[tuple[int, int]]:
    """Windows, width."""
    if bench.smoke:
        return [(2, 64)]
    if bench.device == "cuda":
        return [(8192, 256), (4096, 1024), (2048, 2048)]
    return [(256, 128), (128, 256), (64, 512)]


def run(bench: Bench) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        for windows, width in _sizes(bench):
            _run_size(bench, windows, width, dtype)


def _run_size(bench: Bench, windows: int, width: int, dtype: torch.dtype) -> None:
    weights = ops.init_block_encoder(width, LAYERS, dtype=dtype, device=bench.device)
    x = torch.randn(windows, WINDOW, width, device=bench.device).to(dtype)
    name = str(dtype).removeprefix("torch.")
    params = {"N": windows, "D": width, "layers": LAYERS, "dtype": name}
    flops = forward_flops(windows, weights)
    contestants: dict[str, Callable] = {
        "megacontext": ops.block_encoder,
        "torch eager": plain_encoder,
    }
    if not bench.smoke:
        torch._dynamo.reset()
        contestants["torch compiled"] = torch.compile(plain_encoder, dynamic=False)
    forward = {key: _forward(call, x, weights) for key, call in contestants.items()}
    _compare(bench, Case(f"forward {name} D={width}", params, None, flops, name), forward)
    both = {key: _both(call, x, weights) for key, call in contestants.items()}
    _compare(bench, Case(f"forward+backward {name} D={width}", params, None, 3 * flops, name), both)


def _compare(bench: Bench, case: Case, calls: dict[str, Callable]) -> None:
    ours = calls.pop("megacontext")
    measured = bench.compare(case, ours, calls)
    best = min(measured[peer].median for peer in calls)
    goal = BF16_GOAL[bench.device].get(case.params["D"], 1.0) if case.dtype == "bfloat16" else 1.0
    ratio = best / measured["megacontext"].median
    bench.record_ratio(f"{case.name} vs the best of torch", ratio, None if bench.smoke else goal)


def _forward(call: Callable, x: Tensor, weights: ops.BlockEncoderWeights) -> Callable:
    def forward() -> Tensor:
        with torch.no_grad():
            return call(x, weights)[1]

    return forward


def _both(call: Callable, x: Tensor, weights: ops.BlockEncoderWeights) -> Callable:
    leaves = [t.detach().requires_grad_() for layer in weights.layers for t in layer]
    layers = tuple(
        ops.BlockEncoderLayer(*leaves[6 * i : 6 * i + 6]) for i in range(len(weights.layers))
    )
    leaves.append(weights.final_norm.detach().requires_grad_())
    mine = ops.BlockEncoderWeights(layers, leaves[-1], weights.table)
    start = x.detach().requires_grad_()

    def both() -> Tensor:
        rows, pooled = call(start, mine)
        return torch.autograd.grad(rows.mean() + pooled.sum(), [start, *leaves])[0]

    return both
