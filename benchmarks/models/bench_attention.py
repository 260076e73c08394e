"""Attention of a loaded base over its cache: a layer's at the shapes of SmolLM2-135M and Gemma 3
270M, then a whole prompt and a whole decoded token of SmolLM2, beside transformers' own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from benchmarks.harness import Bench, Case
from megacontext.models import StepInput, load
from megacontext.models.attention import ATTENTION_NAME, attend
from megacontext.models.kv_cache import GrowingLayer

TESTS = "tests/python/models/test_attention.py"
# Name: query heads, KV heads, width.
SHAPES = {"smollm2": (9, 3, 64), "gemma3": (4, 1, 256)}
# Queries and places: a whole prompt, what follows a kept prefix, a decoded token.
STEPS = ((256, 256), (2048, 2048), (256, 2048), (1, 256), (1, 2048))
PROMPTS = (256, 1024, 2048)


@torch.inference_mode()
def run(bench: Bench) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        for name in list(SHAPES)[:1] if bench.smoke else SHAPES:
            for step in ((8, 8), (1, 8)) if bench.smoke else STEPS:
                _layer(bench, name, step, dtype)
    if not bench.smoke:
        _whole_model(bench)


def _layer(bench: Bench, name: str, step: tuple[int, int], dtype: torch.dtype) -> None:
    (heads, groups, width), (queries, places) = SHAPES[name], step
    rows = torch.randn(2, 1, groups, places, width, generator=torch.Generator().manual_seed(0))
    key, value = GrowingLayer().update(*rows.to(dtype))
    query = torch.randn(1, heads, queries, width).to(dtype)
    module = nn.Module()
    module.num_key_value_groups = heads // groups  # type: ignore[assignment]
    mask = sdpa_mask(1, queries, places, q_offset=places - queries)
    text = str(dtype).removeprefix("torch.")
    seen = queries * (2 * places - queries + 1) // 2
    case = Case(
        f"{name} {text} {queries} of {places}",
        {"queries": queries, "places": places, "heads": heads, "kv_heads": groups, "width": width},
        flops=4.0 * seen * heads * width,
        dtype=text,
    )
    bench.compare(
        case,
        lambda: attend(module, query, key, value, mask)[0],
        {"sdpa": lambda: sdpa_attention_forward(module, query, key, value, mask)[0]},
        {"sdpa": 1.0},
    )


def _whole_model(bench: Bench) -> None:
    base = load("smollm2")
    tokens = torch.from_numpy(np.random.default_rng(0).integers(100, 40_000, (1, max(PROMPTS))))
    ways: dict[str, tuple[str, Callable[[], DynamicCache]]] = {
        "megacontext": (ATTENTION_NAME, base.new_cache),  # type: ignore[dict-item]
        "transformers": ("sdpa", lambda: DynamicCache(config=base.model.config)),
    }

    def read(way: str, count: int, cache: DynamicCache, start: int = 0) -> Tensor:
        base.model.set_attn_implementation(ways[way][0])
        positions = torch.arange(start, start + count)[None]
        given = StepInput(positions, tokens=tokens[:, start : start + count])
        return base.step(given, cache)

    for count in PROMPTS:
        case = Case(f"prompt of {count}", {"tokens": count}, dtype="bfloat16")
        ours, theirs = (lambda way=way: read(way, count, ways[way][1]()) for way in ways)
        bench.compare(case, ours, {"transformers": theirs}, {"transformers": 1.0})

        caches = {way: ways[way][1]() for way in ways}
        for way, cache in caches.items():
            read(way, count - 1, cache)

        def one(way: str, count: int = count, caches: dict = caches) -> Tensor:  # type: ignore[type-arg]
            logits = read(way, 1, caches[way], count - 1)
            caches[way].crop(-1)
            return logits

        case = Case(f"token behind {count}", {"places": count}, dtype="bfloat16")
        ours, theirs = (lambda way=way: one(way) for way in ways)
        bench.compare(case, ours, {"transformers": theirs}, {"transformers": 1.0})
