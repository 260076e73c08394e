"""Passages of a history and ways of ranking them: words, token embeddings, sentence embeddings.

Independent of the engine's own search: a baseline that shared the code under test would share its
mistakes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from megacontext.eval.long.example import Example
from megacontext.eval.long.methods.embedder import Embedder, embedder
from megacontext.eval.long.methods.reader import Reader
from megacontext.models import FrozenBase, TokenArray

Ranking = NDArray[np.float32]

_SENTENCE = re.compile(r"[^\n.!?]*(?:[.!?]+(?=\s|$)|\n|[.!?]|$)\s*")
_TERM = re.compile(r"\w+(?:[-']\w+)*")


@dataclass(frozen=True)
class Sentences:
    """Half-open character spans of a text's sentences, and the tokens of each."""

    text: str
    spans: tuple[tuple[int, int], ...]
    tokens: tuple[TokenArray, ...]

    @classmethod
    def of(cls, text: str, base: FrozenBase) -> Sentences:
        spans = tuple(m.span() for m in _SENTENCE.finditer(text) if m.end() > m.start())
        encoded = base.tokenizer.encode_pieces([text[a:b] for a, b in spans])
        return cls(text, spans, tuple(piece.tokens for piece in encoded))


@dataclass(frozen=True)
class Passages:
    """Half-open character spans of a history, whole sentences where they are short enough."""

    text: str
    spans: tuple[tuple[int, int], ...]
    tokens: tuple[TokenArray, ...]

    @classmethod
    def of(cls, text: str, base: FrozenBase, passage_tokens: int) -> Passages:
        """Sentences packed in order, up to `passage_tokens` each; longer ones stand alone, cut."""
        return cls.packed(Sentences.of(text, base), passage_tokens)

    @classmethod
    def packed(cls, sentences: Sentences, passage_tokens: int) -> Passages:
        """As `of`, from sentences that are tokens already."""
        spans: list[tuple[int, int]] = []
        rows: list[TokenArray] = []
        held: list[TokenArray] = []
        start, end, count = 0, 0, 0
        for (a, b), tokens in zip(sentences.spans, sentences.tokens, strict=True):
            if count and count + len(tokens) > passage_tokens:
                spans.append((start, end))
                rows.append(np.concatenate(held))
                held, count, start = [], 0, a
            held.append(tokens)
            count += len(tokens)
            end = b
        if held:
            spans.append((start, end))
            rows.append(np.concatenate(held))
        return cls(sentences.text, tuple(spans), tuple(rows))

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, i: int) -> str:
        start, end = self.spans[i]
        return self.text[start:end].strip()


def terms(text: str) -> list[str]:
    """Lower-case words without their commonest endings; parts of compounds count too."""
    found = []
    for word in _TERM.findall(text.casefold()):
        found.append(_stem(word))
        if "-" in word or "_" in word:
            found += [_stem(part) for part in re.split(r"[-_]", word) if part]
    return found


