"""Attention of a loaded base over its cache: a layer's at the shapes of SmolLM2-135M and Gemma 3
270M, then a whole prompt and a whole decoded token of SmolLM2, beside transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from benchmarks.harness import Bench, Case
from megacontext.models import StepInput, TransformersBase, load
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


class _Model:
    """SmolLM2 with one attention function and the cache that goes with it."""

    def __init__(
        self, base: TransformersBase, attention: str, new_cache: Callable[[], Any]
    ) -> None:
        self.base, self.attention, self.new_cache = base, attention, new_cache
        tokens = np.random.default_rng(0).integers(100, 40_000, (1, max(PROMPTS)))
        self.tokens = torch.from_numpy(tokens)

    def read(self, start: int, end: int, cache: Any = None) -> Tensor:
        """Logits behind the tokens [start, end), on what `cache` holds of those before."""
        self.base.model.set_attn_implementation(self.attention)
        step = StepInput(torch.arange(start, end)[None], tokens=self.tokens[:, start:end])
        return self.base.step(step, self.new_cache() if cache is None else cache)

    def one_token_behind(self, count: int) -> Callable[[], Tensor]:
        """A call that reads the last of `count` tokens again and again."""
        cache = self.new_cache()
        self.read(0, count - 1, cache)

        def once() -> Tensor:
            logits = self.read(count - 1, count, cache)
            cache.crop(-1)
            return logits

        return once


def _whole_model(bench: Bench) -> None:
    base = load("smollm2")
    ours = _Model(base, ATTENTION_NAME, base.new_cache)
    theirs = _Model(base, "sdpa", lambda: DynamicCache(config=base.model.config))
    goal = {"transformers": 1.0}
    for count in PROMPTS:
        case = Case(f"prompt of {count}", {"tokens": count}, dtype="bfloat16")
        prompt = [partial(model.read, 0, count) for model in (ours, theirs)]
        bench.compare(case, prompt[0], {"transformers": prompt[1]}, goal)
        case = Case(f"token behind {count}", {"places": count}, dtype="bfloat16")
        token = [model.one_token_behind(count) for model in (ours, theirs)]
        bench.compare(case, token[0], {"transformers": token[1]}, goal)
