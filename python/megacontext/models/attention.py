"""The attention function that loaded bases use, registered with transformers as "megacontext".

Prefill is torch's scaled_dot_product_attention. A decode step (one query place) is two small matrix
products over grouped heads: torch's CPU flash kernel is built for many queries and was measured
20 times slower at one query over 1,024 places in bfloat16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION_NAME = "megacontext"


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
    one_place = query.shape[2] == 1 and query.device.type == "cpu"
    plain = all(kwargs.get(extra) is None for extra in ("position_bias", "softcap", "s_aux"))
    if not (one_place and plain) or torch.is_grad_enabled():
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, **kwargs)
    return attend_one(query, key, value, attention_mask, kwargs.get("scaling")), None


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
