"""The attention function that `transformers` calls in every layer while a memory is attached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from megacontext_ext.errors import InvalidArgument

if TYPE_CHECKING:
    from megacontext.paged.memory import PagedMemory

IMPLEMENTATION = "megacontext_paged"

# Attention module -> the memory attached to its model.
memory_of: WeakKeyDictionary[nn.Module, PagedMemory] = WeakKeyDictionary()


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Writes the new keys and values to pages and attends to what is in focus.

    Args:
        query: [B, Hq, T, E], key, value: [B, Hkv, T, E], all un-rotated.
        attention_mask: [B, >= T] True at real tokens, or None.

    Returns:
        [B, T, Hq, E]; zeros at padding.
    """
    memory = memory_of[module]
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if key.shape[2] != query.shape[2]:
        raise InvalidArgument(
            f"[paged] layer {layer} got {key.shape[2]} keys for {query.shape[2]} "
            "queries: another cache is in use; pass cache=memory.cache"
        )
    real = _real_tokens(attention_mask, query)
    if layer == 0:
        memory.begin_step(real, (query.shape[0], query.shape[2]))
    out = memory.attend(
        layer,
        (_flat(query, real), _flat(key, real), _flat(value, real)),
        {
            "scale": scaling,
            "softcap": softcap or 0.0,
            "sink": s_aux,
            "window": sliding_window or 0,
        },
    )
    if layer == memory.layer_count - 1:
        memory.end_step()
    if real is None:
        return out.view(query.shape[0], query.shape[2], *out.shape[1:]), None
    padded = out.new_zeros(query.shape[0], query.shape[2], *out.shape[1:])
    padded[real] = out
    return padded, None


def _real_tokens(attention_mask: Tensor | None, query: Tensor) -> Tensor | None:
    """[B, T] True at real tokens; None when all are."""
    if attention_mask is None:
        return None
    real = attention_mask[:, -query.shape[2] :].to(torch.bool)
    return None if bool(real.all()) else real


def _flat(x: Tensor, real: Tensor | None) -> Tensor:
    """[T over all streams, H, E], contiguous."""
    tokens = x.transpose(1, 2)
    return tokens.reshape(-1, *tokens.shape[2:]).contiguous() if real is None else tokens[real]


def _keep_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Causality and focus are the plan's; only padding is passed on."""
    return attention_mask


AttentionInterface.register(IMPLEMENTATION, paged_attention)
AttentionMaskInterface.register(IMPLEMENTATION, _keep_mask)
