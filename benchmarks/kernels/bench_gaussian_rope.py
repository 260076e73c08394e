"""gaussian_rope against the way transformers turns queries and keys (which knows no width)."""

from __future__ import annotations

import torch

from benchmarks.harness import Bench, Case
from megacontext_ext import ops

TESTS = "tests/kernels/test_gaussian_rope.py"


def _rotate_half(x: torch.Tensor) -> torch.Tensor:
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-second, first), dim=-1)


def _transformers_apply(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return x * cos.unsqueeze(1) + _rotate_half(x) * sin.unsqueeze(1)


def _transformers_tables(
    positions: torch.Tensor, inv_freq: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    angles = positions[:, None] * inv_freq
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def run(bench: Bench) -> None:
    tokens = 16 if bench.smoke else 32768 if bench.device == "cuda" else 2048
    for heads, width in ((9, 64), (32, 128)):
        for dtype in (torch.float32, torch.bfloat16):
            _run_apply(bench, heads, tokens, width, dtype)
    _run_tables(bench, 4 * tokens, 64)


def _run_apply(bench: Bench, heads: int, tokens: int, width: int, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    x = torch.randn(1, heads, tokens, width, device=bench.device).to(dtype)
    inv_freq = 10_000.0 ** (-torch.arange(0, width, 2, device=bench.device) / width)
    positions = torch.arange(tokens, device=bench.device, dtype=torch.float32)
    cos, sin = ops.gaussian_rope_tables(positions, positions * 0.01, inv_freq)
    wide_cos, wide_sin = (torch.cat((t, t), -1)[None].to(dtype) for t in (cos, sin))
    params = {"H": heads, "T": tokens, "E": width, "dtype": name}
    moved = 2 * x.numel() * x.element_size() + 2 * cos.numel() * 4
    bench.compare(
        Case(f"apply {name} E={width}", params, moved),
        lambda: ops.gaussian_rope(x, cos, sin),
        {"transformers": lambda: _transformers_apply(x, wide_cos, wide_sin)},
        {"transformers": 2.0},
    )


def _run_tables(bench: Bench, tokens: int, pairs: int) -> None:
    positions = torch.arange(tokens, device=bench.device, dtype=torch.float32)
    sigmas = torch.rand(tokens, device=bench.device)
    inv_freq = 10_000.0 ** (-torch.arange(pairs, device=bench.device) / pairs)
    params = {"N": tokens, "P": pairs}
    bench.compare(
        Case("tables with widths", params, 2 * 4 * tokens * pairs),
        lambda: ops.gaussian_rope_tables(positions, sigmas, inv_freq),
        {"transformers, no widths": lambda: _transformers_tables(positions, inv_freq)},
    )
