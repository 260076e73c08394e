"""How often each block was shown to the model: counted in memory, kept as rows of the store.

One uint32 a block. Counts of a read-only memory are lost with it, and so are those since the last
`keep` when a process dies; they steer what to keep, not what is true.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from megacontext.config import K
from megacontext_ext import Store

ACCESS_ROWS = "access-v1"


class AccessCounts:
    """Counts since the last `keep`. One thread."""

    def __init__(self) -> None:
        self._fresh: dict[int, dict[int, int]] = defaultdict(dict)

    def note(self, partition: int, start: int, end: int) -> None:
        """Tokens [start, end) were shown. Cost: one dictionary entry a block."""
        counts = self._fresh[partition]
        for block in range(start // K, -(-end // K)):
            counts[block] = counts.get(block, 0) + 1

    def forget(self, partition: int) -> None:
        self._fresh.pop(partition, None)

    def keep(self, store: Store) -> None:
        """Add them to the store's rows (not yet durable). Rows go up to the last block counted."""
        if not self._fresh:
            return
        store.define_rows(ACCESS_ROWS, 1, "u32", 1)
        known = {partition.id: partition.token_count for partition in store.partitions()}
        for partition, fresh in self._fresh.items():
            # The unfinished last block has no row: the next append would make it another block.
            blocks = [block for block in fresh if block < known.get(partition, 0) // K]
            if not blocks:
                continue
            counts = read_counts(store, partition)
            if max(blocks) >= len(counts):
                counts = np.pad(counts, (0, max(blocks) + 1 - len(counts)))
            for block in blocks:
                counts[block] += fresh[block]
            there = store.row_count(ACCESS_ROWS, partition)
            rows = counts.reshape(-1, 1)
            store.put_rows(ACCESS_ROWS, partition, 0, rows[:there])
            store.put_rows(ACCESS_ROWS, partition, there, rows[there:])
        self._fresh.clear()


def read_counts(store: Store, partition: int) -> NDArray[np.uint32]:
    """[n] times each block was shown; blocks beyond were never."""
    if all(family.name != ACCESS_ROWS for family in store.row_families()):
        return np.zeros(0, np.uint32)
    rows = store.read_rows(ACCESS_ROWS, partition, 0, store.row_count(ACCESS_ROWS, partition))
    return rows.reshape(-1)
