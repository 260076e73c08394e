"""The three learned modules around one frozen base, and how well they do together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from megacontext.gists.adapter import GistAdapter
from megacontext.gists.base import FrozenBase, KeyValues
from megacontext.train.cycles.block_lens import BlockLens, row_attention
from megacontext.train.cycles.config import CycleTraining, Module
from megacontext.train.cycles.lora import Lora
from megacontext.train.cycles.scene import (
    Scene,
    gist_rows,
    horizon_nats,
    mixed,
    mixture_index,
    open_scene,
    prefix_only,
    read_horizon,
)


class System:
    """Adapter, lens and LoRA, each as trained so far. One thread."""

    def __init__(self, config: CycleTraining, base: FrozenBase) -> None:
        shape = base.shape
        self.config, self.base = config, base
        self.gists = GistAdapter(shape, config.ranks, config.seed)
        self.lens = BlockLens(shape.layers * shape.heads, seed=config.seed)
        self.lora = Lora(shape, config.lora_rank, config.seed)

    def module(self, name: Module) -> nn.Module:
        return {"gists": self.gists, "lens": self.lens, "lora": self.lora}[name]

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Copies of all parameters."""
        return {
            name: {n: p.detach().clone() for n, p in self.module(name).named_parameters()}
            for name in ("gists", "lens", "lora")
        }

    def restore(self, state: dict[str, dict[str, Tensor]]) -> None:
        for name, parameters in state.items():
            self.module(name).load_state_dict(parameters)  # type: ignore[arg-type]

    def reading(self) -> FrozenBase:
        """The base with the LoRA on; without gradients while nothing asks for them."""
        return self.lora.applied(self.base)

    def past(self, scene: Scene, rows: KeyValues, raw: Tensor) -> KeyValues:
        """What question and horizon see when the blocks `raw` [B, R] are raw."""
        return mixed(scene.past, rows, mixture_index(self.config.cut, raw))

    @torch.no_grad()
    def heard(self, base: FrozenBase, scene: Scene, rows: KeyValues) -> tuple[Tensor, Tensor]:
        """(attention [B, blocks, heads] for the lens, states [B, horizon, width]) with no block
        raw."""
        cut, queries = self.config.cut, list[Tensor]()
        none = torch.zeros(len(scene.ids), 0, dtype=torch.long)
        hidden = read_horizon(base, cut, scene.ids, self.past(scene, rows, none), queries)
        return row_attention(cut, queries, rows), hidden

    @torch.no_grad()
    def gains(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Labels of one window [window]: (attention [blocks, heads], nats a token that each block
        takes off the horizon when it alone is raw [blocks]). Above zero it helps.

        Cost: the past once, question and horizon 1 + blocks times.
        """
        cut, base = self.config.cut, self.reading()
        scene = open_scene(base, cut, ids[None])
        rows = gist_rows(base, self.gists, cut, scene)
        attention, hidden = self.heard(base, scene, rows)
        without = horizon_nats(base, cut, scene.ids, hidden)
        with_block = torch.cat(
            [self.nats(base, scene, rows, torch.tensor([[b]])) for b in range(cut.blocks)]
        )
        return attention[0], without - with_block

    def nats(self, base: FrozenBase, scene: Scene, rows: KeyValues, raw: Tensor) -> Tensor:
        """[B] mean NLL of the horizon when the blocks `raw` [B, R] are raw."""
        cut = self.config.cut
        hidden = read_horizon(base, cut, scene.ids, self.past(scene, rows, raw))
        return horizon_nats(base, cut, scene.ids, hidden)


@dataclass
class Measured:
    """NLL a token of each window [N] by way of seeing the past."""

    nats: dict[str, np.ndarray]

    def recovery(self, way: str) -> float:
        """Share of what deleting the span costs that `way` wins back."""
        full, drop = self.nats["full"].sum(), self.nats["drop"].sum()
        return float(1 - (self.nats[way].sum() - full) / (drop - full))

    def record(self) -> dict[str, Any]:
        ways = [way for way in self.nats if way not in ("full", "drop")]
        return {
            "nats": {way: float(values.mean()) for way, values in self.nats.items()},
            "recovery": {way: self.recovery(way) for way in ways if way != "full, own"},
        }


@torch.no_grad()
def shown_nats(system: System, windows: Tensor) -> float:
    """Mean NLL a token of `windows` [N, window] as the lens shows them: it judges a turn."""
    cut, own, total = system.config.cut, system.reading(), 0.0
    for ids in windows.split(1):
        scene = open_scene(own, cut, ids)
        rows = gist_rows(own, system.gists, cut, scene)
        raw = system.lens.choose(system.heard(own, scene, rows)[0], cut.raw_blocks)
        total += float(system.nats(own, scene, rows, raw))
    return total / len(windows)


@torch.no_grad()
def measure(system: System, windows: Tensor, oracle: bool = False) -> Measured:
    """Every way of seeing the span of `windows` [N, window], at equal places where blocks are raw.

    full, drop: the plain base with the span raw or deleted. full, own: the same with the LoRA on,
    so its distance to full is what the LoRA costs. gists: rows alone. lens, random, recent, and,
    with `oracle`, what the measured gains of single blocks choose: that many blocks raw.
    """
    cut, base, own = system.config.cut, system.base, system.reading()
    drawn = np.random.default_rng(system.config.seed + 99)
    found: dict[str, list[float]] = {}

    def note(way: str, nats: Tensor) -> None:
        found.setdefault(way, []).append(float(nats))

    for ids in windows.split(1):
        plain = open_scene(base, cut, ids)
        for way, past in (("full", plain.past), ("drop", prefix_only(cut, plain.past))):
            note(way, horizon_nats(base, cut, ids, read_horizon(base, cut, ids, past)))
        scene = open_scene(own, cut, ids)
        note("full, own", horizon_nats(own, cut, ids, read_horizon(own, cut, ids, scene.past)))
        rows = gist_rows(own, system.gists, cut, scene)
        attention, hidden = system.heard(own, scene, rows)
        note("gists", horizon_nats(own, cut, ids, hidden))
        count, blocks = cut.raw_blocks, cut.blocks
        chosen = {
            "lens": system.lens.choose(attention, count),
            "random": torch.from_numpy(drawn.permutation(blocks)[None, :count].copy()),
            "recent": torch.arange(blocks - count, blocks)[None],
        }
        if oracle:
            chosen["oracle"] = system.gains(ids[0])[1].topk(count).indices[None]
        for way, raw in chosen.items():
            note(way, system.nats(own, scene, rows, raw.sort(-1).values))
    return Measured({way: np.array(values) for way, values in found.items()})
