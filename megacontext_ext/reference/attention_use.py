"""attention_use in plain torch: the meaning of the operator, in any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["attention_use"]


def attention_use(queries: Tensor, keys: Tensor, count: int, scale: float | None = None) -> Tensor:
    """Softmax ** 1.5 of the first `count` keys, summed over the queries of each KV head.

    Args:
        queries: [B, Hq, Q, E] floating.
        keys: [B, Hkv, P, E]; query t sees the first P - Q + t + 1.
        count: 0 to P - Q.
        scale: None is E ** -0.5.

    Returns:
        [B, Hkv, count] in the dtype of `queries`.
    """
    asks, places = queries.shape[2], keys.shape[2]
    factor = queries.shape[-1] ** -0.5 if scale is None else scale
    grouped = queries.unflatten(1, (keys.shape[1], queries.shape[1] // keys.shape[1]))
    scores = grouped @ keys.unsqueeze(2).mT * factor  # [B, Hkv, group, Q, P]
    unseen = torch.ones(asks, places, dtype=torch.bool, device=keys.device)
    scores = scores.masked_fill(unseen.triu(places - asks + 1), float("-inf"))
    return (scores.softmax(-1)[..., :count] ** 1.5).sum((2, 3))
