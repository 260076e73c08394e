"""Ways to put n entries in place of a span, each giving the suffix's hidden states.

All keep true positions: the suffix is read at its own positions and every entry stays where its
tokens were. `Window` holds what all methods share for one batch, so that comparisons are paired.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megacontext.gists.adapter import GistAdapter
from megacontext.gists.base import FrozenBase, KeyValues, rotate, spread_heads
from megacontext.gists.layout import K, SpanLayout
from megacontext.gists.net import GistNet, suffix_through_gists
from megacontext.gists.rows import assemble, compute_rows
from megacontext_ext.errors import InvalidArgument


class Window:
    """prefix | span | suffix of a batch [B, tokens + 1], read once in full."""

    def __init__(self, base: FrozenBase, ids: Tensor, layout: SpanLayout) -> None:
        self.base, self.ids, self.layout = base, ids, layout
        self.known = layout.prefix + layout.span
        self.full, self.cache = base.read(ids[:, : layout.tokens])
        self.full = self.full[:, self.known :]
        self.mass: list[Tensor] | None = None  # of repeat_attention, when first asked for
        self.kept: dict[str, Any] = {}  # what several methods of one window share
        self.prefix = self.cache.narrow(0, layout.prefix)
        self.span = self.cache.narrow(layout.prefix, self.known)

    def suffix_after(self, past: KeyValues, bias: Tensor | list[Tensor] | None = None) -> Tensor:
        """Hidden states of the suffix that sees `past` and itself."""
        suffix = self.ids[:, self.known : self.layout.tokens]
        return self.base.read(suffix, self.known, past, keep=False, bias=bias)[0]

    def nll(self, hidden: Tensor) -> Tensor:
        """[B] mean negative log-likelihood of the suffix's next tokens."""
        targets = self.ids[:, self.known + 1 : self.layout.tokens + 1]
        found = []
        for states, wanted in zip(hidden, targets, strict=True):
            found.append(F.cross_entropy(self.base.logits(states).float(), wanted))
        return torch.stack(found)


def joined(first: KeyValues, second: KeyValues) -> KeyValues:
    return KeyValues(
        [torch.cat(pair, 2) for pair in zip(first.keys, second.keys, strict=True)],
        [torch.cat(pair, 2) for pair in zip(first.values, second.values, strict=True)],
    )


def at_tokens(window: Window, chosen: Tensor) -> KeyValues:
    """Prefix and the span's entries at token offsets `chosen` [n] of the span."""
    chosen = chosen.to(window.ids.device)
    span = window.span
    picked = KeyValues(
        [k.index_select(2, chosen) for k in span.keys],
        [v.index_select(2, chosen) for v in span.values],
    )
    return joined(window.prefix, picked)


def full(window: Window, entries: int) -> Tensor:
    return window.full


def drop(window: Window, entries: int) -> Tensor:
    return window.suffix_after(window.prefix)


def recent_tokens(window: Window, entries: int) -> Tensor:
    span = window.layout.span
    return window.suffix_after(at_tokens(window, torch.arange(span - entries, span)))


def random_tokens(window: Window, entries: int) -> Tensor:
    generator = torch.Generator().manual_seed(entries)
    chosen = torch.randperm(window.layout.span, generator=generator)[:entries].sort()[0]
    return window.suffix_after(at_tokens(window, chosen))


def last_of_share(window: Window, entries: int) -> Tensor:
    """The last token's entry of each of n equal shares of the span."""
    share = window.layout.span // entries
    return window.suffix_after(at_tokens(window, torch.arange(entries) * share + share - 1))


def mean_entries(window: Window, entries: int) -> Tensor:
    """Mean un-rotated key and mean value of each share, at its centre, bias log(share)."""
    base, layout = window.base, window.layout
    share = layout.span // entries
    cos, sin = base.rotary(torch.arange(layout.prefix, window.known))
    centres = layout.prefix + torch.arange(entries) * share + (share - 1) / 2
    placed = base.rotary(centres)
    keys, values = [], []
    for k, v in zip(window.span.keys, window.span.values, strict=True):
        plain = rotate(k, cos, -sin)
        keys.append(rotate(plain.unflatten(2, (entries, share)).mean(3), *placed))
        values.append(v.unflatten(2, (entries, share)).mean(3))
    bias = torch.zeros(layout.prefix + entries, device=window.ids.device)
    bias[layout.prefix :] = torch.log(torch.tensor(float(share)))
    return window.suffix_after(joined(window.prefix, KeyValues(keys, values)), bias)


def mean_embedding(window: Window, entries: int) -> Tensor:
    """Mean input embedding of each share, read by the base as one token at its centre."""
    base, layout = window.base, window.layout
    share = layout.span // entries
    embedded = F.embedding(window.ids[:, layout.prefix : window.known], base.embed)
    means = embedded.unflatten(1, (entries, share)).float().mean(2).to(base.dtype)
    centres = layout.prefix + torch.arange(entries) * share + share // 2
    read = base.read(means, centres, window.prefix)[1]
    return window.suffix_after(joined(window.prefix, read))


