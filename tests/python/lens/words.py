"""A history of words, small enough to check by hand."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from megacontext.lens import Hits


@dataclass
class Words:
    """Blocks of words, searched by counting: a history small enough to check by hand."""

    texts: dict[int, list[str]]
    rows: dict[int, np.ndarray] = field(default_factory=dict)

    def block_counts(self):
        return {partition: len(blocks) for partition, blocks in self.texts.items()}

    def search(self, text, hit_count):
        found = [
            (float(block.split().count(text)), partition, number)
            for partition, blocks in self.texts.items()
            for number, block in enumerate(blocks)
            if text in re.findall(r"\w+", block)
        ]
        found.sort(key=lambda hit: (-hit[0], hit[1], hit[2]))
        rare = 10.0 / max(len(found), 1)
        return Hits(
            np.array([hit[1] for hit in found[:hit_count]], np.uint32),
            np.array([hit[2] for hit in found[:hit_count]], np.uint64),
            np.array([rare for _ in found[:hit_count]], np.float32),
        )

    def sketches(self, partition):
        return self.rows.get(partition, np.zeros((0, 4), np.int8))

    def tokens(self, partition, start_block, end_block):
        raise AssertionError("nobody reads")


def history() -> Words:
    filler = [f"filler words number{n} stand here" for n in range(40)]
    first, second = list(filler), list(filler)
    first[10] = "the captain of the astrid is henrik"
    first[11] = "and he sailed from skagen"
    second[30] = "the serial number of the pump is b973"
    return Words({0: first, 3: second})
