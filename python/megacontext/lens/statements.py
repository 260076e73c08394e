"""What a passage says of a question: its sentences that hold most of the question's rare words."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from megacontext.lens.base import History, Passage
from megacontext.lens.block_axis import BlockAxis
from megacontext.lens.sentences import Sentence, sentences
from megacontext.models import TextTokenizer, TokenArray

# Blocks read on each side of a hit, so that its sentence is whole.
_AROUND = 2


class Statements:
    """The sentences of one history at one moment, by the words that they hold.

    Args of its constructor: a word in `postings_max` blocks or more says nothing.
    """

    def __init__(
        self, history: History, axis: BlockAxis, tokenizer: TextTokenizer, postings_max: int
    ) -> None:
        self._history = history
        self._axis = axis
        self._tokenizer = tokenizer
        self._postings_max = postings_max
        self._blocks = max(2, int(axis.block_mask().sum()))
        self._places: dict[str, NDArray[np.int64]] = {}
        self._shown = np.zeros(axis.length, dtype=bool)

    def show(self, passage: Passage) -> None:
        """From here on, nothing is found in this passage."""
        first = self._axis.span(passage.partition).start
        self._shown[first + passage.start_block : first + passage.end_block] = True

    def tokens(self, passage: Passage) -> TokenArray:
        """The tokens of a passage."""
        return self._history.tokens(passage.partition, passage.start_block, passage.end_block)

    def weight(self, word: str) -> float:
        """ln(blocks / blocks with the word): 0 for a word that is everywhere or nowhere."""
        count = len(self._where(word))
        return math.log(self._blocks / count) if 0 < count < self._postings_max else 0.0

    def of(self, passage: Passage, asked: set[str]) -> list[Sentence]:
        """The sentences of a passage that hold most of `asked` by weight, in their order; none
        where none holds any."""
        start, end = passage.start_block, passage.end_block
        found = list(sentences(self._history, self._tokenizer, passage.partition, start, end))
        weights = [sum(map(self.weight, sentence.words & asked)) for sentence in found]
        least = 0.5 * max(weights, default=0.0)
        return [s for s, weight in zip(found, weights, strict=True) if weight >= least > 0.0]

    def around(self, sentence: Sentence, score: float) -> Passage:
        """The blocks of a sentence and the one behind it: a heading's text follows it."""
        count = self._history.block_counts()[sentence.partition]
        end = min(sentence.end_block + 1, count)
        return Passage(sentence.partition, sentence.start_block, end, score)

    def leading(self, names: set[str]) -> set[str]:
        """Those of `names` that also stand where nothing is shown, and in few places."""
        return {
            name
            for name in names
            if self.weight(name) > 0.0 and not self._shown[self._where(name)].all()
        }

    def holding(self, names: set[str], asked: set[str], count: int) -> list[Sentence]:
        """The `count` sentences with most of `names` by weight, and of what is asked for."""
        weights = {name: self.weight(name) for name in names}
        held = np.zeros(self._axis.length, np.float32)
        for name, weight in weights.items():
            if weight > 0.0:
                held[self._where(name)] += weight
        held[self._shown] = 0.0
        # As much as one name that stands here and in one other block.
        least = math.log(self._blocks / 2) - 1e-4
        places = np.flatnonzero((held > 0.0) & (held >= least))
        # Of equals the newest: later facts undo earlier ones.
        best = sorted(places.tolist(), key=lambda place: (-held[place], -place))[:count]
        found = (self._sentence(place, weights, asked) for place in best)
        return list({(s.partition, s.text): s for s in found if s is not None}.values())

    def _sentence(self, place: int, weights: dict[str, float], asked: set[str]) -> Sentence | None:
        """The sentence around an axis place that holds most of the names."""
        partition, block = self._axis.locate(place)
        span = self._axis.span(partition)
        start, end = max(0, block - _AROUND), min(span.stop - span.start, block + _AROUND + 1)
        best, most = None, 0.0
        for sentence in sentences(self._history, self._tokenizer, partition, start, end):
            words = sentence.words
            weight = sum(weights.get(word, 0.0) for word in words)
            weight += 0.1 * sum(map(self.weight, words & asked)) if weight else 0.0
            if weight > most and not self._is_shown(sentence):
                best, most = sentence, weight
        return best

    def _is_shown(self, sentence: Sentence) -> bool:
        first = self._axis.span(sentence.partition).start
        return bool(self._shown[first + sentence.start_block : first + sentence.end_block].all())

    def _where(self, word: str) -> NDArray[np.int64]:
        if word not in self._places:
            hits = self._history.search(word, self._postings_max)
            places = self._axis.places(hits.partitions, hits.blocks)
            self._places[word] = places[places >= 0]
        return self._places[word]
