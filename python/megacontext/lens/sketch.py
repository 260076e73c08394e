"""Sketches: one small int8 row a block, from the base's own input embeddings.

A block's sketch is the sum of its tokens' embeddings, weighted down for frequent tokens, after the
directions that all embeddings share are taken out. Method: smooth inverse frequency (Arora et al.
2017) and all-but-the-top (Mu & Viswanath 2018). Without removing the shared directions the cosine
is useless (measured: the right block of 12,000 is first for 6% of SQuAD questions instead of 57%).

Frequencies are not counted: merges of a byte-pair vocabulary are in order of frequency, so the
token id stands for the rank and Zipf's law for the rest. The same vocabulary gives the same rows
for ever.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from megacontext.models import FrozenBase, TokenArray

SKETCH_WIDTH = 192
# Directions shared by all tokens; 2 to 8 measured alike.
_SHARED_DIRECTIONS = 4
# Smoothing of the inverse frequency, and the rank at which Zipf's law flattens.
_SMOOTHING = 3e-5
_RANK_OFFSET = 10.0
# Rows of the embedding table that the directions are computed from.
_DIRECTION_SAMPLES = 16384


# Tables of the bases that were used last: a second memory of a base does not make its own.
_TABLES: dict[tuple[str, str, int], Tensor] = {}
_TABLES_MAX = 2


class Sketcher:
    """Makes sketches for one base. The table [V, 192] is built at first use of the base (about a
    second; some seconds for a vocabulary of 262,144)."""

    def __init__(self, base: FrozenBase) -> None:
        self._base = base

    @property
    def width(self) -> int:
        return min(SKETCH_WIDTH, self._base.facts.width - _SHARED_DIRECTIONS)

    def block_rows(self, blocks: TokenArray) -> NDArray[np.int8]:
        """int8 [N, W] for tokens [N, K]; a row is scaled to its own largest value."""
        sums = embedding_bag(torch.from_numpy(blocks.astype(np.int64)), self._table, mode="sum")
        largest = sums.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
        return torch.round(sums * (127.0 / largest)).to(torch.int8).numpy()

    def token_rows(self, tokens: TokenArray) -> Tensor:
        """float32 [..., W]: the row that each token adds to a sketch; its length is its rarity."""
        return self._table[torch.from_numpy(tokens.astype(np.int64))]

    def question_row(self, tokens: TokenArray) -> NDArray[np.float32]:
        """float32 [W] of unit length; zeros for no tokens."""
        row = self._table[torch.from_numpy(tokens.astype(np.int64))].sum(dim=0)
        return (row / row.norm().clamp(min=1e-12)).numpy()

    @cached_property
    def _table(self) -> Tensor:
        facts = self._base.facts
        key = (facts.fingerprint, str(facts.dtype), self._base.tokenizer.vocabulary_tokens)
        if key not in _TABLES:
            while len(_TABLES) >= _TABLES_MAX:
                _TABLES.pop(next(iter(_TABLES)))
            _TABLES[key] = self._made()
        return _TABLES[key]

    def _made(self) -> Tensor:
        with torch.inference_mode():
            tokens = torch.arange(self._base.tokenizer.vocabulary_tokens)
            embeddings = self._base.embed(tokens).float().cpu()
            centred = embeddings - embeddings.mean(dim=0)
            stride = max(1, len(centred) // _DIRECTION_SAMPLES)
            shared, kept = _directions(centred[::stride], self.width)
            bare = centred - (centred @ shared) @ shared.T
            bare = bare / bare.norm(dim=1, keepdim=True).clamp(min=1e-12)
            return (bare @ kept) * _rarity(len(tokens))[:, None]


def similarity(sketches: NDArray[np.int8], question: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine of each block's sketch [N, W] with the question's [W]; 0 for an empty row."""
    rows = sketches.astype(np.float32)
    lengths = np.sqrt(np.einsum("nw,nw->n", rows, rows))
    return (rows @ question) / np.maximum(lengths, 1e-12)


def _directions(rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The shared directions [D, 4] and the `width` next ones [D, W] by variance.

    In float64 and with a fixed sign, so that rows made on one machine match questions on another.
    """
    rows = rows.double()
    _, vectors = torch.linalg.eigh(rows.T @ rows)
    vectors = vectors.flip(1)[:, : _SHARED_DIRECTIONS + width]
    largest = vectors.abs().argmax(dim=0)
    vectors = vectors * vectors.gather(0, largest[None]).sign()
    return vectors[:, :_SHARED_DIRECTIONS].float(), vectors[:, _SHARED_DIRECTIONS:].float()


def _rarity(vocabulary_tokens: int) -> Tensor:
    frequency = (torch.arange(vocabulary_tokens) + _RANK_OFFSET).reciprocal()
    frequency = frequency / frequency.sum()
    return _SMOOTHING / (_SMOOTHING + frequency)
