"""Puts pieces that matter among pieces that do not, and remembers where they went."""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence
from dataclasses import dataclass

from megacontext.eval.long.example import GoldSpan, Source


@dataclass(frozen=True, slots=True)
class Placed:
    """A text and the half-open character spans of the needles in it, in the needles' order."""

    text: str
    spans: tuple[tuple[int, int], ...]

    def gold(self, wanted: Sequence[int] | None = None, source: int = 0) -> tuple[GoldSpan, ...]:
        """Spans of the needles numbered `wanted`; of all, when None."""
        numbers = range(len(self.spans)) if wanted is None else wanted
        return tuple(GoldSpan(source, *self.spans[i]) for i in numbers)

    def source(self, name: str) -> tuple[Source, ...]:
        return (Source(name, self.text),)


def place(
    units: Sequence[str], needles: Sequence[str], depths: Sequence[float], joiner: str
) -> Placed:
    """`units` in their order with `needles[i]` inserted at depth `depths[i]` (0 first, 1 last).

    Needles with the same depth keep their order.
    """
    assert len(needles) == len(depths)
    starts, at = [], 0
    for unit in units:
        starts.append(at)
        at += len(unit)
    # Depth is by characters, not by units: units differ in length.
    before = [bisect.bisect_left(starts, min(1.0, max(0.0, d)) * at) for d in depths]
    order = sorted(range(len(needles)), key=lambda i: (before[i], i))
    parts: list[str] = []
    spans: list[tuple[int, int]] = [(0, 0)] * len(needles)
    length, done = 0, 0
    for number in range(len(units) + 1):
        while done < len(order) and before[order[done]] == number:
            needle = order[done]
            spans[needle] = (length, length + len(needles[needle]))
            parts.append(needles[needle])
            length += len(needles[needle]) + len(joiner)
            done += 1
        if number < len(units):
            parts.append(units[number])
            length += len(units[number]) + len(joiner)
    return Placed(joiner.join(parts), tuple(spans))


def scattered_depths(rng: random.Random, count: int) -> list[float]:
    """`count` depths, one drawn from each of `count` equal parts, in order."""
    return [(i + rng.random()) / count for i in range(count)]
