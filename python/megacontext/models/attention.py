"""The attention function that loaded bases use, registered with transformers as "megacontext".

On a CPU this project's focused attention reads the cache where it lies (`seen_places.py`): a buffer
of `GrowingLayer` is a pool of one page a stream. torch's flash kernel was measured 5 times slower
there at prefill, in bfloat16 and float32 alike, and 20 times slower at one query place. Where the
kernel does not fit (other head widths, masks of another shape, gradients, CUDA), one query place is
two small matrix products over grouped heads, and more are scaled_dot_product_attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from megacontext.models.seen_places import cache_pool, seen_places
from megacontext_ext import ops
from megacontext_ext.entry_table import AttentionRules

ATTENTION_NAME = "megacontext"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_WIDTHS = (64, 128, 256)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """[B, S, H, E] of query [B, H, S, E] over key, value [B, G, P, E]; G divides H.

    `dropout` has its place, not only its name: packages that wrap attention functions pass it so.
    """
    extras = ("position_bias", "softcap", "s_aux")
    plain = query.device.type == "cpu" and all(kwargs.get(extra) is None for extra in extras)
    if plain and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        scaling = kwargs.get("scaling")
        causal = kwargs.get("is_causal")
        if getattr(module, "is_causal", True) if causal is None else causal:
            window = kwargs.get("sliding_window") or 0
            out = attend_cache(query, key, value, attention_mask, scaling, window)
            if out is not None:
                return out, None
        if query.shape[2] == 1:
            return attend_one(query, key, value, attention_mask, scaling), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, **kwargs)


def attend_cache(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    window: int,
) -> Tensor | None:
    """[B, S, H, E] by focused attention; None where it does not fit. Shapes as in `attend`."""
    if query.shape[-1] not in _WIDTHS or query.dtype not in _DTYPES or key.dtype != query.dtype:
        return None
    keys, values = cache_pool(key), cache_pool(value)
    if keys is None or values is None or keys.shape != values.shape:
        return None
    seen = seen_places(mask, (*query.shape[::2], key.shape[2], keys.shape[2]), window)
    if seen is None:
        return None
    flat = query.transpose(1, 2).reshape(-1, query.shape[1], query.shape[3]).contiguous()
    out, _ = ops.focused_attention(flat, keys, values, *seen, AttentionRules(scale=scaling))
    return out.view(query.shape[0], query.shape[2], *out.shape[1:])


def attend_one(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """[B, 1, H, E]: one query place over all places. Softmax is in float32."""
    batch, heads, _, width = query.shape
    groups = key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    grouped = query.view(batch, groups, heads // groups, width) * scale
    scores = torch.matmul(grouped, key.transpose(-1, -2)).float()  # [B, G, H/G, P]
    if mask is not None:
        # Shared by all heads: [B, 1, 1, P], boolean or additive.
        shown = mask[..., : key.shape[2]]
        scores = (
            scores.masked_fill(~shown, -torch.inf) if mask.dtype == torch.bool else scores + shown
        )
    weights = torch.softmax(scores, dim=-1).to(value.dtype)
    return torch.matmul(weights, value).view(batch, 1, heads, value.shape[-1])


def register() -> None:
    """Make the name known to transformers. Safe to call again."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, sdpa_mask)
