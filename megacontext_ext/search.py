"""Lexical search: the words that count, and BM25 over texts in memory.

A store keeps the same index durably (``Store.index_text``, ``Store.search``); this one needs none.
Rules of the analyzer, formula and format: ``csrc/search/README.md``.

    index = TextIndex()
    index.add(0, 0, ["the red fish", "a blue bird"])
    partitions, blocks, scores = index.search("birds", k=10)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacontext_ext import _engine

__all__ = ["TERM_DTYPE", "TextIndex", "analyze"]

TERM_DTYPE: np.dtype[Any] = _engine.TERM_DTYPE
"""hash u8 of the folded, stemmed word; count u4 in the text."""


def analyze(text: str) -> NDArray[Any]:
    """[n] of ``TERM_DTYPE``: the terms of a text, by hash, each once."""
    return _engine.analyze(text)


class TextIndex:
    """BM25 over blocks of text in memory. Not thread safe."""

    def __init__(self) -> None:
        self._index = _engine.TextIndex()

    def add(self, partition: int, first_block: int, texts: Sequence[str]) -> None:
        """Texts of consecutive blocks of a partition; each block once."""
        self._index.add(partition, first_block, list(texts))

    def seal(self) -> None:
        """Packs what was added into immutable postings, about 5 times smaller; hits stay the same.

        Raises:
            InvalidArgument: a block was added twice.
        """
        self._index.seal()

    def search(
        self, query: str, k: int, partition: int | None = None
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint64], NDArray[np.float32]]:
        """Partitions, blocks and scores of the k best blocks, best first, all scores above 0.

        Ties go to the lower partition, then to the lower block. ``partition`` restricts the blocks,
        not the statistics behind the scores.
        """
        return self._index.search(query, k, partition)

    def __len__(self) -> int:
        """Blocks in the index."""
        return len(self._index)

    @property
    def sealed_bytes(self) -> int:
        """Bytes of the sealed postings."""
        return self._index.sealed_bytes
