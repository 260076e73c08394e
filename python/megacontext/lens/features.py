"""What retrieval knows about every block, as numbers that a net can weigh.

All blocks of all partitions at once, on one axis. The columns are named in `FEATURES`; those in
`QUESTION_FREE` are known without the question.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megacontext.config import K
from megacontext.lens.base import History, Question
from megacontext.lens.block_axis import BlockAxis
from megacontext.lens.sketch import similarity

Field = NDArray[np.float32]

FEATURES = (
    "lexical", "lexical_own", "terms_near", "strongest_term", "bm25", "sketch", "sketch_best_near",
    "sketch_mean_near", "lexical_around", "sketch_around", "lexical_relative", "lexical_rank",
    "sketch_rank", "source_lexical", "recency", "place_in_source", "source_length",
)  # fmt: skip
QUESTION_FREE = ("recency", "place_in_source", "source_length")

# A hit counts this much 0, 1, 2 blocks away, as in the untrained lens.
_NEAR = (1.0, 0.7, 0.4)
# Blocks on each side of `*_around`: about a page of text.
_AROUND = 12
# Room between sources on the axis: what the widest of the above needs.
ROOM = _AROUND + 1
_HITS_PER_TERM = 512
_SKETCH_WEIGHT = 0.3
_RECENCY_WEIGHT = 0.01
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class TermHits:
    """Where one of the question's words stands: axis places [n], each once, and BM25 scores [n]."""

    places: NDArray[np.int64]
    scores: Field


@dataclass(frozen=True)
class Fields:
    """Features [axis.length, F], the untrained evidence [axis.length] that picks candidates, and
    the hits of each of the question's words that has any."""

    axis: BlockAxis
    features: Field
    evidence: Field
    mask: NDArray[np.bool_]
    terms: Sequence[TermHits]

    def candidates(self, count: int) -> NDArray[np.int64]:
        """Axis places of the `count` blocks with most evidence, in timeline order."""
        ranked = np.where(self.mask, self.evidence, -np.inf)
        count = min(count, int(self.mask.sum()))
        best = np.argpartition(-ranked, count - 1)[:count] if count else np.zeros(0, np.int64)
        return np.sort(best)


def block_fields(history: History, question: Question) -> Fields:
    """Features of every block. Cost: one search a word and a pass over the sketches."""
    axis = BlockAxis(history.block_counts(), ROOM)
    mask = axis.block_mask()
    terms = _term_hits(history, axis, question.text)
    near, own, covered, strongest = _lexical(axis, terms)
    sketch = _sketch(history, axis, question)
    recency = (np.cumsum(mask) / max(int(mask.sum()), 1)).astype(np.float32)
    place, length, best_of_source = _sources(history, axis, near)
    columns = {
        "lexical": near,
        "lexical_own": own,
        "terms_near": covered,
        "strongest_term": strongest,
        # BM25 adds up over words: this is the whole question's, the best block 1.
        "bm25": own / max(float(own.max(initial=0.0)), 1e-9),
        "sketch": sketch,
        "sketch_best_near": _windowed(sketch, 2, np.max),
        "sketch_mean_near": _windowed(sketch, 2, np.mean),
        "lexical_around": _windowed(near, _AROUND, np.max),
        "sketch_around": _windowed(sketch, _AROUND, np.mean),
        "lexical_relative": near / max(float(near.max(initial=0.0)), 1e-9),
        "lexical_rank": _rank(near, mask),
        "sketch_rank": _rank(sketch, mask),
        "source_lexical": best_of_source,
        "recency": recency,
        "place_in_source": place,
        "source_length": length,
    }
    features = np.stack([columns[name] for name in FEATURES], axis=1).astype(np.float32)
    evidence = near + _SKETCH_WEIGHT * np.maximum(sketch, 0.0) + _RECENCY_WEIGHT * recency
    features[~mask] = 0.0
    evidence = np.where(mask, evidence, 0.0).astype(np.float32)
    return Fields(axis, features, evidence, mask, terms)


