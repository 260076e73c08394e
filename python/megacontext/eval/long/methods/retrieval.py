"""Baselines that look passages up for the question: BM25, embeddings, both with reranking,
neighbours with their continuations."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from megacontext.eval.long.example import Example
from megacontext.eval.long.methods.passages import Indexed, Passages, best, fuse
from megacontext.eval.long.methods.reader import Reader, Reply, reply_of
from megacontext.models import TokenArray

# Rankings of several indexes, fused and reranked.
_FUSED = {"hybrid": ("bm25", "sketch"), "dense_hybrid": ("bm25", "dense")}


@dataclass
class Retrieval:
    """The best passages for the question, shown in the order of the history.

    `top` passages, or as many as the budget holds when it is 0. Few passages suit small models.
    """

    reader: Reader
    ranking: Literal["bm25", "sketch", "dense", "hybrid", "dense_hybrid"]
    name: str
    passage_tokens: int = 96
    top: int = 8
    # Hybrids only: this many of the fused ranking are ordered again by question likelihood.
    reranked: int = 12

    @property
    def about(self) -> str:
        ranked = {
            "bm25": "BM25 (k1 1.2, b 0.75)",
            "sketch": "similarity of frequency-weighted token embeddings of the base",
            "dense": "cosine of their embeddings by all-MiniLM-L6-v2",
            "hybrid": "BM25 and embeddings fused by rank, the first "
            f"{self.reranked} reranked by the base's likelihood of the question",
            "dense_hybrid": "BM25 and all-MiniLM-L6-v2 fused by rank, the first "
            f"{self.reranked} reranked by the base's likelihood of the question",
        }[self.ranking]
        shown = f"the best {self.top}" if self.top else "as many as fit"
        return f"passages of {self.passage_tokens} tokens by {ranked}; {shown}, in timeline order"

    def answer(self, example: Example) -> Reply:
        kinds = _FUSED.get(self.ranking, (self.ranking,))
        held = Indexed.of(self.reader, example, self.passage_tokens, kinds)
        started = time.perf_counter()
        chosen = self._choose(held, example.question)
        context, shown = self._context(held.passages, chosen, self.reader.room(example))
        before = time.perf_counter() - started
        reading = self.reader.read(context, example)
        reply = reply_of(
            reading, ingest_s=held.seconds, before_s=before, state_bytes=held.state_bytes
        )
        return _with_shown(reply, tuple(held.passages.spans[i] for i in shown))

    def _choose(self, held: Indexed, question: str) -> list[int]:
        passages = held.passages
        rankings = [index.rank(question) for index in held.indexes]
        scores = rankings[0] if len(rankings) == 1 else fuse(rankings)
        order = best(scores, self.top or len(passages))
        if self.ranking not in _FUSED:
            return order
        candidates = best(scores, self.reranked)
        likelihood = {
            i: self.reader.question_likelihood(passages.tokens[i], question) for i in candidates
        }
        candidates.sort(key=lambda i: -likelihood[i])
        return (candidates + order[len(candidates) :])[: self.top or None]

    def _context(
        self, passages: Passages, order: list[int], room: int
    ) -> tuple[TokenArray, list[int]]:
        gap = self.reader.encode("\n\n")
        shown, used = [], 0
        for i in order:
            cost = len(passages.tokens[i]) + len(gap)
            if used + cost <= room:
                shown.append(i)
                used += cost
        shown.sort()
        parts = [np.concatenate([passages.tokens[i], gap]) for i in shown]
        return (np.concatenate(parts) if parts else gap[:0]), shown


@dataclass
class Neighbours:
    """RETRO's memory in the prompt of a frozen model: each part of the question brings its nearest
    passages, each with the passage that follows it, in front of the newest text.

    Source: Borgeaud et al. 2022 (two neighbours with continuation, 64 tokens each); cross-attention
    is replaced by places in the prompt, since the base is frozen.
    """

    reader: Reader
    passage_tokens: int = 64
    neighbours: int = 4
    name: str = "neighbours"

    @property
    def about(self) -> str:
        return (
            f"the {self.neighbours} nearest passages of {self.passage_tokens} tokens by embedding, "
            "each with its continuation, then the newest text in half of the budget"
        )

    def answer(self, example: Example) -> Reply:
        indexed = Indexed.of(self.reader, example, self.passage_tokens, ("sketch",))
        passages, (index,) = indexed.passages, indexed.indexes
        started = time.perf_counter()
        room = self.reader.room(example)
        near = best(index.rank(example.question), self.neighbours)
        wanted = dict.fromkeys(j for i in near for j in (i, i + 1) if j < len(passages))
        held: list[int] = []
        used = 0
        for i in wanted:
            used += len(passages.tokens[i])
            if used > room // 2:
                break
            held.append(i)
        retrieved = [passages.tokens[i] for i in held]
        newest = np.concatenate(passages.tokens[-(room // 8) :])[-(room - room // 2) :]
        context = np.concatenate([*retrieved, newest])[-room:]
        before = time.perf_counter() - started
        reading = self.reader.read(context, example)
        reply = reply_of(
            reading, ingest_s=indexed.seconds, before_s=before, state_bytes=indexed.state_bytes
        )
        return _with_shown(reply, tuple(passages.spans[i] for i in sorted(held)))


def _with_shown(reply: Reply, shown: tuple[tuple[int, int], ...]) -> Reply:
    return replace(reply, shown=shown)
