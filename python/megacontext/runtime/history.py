"""The store as the lens sees it: blocks, postings, sketches.

Sketches are kept in memory and extended as rows arrive (192 bytes a block, 6 MB per million
tokens). The unfinished last block of a source is not in the engine's index; its few words are
looked up here, so that a source of twenty tokens can be found too.
"""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from megacontext.config import K
from megacontext.lens import Hits, Sketcher
from megacontext.models import TextTokenizer, TokenArray
from megacontext.runtime.block_text import block_texts, look_back
from megacontext_ext import Store

SKETCH_ROWS = "sketch-v1"
_WORD = re.compile(r"\w+")
# BM25 score of a word that no full block holds, when nothing tells how rare it is.
_UNSEEN_WORD_SCORE = 8.0


class StoreHistory:
    """Implements `lens.History` over an open store. Call `refresh` after appending."""

    def __init__(self, store: Store, tokenizer: TextTokenizer, sketcher: Sketcher) -> None:
        self._store = store
        self._tokenizer = tokenizer
        self._sketcher = sketcher
        self._token_counts: dict[int, int] = {}
        self._sketches: dict[int, NDArray[np.int8]] = {}
        # Word -> partitions whose unfinished last block holds it.
        self._tail_words: dict[str, set[int]] = defaultdict(set)
        self._tails: dict[int, set[str]] = {}
        # Grows when something that was shown is there no more: what follows it begins anew.
        self.edition = 0
        self.refresh()

    @property
    def token_counts(self) -> dict[int, int]:
        """Partition -> tokens, in timeline order, without empty partitions."""
        return self._token_counts

    def refresh(self) -> None:
        """Read what was appended, hidden or erased since the last call. An edit needs `forget`."""
        shown = {p.id: p.token_count for p in self._store.partitions() if not p.hidden}
        for partition in [p for p in self._token_counts if not shown.get(p)]:
            self.forget(partition)
        known = len(self._token_counts)
        for partition, count in shown.items():
            if count and count != self._token_counts.get(partition):
                self._token_counts[partition] = count
                self._refresh_tail(partition, count)
        if len(self._token_counts) != known:
            self._token_counts = dict(sorted(self._token_counts.items()))

    def forget(self, partition: int) -> None:
        """Read a partition anew at the next refresh: its text was replaced."""
        self.edition += 1
        self._token_counts.pop(partition, None)
        self._sketches.pop(partition, None)
        for word in self._tails.pop(partition, ()):
            self._tail_words[word].discard(partition)

    def block_counts(self) -> dict[int, int]:
        """Partition -> blocks, the unfinished last one included."""
        return {partition: -(-count // K) for partition, count in self._token_counts.items()}

    def search(self, text: str, hit_count: int) -> Hits:
        """Blocks by falling BM25 score. An unfinished block has, for each word in it, the score of
        the best block for that word alone."""
        partitions, blocks, scores = self._store.search(text, hit_count)
        tails = self._tail_scores(text)
        if not tails:
            return Hits(partitions, blocks, scores)
        tail_blocks = [self._token_counts[partition] // K for partition in tails]
        partitions = np.concatenate([np.array(list(tails), np.uint32), partitions])
        blocks = np.concatenate([np.array(tail_blocks, np.uint64), blocks])
        scores = np.concatenate([np.array(list(tails.values()), np.float32), scores])
        order = np.argsort(-scores, kind="stable")[:hit_count]
        return Hits(partitions[order], blocks[order], scores[order])

    def _tail_scores(self, text: str) -> dict[int, float]:
        found: dict[int, float] = defaultdict(float)
        for word in dict.fromkeys(_WORD.findall(text.lower())):
            tails = set().union(*(self._tail_words.get(form, ()) for form in _words(word)))
            if not tails:
                continue
            best = self._store.search(word, 1)[2]
            for partition in tails:
                found[partition] += float(best[0]) if len(best) else _UNSEEN_WORD_SCORE
        return dict(sorted(found.items()))

    def sketches(self, partition: int) -> NDArray[np.int8]:
        width = self._sketcher.width
        held = self._sketches.get(partition, np.zeros((0, width), dtype=np.int8))
        count = self._store.row_count(SKETCH_ROWS, partition)
        if count > len(held):
            fresh = self._store.read_rows(SKETCH_ROWS, partition, len(held), count)
            held = np.concatenate([held, fresh])
            self._sketches[partition] = held
        return held

    def tokens(self, partition: int, start_block: int, end_block: int) -> TokenArray:
        end = min(end_block * K, self._token_counts[partition])
        return self._store.read_tokens(partition, start_block * K, end)

    def _refresh_tail(self, partition: int, token_count: int) -> None:
        for word in self._tails.pop(partition, ()):
            self._tail_words[word].discard(partition)
        full = token_count // K * K
        if full == token_count:
            return
        start = look_back(full)
        tokens = self._store.read_tokens(partition, start, token_count)
        (text,) = block_texts(self._tokenizer, tokens[: full - start], tokens[full - start :])
        words = set(_words(text))
        self._tails[partition] = words
        for word in words:
            self._tail_words[word].add(partition)


def _words(text: str) -> list[str]:
    """Lower-cased words, and the singular of simple plurals, much as the engine's analyzer has
    them."""
    words = _WORD.findall(text.lower())
    return words + [word[:-1] for word in words if len(word) > 3 and word.endswith("s")]
