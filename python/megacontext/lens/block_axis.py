"""All blocks of all partitions on one axis, with room between partitions.

The room is as wide as the widest spread, so that an operation over neighbours needs no border case
and never reaches from one source into the next.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


class BlockAxis:
    """Places 0..length of an axis; partition p has its blocks at first[p]..first[p] + count[p]."""

    def __init__(self, block_counts: Mapping[int, int], room: int) -> None:
        self._counts = dict(block_counts)
        self._first: dict[int, int] = {}
        at = room
        for partition, count in self._counts.items():
            self._first[partition] = at
            at += count + room
        self.length = at
        ids = range(max(self._first, default=0) + 1)
        self._first_of = np.array([self._first.get(p, 0) for p in ids], dtype=np.int64)
        self._count_of = np.array([self._counts.get(p, 0) for p in ids], dtype=np.int64)
        self._starts = np.fromiter(self._first.values(), dtype=np.int64, count=len(self._first))
        self._partitions = list(self._first)

    def places(
        self, partitions: NDArray[np.uint32], blocks: NDArray[np.uint64]
    ) -> NDArray[np.int64]:
        """Axis places of blocks; -1 for a block that is not on the axis (it came later)."""
        inside = partitions < len(self._first_of)
        partition = np.where(inside, partitions, 0)
        block = blocks.astype(np.int64)
        known = inside & (block < self._count_of[partition])
        return np.where(known, self._first_of[partition] + block, -1)

    def span(self, partition: int) -> slice:
        first = self._first[partition]
        return slice(first, first + self._counts[partition])

    def locate(self, place: int) -> tuple[int, int]:
        """(partition, block) of an axis place that holds a block."""
        at = int(np.searchsorted(self._starts, place, side="right")) - 1
        partition = self._partitions[at]
        return partition, place - self._first[partition]

    def block_mask(self) -> NDArray[np.bool_]:
        """True where the axis holds a block, False in the room between partitions."""
        mask = np.zeros(self.length, dtype=bool)
        for partition in self._first:
            mask[self.span(partition)] = True
        return mask
