"""A batch of windows as the base meets them: raw past, gist rows, and any mixture of both."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from megacontext.gists.adapter import GistAdapter
from megacontext.gists.base import FrozenBase, KeyValues
from megacontext.gists.layout import K, Node, plan_rows
from megacontext.gists.rows import compute_rows
from megacontext.train.cycles.config import Cut


class Scene(NamedTuple):
    """ids [B, window]; past: rotated keys and values of prefix and span, no gradient."""

    ids: Tensor
    past: KeyValues


@torch.no_grad()
def open_scene(base: FrozenBase, cut: Cut, ids: Tensor) -> Scene:
    """Reads the past of windows [B, window] once. Cost: B * known tokens."""
    return Scene(ids, base.read(ids[:, : cut.known])[1])


def gist_rows(base: FrozenBase, adapter: GistAdapter, cut: Cut, scene: Scene) -> KeyValues:
    """One placed row a block; a block's row does not depend on what else is shown."""
    starts = range(cut.prefix, cut.known, K)
    plan = plan_rows([Node(start, start + K) for start in starts], 1, cut.known)
    return compute_rows(base, adapter, plan, scene.ids[:, : cut.known], scene.past).placed(base)


def mixture_index(cut: Cut, raw: Tensor) -> Tensor:
    """[B, places] into past tokens and then rows: the timeline with the blocks `raw` [B, R] raw.

    R may be 0; all windows of a batch show equally many.
    """
    lines = []
    for shown in raw.tolist():
        line = list(range(cut.prefix))
        for block in range(cut.blocks):
            start = cut.prefix + block * K
            line += range(start, start + K) if block in shown else [cut.known + block]
        lines.append(line)
    return torch.tensor(lines)


def mixed(past: KeyValues, rows: KeyValues, index: Tensor) -> KeyValues:
    """Keys and values at `index` [B, n] of past and rows joined."""

    def pick(a: Tensor, b: Tensor) -> Tensor:
        joined = torch.cat((a, b), 2)
        where = index[:, None, :, None].expand(-1, joined.shape[1], -1, joined.shape[3])
        return joined.gather(2, where)

    pairs = zip(past, rows, strict=True)
    return KeyValues(*([pick(a, b) for a, b in zip(x, y, strict=True)] for x, y in pairs))


def prefix_only(cut: Cut, past: KeyValues) -> KeyValues:
    """The span deleted: what a gist must beat."""
    return past.narrow(0, cut.prefix)


def read_horizon(
    base: FrozenBase, cut: Cut, ids: Tensor, past: KeyValues, heard: list[Tensor] | None = None
) -> Tensor:
    """[B, horizon, width]: states that predict the horizon's tokens, read through `past`.

    heard: takes each layer's rotated queries of question and horizon, [B, heads, T, head].
    """
    asked = ids[:, cut.known : -1]
    return base.read(asked, cut.known, past, keep=False, heard=heard)[0][:, -cut.horizon :]


@torch.no_grad()
def horizon_nats(base: FrozenBase, cut: Cut, ids: Tensor, hidden: Tensor) -> Tensor:
    """[B] mean NLL of the horizon's tokens under states from `read_horizon`."""
    chosen = ids[:, -cut.horizon :, None]
    logits = [torch.log_softmax(base.logits(row).float(), -1) for row in hidden]
    picked = [row.gather(1, own)[:, 0] for row, own in zip(logits, chosen, strict=True)]
    return -torch.stack(picked).mean(1)
