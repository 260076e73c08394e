"""What a lens is trained on: questions with their candidate blocks, gold and gains.

An example holds everything that the net reads, so that a step touches neither store nor base.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megacontext.eval.lens.histories import StreamHistory
from megacontext.eval.lens.streams import StreamQuestion
from megacontext.lens import Sketcher
from megacontext.lens.features import Fields, block_fields, block_tokens, neighbours
from megacontext.lens.net import Entries
from megacontext.lens.trained import QUESTION_TOKENS_MAX
from megacontext.train.lens_labels import GroupLabels

# A block beside a gold one shows the gold one too.
_BESIDE = 0.3


@dataclass(frozen=True)
class LensExample:
    """One question: N candidates in timeline order.

    wanted [N] 1 for gold blocks, less beside them; gain_nats [N], NaN where nothing was measured.
    """

    kind: str
    features: NDArray[np.float32]
    index: NDArray[np.int16]
    tokens: NDArray[np.uint32]
    there: NDArray[np.bool_]
    asked: NDArray[np.uint32]
    places: NDArray[np.int64]
    wanted: NDArray[np.float32]
    gain_nats: NDArray[np.float32]
    may_collapse: NDArray[np.bool_]

    def entries(self, sketcher: Sketcher) -> Entries:
        distinct, numbers = np.unique(self.tokens, return_inverse=True)
        return Entries(
            features=torch.from_numpy(self.features),
            index=torch.from_numpy(self.index.astype(np.int64)),
            tokens=torch.from_numpy(numbers.reshape(self.tokens.shape)),
            there=torch.from_numpy(self.there),
            rows=sketcher.token_rows(distinct),
            asked=sketcher.token_rows(self.asked),
        )

    def tensors(self) -> tuple[Tensor, Tensor]:
        """(wanted, gain_nats)."""
        return torch.from_numpy(self.wanted), torch.from_numpy(self.gain_nats)


@dataclass(frozen=True)
class ExamplePlan:
    """How many candidates an example has: the best by evidence, and some of what follows."""

    best: int = 80
    random: int = 32
    of: int = 400
    reach: int = 2
    seed: int = 0


def make_example(
    held: StreamHistory,
    asked: StreamQuestion,
    plan: ExamplePlan,
    gains: Sequence[tuple[int, int, float]] = (),
) -> LensExample:
    """The example of one question. `gains`: (partition, centre block, nats) of measured windows."""
    history = held.history
    fields = block_fields(history, held.question(asked))
    gold = [] if asked.kind == "continuation" else held.gold_blocks(asked)
    gold_places = [_place(fields, *block) for block in gold]
    measured = {_place(fields, p, block): nats for p, block, nats in gains if np.isfinite(nats)}
    places = _candidates(fields, plan, asked.question, [*gold_places, *measured])
    near = neighbours(fields, places, plan.reach)
    tokens, there = block_tokens(history, fields, near.places)
    wanted, gain = np.zeros(len(places), np.float32), np.full(len(places), np.nan, np.float32)
    for row, place in enumerate(places.tolist()):
        away = min((abs(place - g) for g in gold_places), default=9)
        wanted[row] = (1.0, _BESIDE)[away] if away < 2 else 0.0
        gain[row] = measured.get(place, np.nan)
    lasts = {_place(fields, p, count - 1) for p, count in history.block_counts().items()}
    encoded = held.base.tokenizer.encode(f" {asked.question}")[-QUESTION_TOKENS_MAX:]
    return LensExample(
        kind=asked.kind,
        features=fields.features[places],
        index=near.index.astype(np.int16),
        tokens=tokens.astype(np.uint32),
        there=there,
        asked=encoded,
        places=places,
        wanted=wanted,
        gain_nats=gain,
        may_collapse=np.array([place not in lasts for place in places.tolist()]),
    )


def make_examples(
    held: StreamHistory, asked: Iterable[StreamQuestion], plan: ExamplePlan
) -> list[LensExample]:
    return [make_example(held, question, plan) for question in asked]


def labelled_examples(
    held: StreamHistory, groups: Iterable[GroupLabels], plan: ExamplePlan
) -> list[LensExample]:
    """Examples of questions with measured gains."""
    found = []
    for group in groups:
        for column, question in enumerate(group.questions):
            gains = [
                (int(p), int(start + end - 1) // 2, float(group.gain_nats[row, column]))
                for row, (p, start, end) in enumerate(group.windows.tolist())
            ]
            found.append(make_example(held, question, plan, gains))
    return found


def sample_questions(
    held: StreamHistory, limits: dict[str, int], seed: int
) -> list[StreamQuestion]:
    """Up to `limits[kind]` questions of each kind, in a seeded order."""
    questions = list(held.stream.questions)
    random.Random(seed).shuffle(questions)
    left, chosen = dict(limits), []
    for question in questions:
        if left.get(question.kind, 0) > 0:
            left[question.kind] -= 1
            chosen.append(question)
    return chosen


def _candidates(
    fields: Fields, plan: ExamplePlan, text: str, always: Sequence[int]
) -> NDArray[np.int64]:
    best = fields.candidates(plan.best)
    rest = np.setdiff1d(fields.candidates(plan.of), best)
    chance = np.random.default_rng((plan.seed, len(text), sum(map(ord, text))))
    drawn = chance.choice(rest, min(plan.random, len(rest)), replace=False)
    return np.unique(np.concatenate([best, drawn, np.array(always, np.int64)]))


def _place(fields: Fields, partition: int, block: int) -> int:
    return fields.axis.span(partition).start + block
