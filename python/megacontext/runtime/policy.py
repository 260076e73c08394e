"""An allocator that a net steers, with the greedy one behind it. An experiment: off by default.

A plan collapses what nothing asks for, then expands one block after the other, all the way down,
until the net stops or nothing fits. `WorkingContext.apply` carries it out or refuses it, as it does
with any plan. Where there is no plan to apply the greedy allocator's is used, and counted.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from megacontext.config import K
from megacontext.lens.candidates import Candidates
from megacontext.lens.policy_net import PolicyNet, logits, state_of
from megacontext_ext import Allocator, AllocatorConfig, FocusPlan, ScoreField, WorkingContext
from megacontext_ext.errors import InvalidArgument, OverBudget
from megacontext_ext.focus import ACTION_DTYPE, COLLAPSE, EXPAND

_LOG = logging.getLogger(__name__)
_NodeKey = tuple[int, int, int]  # partition, LOD, index
_Action = tuple[int, int, int, int]  # kind, partition, LOD, index
# Why a greedy plan was used instead.
EMPTY, STOPPED, NOT_FINITE, REFUSED = "no candidates", "stopped at once", "not finite", "refused"
_GREEDY_PLANS = 4
# Chosen on 94 validation questions with room for 15 blocks: 7 to 10 are used, and as many facts
# found as by filling 10. At 0.5 a third of them is lost for 2 to 3 blocks.
STOP_ABOVE = 0.95


class Tilings:
    """The expanded nodes of a working context, to tell what a descent does before it is planned.

    Read from the entries; `gist_places` as the context was made with. Changes nothing but itself.
    """

    def __init__(self, context: WorkingContext, gist_places: Sequence[int]) -> None:
        self._tokens = context.token_counts
        self._gist_places = gist_places
        self._roots = {p: _root_lod(tokens) for p, tokens in self._tokens.items()}
        self.places = context.places
        self.expanded: set[_NodeKey] = set()
        for entry in context.entries():
            partition, lod, index = (int(entry[name]) for name in ("partition", "lod", "index"))
            at = index if lod == 0 else index * K ** (lod - 1)
            for above in range(lod + 1, self._roots[partition] + 1):
                self.expanded.add((partition, above, at // K ** (above - 1)))

    def apply(self, actions: Sequence[_Action]) -> None:
        for kind, partition, lod, index in actions:
            node = (partition, lod, index)
            change = self._gained(node)
            if kind == EXPAND:
                self.expanded.add(node)
                self.places += change
            else:
                self.expanded.discard(node)
                self.places -= change

    def descent(self, partition: int, block: int) -> list[_Action]:
        """Expansions from the entry that covers a block down to its tokens; none if it is raw."""
        nodes = [
            (partition, lod, block // K ** (lod - 1))
            for lod in range(self._roots[partition], 0, -1)
        ]
        return [(EXPAND, *node) for node in nodes if node not in self.expanded]

    def cost(self, partition: int, block: int) -> int:
        """Places that the descent to a block takes."""
        return sum(self._gained(node) for _, *node in self.descent(partition, block))

    def _gained(self, node: Sequence[int]) -> int:
        """Places of a node's children less its own."""
        partition, lod, index = node
        if lod > 1 and not any(self._gist_places):
            return 0
        if lod == 1:
            tokens = min(K, self._tokens[partition] - index * K)
            return tokens - self._shown(partition, 1, index)
        span = range(index * K, index * K + K)
        return sum(self._shown(partition, lod - 1, child) for child in span) - self._shown(*node)

    def _shown(self, partition: int, lod: int, index: int) -> int:
        """Places of a node as an entry: 0 where it is unfinished or has no gist."""
        whole = (index + 1) * K**lod <= self._tokens[partition]
        return self._gist_places[lod - 1] if whole and lod <= len(self._gist_places) else 0


@dataclass(frozen=True)
class Chosen:
    """Candidates in the order in which the net took them, with the expansions that it takes."""

    order: list[int]
    actions: list[_Action]


