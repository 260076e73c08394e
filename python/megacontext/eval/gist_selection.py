"""Entries that need no training: a span's own keys and values, kept by the use they expect.

What is varied: who asks (the span's own queries one span later; the span read again; the suffix
itself, an oracle), how rows are shared out (evenly, or over all layers and heads), and whether
biases and values are fitted to the queries in closed form (attention matching).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from megacontext.eval.gist_methods import Window, joined
from megacontext.gists.base import KeyValues, merge_heads, rotate
from megacontext.gists.base import causal_attention as attend
from megacontext.gists.selection import KeptRows, choose_rows, expected_use

Reference = Literal["own", "again", "suffix"]
RIDGE = 1e-2  # of the mean diagonal: what keeps fitted values near the kept ones


class Asked(NamedTuple):
    """Reference queries of a layer [B, Hq, Q, E] and the keys beside them [B, Hkv, Q, E]."""

    queries: Tensor
    recent: Tensor


def asked_by(window: Window, reference: Reference) -> list[Asked]:
    """Every layer's reference queries, rotated to where they stand behind the span."""
    if reference not in window.kept:
        window.kept[reference] = _ask(window, reference)
    asked: list[Asked] = window.kept[reference]
    return asked


def _ask(window: Window, reference: Reference) -> list[Asked]:
    layout, base = window.layout, window.base
    start, end = {
        "own": (0, window.known),
        "again": (layout.prefix, window.known),
        "suffix": (window.known, layout.tokens),
    }[reference]
    past = None if reference == "own" else window.cache.narrow(0, window.known)
    count = layout.tokens - window.known if reference == "suffix" else layout.span
    first = 0 if reference == "own" else window.known
    read = base.rotary(torch.arange(first, first + end - start))
    later = base.rotary(torch.arange(window.known, window.known + count))
    x = F.embedding(window.ids[:, start:end], base.embed)
    found = []
    for number, weights in enumerate(base.layers):
        y = F.rms_norm(x, (x.shape[-1],), weights.attention_norm, base.shape.norm_eps)
        plain_q, plain_k, v = (base.heads_of(F.linear(y, w)) for w in weights[2:5])
        newest = (t[:, :, -count:] for t in (plain_q, plain_k))
        found.append(Asked(*(rotate(t, *later) for t in newest)))
        q, k = rotate(plain_q, *read), rotate(plain_k, *read)
        if past is not None:
            k = torch.cat((past.keys[number], k), 2)
            v = torch.cat((past.values[number], v), 2)
        x = x + F.linear(merge_heads(attend(q, k, v)), weights.o)
        x = x + base.mlp(weights, x)
    return found


def uses(window: Window, asked: list[Asked]) -> Tensor:
    """[L, B, Hkv, span] expected use of every row."""
    span, earlier = window.span, window.prefix.keys
    return torch.stack(
        [
            expected_use(a.queries, k, v, e, a.recent)
            for a, k, v, e in zip(asked, span.keys, span.values, earlier, strict=True)
        ]
    )


def kept(reference: Reference, even: bool = False) -> Callable[[Window, int], Tensor]:
    """The rows of `gists.selection`, `entries` of them a layer and head on average."""

    def read(window: Window, entries: int) -> Tensor:
        use = uses(window, asked_by(window, reference))
        if even:
            chosen = use.topk(entries, -1).indices.sort(-1).values
            return window.suffix_after(joined(window.prefix, _gathered(window.span, chosen)))
        rows = [choose_rows(one, entries * one[..., 0].numel()) for one in use.unbind(1)]
        return _ragged(window, rows)

    return read


def _gathered(span: KeyValues, chosen: Tensor) -> KeyValues:
    """chosen: [L, B, Hkv, n] offsets in the span."""
    width = span.keys[0].shape[-1]
    index = chosen[..., None].expand(*chosen.shape, width)
    return KeyValues(
        [k.gather(2, i) for k, i in zip(span.keys, index, strict=True)],
        [v.gather(2, i) for v, i in zip(span.values, index, strict=True)],
    )


def _ragged(window: Window, rows: list[KeptRows]) -> Tensor:
    """Heads padded to the longest of their layer, the padding hidden by its bias."""
    layers, heads = len(window.span.keys), window.base.shape.kv_heads
    counts = torch.stack([torch.bincount(r.owner, minlength=layers * heads) for r in rows], 1)
    longest = int(counts.max())
    chosen = torch.zeros(layers * heads, len(rows), longest, dtype=torch.long)
    shown = torch.arange(longest) < counts[..., None]
    for number, row in enumerate(rows):
        part = chosen[:, number]
        part[shown[:, number]] = row.token
    chosen, shown = (t.unflatten(0, (layers, heads)).transpose(1, 2) for t in (chosen, shown))
    seen = torch.ones(*shown.shape[:-1], window.layout.prefix, dtype=torch.bool)
    bias = torch.zeros(*shown.shape[:-1], window.layout.prefix + longest)
    bias.masked_fill_(~torch.cat((seen, shown), -1), float("-inf"))
    device = window.ids.device
    past = joined(window.prefix, _gathered(window.span, chosen.to(device)))
    return window.suffix_after(past, list(bias.to(device)))


