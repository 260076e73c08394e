"""Trains a PolicyNet for the allocator, by imitation. An experiment.

    python -m megacontext.train.policy --config configs/train/policy_smollm2.yaml \
        --work policy-work --out run --export run/export

Questions with their candidates are made once, from histories and readings kept below --work; a
step walks through choices, partly the teacher's and partly the net's own, and learns what the
teacher wants in every state.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from megacontext.config import K
from megacontext.eval.lens.histories import StreamHistory, open_history
from megacontext.eval.lens.kept_reader import KeptReader
from megacontext.eval.lens.several import make_several
from megacontext.eval.lens.streams import Split
from megacontext.lens import UntrainedLens
from megacontext.lens.policy_net import PolicyNet, PolicyNetConfig, logits, save_policy, state_of
from megacontext.models import FrozenBase, load
from megacontext.train.lens_examples import sample_questions
from megacontext.train.loop import LoopConfig, TrainLoop
from megacontext.train.policy_examples import (
    PolicyExample,
    imitation,
    make_policy_examples,
    measured_walk,
    walk,
    with_measured,
)
from megacontext.train.policy_labels import kept_labels
from megacontext.train.track import draw_curves
from megacontext.train.values import from_values


@dataclass(frozen=True)
class PolicyTraining:
    """Training of a policy: net, loop, data."""

    net: PolicyNetConfig = field(default_factory=PolicyNetConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    candidates: int = 64
    # Blocks that a walk has places for; one is drawn for each.
    blocks: tuple[int, ...] = (3, 5, 8, 10, 15)
    # Share of steps that are the teacher's.
    follow: float = 0.5
    # Planted questions of each kind with several facts, in the train and the validation split.
    planted: int = 100
    planted_validation: int = 20
    # Which questions are taken; `loop.seed` is the net's and the walks'.
    sample_seed: int = 0
    # Questions by kind whose candidates the base reads, as at run time (a second each) ...
    train_read: dict[str, int] = field(default_factory=lambda: {
        "reading": 120, "two documents": 70, "needle": 10, "twin": 10, "list": 40, "echo": 40,
        "chain": 40})  # fmt: skip
    # ... and those by retrieval alone, which cost nothing.
    train_unread: dict[str, int] = field(default_factory=lambda: {
        "reading": 600, "two documents": 370, "needle": 30, "twin": 30, "list": 100, "echo": 100,
        "chain": 100})  # fmt: skip
    # Those of the read ones whose gains are measured (several seconds each).
    labelled: dict[str, int] = field(default_factory=lambda: {
        "reading": 6, "two documents": 8, "list": 6, "echo": 6, "chain": 4})  # fmt: skip
    # A labelled question stands in the data this many times.
    labelled_repeats: int = 3
    validation: dict[str, int] = field(default_factory=lambda: {
        "reading": 20, "two documents": 30, "list": 15, "echo": 15, "chain": 15})  # fmt: skip


@torch.no_grad()
def facts_shown(net: nn.Module, example: PolicyExample, blocks: int) -> float:
    """Share of an example's facts of which an alternative is shown whole, when the net fills
    `blocks` blocks, best first."""
    count = len(example.found)
    taken, cost = np.zeros(count, bool), np.full(count, K, np.int64)
    for left in range(min(blocks, count), 0, -1):
        state = state_of(example.found, taken, cost, left * K)
        taken[int(logits(net, example.found, [state])[0, :-1].argmax())] = True
    shown = [any(taken[list(each)].all() for each in fact) for fact in example.facts]
    return float(np.mean(shown))


def make_policy_loop(
    config: PolicyTraining,
    net: PolicyNet,
    train: Sequence[PolicyExample],
    validation: Sequence[PolicyExample],
    held: tuple[Path, dict[str, str]],
) -> TrainLoop:
    """The run of `net` over `train`; held: (out folder, provenance)."""
    out, provenance = held

    def item_loss(
        model: nn.Module, item: int, generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, float]]:
        example = train[item]
        which = int(torch.randint(len(config.blocks), (), generator=generator))
        if example.measured:
            found = measured_walk(example, config.blocks[which])
        else:
            found = walk(model, example, config.blocks[which], config.follow, generator)
        logit = logits(model, example.found, found.states)
        right = found.wanted.gather(1, logit.argmax(dim=1, keepdim=True)) > 0
        return imitation(logit, found.wanted), {"right": float(right.float().mean())}

    def validate(model: nn.Module) -> Mapping[str, float]:
        by_kind = defaultdict(list)
        for example in validation:
            by_kind[example.kind].append(facts_shown(model, example, 5))
        return {f"shown {kind}": float(np.mean(each)) for kind, each in sorted(by_kind.items())}

    check = validate if validation else None
    return TrainLoop(config.loop, net, len(train), item_loss, out, provenance, check)


def open_policy_history(
    split: Split, planted: int, work: Path, base: FrozenBase
) -> tuple[StreamHistory, UntrainedLens]:
    """The stream with planted questions, and the untrained lens whose readings are kept."""
    held = open_history(make_several(split, planted=planted), work / "histories", base)
    return held, UntrainedLens(reader=KeptReader(base, work / "reads" / f"{split}.jsonl"))


def build_policy_examples(
    config: PolicyTraining, held: StreamHistory, lens: UntrainedLens, limits: dict[str, int],
    reads: bool,
) -> list[PolicyExample]:  # fmt: skip
    """Examples of one split that have a fact among their candidates: others teach nothing."""
    asked = sample_questions(held, limits, config.sample_seed)
    made = make_policy_examples(held, asked, lens, config.candidates, reads)
    return [example for example in made if example.facts]


def build_labelled(
    config: PolicyTraining, held: StreamHistory, lens: UntrainedLens, work: Path
) -> list[PolicyExample]:
    """Examples with measured gains; what is not kept below `work` is measured now."""
    asked = sample_questions(held, config.labelled, config.sample_seed)
    steps = kept_labels(held, lens, asked, work)
    made = make_policy_examples(held, asked, lens, config.candidates, reads=True)
    found = [with_measured(e, steps[q.question]) for e, q in zip(made, asked, strict=True)]
    return [example for example in found if example.measured]


def main() -> None:
    import yaml

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="histories and readings")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--export", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--steps", type=int, help="stop after so many; the next call goes on")
    given = parser.parse_args()
    config = from_values(PolicyTraining, yaml.safe_load(given.config.read_text()) or {})
    base = load(given.model)
    held, lens = open_policy_history("train", config.planted, given.work, base)
    train = build_labelled(config, held, lens, given.work) * config.labelled_repeats
    for limits, reads in ((config.train_read, True), (config.train_unread, False)):
        train += build_policy_examples(config, held, lens, limits, reads)
    held, lens = open_policy_history("validation", config.planted_validation, given.work, base)
    validation = build_policy_examples(config, held, lens, config.validation, True)
    random.Random(config.loop.seed).shuffle(train)
    print(f"[policy] {len(train)} examples, {len(validation)} for validation", flush=True)
    provenance = {"base": base.facts.identity, "tokenizer": base.tokenizer.hash}
    net = PolicyNet(config.net, config.loop.seed)
    loop = make_policy_loop(config, net, train, validation, (given.out, provenance))
    loop.resume()
    loop.run(given.steps)
    if given.export is not None and loop.step == config.loop.steps:
        command = shlex.join(["python", "-m", "megacontext.train.policy", *sys.argv[1:]])
        card = {
            **provenance,
            "command": command,
            "config": json.loads(json.dumps(asdict(config))),
            "train_examples": len(train),
            "labelled_examples": sum(bool(example.measured) for example in train),
        }
        save_policy(given.export, net, card)
        draw_curves(given.out, given.export / "curves.png")


if __name__ == "__main__":
    main()
