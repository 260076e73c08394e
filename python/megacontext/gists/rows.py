"""Gist rows computed from tokens' keys and values, and put in place of those tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from megacontext.gists.adapter import GistAdapter
from megacontext.gists.base import (
    FrozenBase,
    KeyValues,
    LayerWeights,
    merge_heads,
    rotate,
    spread_heads,
)
from megacontext.gists.layout import RowPlan


class GistRows(NamedTuple):
    """Rows of some nodes: per layer un-rotated keys and values [B, kv_heads, G, head]."""

    keys: list[Tensor]
    values: list[Tensor]
    positions: Tensor  # [G] where the keys stay on the timeline.

    def placed(self, base: FrozenBase) -> KeyValues:
        """Rotated to their positions, ready to be attended to."""
        cos, sin = base.rotary(self.positions)
        return KeyValues([rotate(k, cos, sin) for k in self.keys], self.values)


def compute_rows(
    base: FrozenBase, adapter: GistAdapter, plan: RowPlan, ids: Tensor, known: KeyValues
) -> GistRows:
    """Rows of a plan over known tokens.

    Args:
        base: the frozen base.
        adapter: trained for that base; gradients flow to it if enabled.
        plan: G rows over T tokens.
        ids: [B, T] the tokens.
        known: the tokens' rotated keys and values, [B, kv_heads, T, head] a layer.

    Returns:
        G rows with un-rotated keys.

    Cost: G passes of the base with attention over T + G keys.
    """
    plan = plan.to(base.device)
    weights = adapter.cast(base.dtype)
    heads = base.shape.heads
    ask, stay = base.rotary(plan.asks), base.rotary(plan.stays)
    added = adapter.row_inputs[plan.learned].to(base.dtype).unbind(1)  # layers of [G, width]
    x = row_inputs(base, adapter, plan, ids)
    eps = base.shape.norm_eps
    rows = GistRows([], [], plan.stays)
    for number, frozen in enumerate(base.layers):

        def project(
            name: str, y: Tensor, number: int = number, frozen: LayerWeights = frozen
        ) -> Tensor:
            low = F.linear(y, weights[f"into_{name}"][number])
            change = F.linear(low, weights[f"out_{name}"][number])
            return F.linear(y, getattr(frozen, name)) + change

        x = x + added[number]
        y = F.rms_norm(x, (x.shape[-1],), frozen.attention_norm, eps)
        q, k, v = (base.heads_of(project(name, y)) for name in "qkv")
        rows.keys.append(k)
        rows.values.append(v)
        keys = torch.cat((known.keys[number], rotate(k, *stay)), 2)
        values = torch.cat((known.values[number], v), 2)
        mixed = F.scaled_dot_product_attention(
            rotate(q, *ask),
            spread_heads(keys, heads),
            spread_heads(values, heads),
            attn_mask=plan.visible,
        )
        x = x + project("o", merge_heads(mixed))
        y = F.rms_norm(x, (x.shape[-1],), frozen.mlp_norm, eps)
        x = x + project("down", F.silu(project("gate", y)) * project("up", y))
    return rows


def row_inputs(base: FrozenBase, adapter: GistAdapter, plan: RowPlan, ids: Tensor) -> Tensor:
    """[B, G, width]: what the rows read, from their shares' last and mean token embeddings."""
    embedded = F.embedding(ids, base.embed)
    mean = plan.share.to(base.dtype) @ embedded
    last_gate = adapter.last_gate[plan.learned].to(base.dtype)
    mean_gate = adapter.mean_gate[plan.learned].to(base.dtype)
    return last_gate * embedded[:, plan.last] + mean_gate * mean


def assemble(
    tokens: KeyValues, rows: KeyValues | None, pieces: list[tuple[str, int, int]]
) -> KeyValues:
    """One run of keys and values out of pieces ("tokens" | "rows", start, end), in order."""
    sources = {"tokens": tokens, "rows": rows}

    def join(field: str, number: int) -> Tensor:
        return torch.cat([getattr(sources[s], field)[number][:, :, a:b] for s, a, b in pieces], 2)

    count = range(len(tokens.keys))
    return KeyValues([join("keys", n) for n in count], [join("values", n) for n in count])
