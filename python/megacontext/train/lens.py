"""Trains a LensNet.

    python -m megacontext.train.lens --config configs/train/lens_smollm2.yaml \
        --labels labels --out run --export run/export

Ranking by gold blocks (thousands of questions, no model needed), and counterfactual gains where
they were measured. Both read cached examples: a run takes minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from megacontext.eval.lens.histories import StreamHistory, open_history
from megacontext.eval.lens.streams import Split, make_stream
from megacontext.lens import Sketcher
from megacontext.lens.net import LensNet, LensNetConfig, Wanted
from megacontext.lens.trained import save_net
from megacontext.models import load
from megacontext.train import lens_losses as losses
from megacontext.train.lens_examples import (
    ExamplePlan,
    LensExample,
    labelled_examples,
    make_examples,
    sample_questions,
)
from megacontext.train.lens_labels import read_labels
from megacontext.train.loop import LoopConfig, TrainLoop
from megacontext.train.parallel import first_process_first, joined_processes
from megacontext.train.track import draw_curves
from megacontext.train.values import from_values
from megacontext_ext.errors import InvalidArgument


@dataclass(frozen=True)
class LossWeights:
    """Weights of the losses; the ranking of gold blocks weighs 1."""

    calibrated: float = 0.3
    pairwise: float = 0.3
    regression: float = 0.1
    # Of one needed block in a hundred candidates, equal masses would push unneeded ones in.
    budget: float = 0.0
    legality: float = 0.05


@dataclass(frozen=True)
class LensTraining:
    """Training of a lens: net, loop, data."""

    net: LensNetConfig = field(default_factory=LensNetConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    weights: LossWeights = field(default_factory=LossWeights)
    examples: ExamplePlan = field(default_factory=ExamplePlan)
    # Questions by kind, of the train split and of the validation split.
    train: dict[str, int] = field(default_factory=lambda: {
        "reading": 1500, "two documents": 370, "needle": 60, "twin": 60})  # fmt: skip
    validation: dict[str, int] = field(default_factory=lambda: {
        "reading": 120, "two documents": 60, "needle": 20, "twin": 20})  # fmt: skip
    # An example with measured gains stands in the data this many times.
    labelled_repeats: int = 2


def example_loss(
    wanted: Wanted, example: LensExample, weights: LossWeights
) -> tuple[Tensor, Mapping[str, float]]:
    """The loss of one example, and its parts."""
    gold, gain = example.tensors()
    measured = torch.isfinite(gain)
    logit, known = wanted.logit, gain[measured].clamp(-4.0, 12.0)
    raw_places = torch.full_like(logit, 31.0)
    may_expand = torch.ones_like(gold, dtype=torch.bool)
    may_collapse = torch.from_numpy(example.may_collapse)
    parts = {
        "listwise": losses.listwise(logit, gold),
        "calibrated": weights.calibrated * losses.calibrated(logit, gold) * float(gold.any()),
        "pairwise": weights.pairwise * losses.pairwise(logit[measured], known),
        "regression": weights.regression * losses.regression(wanted.gain_nats[measured], known),
        "budget": weights.budget * losses.budget(logit, raw_places, raw_places),
        "legality": weights.legality * losses.legality(logit, may_expand, may_collapse),
    }
    total = sum(parts.values(), torch.zeros(()))
    return total, {name: float(part.detach()) for name, part in parts.items()}


def found_share(net: nn.Module, examples: Sequence[LensExample], sketcher: Sketcher) -> float:
    """Share of examples whose best entry lies within two blocks of a gold one."""
    hits = []
    with torch.inference_mode():
        for example in examples:
            best = int(net(example.entries(sketcher)).logit.argmax())
            gold = example.places[example.wanted == 1.0]
            hits.append(bool((abs(gold - example.places[best]) <= 2).any()))
    return float(np.mean(hits))


def calibrate(net: LensNet, examples: Sequence[LensExample], sketcher: Sketcher) -> None:
    """Fit scale and shift so that sigmoid(scale * logit + shift) is how often an entry is gold or
    beside it (Platt 1999)."""
    with torch.no_grad():
        logits = torch.cat([net(e.entries(sketcher)).logit for e in examples])
    needed = torch.cat([(e.tensors()[0] > 0).float() for e in examples])
    line = torch.tensor([1.0, 0.0], requires_grad=True)
    optimizer = torch.optim.LBFGS([line], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(line[0] * logits + line[1], needed)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    scale, shift = line.detach().tolist()
    if not (np.isfinite([scale, shift]).all() and scale > 0.0):
        raise InvalidArgument(f"[calibrate] scale must be above 0, got {[scale, shift]}")
    net.calibration.copy_(line.detach())


def make_loop(
    config: LensTraining,
    net: LensNet,
    train: Sequence[LensExample],
    validation: Sequence[LensExample],
    held: tuple[Sketcher, Path, dict[str, str]],
) -> TrainLoop:
    """The run of `net` over `train`; held: (sketcher, out folder, provenance)."""
    sketcher, out, provenance = held

    def item_loss(
        model: nn.Module, item: int, generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, float]]:
        example = train[item]
        return example_loss(model(example.entries(sketcher)), example, config.weights)

    def validate(model: nn.Module) -> Mapping[str, float]:
        return {"found": found_share(model, validation, sketcher)}

    check: Callable[[nn.Module], Mapping[str, float]] | None = validate if validation else None
    return TrainLoop(config.loop, net, len(train), item_loss, out, provenance, check)


def build_examples(
    config: LensTraining, held: StreamHistory, limits: dict[str, int], labels: Path | None
) -> list[LensExample]:
    """Examples of one split, those with measured gains last."""
    found = make_examples(held, sample_questions(held, limits, config.loop.seed), config.examples)
    if labels is not None:
        paths = sorted((labels / held.stream.split).glob("*.safetensors"))
        groups = [read_labels(path, {"base": held.base.facts.identity}) for path in paths]
        found += labelled_examples(held, groups, config.examples) * config.labelled_repeats
    return found


def main() -> None:
    import yaml

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True, help="of train.lens_labels")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--export", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--steps", type=int, help="stop after so many; the next call goes on")
    given = parser.parse_args()
    config = from_values(LensTraining, yaml.safe_load(given.config.read_text()) or {})
    with joined_processes():
        _train(config, given)


def _train(config: LensTraining, given: argparse.Namespace) -> None:
    base = load(given.model)
    splits: tuple[Split, Split] = ("train", "validation")
    with first_process_first():
        held = [open_history(make_stream(s), given.labels / "histories", base) for s in splits]
    train = build_examples(config, held[0], config.train, given.labels)
    validation = build_examples(config, held[1], config.validation, None)
    print(f"[lens] {len(train)} examples, {len(validation)} for validation", flush=True)
    provenance = {"base": base.facts.identity, "tokenizer": base.tokenizer.hash}
    new = LensNet(config.net, config.loop.seed)
    loop = make_loop(config, new, train, validation, (held[0].sketcher, given.out, provenance))
    loop.resume()
    loop.run(given.steps)
    net, done = loop.whole_model(), loop.step == config.loop.steps
    if given.export is not None and done and loop.rank == 0 and isinstance(net, LensNet):
        calibrate(net, validation, held[0].sketcher)
        card = {
            **provenance,
            "command": shlex.join(["python", "-m", "megacontext.train.lens", *sys.argv[1:]]),
            "config": json.loads(json.dumps(asdict(config))),
            "train_examples": len(train),
            "labelled_examples": sum(bool(np.isfinite(e.gain_nats).any()) for e in train),
            "validation_found": found_share(net, validation, held[0].sketcher),
        }
        save_net(given.export, net, card)
        draw_curves(given.out, given.export / "curves.png")


if __name__ == "__main__":
    main()
