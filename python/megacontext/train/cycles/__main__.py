"""Trains gists, a lens and a LoRA in cycles.

    python -m megacontext.train.cycles --config configs/train/cycles_smollm2.yaml \
        --base DIR --shards DIR --out DIR [--freeze lens]

The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megacontext.eval.held_out import held_out_spans
from megacontext.gists.base import base_from_folder
from megacontext.train.cycles.config import MODULES, CycleTraining, read_config
from megacontext.train.cycles.run import CycleRun, HeldOut
from megacontext.train.cycles.turns import Windows
from megacontext.train.tokens import TokenWindows, open_windows
from megacontext_ext.errors import InvalidArgument


def window_reader(windows: TokenWindows, width: int) -> Windows:
    def read(place: int, count: int) -> Tensor:
        starts = windows.starts(place, count)
        rows = np.stack([windows.tokens[start : start + width] for start in starts])
        return torch.from_numpy(rows.astype(np.int64))

    return read


def held_out(config: CycleTraining, shards: Path) -> HeldOut:
    """Raises: InvalidArgument for a shard that is missing or holds no window."""

    def windows(split: str, per_domain: int) -> Tensor:
        path = next(shards.glob(f"{split}.u16*"), None)
        if path is None:
            raise InvalidArgument(f"[shards] {shards} must hold {split}.u16 or .u16.xz, got none")
        spans = held_out_spans(path, config.cut.window, per_domain)
        if not spans:
            raise InvalidArgument(
                f"[shards] {path} must hold a document of {config.cut.window} tokens, got none"
            )
        return torch.from_numpy(np.stack([span.ids for span in spans]).astype(np.int64))

    return HeldOut(windows("val", config.gate_windows), windows("test", config.test_windows))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True, help="folder of the frozen base")
    parser.add_argument("--shards", type=Path, required=True, help="of tools/prepare_corpus.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--freeze", choices=MODULES, action="append", default=[])
    parser.add_argument("--turns", type=int, help="stop after so many; the next call goes on")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    given = parser.parse_args(arguments)
    changes = {"frozen": tuple(given.freeze)} if given.freeze else {}
    config = read_config(given.config, **changes)
    base = base_from_folder(given.base, getattr(torch, given.dtype))
    width = config.cut.window
    windows = open_windows(given.shards, width, config.seed, config.min_document, base.shape.vocab)
    read, held = window_reader(windows, width), held_out(config, given.shards)
    run = CycleRun(config, base, read, held, given.out, windows.signature)
    if run.resume():
        print(f"[cycles] goes on after {run.done} turns", flush=True)
    run.run(given.turns)


if __name__ == "__main__":
    main()
