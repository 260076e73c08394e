"""The blocks an allocator may choose between for a question, and what they say to each other.

A lens scores every block as if it were shown alone. `view` says how a block stands to those that
are shown already: whether they say the same, hold the same words of the question, stand beside it,
or name what it is about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacontext.lens.base import History, Question, Scores
from megacontext.lens.features import FEATURES, Field, Fields, block_fields, block_tokens

# Known of a block before anything is shown: what the lens and retrieval say.
STATIC = ("score", "score_rank", *FEATURES)
# Known of a block beside what is shown; those from `places_left` on are the same for all blocks.
VIEW = (
    "taken", "words_shown", "sketch_shown", "names_shared", "beside", "source_shown", "terms_new",
    "terms_shown", "cost", "places_left", "terms_covered", "taken_count", "nothing_taken",
)  # fmt: skip
# A shared token counts as a name from this rarity on, ln(candidates / candidates with it).
_NAME_RARITY = 1.0
# Blocks further apart than this are not beside each other.
_BESIDE = 4
# Scale of `places_left` and `taken_count`: 16 blocks of 32 tokens.
_PLACES_SCALE = 512.0
_COUNT_SCALE = 16.0


@dataclass(frozen=True)
class Candidates:
    """N blocks by falling score.

    partitions uint32 [N], blocks int64 [N], scores float32 [N], static float32 [N, STATIC];
    terms float32 [N, T] in [0, 1]: how much of the question's word stands in the block;
    weights float32 [T] of the words, sum 1 (or no words); between blocks, float32 [N, N]: `words`
    (share of the row's tokens, by rarity, that the column has), `close` (cosine of sketches),
    `names` (rare tokens they share), `beside` (1 for neighbours, falling to 0 with distance).
    """

    partitions: NDArray[np.uint32]
    blocks: NDArray[np.int64]
    scores: Field
    static: Field
    terms: Field
    weights: Field
    words: Field
    close: Field
    names: Field
    beside: Field

    def __len__(self) -> int:
        return len(self.blocks)

    def view(self, taken: NDArray[np.bool_], cost: NDArray[np.int64], places_left: int) -> Field:
        """float32 [N, VIEW] beside the blocks `taken` [N]; `cost` [N] in places. O(N * taken)."""
        nothing = np.zeros(len(self), np.float32)
        columns: dict[str, NDArray[Any]] = dict.fromkeys(VIEW, nothing)
        covered = np.zeros(len(self.weights), np.float32)
        if taken.any():
            columns["words_shown"] = self.words[:, taken].max(axis=1)
            columns["sketch_shown"] = self.close[:, taken].max(axis=1)
            columns["names_shared"] = self.names[:, taken].max(axis=1)
            columns["beside"] = self.beside[:, taken].max(axis=1)
            columns["source_shown"] = np.isin(self.partitions, self.partitions[taken])
            covered = self.terms[taken].max(axis=0, initial=0.0)
        columns["taken"] = taken
        columns["terms_new"] = np.maximum(self.terms - covered, 0.0) @ self.weights
        columns["terms_shown"] = np.minimum(self.terms, covered) @ self.weights
        columns["cost"] = cost / _PLACES_SCALE
        columns["places_left"] = nothing + places_left / _PLACES_SCALE
        columns["terms_covered"] = nothing + covered @ self.weights
        columns["taken_count"] = nothing + taken.sum() / _COUNT_SCALE
        columns["nothing_taken"] = nothing + (not taken.any())
        return np.column_stack([columns[name] for name in VIEW]).astype(np.float32)


def find_candidates(
    history: History, question: Question, scores: Scores, count: int = 64
) -> Candidates:
    """The `count` blocks with the best scores of a lens; equal scores: newer first.

    Cost: a search a word, a pass over the sketches, and the tokens of the candidates.
    """
    fields = block_fields(history, question)
    axis = fields.axis
    signed = np.full(axis.length, -np.inf, np.float32)
    for partition, values in scores.by_partition.items():
        signed[axis.span(partition)] = values
    count = min(count, int(fields.mask.sum()))
    places = (axis.length - 1 - np.argsort(-signed[::-1], kind="stable"))[:count]
    located = [axis.locate(int(place)) for place in places]
    partitions = np.array([partition for partition, _ in located], np.uint32)
    tokens, there = block_tokens(history, fields, places)
    words, names = _shared_words(tokens, there)
    terms, weights = _terms(fields, places)
    apart = np.abs(places[:, None] - places[None])
    beside = np.maximum(0.0, 1.0 - (apart - 1) / _BESIDE) * (apart > 0)
    rank = 1.0 - np.arange(count) / max(count - 1, 1)
    static = np.column_stack([signed[places], rank, fields.features[places]])
    return Candidates(
        partitions=partitions,
        blocks=np.array([block for _, block in located], np.int64),
        scores=signed[places],
        static=static.astype(np.float32).reshape(count, len(STATIC)),
        terms=terms,
        weights=weights,
        words=words,
        close=_closeness(history, located),
        names=names,
        # The room between sources is wider than that, so neighbours are of one source.
        beside=beside.astype(np.float32),
    )


def _terms(fields: Fields, places: NDArray[np.int64]) -> tuple[Field, Field]:
    found = np.zeros((len(places), len(fields.terms)), np.float32)
    weights = np.zeros(len(fields.terms), np.float32)
    row = np.full(fields.axis.length, -1, np.int64)
    row[places] = np.arange(len(places))
    for number, term in enumerate(fields.terms):
        rows = row[term.places]
        best = float(term.scores.max())
        weights[number] = best
        found[rows[rows >= 0], number] = term.scores[rows >= 0] / max(best, 1e-9)
    return found, weights / max(float(weights.sum()), 1e-9)


def _shared_words(tokens: NDArray[np.int64], there: NDArray[np.bool_]) -> tuple[Field, Field]:
    """(words, names) [N, N] of tokens [N, K]. A token is as rare as few candidates hold it."""
    count = len(tokens)
    distinct, number = np.unique(tokens, return_inverse=True)
    held = np.zeros((count, len(distinct)), np.float32)
    rows = np.repeat(np.arange(count), tokens.shape[1]).reshape(tokens.shape)
    held[rows[there], number.reshape(tokens.shape)[there]] = 1.0
    rarity = np.log(max(count, 1) / np.maximum(held.sum(axis=0), 1.0)).astype(np.float32)
    own = np.maximum(held @ rarity, 1e-6)
    words = (held * rarity) @ held.T / own[:, None]
    names = (held * np.maximum(rarity - _NAME_RARITY, 0.0)) @ held.T / 10.0
    np.fill_diagonal(names, 0.0)
    return words.astype(np.float32), names.astype(np.float32)


def _closeness(history: History, located: list[tuple[int, int]]) -> Field:
    """Cosine of sketches [N, N]; 0 where a history has none."""
    sketches = {partition: history.sketches(partition) for partition, _ in located}
    width = max((rows.shape[1] for rows in sketches.values()), default=1)
    rows = np.zeros((len(located), width), np.float32)
    for place, (partition, block) in enumerate(located):
        if block < len(sketches[partition]):
            rows[place] = sketches[partition][block]
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return (rows @ rows.T).astype(np.float32)
