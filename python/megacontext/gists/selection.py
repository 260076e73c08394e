"""Kept rows: the keys and values of a span that stand for it, chosen without training.

A *kept row* is one token's key and value in one layer and KV head. Which are kept is decided by the
use that later queries would make of them, and since those are not known, by the span's own queries,
asked once more as if one span later (like SnapKV, Li et al. 2024, and Expected Attention, Devoto et
al. 2025, but with all of the span's queries). Use is attention to the power of 1.5, so that what
one query looks at with all its weight counts more than what many glance at, times the squared norm
of the value, which attention sinks have small (LOG, 2026-11-29). Rows are shared out over layers
and heads by the same measure (like AdaKV, Feng et al. 2024, but over all layers).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from megacontext_ext.ops import attention_use

# No head keeps more than this many times the mean, and none less than the mean over it.
SPREAD = 8
WIDTH_STEP = 16  # of the operator's rows


class KeptRows(NamedTuple):
    """Rows in order of owner, then token. owner: [M] layer * Hkv + KV head; token: [M] offset;
    use: [M] what is expected of each, to choose among them again."""

    owner: Tensor
    token: Tensor
    use: Tensor


def expected_use(
    queries: Tensor, keys: Tensor, values: Tensor, earlier: Tensor, recent: Tensor
) -> Tensor:
    """What the span's own queries, asked one span later, make of its keys and values.

    Args:
        queries: [B, Hq, Q, E], rotated to positions one span after their own.
        keys, values: [B, Hkv, T, E] the span's, keys rotated to their positions. Hkv divides Hq.
        earlier: [B, Hkv, S, E] keys before the span that compete, rotated.
        recent: [B, Hkv, Q, E] the keys of the queries' tokens, rotated like the queries: what
            each would find beside itself. Query t sees the first t + 1.

    Returns:
        [B, Hkv, T] float32: attention ** 1.5, summed over the queries of a KV head, times the
        value's squared norm.

    Cost: Hq * Q * (T + S + Q / 2) exponentials, and E times as many multiplications
    (`attention_use`).
    """
    seen = torch.cat((keys, earlier, recent), 2)
    width = queries.shape[-1]
    spare = -width % WIDTH_STEP  # zeros behind a row change no product
    queries, seen = F.pad(queries, (0, spare)).contiguous(), F.pad(seen, (0, spare))
    use = attention_use(queries, seen, keys.shape[2], scale=width**-0.5)
    return use * values.float().square().sum(-1)


def choose_rows(use: Tensor, total: int) -> KeptRows:
    """The `total` most used rows, none of a head beyond its share's bounds.

    Args:
        use: [L, Hkv, T] from `expected_use`; layers that shall keep nothing are all zero.
        total: rows to keep over all layers and heads, at most L * Hkv * T.

    Returns:
        `total` rows, fewer only where the bounds allow no more.

    Cost: a top-k of min(T, SPREAD * mean) a head, and one over all of those.
    """
    flat = use.flatten(0, 1)
    speaking = flat.amax(-1) > 0
    mean = total / max(1, int(speaking.sum()))
    most = min(flat.shape[-1], max(1, int(SPREAD * mean)))
    best = flat.topk(most, -1)
    rank = best.values.clone()
    rank[:, : int(mean / SPREAD)] = float("inf")
    rank[~speaking] = float("-inf")
    chosen = rank.flatten().topk(min(total, int(speaking.sum()) * most)).indices.sort().values
    owner, token = chosen // most, best.indices.flatten()[chosen]
    order = torch.argsort(owner * flat.shape[-1] + token)
    owner, token = owner[order], token[order]
    return KeptRows(owner, token, flat[owner, token])
