"""What a lens reads and what it gives.

A lens scores every block of every partition for what is being asked now. It sees a history through
this protocol and knows neither the store nor the model that will read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from megacontext.models import TokenArray


@dataclass(frozen=True, slots=True)
class Hits:
    """Blocks that hold a term, best first: partition uint32 [n], block uint64 [n], score float32
    [n]."""

    partitions: NDArray[np.uint32]
    blocks: NDArray[np.uint64]
    scores: NDArray[np.float32]


class History(Protocol):
    """Everything ingested so far, by block."""

    def block_counts(self) -> Mapping[int, int]:
        """Partition -> full blocks, in timeline order of partitions."""
        ...

    def search(self, text: str, hit_count: int) -> Hits: ...

    def sketches(self, partition: int) -> NDArray[np.int8]:
        """[n, W] block sketches; n may be less than the blocks, or 0 where there are none."""
        ...

    def tokens(self, partition: int, start_block: int, end_block: int) -> TokenArray:
        """Tokens of a run of blocks."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """`text` as asked (and what was answered so far, on a refocus); `sketch` float32 [W] or None;
    `reads`: the base may read the best passages to compare them, where the lens can."""

    text: str
    sketch: NDArray[np.float32] | None = None
    reads: bool = True


@dataclass(frozen=True, slots=True)
class Passage:
    """A run of blocks that the lens wants shown raw, and why it stands where it does."""

    partition: int
    start_block: int
    end_block: int
    score: float


@dataclass(frozen=True, slots=True)
class Scores:
    """Signed scores by partition, float32 [blocks]: + wants detail, - can be collapsed."""

    by_partition: Mapping[int, NDArray[np.float32]]
    # Best first.
    passages: Sequence[Passage]


class Lens(Protocol):
    def score(self, history: History, question: Question) -> Scores: ...
