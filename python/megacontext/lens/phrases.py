"""Sentences that hold words of a question side by side, as the question does.

By words alone "serene-hollow" is as good as a line about a serene lake and a hollow tree. A reader
of passages can tell (`reader.py`); where no model shall run, the order of the words must.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from megacontext.lens.base import History
from megacontext.lens.block_axis import BlockAxis
from megacontext.lens.sentences import Sentence, sentences
from megacontext.models import TextTokenizer

_WORD = re.compile(r"\w+")
# A word in more than one block of so many leads nowhere.
_RARE = 16
# Places of a pair that are looked at, newest first; a pair that more sentences hold is no name.
_LOOKED_AT = 64
_SENTENCES_MAX = 16
# Of a long question, a pasted text, the pairs that say most.
_PAIRS_MAX = 64
# Blocks read around a place, so that its sentence is whole, and blocks of a longer one.
_BEFORE, _BEHIND = 2, 4


@dataclass(frozen=True, slots=True)
class PhraseHit:
    """A sentence and how much its pairs say: ln(blocks / blocks with a word), summed over both."""

    sentence: Sentence
    weight: float


def phrase_hits(history: History, tokenizer: TextTokenizer, text: str) -> list[PhraseHit]:
    """Sentences with neighbouring words of `text`, most telling first, of equals the newest.

    Both words are rare, or one is that has no rare neighbour ("the Green House").

    Cost: a search a word, and the text of at most 64 places for each of at most 64 pairs.
    """
    axis = BlockAxis(history.block_counts(), 1)
    blocks = int(axis.block_mask().sum())
    rare = _rare_places(history, axis, text, blocks)
    found: dict[tuple[int, int, str], PhraseHit] = {}
    for pair, weight in _telling_pairs(text, rare, blocks):
        together = list(_side_by_side(history, axis, tokenizer, pair, rare))
        if len(together) > _SENTENCES_MAX:
            continue
        for sentence in together:
            key = _key(sentence)
            before = found[key].weight if key in found else 0.0
            found[key] = PhraseHit(sentence, before + weight)
    return [found[key] for key in sorted(found, key=lambda k: (-found[k].weight, -k[0], -k[1]))]


def _telling_pairs(
    text: str, rare: dict[str, NDArray[np.int64]], blocks: int
) -> list[tuple[tuple[str, str], float]]:
    """Neighbouring words of `text` and their weight, most telling first."""
    pairs = list(dict.fromkeys(pairwise(_WORD.findall(text.lower()))))
    named = {word for pair in pairs if rare.keys() >= set(pair) for word in pair}
    weights: dict[tuple[str, str], float] = {}
    for pair in pairs:
        telling = [word for word in pair if word in rare]
        if len(telling) == 2 or (telling and telling[0] not in named):
            weights[pair] = sum(math.log(blocks / len(rare[word])) for word in telling)
    return sorted(weights.items(), key=lambda item: -item[1])[:_PAIRS_MAX]


def _key(sentence: Sentence) -> tuple[int, int, str]:
    return sentence.partition, sentence.start_block, sentence.text


def _rare_places(
    history: History, axis: BlockAxis, text: str, blocks: int
) -> dict[str, NDArray[np.int64]]:
    """Word -> its places on the axis, for those that few blocks hold."""
    found = {}
    for word in dict.fromkeys(_WORD.findall(text.lower())):
        hits = history.search(word, blocks // _RARE + 1)
        places = axis.places(hits.partitions, hits.blocks)
        places = places[places >= 0]
        if 0 < len(places) <= blocks // _RARE:
            found[word] = places
    return found


def _side_by_side(
    history: History,
    axis: BlockAxis,
    tokenizer: TextTokenizer,
    pair: tuple[str, str],
    rare: dict[str, NDArray[np.int64]],
) -> Iterator[Sentence]:
    """Each sentence that has the words of `pair` one behind the other, newest first."""
    if rare.keys() >= set(pair):
        first, second = rare[pair[0]], rare[pair[1]]
        # A word belongs to the block where it ends, so the first one may end a block earlier.
        near = second[np.isin(second, first) | np.isin(second - 1, first)]
    else:
        hits = history.search(" ".join(pair), _LOOKED_AT)
        near = axis.places(hits.partitions, hits.blocks)
        near = near[near >= 0]
    pattern = re.compile(rf"\b{re.escape(pair[0])}\W{{1,3}}{re.escape(pair[1])}\b")
    seen: set[tuple[int, int, str]] = set()
    for place in np.sort(near)[::-1][:_LOOKED_AT]:
        partition, block = axis.locate(int(place))
        span = axis.span(partition)
        start = max(0, block - _BEFORE)
        end = min(span.stop - span.start, block + _BEHIND)
        for sentence in sentences(history, tokenizer, partition, start, end):
            key = _key(sentence)
            # One that is not here may be cut where the run is; it is whole at its own place.
            is_here = sentence.start_block <= block < sentence.end_block
            if is_here and key not in seen and pattern.search(sentence.text.lower()):
                seen.add(key)
                yield sentence