def repeat_attention(window: Window) -> list[Tensor]:
    """Per layer [B, kv_heads, span]: attention the span's keys get when the span is read again.

    Summed over the repeated span's queries and a KV head's query heads. The query set knows
    nothing of the suffix.
    """
    base, layout = window.base, window.layout
    x = F.embedding(window.ids[:, layout.prefix : window.known], base.embed)
    cos, sin = base.rotary(torch.arange(window.known, window.known + layout.span))
    eps, width, found = base.shape.norm_eps, (base.shape.width,), []
    for number, weights in enumerate(base.layers):
        y = F.rms_norm(x, width, weights.attention_norm, eps)
        q, k, v = (base.heads_of(F.linear(y, w)) for w in weights[2:5])
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        keys = torch.cat((window.cache.keys[number][:, :, : window.known], k), 2)
        values = torch.cat((window.cache.values[number][:, :, : window.known], v), 2)
        keys, values = (spread_heads(t, base.shape.heads) for t in (keys, values))
        visible = torch.ones(layout.span, keys.shape[2], dtype=torch.bool, device=x.device)
        visible = visible.tril(window.known)
        scores = (q @ keys.transpose(2, 3)).float() / base.shape.head**0.5
        share = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        mass = share[..., layout.prefix : window.known].sum(2)
        found.append(mass.unflatten(1, (base.shape.kv_heads, -1)).sum(2))
        mixed = (share.to(values.dtype) @ values).transpose(1, 2).flatten(2)
        x = x + F.linear(mixed, weights.o)
        x = x + base.mlp(weights, x)
    return found


def top_attention(window: Window, entries: int) -> Tensor:
    """The n keys of each KV head that get most attention when the span is read again."""
    return window.suffix_after(joined(window.prefix, top_keys(window, entries)))


def top_keys(window: Window, entries: int) -> KeyValues:
    """The n entries of `top_attention`."""
    if window.mass is None:
        window.mass = repeat_attention(window)
    keys, values = [], []
    for k, v, m in zip(window.span.keys, window.span.values, window.mass, strict=True):
        chosen = (
            m.topk(entries, -1).indices.sort(-1).values[..., None].expand(-1, -1, -1, k.shape[3])
        )
        keys.append(k.gather(2, chosen))
        values.append(v.gather(2, chosen))
    return KeyValues(keys, values)


def gist_rows(adapter: GistAdapter) -> Callable[[Window, int], Tensor]:
    """The learned rows: entries / nodes of them for each node of the layout's LOD."""

    def read(window: Window, entries: int) -> Tensor:
        layout = window.layout
        nodes = layout.span // 32**layout.lod
        own = SpanLayout(layout.prefix, layout.span, layout.suffix, entries // nodes, layout.lod)
        tokens = window.cache.narrow(0, window.known)
        ids = window.ids[:, : window.known]
        rows = compute_rows(window.base, adapter, own.row_plan(), ids, tokens).placed(window.base)
        return window.suffix_after(assemble(tokens, rows, own.pieces()))

    return read


def row_and_keys(adapter: GistAdapter) -> Callable[[Window, int], Tensor]:
    """One learned row for each block, and for the other entries the span's most attended keys.

    Needs a LOD-1 layout and at least one entry a block.
    """

    def read(window: Window, entries: int) -> Tensor:
        layout = window.layout
        blocks = layout.span // K
        own = SpanLayout(layout.prefix, layout.span, layout.suffix, 1)
        tokens = window.cache.narrow(0, window.known)
        ids = window.ids[:, : window.known]
        rows = compute_rows(window.base, adapter, own.row_plan(), ids, tokens).placed(window.base)
        past = assemble(tokens, rows, own.pieces())
        if entries > blocks:
            past = joined(past, top_keys(window, entries - blocks))
        return window.suffix_after(past)

    return read


def embedding_gists(net: GistNet) -> Callable[[Window, int], Tensor]:
    """One vector a block by a GistNet, read by the base as one token at the block's centre."""

    def read(window: Window, entries: int) -> Tensor:
        layout = window.layout
        if entries * K != layout.span:
            raise InvalidArgument(
                f"[embedding_gists] entries must be one a block, {layout.span // K}, got {entries}"
            )
        return suffix_through_gists(window.base, net, layout, window.ids)

    return read


BASELINES: dict[str, Callable[[Window, int], Tensor]] = {
    "random tokens": random_tokens,
    "mean embedding": mean_embedding,
    "mean KV, log-mass bias": mean_entries,
    "last token's KV of a share": last_of_share,
    "most recent tokens": recent_tokens,
    "top attention (repeat-prefill)": top_attention,
}