def _stem(word: str) -> str:
    for ending in ("ing", "ied", "ed", "ies", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


@dataclass(frozen=True)
class Bm25:
    """Okapi BM25 (Robertson et al. 1994) over passages; k1 and b as Lucene has them."""

    passages: Passages
    k1: float = 1.2
    b: float = 0.75

    @cached_property
    def _postings(self) -> tuple[dict[str, list[tuple[int, int]]], Ranking]:
        postings: dict[str, list[tuple[int, int]]] = {}
        lengths = np.zeros(len(self.passages), dtype=np.float32)
        for i in range(len(self.passages)):
            counts = Counter(terms(self.passages[i]))
            lengths[i] = sum(counts.values())
            for term, count in counts.items():
                postings.setdefault(term, []).append((i, count))
        return postings, lengths

    def build(self) -> int:
        """Build the index now; returns about how many bytes it holds."""
        postings, lengths = self._postings
        return sum(8 * len(row) + len(term) for term, row in postings.items()) + lengths.nbytes

    def rank(self, question: str) -> Ranking:
        """A score for every passage."""
        postings, lengths = self._postings
        scores = np.zeros(len(self.passages), dtype=np.float32)
        norm = self.k1 * (1 - self.b + self.b * lengths / max(float(lengths.mean()), 1.0))
        for term in dict.fromkeys(terms(question)):
            row = postings.get(term)
            if row:
                places, counts = np.array(row, dtype=np.int64).T
                rarity = np.log(1 + (len(scores) - len(row) + 0.5) / (len(row) + 0.5))
                scores[places] += rarity * counts * (self.k1 + 1) / (counts + norm[places])
        return scores


@dataclass(frozen=True)
class SketchIndex:
    """Passages as weighted means of the base's own token embeddings: dense retrieval with no
    further model. Source: smooth inverse frequency (Arora et al. 2017)."""

    passages: Passages
    base: FrozenBase
    smoothing: float = 1e-3

    @cached_property
    def _rows(self) -> tuple[Ranking, Ranking, Ranking]:
        counts = np.ones(self.base.facts.vocabulary_tokens, dtype=np.float64)
        for tokens in self.passages.tokens:
            np.add.at(counts, tokens, 1)
        weights = (self.smoothing / (self.smoothing + counts / counts.sum())).astype(np.float32)
        sketches = np.stack([self._mean(tokens, weights) for tokens in self.passages.tokens])
        centre = sketches.mean(axis=0)
        return _unit(sketches - centre), centre, weights

    def _mean(self, tokens: TokenArray, weights: Ranking) -> Ranking:
        with torch.inference_mode():
            rows = self.base.embed(torch.from_numpy(tokens.astype(np.int64))).float().cpu().numpy()
        share = weights[tokens][:, None]
        return (rows * share).sum(axis=0) / max(float(share.sum()), 1e-6)

    def build(self) -> int:
        return self._rows[0].nbytes

    def rank(self, question: str) -> Ranking:
        sketches, centre, weights = self._rows
        asked = self._mean(self.base.tokenizer.encode(question), weights) - centre
        return sketches @ _unit(asked[None])[0]


@dataclass(frozen=True)
class DenseIndex:
    """Passages as sentence embeddings of a model made for retrieval (`embedder.py`)."""

    passages: Passages
    base: FrozenBase

    @property
    def _embedder(self) -> Embedder:
        return embedder(self.base.facts.dtype)

    @cached_property
    def _rows(self) -> Ranking:
        return self._embedder.encode([self.passages[i] for i in range(len(self.passages))])

    def build(self) -> int:
        return self._rows.nbytes

    def rank(self, question: str) -> Ranking:
        return self._rows @ self._embedder.encode([question])[0]


def fuse(rankings: list[Ranking], constant: int = 60) -> Ranking:
    """Reciprocal rank fusion (Cormack et al. 2009)."""
    fused = np.zeros_like(rankings[0], dtype=np.float32)
    for scores in rankings:
        order = np.argsort(-scores, kind="stable")
        fused[order] += 1.0 / (constant + 1 + np.arange(len(order)))
    return fused


def best(scores: Ranking, count: int) -> list[int]:
    """Numbers of the `count` best passages, best first; ties go to the newer one."""
    order = np.lexsort((-np.arange(len(scores)), -scores))
    return [int(i) for i in order[:count]]


def _unit(rows: Ranking) -> Ranking:
    return (rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-6)).astype(
        np.float32
    )


class Index(Protocol):
    """Passages ranked for a question, after `build` has made what that takes."""

    def build(self) -> int:
        """Returns about how many bytes are held."""
        ...

    def rank(self, question: str) -> Ranking:
        """A score for every passage."""
        ...


INDEXES: dict[str, Callable[[Passages, FrozenBase], Index]] = {
    "bm25": lambda passages, _: Bm25(passages),
    "sketch": SketchIndex,
    "dense": DenseIndex,
}


@dataclass(frozen=True)
class Indexed:
    """Passages of one example with indexes over them, shared by the methods that want the same.

    `seconds` is what making all of it takes a method that is alone.
    """

    passages: Passages
    indexes: tuple[Index, ...]
    state_bytes: int
    seconds: float

    @classmethod
    def of(
        cls, reader: Reader, example: Example, passage_tokens: int, kinds: tuple[str, ...]
    ) -> Indexed:
        """Passages of `passage_tokens` with an index of each of `kinds` (of `INDEXES`)."""
        base, size = reader.base, str(passage_tokens)
        sentences, seconds = reader.derived(
            example, "sentences", lambda: Sentences.of(example.history, base)
        )
        passages, took = reader.derived(
            example, size, lambda: Passages.packed(sentences, passage_tokens)
        )
        seconds += took
        indexes: list[Index] = []
        state_bytes = len(example.history.encode())
        for kind in kinds:
            (index, held), took = reader.derived(
                example, f"{kind} {size}", partial(_built, kind, passages, base)
            )
            indexes.append(index)
            state_bytes += held
            seconds += took
        return cls(passages, tuple(indexes), state_bytes, seconds)


def _built(kind: str, passages: Passages, base: FrozenBase) -> tuple[Index, int]:
    index = INDEXES[kind](passages, base)
    return index, index.build()
