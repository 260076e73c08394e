"""attention_use against the torch code that it replaced: scores of 16 queries at a time."""

from __future__ import annotations

import torch

from benchmarks.harness import Bench, Case
from megacontext_ext import ops

TESTS = "tests/kernels/test_attention_use.py"
GOAL = 2.0
QUERIES_AT_ONCE = 16  # whose scores stay in the cache of a core (8 and 32 are slower)
SPAN, EARLIER = 1024, 288  # tokens of a page of kept rows, and of what competes with it
# Query heads, KV heads, head width.
SHAPES = {"SmolLM2": (9, 3, 64), "Gemma 3": (4, 1, 256)}


def torch_use(queries: torch.Tensor, keys: torch.Tensor, count: int) -> torch.Tensor:
    heads, asks = keys.shape[1], queries.shape[2]
    group = queries.shape[1] // heads
    always, recent = keys.split((keys.shape[2] - asks, asks), 2)
    asked = queries.unflatten(1, (heads, group)) * queries.shape[-1] ** -0.5
    use = torch.zeros(*keys.shape[:2], count, device=keys.device)
    for start in range(0, asks, QUERIES_AT_ONCE):
        end = min(start + QUERIES_AT_ONCE, asks)
        seen = torch.cat((always, recent[:, :, :end]), 2)  # quicker than a part of `keys`
        scores = (asked[:, :, :, start:end].flatten(2, 3) @ seen.mT).float()
        unseen = torch.ones(end - start, end - start, dtype=torch.bool, device=keys.device).triu(1)
        own = scores[..., -(end - start) :].unflatten(2, (group, end - start))
        own.masked_fill_(unseen, float("-inf"))
        weights = scores.softmax(-1)[..., :count]
        use += (weights * weights.sqrt()).sum(2)
    return use


def run(bench: Bench) -> None:
    span, earlier = (40, 9) if bench.smoke else (SPAN, EARLIER)
    for model, heads in SHAPES.items():
        for dtype in (torch.bfloat16, torch.float32):
            _run(bench, model, heads, (span, earlier), dtype)


def _run(
    bench: Bench,
    model: str,
    heads: tuple[int, int, int],
    tokens: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    (query_heads, kv_heads, width), (span, earlier) = heads, tokens
    name, places = str(dtype).removeprefix("torch."), 2 * span + earlier
    queries = (2 * torch.randn(1, query_heads, span, width, device=bench.device)).to(dtype)
    keys = torch.randn(1, kv_heads, places, width, device=bench.device).to(dtype)
    params = {"Hq": query_heads, "Hkv": kv_heads, "Q": span, "P": places, "E": width, "dtype": name}
    flops = 2.0 * query_heads * span * (places - span / 2) * width
    bench.compare(
        Case(f"{model} {name}", params, flops=flops, dtype=name),
        lambda: ops.attention_use(queries, keys, span),
        {"torch": lambda: torch_use(queries, keys, span)},
        {"torch": GOAL},
    )
