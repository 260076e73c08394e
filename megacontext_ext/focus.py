"""The working context: a fixed budget of places shared by the tilings of all partitions.

Scores say which blocks deserve detail, the allocator plans whole-block swaps within the budget, the
working context carries a plan out or refuses it. Rules and costs: ``csrc/focus/README.md``.

    context = WorkingContext(budget_places=2048, gist_places=(0,) * 8)
    context.set_partition(0, token_count=1_000_000, protected_tail_tokens=0)
    field = ScoreField()
    field.set(0, scores)                       # float32, one a block of 32 tokens
    context.apply(Allocator().plan(context, field))
    for entry in context.entries(): ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megacontext_ext import _engine

__all__ = [
    "ACTION_DTYPE",
    "COLLAPSE",
    "ENTRY_DTYPE",
    "EXPAND",
    "MAX_LOD",
    "Allocator",
    "AllocatorConfig",
    "FocusPlan",
    "ScoreField",
    "WorkingContext",
]

MAX_LOD = 8
EXPAND, COLLAPSE = 0, 1

ENTRY_DTYPE: np.dtype[Any] = _engine.ENTRY_DTYPE
"""partition u4, lod u1, index u8, start u8, end u8, places u4. A raw block has LOD 0 and the index
of its block; an unfinished node (its span reaches past the timeline) takes no place."""

ACTION_DTYPE: np.dtype[Any] = _engine.ACTION_DTYPE
"""action u1 (0 expand, 1 collapse), partition u4, lod u1, index u8, score f4. The node has LOD 1 or
more: expanding puts its children in its place (LOD 1: the raw block), collapsing reverses that."""


@dataclass(frozen=True)
class AllocatorConfig:
    """How the greedy allocator decides. Scores are signed, near [-1, 1].

    Attributes:
        expand_threshold: blocks above it are worth being raw; at least 0.
        collapse_threshold: nodes below its negative are collapsed without need; at least 0.
        hysteresis: what a swap must gain in score; at least 0.
        max_actions: of one plan.
        cooldown_steps: plans for which an action is not reversed, 0 to 16. With 0 a changed
            question is followed at once.
        reserve_places: kept free, for a question or for tokens to come.
    """

    expand_threshold: float = 0.2
    collapse_threshold: float = 0.2
    hysteresis: float = 0.1
    max_actions: int = 4096
    cooldown_steps: int = 2
    reserve_places: int = 0


class FocusPlan:
    """Actions in the order in which they are applied; at no step do they exceed the budget.

    Args:
        actions: [n] of ``ACTION_DTYPE``. Any policy may make a plan: the working context checks it.
    """

    def __init__(self, actions: ArrayLike = ()) -> None:
        self._plan = _engine.FocusPlan(np.asarray(actions, dtype=ACTION_DTYPE).reshape(-1))

    @property
    def actions(self) -> NDArray[Any]:
        """[n] of ``ACTION_DTYPE``, a copy."""
        return self._plan.actions

    def __len__(self) -> int:
        return len(self._plan)


class ScoreField:
    """One signed score a block and partition; blocks without one count as 0."""

    def __init__(self) -> None:
        self._field = _engine.ScoreField()

    def set(self, partition: int, scores: ArrayLike) -> None:
        """Replaces the scores of a partition: float32 [n_blocks], from its start, all finite."""
        self._field.set(partition, np.ascontiguousarray(scores, dtype=np.float32).reshape(-1))

    def remove(self, partition: int) -> None:
        """Forgets the scores of one partition."""
        self._field.remove(partition)

    def clear(self) -> None:
        """Forgets all scores."""
        self._field.clear()

    def entry_scores(self, context: WorkingContext) -> NDArray[np.float32]:
        """float32 [n_entries], as ``context.entries()``: the best score of each one's blocks."""
        return context._context.entry_scores(self._field)

    def __len__(self) -> int:
        """Partitions with scores."""
        return len(self._field)


