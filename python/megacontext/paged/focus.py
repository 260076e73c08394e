"""Which blocks a stream wants, as two strategies under one budget, and a log of what changed.

"step": the queries of the step just read, against one mean key a block (`page_keys.py`), every few
tokens. "question": a lens over the store's text (`PagedMemory.focus_on`). Both give scores of
blocks; what follows is the same: hysteresis, an order of preference, a log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from megacontext.config import K
from megacontext.paged.config import PagedConfig
from megacontext.paged.page_keys import PageKeys, mean_keys, scored_layers, turned
from megacontext.paged.page_store import PageLayout
from megacontext.paged.rotary import LayerRotary
from megacontext.paged.stream import Stream

ACTIONS_KEPT = 4096
QUERIES = 8  # of a step that choose

ActionKind = Literal["expand", "collapse", "pin", "exclude", "lose"]


@dataclass(frozen=True)
class FocusAction:
    """One change of what is in focus: at which token of the stream, what, and why."""

    stream: int
    token: int
    kind: ActionKind
    block: int
    reason: str
    score: float = 0.0


class FocusLog:
    """The newest actions. `changes` compares what is wanted with what was."""

    def __init__(self) -> None:
        self.actions: deque[FocusAction] = deque(maxlen=ACTIONS_KEPT)

    def changes(
        self,
        number: int,
        stream: Stream,
        lists: tuple[Sequence[int], Sequence[int]],
        scores: dict[int, float],
        why: str,
    ) -> None:
        """Logs the blocks that are only in one of `lists`, what was wanted and what is."""
        then, now = map(set, lists)
        for block in sorted(now - then):
            self.note(number, stream, "expand", block, why, scores.get(block, 0.0))
        for block in sorted(then - now):
            self.note(number, stream, "collapse", block, why, scores.get(block, 0.0))

    def note(
        self,
        number: int,
        stream: Stream,
        kind: ActionKind,
        block: int,
        reason: str,
        score: float = 0.0,
    ) -> None:
        action = FocusAction(number, stream.token_count, kind, block, reason, score)
        self.actions.append(action)


def order_blocks(
    scores: Tensor, wanted: Sequence[int], count: int, hysteresis: float
) -> dict[int, float]:
    """The `count` blocks with the best scores, best first, each with its score.

    Args:
        scores: [N] float32, 0 or more.
        wanted: blocks wanted now: another must beat one of them by the factor 1 + hysteresis.

    Cost: one top-k over N.
    """
    held = torch.tensor([b for b in wanted if b < len(scores)], dtype=torch.long)
    lifted = scores.clone()
    lifted[held] *= 1.0 + hysteresis
    best = torch.topk(lifted, min(count, len(scores)))
    keep = best.values > 0
    chosen = best.indices[keep]
    return dict(zip(chosen.tolist(), scores[chosen].tolist(), strict=True))


class StepFocus:
    """Chooses by the model's own queries: of the last tokens, in a few layers.

    Args of its constructor: the pages' layout, the settings, each layer's rotary frequencies and
    attention type (layers with a sliding window have no say), a folder for mean keys (None: they
    are in memory).
    """

    def __init__(
        self,
        layout: PageLayout,
        config: PagedConfig,
        rotary: Sequence[LayerRotary],
        kinds: Sequence[str],
        folder: Path | None = None,
    ) -> None:
        whole = [n for n, kind in enumerate(kinds) if kind != "sliding_attention"]
        whole = whole or list(range(layout.layers))
        self.layers = tuple(whole[at] for at in scored_layers(len(whole)))
        self._config = config
        self._shape = (len(self.layers), layout.kv_heads, layout.head_width)
        self._rotary = [rotary[layer] for layer in self.layers]
        self._folder = folder
        self._keys: dict[int, PageKeys] = {}
        self._heard: dict[int, list[Tensor]] = {}  # stream -> queries, a layer each
        self.since: dict[int, int] = {}  # stream -> tokens since it last chose

    def hear(self, layer: int, queries: Tensor, counts: Sequence[int]) -> None:
        """Takes a layer's queries [T, Hq, E] of a step; keeps the last few of each stream."""
        if layer not in self.layers:
            return
        at = self.layers.index(layer)
        distance = self._config.limits.budget_places / 2
        start = 0
        for number, count in enumerate(counts):
            if at == 0:
                self.since[number] = self.since.get(number, 0) + count
                self._heard[number] = []
            if count and self._is_due(number, count):
                last = queries[start + max(0, count - QUERIES) : start + count]
                self._heard[number].append(turned(last, self._rotary[at], distance))
            start += count

    def choose(self, number: int, stream: Stream) -> dict[int, float] | None:
        """Twice the budget of blocks, best first, with their scores; None when it is not time."""
        heard = self._heard.pop(number, [])
        if len(heard) < len(self.layers) or not self.block_count(number):
            return None
        self.since[number] = 0
        scores = self._keys[number].score(torch.stack(heard), self._shape[-1] ** -0.5)
        held = stream.wanted[: self._config.choice_blocks]
        count = 2 * self._config.limits.budget_places // K
        return order_blocks(scores, held, count, self._config.hysteresis)

    def add(self, number: int, content: Tensor) -> Tensor:
        """Takes whole pages [N, L, 2, Hkv, 32, E] of the next blocks; returns their mean keys."""
        means = mean_keys(content, self.layers)
        self.take(number, means)
        return means

    def take(self, number: int, means: Tensor) -> None:
        """Takes mean keys [N, A, Hkv, E] of the next blocks."""
        if number not in self._keys:
            self._keys[number] = PageKeys(self._shape, self._folder)
        self._keys[number].add(means)

    def block_count(self, number: int) -> int:
        return self._keys[number].block_count if number in self._keys else 0

    def _is_due(self, number: int, count: int) -> bool:
        return count > 1 or self.since[number] >= self._config.refocus_tokens
