"""Whole sentences of a history, and the blocks that hold them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from megacontext.config import K
from megacontext.lens.base import History
from megacontext.models import TextTokenizer

_WORD = re.compile(r"\w+")
_END = re.compile(rb"(?<=[.!?])[\"')\]]*\s+|\n+")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence or a line of its own: its text, and the blocks [start_block, end_block) that hold
    it."""

    partition: int
    start_block: int
    end_block: int
    text: str

    @property
    def words(self) -> set[str]:
        return words_of(self.text)


def words_of(text: str) -> set[str]:
    """Lower-cased words, each in the singular of simple plurals."""
    return {_singular(word) for word in _WORD.findall(text.lower())}


def _singular(word: str) -> str:
    plural = len(word) > 3 and word.endswith("s") and not word.endswith("ss")
    return word[:-1] if plural else word


def sentences(
    history: History, tokenizer: TextTokenizer, partition: int, start_block: int, end_block: int
) -> Iterator[Sentence]:
    """The sentences of a run of blocks. The first and the last may be cut where the run is.

    Cost: a read of the run's tokens.
    """
    tokens = history.tokens(partition, start_block, end_block).tolist()
    join = tokenizer.token_bytes.join
    blocks = [join(tokens[at : at + K]) for at in range(0, len(tokens), K)]
    ends = np.cumsum([len(block) for block in blocks])
    text = b"".join(blocks)
    for low, high in _between_ends(text):
        first, last = np.searchsorted(ends, (low, high - 1), side="right")
        start, end = start_block + int(first), start_block + int(last) + 1
        yield Sentence(partition, start, end, text[low:high].decode("utf-8", errors="ignore"))


def _between_ends(text: bytes) -> Iterator[tuple[int, int]]:
    """Ranges of bytes between the ends of sentences, without the space around them, none empty."""
    at = 0
    for stop, after in [*(end.span() for end in _END.finditer(text)), (len(text), len(text))]:
        part = text[at:stop]
        if part.strip():
            yield at + len(part) - len(part.lstrip()), at + len(part.rstrip())
        at = after