def matched(reference: Reference) -> Callable[[Window, int], Tensor]:
    """Attention matching: evenly kept keys, biases fitted to mass, values to the output.

    Least squares over the reference queries, each weighted by the share of its attention that the
    span has (Zweiger et al. 2026 leave the weights out).
    """

    def read(window: Window, entries: int) -> Tensor:
        asked = asked_by(window, reference)
        chosen = uses(window, asked).topk(entries, -1).indices.sort(-1).values
        raw = _gathered(window.span, chosen)
        values, biases = [], []
        for number, queries in enumerate(asked):
            bias, value = _fit(window, number, queries, chosen[number])
            values.append(value.to(raw.values[number].dtype))
            before = bias.new_zeros(*bias.shape[:-1], window.layout.prefix)
            biases.append(torch.cat((before, bias), -1))
        return window.suffix_after(joined(window.prefix, KeyValues(raw.keys, values)), biases)

    return read


def _fit(window: Window, layer: int, asked: Asked, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Biases [B, Hkv, n] and values [B, Hkv, n, E] of one layer's kept keys."""
    keys, values = window.span.keys[layer].float(), window.span.values[layer].float()
    heads = keys.shape[1]
    queries = asked.queries.float().unflatten(1, (heads, -1)).flatten(2, 3)
    scores = queries @ keys.mT * keys.shape[-1] ** -0.5
    mass = scores.logsumexp(-1, keepdim=True)
    weight = torch.sigmoid(mass - _other_mass(window, layer, asked))
    share = (scores - mass).exp()
    part = share.gather(-1, chosen[:, :, None].expand(-1, -1, share.shape[2], -1))
    scaled = part * weight
    odds = _non_negative(scaled.mT @ scaled, (scaled.mT @ weight)[..., 0])
    within = part * odds[:, :, None]
    within = within / within.sum(-1, keepdim=True).clamp(min=1e-9) * weight
    kept_values = values.gather(2, chosen[..., None].expand(*chosen.shape, values.shape[-1]))
    missing = (share @ values) * weight - within @ kept_values
    normal = within.mT @ within
    normal.diagonal(dim1=-2, dim2=-1).add_(RIDGE * _mean_diagonal(normal)[..., None])
    return odds.log(), kept_values + torch.linalg.solve(normal, within.mT @ missing)


def _other_mass(window: Window, layer: int, asked: Asked) -> Tensor:
    """[B, Hkv, group * Q, 1] log of what competes with the span for each query."""
    earlier, heads = window.prefix.keys[layer], window.base.shape.kv_heads
    queries = asked.queries.unflatten(1, (heads, -1)) * asked.queries.shape[-1] ** -0.5
    scores = (queries @ torch.cat((earlier, asked.recent), 2)[:, :, None].mT).float()
    count = asked.queries.shape[2]
    unseen = torch.ones(count, count, dtype=torch.bool, device=scores.device).triu(1)
    scores[..., -count:].masked_fill_(unseen, float("-inf"))
    return scores.logsumexp(-1).flatten(2)[..., None]


def _mean_diagonal(square: Tensor) -> Tensor:
    return square.diagonal(dim1=-2, dim2=-1).mean(-1)


def _non_negative(normal: Tensor, wanted: Tensor, steps: int = 100) -> Tensor:
    """min x'Nx / 2 - w'x over x >= 1e-4 by accelerated projected gradients; near 1 where free."""
    damp = 1e-3 * _mean_diagonal(normal)[..., None]
    normal = normal + torch.diag_embed(damp.expand_as(wanted))
    wanted = wanted + damp
    rate = 1.0 / normal.abs().sum(-1).amax(-1, keepdim=True).clamp(min=1e-12)
    x = look = torch.ones_like(wanted)
    speed = 1.0
    for _ in range(steps):
        new = (look - rate * ((normal @ look[..., None])[..., 0] - wanted)).clamp(min=1e-4)
        faster = (1 + (1 + 4 * speed * speed) ** 0.5) / 2
        x, look, speed = new, new + (speed - 1) / faster * (new - x), faster
    return x


METHODS: dict[str, Callable[[Window, int], Tensor]] = {
    "kept rows": kept("own"),
    "kept rows, shared out evenly": kept("own", even=True),
    "kept rows, span read again": kept("again"),
    "attention matching": matched("own"),
    "attention matching, span read again": matched("again"),
    "kept rows, oracle queries": kept("suffix"),
    "attention matching, oracle queries": matched("suffix"),
}
