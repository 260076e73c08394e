"""A history of words, small enough to check by hand."""

from __future__ import annotations

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
        """Each block scores the rareness of every word of `text` in it; the fullest come first."""
        known = [
            (partition, number, block.split())
            for partition, blocks in self.texts.items()
            for number, block in enumerate(blocks)
        ]
        sums: dict[tuple[int, int], float] = {}
        counts: dict[tuple[int, int], int] = {}
        for word in dict.fromkeys(text.split()):
            with_word = [(p, n, words.count(word)) for p, n, words in known if word in words]
            for partition, number, count in with_word:
                place = partition, number
                sums[place] = sums.get(place, 0.0) + 10.0 / len(with_word)
                counts[place] = counts.get(place, 0) + count
        best = sorted(sums, key=lambda place: (-sums[place], -counts[place], place))[:hit_count]
        return Hits(
            np.array([partition for partition, _ in best], np.uint32),
            np.array([number for _, number in best], np.uint64),
            np.array([sums[place] for place in best], np.float32),
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