class WorkingContext:
    """Entries that tile the timelines of all partitions within ``budget_places``.

    Every method leaves it unchanged when it raises. Not thread safe.

    Args:
        budget_places: rows that the model may see.
        gist_places: ``gist_places[lod - 1]`` places of a node of that LOD, 0 to 32. 0: its gist is
            not shown, the node takes no place. LODs beyond the list have no gists.
        protected_tail_tokens: the last tokens of each timeline stay raw; a partition may have its
            own number, 0 for documents that are only looked up.
    """

    def __init__(
        self,
        budget_places: int,
        gist_places: Sequence[int] = (1,) * MAX_LOD,
        protected_tail_tokens: int = 128,
    ) -> None:
        self._context = _engine.WorkingContext(
            budget_places, list(gist_places), protected_tail_tokens
        )

    def set_partition(
        self, partition: int, token_count: int, protected_tail_tokens: int | None = None
    ) -> None:
        """Adds a partition or makes it longer.

        A new one is tiled with the coarsest full nodes and its protected tail raw, or as one
        unfinished root without places where gists do not fit or are not shown. Appended blocks
        enter raw as far as they fit; the protected tail makes room for itself.

        Raises:
            InvalidArgument: the partition would become shorter.
            OverBudget: protected tails and pins do not fit into the budget.
        """
        self._context.set_partition(partition, token_count, protected_tail_tokens)

    def remove_partition(self, partition: int) -> None:
        """Takes a partition out, with its pins. Raises NotFound."""
        self._context.remove_partition(partition)

    def reset(self) -> None:
        """Tiles every partition as if it were new; pins, exclusions and tails stay."""
        self._context.reset()

    def apply(self, plan: FocusPlan) -> None:
        """Carries out all actions in order, or none.

        Raises:
            InvalidArgument: an action is not a whole-block swap here, or touches what must be raw.
            OverBudget: an action does not fit.
        """
        self._context.apply(plan._plan)

    def pin(self, partition: int, start: int, end: int) -> None:
        """The blocks that overlap tokens [start, end) are raw from now on. Raises OverBudget."""
        self._context.pin(partition, start, end)

    def unpin(self, partition: int, start: int, end: int) -> None:
        """The reverse of ``pin``; the blocks stay raw until a plan collapses them."""
        self._context.unpin(partition, start, end)

    def exclude(self, partition: int, start: int, end: int) -> None:
        """The blocks that overlap tokens [start, end) are never raw from now on."""
        self._context.exclude(partition, start, end)

    def include(self, partition: int, start: int, end: int) -> None:
        """The reverse of ``exclude``."""
        self._context.include(partition, start, end)

    def entries(self) -> NDArray[Any]:
        """[n] of ``ENTRY_DTYPE``, by partition, then by position."""
        return self._context.entries()

    def check(self) -> None:
        """Recomputes every invariant; raises Corruption when one is violated."""
        self._context.check()

    @property
    def token_counts(self) -> dict[int, int]:
        """Tokens of each partition."""
        return self._context.token_counts()

    @property
    def places(self) -> int:
        """Places taken now; never more than ``budget_places``."""
        return self._context.places

    @property
    def budget_places(self) -> int:
        """Places that the model may see."""
        return self._context.budget_places

    @property
    def step(self) -> int:
        """Plans applied so far."""
        return self._context.step


class Allocator:
    """Greedy, best first: scores to a plan of whole-block swaps within the budget."""

    def __init__(self, config: AllocatorConfig | None = None) -> None:
        self.config = config or AllocatorConfig()
        self._allocator = _engine.Allocator(**asdict(self.config))

    def plan(self, context: WorkingContext, field: ScoreField) -> FocusPlan:
        """A plan for ``context``, which it does not change; a function of its arguments alone.

        Raises:
            InvalidArgument: a partition has more scores than blocks.
        """
        plan = FocusPlan.__new__(FocusPlan)
        plan._plan = self._allocator.plan(context._context, field._field)
        return plan
