"""Trains a GistNet through a frozen base: embedding gists, one vector a block.

    python -m megacontext.train.embedding_gists --config configs/train/gistnet_smollm2.yaml \
        --base DIR --shards DIR --out run --export run/gistnet.safetensors

A step reads windows once with everything raw (teacher), then their suffix through prefix and gists
at true positions, and distils. The gists are read by the base like tokens, so gradients go through
all of its layers, but only at the places of gists and suffix.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from megacontext.gists.base import FrozenBase, base_from_folder
from megacontext.gists.distill import distill
from megacontext.gists.layout import SpanLayout
from megacontext.gists.net import GistNet, GistNetConfig, Pooling, suffix_through_gists
from megacontext.train.loop import LoopConfig, TrainLoop
from megacontext.train.parallel import joined_processes
from megacontext.train.tokens import TokenWindows, open_windows
from megacontext.train.values import from_values


@dataclass(frozen=True)
class EmbeddingTraining:
    """Training of embedding gists: the net, the loop, how windows are cut."""

    layers: int = 2
    pooling: Pooling = "mean"
    levels: int = 1
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=200, accumulate=4, lr=1e-3))
    prefix: int = 64
    span: int = 512
    suffix: int = 192
    hard_weight: float = 0.1
    min_document: int = 512

    @property
    def layout(self) -> SpanLayout:
        return SpanLayout(self.prefix, self.span, self.suffix, 1)


def window_loss(
    base: FrozenBase, net: nn.Module, config: EmbeddingTraining, ids: Tensor
) -> tuple[Tensor, Mapping[str, float]]:
    """Loss of one window [1, tokens + 1], and its parts in nats a token."""
    layout = config.layout
    known = layout.prefix + layout.span
    with torch.no_grad():
        teacher = base.read(ids[:, : layout.tokens], keep=False)[0][:, known:]
    hidden = suffix_through_gists(base, net, layout, ids)
    targets = ids[:, known + 1 : layout.tokens + 1].flatten()
    part = distill(
        hidden.flatten(0, 1), base.head, teacher.flatten(0, 1), targets, config.hard_weight
    )
    return part.loss, {"kl": float(part.divergence), "nll": float(part.surprise)}


def make_loop(
    config: EmbeddingTraining, base: FrozenBase, windows: TokenWindows, out: Path
) -> TrainLoop:
    """The run. Items are windows in the order of `windows`; each is seen once."""
    sizes = GistNetConfig(base.shape.width, config.layers, config.pooling, config.levels)
    net = GistNet(sizes, base.embed, config.loop.seed)
    width = config.layout.tokens + 1

    def item_loss(
        model: nn.Module, item: int, generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, float]]:
        start = int(windows.starts(item, 1)[0])
        ids = torch.from_numpy(windows.tokens[start : start + width].astype(np.int64))[None]
        return window_loss(base, model, config, ids)

    provenance = {
        "base": base.fingerprint(),
        "data": windows.signature,
        "net": json.dumps(asdict(sizes)),
    }
    return TrainLoop(config.loop, net, len(windows), item_loss, out, provenance)


def main(arguments: list[str] | None = None) -> None:
    import yaml

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True, help="folder of the frozen base")
    parser.add_argument("--shards", type=Path, required=True, help="of tools/prepare_corpus.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--export", type=Path, help="gistnet.safetensors")
    parser.add_argument("--layers", type=int, help="0: a trained mean-pool head")
    parser.add_argument("--pooling", choices=("mean", "query", "cls"))
    parser.add_argument("--steps", type=int, help="stop after so many; the next call goes on")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    given = parser.parse_args(arguments)
    values = yaml.safe_load(given.config.read_text()) or {}
    for name in ("layers", "pooling"):
        if getattr(given, name) is not None:
            values[name] = getattr(given, name)
    config = from_values(EmbeddingTraining, values)
    with joined_processes():
        _train(config, given)


def _train(config: EmbeddingTraining, given: argparse.Namespace) -> None:
    base = base_from_folder(given.base, getattr(torch, given.dtype))
    windows = open_windows(
        given.shards, config.layout.tokens + 1, config.loop.seed, config.min_document,
        base.shape.vocab,
    )  # fmt: skip
    loop = make_loop(config, base, windows, given.out)
    if loop.resume():
        print(f"[gistnet] goes on at step {loop.step}", flush=True)
    loop.run(given.steps)
    net = loop.whole_model()
    if given.export is not None and loop.rank == 0 and isinstance(net, GistNet):
        net.save(given.export)


if __name__ == "__main__":
    main()
