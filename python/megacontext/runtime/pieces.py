"""Cuts a stream of text into pieces that tokenise alike however the stream arrived.

A piece ends before a run of white space that follows text, where byte-level and SentencePiece
tokenizers begin a new word anyway, or, where there is no such place, at a fixed length. Both depend
on the text alone: reading it in other portions, or again from the start of any piece, gives the
same pieces and so the same tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# A piece is cut at the first border at or after this length: long enough to tokenise at full speed.
PIECE_CHARS = 8192
# A line without white space is cut here.
PIECE_CHARS_MAX = 16384

_BORDER = re.compile(r"(?<=\S)(?=\s)")


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Text at `start` (characters from the beginning of its source)."""

    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def cut_pieces(portions: Iterable[str], start: int = 0) -> Iterator[TextPiece]:
    """Pieces of a text that comes in portions. Holds one piece and one portion."""
    held, at = "", 0
    for portion in portions:
        held, at = held[at:] + portion, 0
        # A border after the last character is known only when the next one is there.
        while len(held) - at > PIECE_CHARS_MAX:
            end = _cut(held, at)
            yield TextPiece(held[at:end], start)
            start, at = start + end - at, end
    while at < len(held):
        end = _cut(held, at)
        yield TextPiece(held[at:end], start)
        start, at = start + end - at, end


def _cut(text: str, at: int) -> int:
    """End of the piece that begins at `at`."""
    if len(text) - at <= PIECE_CHARS:
        return len(text)
    last = min(len(text), at + PIECE_CHARS_MAX)
    border = _BORDER.search(text, at + PIECE_CHARS, min(len(text), last + 1))
    return border.start() if border else last
