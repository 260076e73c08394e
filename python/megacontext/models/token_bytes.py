"""The bytes behind every token of a vocabulary.

Joining them is exact where decoding text piecewise is not: a character may be split over tokens,
and some decoders strip or add a space at the start of a piece. It is also a table look-up, which
makes indexing and streaming cheap. Covers byte-level vocabularies and SentencePiece ones.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

_SPACE_MARK = "▁"


def byte_level_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE: printable Latin-1 stands for itself, the other bytes
    take code points from 256 on (Radford et al. 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet.update({chr(256 + place): byte for place, byte in enumerate(others)})
    return alphabet


class TokenBytes:
    """Token id -> bytes. Special tokens are empty: they are structure, not text."""

    def __init__(self, table: Sequence[bytes]) -> None:
        self._table = list(table)

    @classmethod
    def of_vocabulary(
        cls, vocabulary: dict[str, int], special_ids: Iterable[int], *, byte_level: bool
    ) -> TokenBytes:
        alphabet = byte_level_alphabet()
        table = [b""] * (max(vocabulary.values(), default=-1) + 1)
        special = set(special_ids)
        for text, token in vocabulary.items():
            if token not in special:
                table[token] = _byte_level(text, alphabet) if byte_level else _sentence_piece(text)
        return cls(table)

    def join(self, tokens: Iterable[int]) -> bytes:
        """Bytes of a run of tokens; ids beyond the vocabulary are empty."""
        table = self._table
        count = len(table)
        return b"".join([table[token] if token < count else b"" for token in tokens])

    def text(self, tokens: Iterable[int]) -> str:
        """Text of a run of tokens. A character cut at either end becomes U+FFFD."""
        return self.join(tokens).decode("utf-8", errors="replace")


class TextStream:
    """Turns tokens into text as they come, holding back a character until it is whole."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._token_bytes.join((token,)))

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)


def _byte_level(text: str, alphabet: dict[str, int]) -> bytes:
    try:
        return bytes(map(alphabet.__getitem__, text))
    except KeyError:  # an added token with characters outside the alphabet is plain text
        return text.encode("utf-8")


def _sentence_piece(text: str) -> bytes:
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes((int(text[3:5], 16),))
    return text.replace(_SPACE_MARK, " ").encode("utf-8")
