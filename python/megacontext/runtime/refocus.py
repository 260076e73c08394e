"""Refocus: score, plan, apply. Keeps one working context over all partitions of a store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megacontext.config import K
from megacontext.lens import Passage, Question, Scores
from megacontext.runtime.parts import Parts
from megacontext_ext import Allocator, AllocatorConfig, ScoreField, WorkingContext

# One plan descends through all LODs; a second uses the room that collapses made.
_PLANS_PER_REFOCUS = 4
# Scores of what the answer so far brings up, against those of the question itself.
_CONTINUATION_WEIGHT = 0.9


class Focus:
    """The working context of one session, steered by the lens. One thread."""

    def __init__(self, parts: Parts, conversation: int | None = None) -> None:
        self._parts = parts
        # Only a conversation's newest tokens are always raw; a document's end is nothing special.
        self._conversation = conversation
        self._field = ScoreField()
        # A new question is followed at once; while answering, what came in stays for a while.
        self._for_question = Allocator(AllocatorConfig(cooldown_steps=0))
        self._for_answer = Allocator(AllocatorConfig())
        self._context: WorkingContext | None = None
        self._scores: Scores | None = None
        self._edition = parts.history.edition

    @property
    def passages(self) -> Sequence[Passage]:
        return self._scores.passages if self._scores else ()

    def open(self, entry_places: int) -> None:
        """Have a working context of at most `entry_places` that holds all partitions.

        An open one is kept, with what it has in focus, when its budget fits and uses most of the
        room. Raises: OverBudget when the protected tail alone does not fit.
        """
        budget = entry_places // K * K
        fits = self._context is not None and budget >= self._context.budget_places >= budget - 4 * K
        if not fits:
            self._begin(budget)
        self._extend()

    def refocus(self, question: Question) -> Scores:
        """Bring what `question` needs into focus."""
        self._extend()
        scores = self._parts.lens.score(self._parts.history, question)
        self._apply(scores, self._for_question)
        return scores

    def refocus_on_answer(self, question: Question, asked: Scores) -> None:
        """The same while answering: what was `asked` for stays, what `question` (with the answer so
        far) adds may come in."""
        self._extend()
        added = self._parts.lens.score(self._parts.history, question)
        merged = {
            partition: _merged(scores, asked.by_partition.get(partition))
            for partition, scores in added.by_partition.items()
        }
        self._apply(Scores(merged, [*asked.passages, *added.passages]), self._for_answer)

    def entries(self) -> NDArray[np.void]:
        """Entries in partition then timeline order (fields as WorkingContext.entries)."""
        assert self._context is not None
        return self._context.entries()

    def score_of(self, partition: int, start: int, end: int) -> float:
        """Highest score of the blocks of tokens [start, end); 0 before the first refocus."""
        if self._scores is None or partition not in self._scores.by_partition:
            return 0.0
        blocks = self._scores.by_partition[partition][start // K : -(-end // K)]
        return float(blocks.max()) if len(blocks) else 0.0

    def _begin(self, budget: int) -> None:
        self._context = WorkingContext(budget, self._parts.gists.places(self._parts.store), 0)
        self._edition = self._parts.history.edition

    def _extend(self) -> None:
        assert self._context is not None
        self._parts.history.refresh()
        if self._edition != self._parts.history.edition:
            # Something in focus may be gone; timelines of a working context only grow.
            self._begin(self._context.budget_places)
            self._field, self._scores = ScoreField(), None
        tail = self._parts.config.protected_tail_tokens
        for partition, count in self._parts.history.token_counts.items():
            protected = tail if partition == self._conversation else 0
            self._context.set_partition(partition, count, protected)

    def _apply(self, scores: Scores, allocator: Allocator) -> None:
        assert self._context is not None
        self._scores = scores
        for partition, signed in scores.by_partition.items():
            self._field.set(partition, signed)
        for _ in range(_PLANS_PER_REFOCUS):
            plan = allocator.plan(self._context, self._field)
            if len(plan.actions) == 0:
                break
            self._context.apply(plan)


def _merged(added: NDArray[np.float32], asked: NDArray[np.float32] | None) -> NDArray[np.float32]:
    weighted = np.where(added > 0.0, added * _CONTINUATION_WEIGHT, added).astype(np.float32)
    if asked is not None:
        both = min(len(weighted), len(asked))
        weighted[:both] = np.maximum(weighted[:both], asked[:both])
    return weighted