class PolicyAllocator:
    """Plans by a PolicyNet. One thread; `plans` and `fallbacks` (by reason) count its calls.

    Args:
        gist_places: as of the working contexts that it plans for.
        stop_above: chance of stopping, by the net, above which it stops; 1 fills the budget.
        greedy: what plans instead; by default what a fresh question gets at run time.
    """

    def __init__(
        self,
        net: PolicyNet,
        gist_places: Sequence[int],
        *,
        stop_above: float = STOP_ABOVE,
        greedy: Allocator | None = None,
    ) -> None:
        self._net = net.eval()
        self._gist_places = tuple(gist_places)
        self._stop_above = stop_above
        self._greedy = greedy or Allocator(AllocatorConfig(cooldown_steps=0))
        self._clearing = Allocator(AllocatorConfig(cooldown_steps=0, collapse_threshold=0.0))
        self.plans = 0
        self.fallbacks: Counter[str] = Counter()

    def refocus(self, context: WorkingContext, field: ScoreField, found: Candidates) -> str | None:
        """Bring what the net chooses of `found` into `context`; what `field` says is for the
        greedy allocator. Returns why that one was used, or None.

        Raises: InvalidArgument for scores or candidates of other partitions than the context's.
        """
        self.plans += 1
        reason = self._apply(context, found)
        if reason is not None:
            self.fallbacks[reason] += 1
            _LOG.info("[policy] greedy plan used: %s", reason)
            for _ in range(_GREEDY_PLANS):
                plan = self._greedy.plan(context, field)
                if len(plan) == 0:
                    break
                context.apply(plan)
        return reason

    def plan(self, context: WorkingContext, found: Candidates) -> FocusPlan | str:
        """The net's plan, or why there is none. `context` stays as it is."""
        if len(found) == 0:
            return EMPTY
        clear = self._clear(context)
        tilings = Tilings(context, self._gist_places)
        tilings.apply(clear)
        chosen = choose(self._net, found, tilings, context.budget_places, self._stop_above)
        if chosen is None:
            return NOT_FINITE
        if not chosen.order:
            return STOPPED
        rows = [(*action, 0.0) for action in (*clear, *chosen.actions)]
        return FocusPlan(np.array(rows, dtype=ACTION_DTYPE))

    def _apply(self, context: WorkingContext, found: Candidates) -> str | None:
        plan = self.plan(context, found)
        if isinstance(plan, str):
            return plan
        try:
            context.apply(plan)
        except (InvalidArgument, OverBudget) as error:
            _LOG.info("[policy] %s", error)
            return REFUSED
        return None

    def _clear(self, context: WorkingContext) -> list[_Action]:
        """Collapses of all that may be collapsed: what the greedy allocator does where nothing is
        wanted."""
        unwanted = ScoreField()
        for partition, tokens in context.token_counts.items():
            unwanted.set(partition, np.full(-(-tokens // K), -1.0, np.float32))
        actions = self._clearing.plan(context, unwanted).actions
        return [
            (COLLAPSE, int(a["partition"]), int(a["lod"]), int(a["index"]))
            for a in actions
            if a["action"] == COLLAPSE
        ]


@torch.inference_mode()
def choose(
    net: torch.nn.Module, found: Candidates, tilings: Tilings, budget_places: int, stop_above: float
) -> Chosen | None:
    """What the net takes, best first, while it fits; None for a logit that is not a number.
    `tilings` follows."""
    blocks = list(zip(found.partitions.tolist(), found.blocks.tolist(), strict=True))
    taken = np.array([not tilings.descent(*at) for at in blocks])
    chosen = Chosen([], [])
    while True:
        cost = np.array([tilings.cost(*at) for at in blocks], np.int64)
        state = state_of(found, taken, cost, budget_places - tilings.places)
        if not state.may.any():
            return chosen
        logit = logits(net, found, [state])[0]
        if bool(torch.isnan(logit).any()) or bool(torch.isinf(logit[:-1].amax())):
            return None
        if float(torch.softmax(logit, dim=0)[-1]) > stop_above:
            return chosen
        best = int(logit[:-1].argmax())
        taken[best] = True
        steps = tilings.descent(*blocks[best])
        tilings.apply(steps)
        chosen.order.append(best)
        chosen.actions.extend(steps)


def _root_lod(token_count: int) -> int:
    lod = 2
    while K**lod < token_count:
        lod += 1
    return lod


def raw_blocks(context: WorkingContext) -> list[tuple[int, int]]:
    """(partition, block) of every raw block, in the order of the entries."""
    entries: NDArray[np.void] = context.entries()
    raw = entries[entries["lod"] == 0]
    return list(zip(raw["partition"].tolist(), raw["index"].tolist(), strict=True))
