"""How fast a machine trains, before real weights are there: random weights of the real shape.

    python -m megacontext.train.probe --config FILE --shards DIR --out choice.json

Times training steps at a few batch sizes, with the loss compiled and not, and writes the
fastest setting that fits. It runs the real step, so it also shows early what would break.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from megacontext.gists.base import BaseShape, FrozenBase, choose_attention, random_base
from megacontext.gists.distill import slice_terms
from megacontext.train.config import GistTraining, read_config
from megacontext.train.kv_gists import GistTrainer
from megacontext.train.tokens import TokenWindows

SMOLLM2_135M = BaseShape(30, 576, 9, 3, 64, 1536, 49152, 100000.0, 1e-5)
# How much faster a setting must be to be chosen: a larger batch means fewer steps.
MIN_GAIN = {"batch": 1.12, "compile": 1.02}


def time_steps(trainer: GistTrainer, seconds: float) -> float:
    """Tokens a second of the real training step, after one pass over every layout."""
    device = trainer.device
    for _ in range(8):
        trainer.train_step(0.5)
    seen, began = 0, time.monotonic()
    while time.monotonic() - began < seconds:
        seen += trainer.train_step(0.5)["tokens"]
        if device.type == "cuda":
            torch.cuda.synchronize()
    return seen / (time.monotonic() - began)


def probe(
    config: GistTraining,
    base: FrozenBase,
    windows: TokenWindows,
    batches: list[int],
    seconds: float,
) -> dict[str, Any]:
    """{"batch", "compile", "tokens_s", "tried"}: the fastest of what was tried."""
    best: dict[str, Any] = {"batch": config.batch, "compile": False, "tokens_s": 0.0}
    tried = []
    cuda = base.device.type == "cuda"
    for batch, compiled in [*((b, False) for b in batches), (0, True)]:
        batch = batch or best["batch"]
        with tempfile.TemporaryDirectory() as folder:
            trainer = GistTrainer(config, base, windows, Path(folder))
            trainer.batch = batch
            if compiled:
                trainer.terms = torch.compile(slice_terms)
            try:
                rate = time_steps(trainer, seconds)
            except Exception as error:  # The probe's work is to find what fails; it is printed.
                print(
                    f"[probe] batch {batch} compile {compiled} failed: {error!r:.300}", flush=True
                )
                del trainer
                if cuda:
                    torch.cuda.empty_cache()
                continue
        peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
        tried.append({"batch": batch, "compile": compiled, "tokens_s": rate, "peak_gib": peak})
        print(f"[probe] {tried[-1]}", flush=True)
        if rate > MIN_GAIN["compile" if compiled else "batch"] * best["tokens_s"]:
            best = {"batch": batch, "compile": compiled, "tokens_s": rate}
        if cuda:
            torch.cuda.reset_peak_memory_stats()
    if not tried:
        raise SystemExit("[probe] no setting worked")
    return {**best, "tried": tried}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batches", default="16,32")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--layers", type=int, default=SMOLLM2_135M.layers)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = read_config(options.config)
    print(f"[probe] attention: {choose_attention(torch.device(device))}", flush=True)
    shape = BaseShape(**{**SMOLLM2_135M.__dict__, "layers": options.layers})
    base = random_base(shape, dtype=torch.bfloat16, device=device)
    shards = sorted(options.shards.glob("train-*.u16*"))
    windows = TokenWindows(shards, config.window, config.seed, config.min_document)
    batches = [int(b) for b in options.batches.split(",")]
    choice = probe(config, base, windows, batches, options.seconds)
    options.out.write_text(json.dumps(choice))
    print(f"[probe] chosen: batch {choice['batch']} compile {choice['compile']}", flush=True)


if __name__ == "__main__":
    main()
