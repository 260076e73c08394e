"""score_topk against what PyTorch and NumPy users write: torch.topk, argpartition, mv + topk."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.harness import Bench, Case
from megacontext_ext import ops

TESTS = "tests/kernels/test_score_topk.py"
# Goals on one CPU thread; on an H100 no rival of torch.topk is at hand, so the ratio is the goal.
TORCH_GOAL = {"cpu": 40.0, "cuda": 2.0}
RECIPE_GOAL = 1.8


def numpy_sampled_threshold(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The recipe to beat: a threshold from a sample, then a sort of what reaches it. Exact."""
    sample = np.sort(scores[:: max(1, len(scores) // 16384)])[::-1]
    rank = int(1.5 * k * len(sample) / len(scores)) + 16
    threshold = sample[min(rank, len(sample) - 1)]
    at = np.flatnonzero(scores >= threshold)
    if len(at) < k:
        at = np.arange(len(scores))
    order = np.argsort(-scores[at], kind="stable")[:k]
    return scores[at][order], at[order]


def numpy_argpartition(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    at = np.argpartition(scores, len(scores) - k)[-k:]
    order = np.argsort(-scores[at], kind="stable")
    return scores[at][order], at[order]


def run(bench: Bench) -> None:
    for count, k in [(1000, 20)] if bench.smoke else [(1_000_000, 2048), (10_000_000, 2048)]:
        _run_topk(bench, count, k)
    if not bench.smoke:
        _run_topk(bench, 131_072, 2048)
        _run_hard_inputs(bench, 1_000_000, 2048)
    for dtype in (torch.bfloat16, torch.int8):
        for queries in (1, 8):
            _run_scores(bench, queries, dtype)
    _run_beam(bench)
    _run_overhead(bench)


def _run_topk(bench: Bench, count: int, k: int) -> None:
    scores = torch.randn(count, device=bench.device)
    peers = {"torch.topk": lambda: torch.topk(scores, k)}
    goals = {"torch.topk": TORCH_GOAL[bench.device] if count >= 10_000_000 else None}
    if bench.device == "cpu":
        array = scores.numpy()
        peers["numpy sampled threshold"] = lambda: numpy_sampled_threshold(array, k)
        peers["numpy argpartition"] = lambda: numpy_argpartition(array, k)
        goals["numpy sampled threshold"] = RECIPE_GOAL if count >= 10_000_000 else None
    bench.compare(
        Case(f"topk {count}", {"N": count, "k": k}, moved_bytes=4.0 * count),
        lambda: ops.topk(scores, k),
        peers,
        {name: goal for name, goal in goals.items() if goal is not None},
    )


def _run_hard_inputs(bench: Bench, count: int, k: int) -> None:
    ramp = torch.arange(count, dtype=torch.float32, device=bench.device)
    hard = {
        "rising": ramp,
        "constant": torch.zeros_like(ramp),
        "NaN": torch.full_like(ramp, float("nan")),
        "narrow": 1 + ramp.flip(0) * 2.0**-23,
    }
    for name, scores in hard.items():
        bench.compare(
            Case(f"topk {name}", {"N": count, "k": k}, moved_bytes=4.0 * count),
            lambda scores=scores: ops.topk(scores, k),
            {"torch.topk": lambda scores=scores: torch.topk(scores, k)},
        )


def _run_scores(bench: Bench, queries: int, dtype: torch.dtype) -> None:
    count, width, k = (500, 32, 10) if bench.smoke else (1_000_000, 128, 2048)
    if bench.device == "cuda" and not bench.smoke:
        count = 4_000_000
    asked = torch.randn(queries, width, device=bench.device)
    rows = (torch.randn(count, width, device=bench.device) * 30).to(dtype)
    scales = torch.rand(count, device=bench.device) if dtype == torch.int8 else None
    plain = rows.float() if bench.device == "cpu" and queries == 1 else rows.bfloat16()
    typed = asked.to(plain.dtype)

    def matrix_product() -> tuple[torch.Tensor, torch.Tensor]:
        scores = typed @ plain.mT
        return torch.topk(scores if scales is None else scores * scales, k)

    kind = str(dtype).removeprefix("torch.")
    peer = f"torch mm {str(plain.dtype).removeprefix('torch.')} + topk"
    bench.compare(
        Case(
            f"score {kind} Q={queries}",
            {"Q": queries, "N": count, "D": width, "k": k},
            moved_bytes=float(rows.numel() * rows.element_size()),
            flops=2.0 * queries * rows.numel(),
        ),
        lambda: ops.score_topk(asked, rows, k, scales=scales),
        {peer: matrix_product},
    )


def _run_beam(bench: Bench) -> None:
    """A tree over 32M tokens: 1M nodes of LOD 1, beam 64, against scoring all of LOD 1."""
    fine, width, beam, k = (1024, 16, 4, 8) if bench.smoke else (1 << 20, 128, 64, 64)
    counts = [fine]
    while counts[0] > 32:
        counts.insert(0, counts[0] // 32)
    lods = [torch.randn(n, width, device=bench.device).bfloat16() for n in counts]
    query = torch.randn(1, width, device=bench.device)
    bench.compare(
        Case("beam", {"Q": 1, "N": fine, "D": width, "beam": beam, "k": k}),
        lambda: ops.score_beam(query, lods, k, beam)[-1],
        {"megacontext, all nodes": lambda: ops.score_topk(query, lods[-1], k)},
    )


def _run_overhead(bench: Bench) -> None:
    scores = torch.randn(64, device=bench.device)
    raw = torch.ops.megacontext.topk_no_grad.default
    with torch.no_grad():
        bench.compare(
            Case("call, operator", {"N": 64, "k": 4}),
            lambda: raw(scores, 4),
            {"torch.topk": lambda: torch.topk(scores, 4)},
        )
        bench.compare(
            Case("call, wrapper", {"N": 64, "k": 4}),
            lambda: ops.topk(scores, 4),
            {"torch.topk": lambda: torch.topk(scores, 4)},
        )
        values, indices = raw(scores, 4)
        out = torch.ops.megacontext.topk_out.default
        bench.compare(
            Case("call, no allocation", {"N": 64, "k": 4}),
            lambda: out(scores, None, values, indices),
            {"torch.topk out": lambda: torch.topk(scores, 4, out=(values, indices))},
        )