def _term_hits(history: History, axis: BlockAxis, text: str) -> list[TermHits]:
    found = []
    for term in dict.fromkeys(_WORD.findall(text.lower())):
        hits = history.search(term, _HITS_PER_TERM)
        places = axis.places(hits.partitions, hits.blocks)
        known = places >= 0
        if known.any():
            found.append(TermHits(places[known], hits.scores[known]))
    return found


def _lexical(axis: BlockAxis, terms: Sequence[TermHits]) -> tuple[Field, Field, Field, Field]:
    """By block: evidence near it, its own, the share of words near it, the strongest word there."""
    near, own, covered, strongest = (np.zeros(axis.length, np.float32) for _ in range(4))
    weight = 0.0
    for term in terms:
        places, scores = term.places, term.scores
        weight += float(scores.max())
        spread = np.zeros(axis.length, np.float32)
        for distance, share in enumerate(_NEAR):
            for shift in {distance, -distance}:
                at = places + shift
                spread[at] = np.maximum(spread[at], share * scores)
        near += spread
        own[places] += scores
        covered += spread > 0.0
        strongest = np.maximum(strongest, spread)
    scale = np.float32(1.0 / weight if weight > 0.0 else 0.0)
    per_term = np.float32(1.0 / max(len(terms), 1))
    return near * scale, own * scale, covered * per_term, strongest * scale


def _sketch(history: History, axis: BlockAxis, question: Question) -> Field:
    field = np.zeros(axis.length, np.float32)
    if question.sketch is not None:
        for partition, count in history.block_counts().items():
            sketches = history.sketches(partition)[:count]
            first = axis.span(partition).start
            field[first : first + len(sketches)] = similarity(sketches, question.sketch)
    return field


def _sources(history: History, axis: BlockAxis, lexical: Field) -> tuple[Field, Field, Field]:
    """By block: its place in its source (0 to 1), the source's length, the source's best hit."""
    place, length, best = (np.zeros(axis.length, np.float32) for _ in range(3))
    for partition, count in history.block_counts().items():
        span = axis.span(partition)
        place[span] = np.arange(count) / max(count - 1, 1)
        length[span] = np.log1p(count) / 10.0
        best[span] = lexical[span].max(initial=0.0)
    return place, length, best


def _windowed(field: Field, reach: int, reduce: Callable[..., Field]) -> Field:
    """`reduce` over the blocks within `reach`; the room of the axis keeps sources apart."""
    padded = np.pad(field, reach)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    return reduce(windows, axis=1).astype(np.float32)


def _rank(field: Field, mask: NDArray[np.bool_]) -> Field:
    """1 for the best block, falling with the logarithm of its rank to 0 for the last."""
    ranks = np.zeros(len(field), np.float32)
    order = np.argsort(-field[mask], kind="stable")
    count = max(len(order), 2)
    ranked = np.empty(len(order), np.float32)
    ranked[order] = 1.0 - np.log1p(np.arange(len(order))) / np.log1p(count - 1)
    ranks[mask] = ranked
    return ranks


@dataclass(frozen=True)
class Neighbours:
    """Distinct blocks `places` [U] of the entries' windows, and `index` [N, 2r + 1] into them (-1
    where a source ends)."""

    places: NDArray[np.int64]
    index: NDArray[np.int64]


def neighbours(fields: Fields, places: NDArray[np.int64], reach: int) -> Neighbours:
    """The blocks within `reach` of each place."""
    offsets = np.arange(-reach, reach + 1)
    wanted = np.clip(places[:, None] + offsets, 0, fields.axis.length - 1)
    there = fields.mask[wanted]
    distinct, index = np.unique(wanted[there], return_inverse=True)
    table = np.full(wanted.shape, -1, np.int64)
    table[there] = index
    return Neighbours(distinct, table)


def block_tokens(
    history: History, fields: Fields, places: Sequence[int] | NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Tokens [U, K] of blocks at axis places and where there are any: a last block may be short."""
    tokens = np.zeros((len(places), K), np.int64)
    there = np.zeros((len(places), K), bool)
    for row, place in enumerate(places):
        partition, block = fields.axis.locate(int(place))
        found = history.tokens(partition, block, block + 1)
        tokens[row, : len(found)], there[row, : len(found)] = found, True
    return tokens, there
