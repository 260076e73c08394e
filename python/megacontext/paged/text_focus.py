"""Focus by a question: a lens over the text of the streams in a store."""

from __future__ import annotations

from typing import Any

import numpy as np

from megacontext.config import K
from megacontext.lens import Question, UntrainedLens
from megacontext.lens.phrases import phrase_hits
from megacontext.models import TextTokenizer
from megacontext.runtime.block_text import block_texts, look_back
from megacontext.runtime.history import StoreHistory
from megacontext_ext import Store


class TextFocus:
    """Scores the blocks of a store's streams for a question, all layers alike.

    Words decide (side by side as in the question; BM25 a word, neighbourhood, recency); the index
    grows when a question comes.
    """

    def __init__(self, store: Store, tokenizer: TextTokenizer) -> None:
        self._store = store
        self._tokenizer = tokenizer
        self._lens = UntrainedLens()
        # Sketches need the base's embeddings; questions here have none, so none are asked for.
        no_sketches: Any = None
        self._history = StoreHistory(store, tokenizer, no_sketches)

    def score(self, question: str, partition: int, count: int) -> dict[int, float]:
        """The `count` best blocks of a stream, best first, each with its score.

        First, in half of the blocks, sentences that have words side by side as the question has
        them, above 1; then passages that the lens would show; what follows has less evidence.

        Cost: indexing of what was read since the last question, then a few searches a word.
        """
        self._index(partition)
        self._history.refresh()
        found = self._named(question, partition, count // 2)
        scores = self._lens.score(self._history, Question(question, reads=False))
        rest = scores.by_partition.get(partition, np.zeros(0, np.float32))
        order = rest.argsort(kind="stable")[::-1][:count]
        best = found | {int(b): float(rest[b]) for b in order if int(b) not in found}
        return dict(list(best.items())[:count])

    def _named(self, question: str, partition: int, count: int) -> dict[int, float]:
        """At most `count` blocks of whole sentences with names of the question, best first."""
        found: dict[int, float] = {}
        for hit in phrase_hits(self._history, self._tokenizer, question):
            blocks = range(hit.sentence.start_block, hit.sentence.end_block)
            if hit.sentence.partition == partition and len(found) + len(blocks) <= count:
                found |= dict.fromkeys(blocks, 1.0 + hit.weight)
        return found

    def _index(self, partition: int) -> None:
        first, full = self._store.indexed_blocks(partition), self._store.token_count(partition) // K
        if first >= full:
            return
        start = look_back(first * K)
        tokens = self._store.read_tokens(partition, start, full * K)
        cut = first * K - start
        texts = block_texts(self._tokenizer, tokens[:cut], tokens[cut:])
        self._store.index_text(partition, first, texts)
