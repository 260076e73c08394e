"""The lens that needs no training: lexical evidence, embedding similarity, recency, neighbourhood.

A block's evidence is the share of the question's BM25 weight found in it or near it: for each term
the best nearby posting, weighted by distance, summed over terms. So a passage that holds many of
the words once beats a block that holds one of them often, and a perfect passage has 1 whatever the
question. Blocks around a peak come along; the base itself reads the best passages and says how well
each explains the question; what is far behind the best one stays collapsed.

Non-causal: every block's score depends on the question, which comes last.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from megacontext.config import LensConfig
from megacontext.lens.base import History, Passage, Question, Scores
from megacontext.lens.block_axis import BlockAxis
from megacontext.lens.hops import Hops
from megacontext.lens.reader import QuestionReader
from megacontext.lens.sentences import Sentence, words_of
from megacontext.lens.sketch import similarity
from megacontext.lens.statements import Statements

Evidence = NDArray[np.float32]

_WORD = re.compile(r"\w+")
# A block beside a peak scores this share of the one nearer to it.
_SPREAD_DECAY = 0.95
# Score of a block that is not wanted, at most: below zero, so that it may be collapsed.
_UNWANTED = -0.01
# ln p of a token that a base of little precision holds for impossible, or cannot tell.
_IMPOSSIBLE = -1e4
# Nats a token below which one passage explains it no better than another: noise, which adds up over
# the tokens of a long question.
_NOISE_NATS = 1.0


class UntrainedLens:
    """Scores blocks from what retrieval knows. No state: one lens may serve many memories.

    With a `reader` the frozen base compares the best passages; without, evidence alone decides.
    With `hops` what the shown passages name is looked up too.
    """

    def __init__(
        self,
        config: LensConfig | None = None,
        reader: QuestionReader | None = None,
        hops: Hops | None = None,
    ) -> None:
        self.config = config or LensConfig()
        self._reader = reader
        self._hops = hops

    def score(self, history: History, question: Question) -> Scores:
        """Signed scores of every full block. Cost: a search a term, one pass over the sketches."""
        counts = history.block_counts()
        room = max(len(self.config.neighbour_weights), self.config.spread_blocks + 1)
        axis = BlockAxis(counts, room)
        mask = axis.block_mask()
        if not mask.any():
            empty = {partition: np.zeros(0, dtype=np.float32) for partition in counts}
            return Scores(empty, ())
        evidence = self.evidence(history, axis, question)
        candidates = self._candidates(history, axis, question.text, evidence)
        passages, likelihood = self._judged(history, question, candidates)
        if self._hops is not None and question.reads:
            statements = self._hops.statements(history, axis)
            more = self._hops.follow(statements, question.text, passages)
            if likelihood is not None:
                passages = self._narrowed(statements, question.text, passages, likelihood)
            passages = [*passages, *more]
        signed = _signed(axis, evidence, passages)
        return Scores({p: signed[axis.span(p)] for p in counts}, passages)

    def evidence(self, history: History, axis: BlockAxis, question: Question) -> Evidence:
        """How much speaks for each block, float32 [axis.length], 0 or more; 0 where no block is."""
        mask = axis.block_mask()
        evidence = self.lexical_evidence(history, axis, question.text)
        evidence += self.config.sketch_weight * self._sketch_evidence(history, axis, question)
        evidence += self.config.recency_weight * _recency(mask)
        evidence[~mask] = 0.0
        return evidence

    def lexical_evidence(self, history: History, axis: BlockAxis, text: str) -> Evidence:
        """Share of the question's term weight near each block, in [0, 1]."""
        total = np.zeros(axis.length, dtype=np.float32)
        nearest = np.zeros(axis.length, dtype=np.float32)
        weight, cut = 0.0, False
        terms = dict.fromkeys(_WORD.findall(text.lower()))
        for term in terms:
            places, scores, full = self._hits(history, axis, term)
            if len(places) == 0:
                continue
            cut = cut or full
            weight += float(scores.max())
            touched = _spread(nearest, places, scores, self.config.neighbour_weights)
            total[touched] += nearest[touched]
            nearest[touched] = 0.0
        if cut:
            # Of a common term not all postings were taken: a block that holds several such terms
            # at once may be missing, and is found by all of them together.
            places, scores, _ = self._hits(history, axis, " ".join(terms))
            _spread(total, places, scores, self.config.neighbour_weights)
        return total / weight if weight > 0.0 else total

    def _hits(
        self, history: History, axis: BlockAxis, text: str
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], bool]:
        """Places on the axis of the best blocks for `text`, their scores, and whether there may be
        more."""
        hits = history.search(text, self.config.hits_per_term)
        places = axis.places(hits.partitions, hits.blocks)
        known = places >= 0
        return places[known], hits.scores[known], len(places) >= self.config.hits_per_term

    def _sketch_evidence(self, history: History, axis: BlockAxis, question: Question) -> Evidence:
        evidence = np.zeros(axis.length, dtype=np.float32)
        if question.sketch is None or self.config.sketch_weight == 0.0:
            return evidence
        for partition, count in history.block_counts().items():
            sketches = history.sketches(partition)[:count]
            if len(sketches):
                first = axis.span(partition).start
                found = np.maximum(similarity(sketches, question.sketch), 0.0)
                evidence[first : first + len(sketches)] = found
        return evidence

    def _candidates(
        self, history: History, axis: BlockAxis, text: str, evidence: Evidence
    ) -> list[Passage]:
        """Peaks by falling evidence until one is far below the first, then places of rare words;
        each with its neighbours."""
        best = float(evidence.max())
        left = evidence.copy()
        passages: list[Passage] = []

        def take(peak: int) -> None:
            partition, block = axis.locate(peak)
            span = axis.span(partition)
            start = max(span.start, peak - self.config.spread_blocks)
            end = min(span.stop, peak + self.config.spread_blocks + 1)
            height = float(left[peak]) / best
            left[start:end] = 0.0
            first = block - (peak - start)
            passages.append(Passage(partition, first, first + end - start, height))

        while len(passages) < self.config.candidate_passages:
            peak = int(left.argmax())
            if left[peak] <= 0.0 or left[peak] < self.config.candidate_ratio * best:
                break
            take(peak)
        for place in self._rare_places(history, axis, text):
            if left[place] > 0.0:
                take(place)
        return passages

    def _rare_places(self, history: History, axis: BlockAxis, text: str) -> list[int]:
        """For each of the rarest words of `text`, the newest place that has it, rarest first."""
        found: dict[int, int] = {}  # newest place -> places
        if not self.config.rare_terms:
            return []
        for term in dict.fromkeys(_WORD.findall(text.lower())):
            hits = history.search(term, self.config.rare_hits + 1)
            places = axis.places(hits.partitions, hits.blocks)
            if 0 < len(places) <= self.config.rare_hits and places.max() >= 0:
                newest = int(places.max())
                found[newest] = min(len(places), found.get(newest, len(places)))
        return sorted(found, key=lambda place: (found[place], -place))[: self.config.rare_terms]

    def _judged(
        self, history: History, question: Question, candidates: list[Passage]
    ) -> tuple[list[Passage], Evidence | None]:
        """The candidates worth showing, best first, scored in (0, 1], and where they were read ln
        p(question | passage) of each."""
        heights = np.array([passage.score for passage in candidates], dtype=np.float32)
        if self._reader is None or not question.reads or len(candidates) < 2:
            kept = heights >= self.config.keep_ratio
            best = _best(np.where(kept, heights, 0.0), self.config.max_passages)
            return [candidates[i] for i in best], None
        texts = [history.tokens(p.partition, p.start_block, p.end_block) for p in candidates]
        by_token = self._reader.log_likelihood(question.text, texts)
        scores = self._read_scores(by_token, heights, _newest_first(candidates))
        best = _best(scores, len(candidates))
        shown = [replace(candidates[i], score=float(scores[i])) for i in best]
        return shown, by_token.sum(axis=1)[best]

    def _narrowed(
        self, statements: Statements, asked: str, passages: list[Passage], likelihood: Evidence
    ) -> list[Passage]:
        """Each passage cut to what it says of the question, where that explains the question as
        well as the whole does by `likelihood`: what stands around it would only be read for it."""
        assert self._reader is not None
        words = words_of(asked)
        cut = [_cut(passage, statements.of(passage, words)) for passage in passages]
        short = self._reader.log_likelihood(asked, list(map(statements.tokens, cut))).sum(axis=1)
        enough = short >= likelihood - self.config.narrow_nats
        return [c if e else p for p, c, e in zip(passages, cut, enough, strict=True)]

    def _read_scores(self, by_token: Evidence, heights: Evidence, newest: list[int]) -> Evidence:
        """Scores in (0, 1] of the candidates to show, 0 of others. `by_token` [N, T] is ln p of
        each token of the question behind each candidate, `heights` [N] their evidence, `newest` all
        of them, newest first."""
        by_token = np.nan_to_num(by_token, nan=_IMPOSSIBLE, neginf=_IMPOSSIBLE)
        likelihood = by_token.sum(axis=1)
        nats = likelihood + self.config.evidence_nats * heights
        behind = nats.max() - nats
        kept, count = behind <= self.config.keep_nats, self.config.max_passages
        together = _set_apart(likelihood, self.config.apart_nats)
        if together.sum() > count:
            kept, count = kept | together, int(together.sum())
        shown = [int(i) for i in np.argsort(behind, kind="stable") if kept[i]][:count]
        level = likelihood >= likelihood.max() - self.config.newest_nats
        latest = next(i for i in newest if level[i])
        shown = shown if latest in shown else [*shown, latest]
        shown = _completed(shown, by_token, self.config.complement_nats)
        scores = np.zeros(len(behind), dtype=np.float32)
        # What the allocator expands must be near the best, for whatever reason it is shown.
        scores[shown] = np.exp(-np.minimum(behind[shown], self.config.keep_nats) / 8.0)
        return scores


def _signed(axis: BlockAxis, evidence: Evidence, passages: list[Passage]) -> Evidence:
    """Passages get their scores, falling towards their ends; all else is below zero."""
    relative = evidence / max(float(evidence.max()), 1e-9)
    signed = np.minimum(0.5 * (relative - 1.0), _UNWANTED).astype(np.float32)
    for passage in passages:
        span = axis.span(passage.partition)
        start, end = span.start + passage.start_block, span.start + passage.end_block
        centre = (start + end - 1) / 2
        decay = _SPREAD_DECAY ** np.abs(np.arange(start, end) - centre)
        wanted = (passage.score * decay).astype(np.float32)
        signed[start:end] = np.maximum(signed[start:end], wanted)
    return signed


def _set_apart(likelihood: Evidence, apart_nats: float) -> NDArray[np.bool_]:
    """The best candidates, where a gap parts them from the others that is at least `apart_nats` and
    twice as wide as they are spread; else none.

    So several passages that answer alike are all shown, and one that answers alone stays alone.
    """
    order = np.argsort(-likelihood, kind="stable")
    falling = likelihood[order]
    drops = falling[:-1] - falling[1:]
    last = int(drops.argmax())
    apart = np.zeros(len(likelihood), dtype=bool)
    if drops[last] >= max(apart_nats, 2.0 * float(falling[0] - falling[last])):
        apart[order[: last + 1]] = True
    return apart


def _completed(shown: list[int], by_token: Evidence, complement_nats: float) -> list[int]:
    """`shown` and the candidates that explain what nothing shown does, each by `complement_nats`.

    A question may have several subjects, each in a passage of its own. As a whole it is explained
    best by one of them, and the others are far behind; but each explains its own words far better.
    """
    shown = list(shown)
    while True:
        better = by_token - by_token[shown].max(axis=0) - _NOISE_NATS
        gains = np.maximum(better, 0.0).sum(axis=1)
        best = int(gains.argmax())
        if gains[best] < complement_nats:
            return shown
        shown.append(best)


def _cut(passage: Passage, held: list[Sentence]) -> Passage:
    """The blocks of a passage that hold these sentences of it; all where there are none."""
    if not held:
        return passage
    start = min(sentence.start_block for sentence in held)
    return replace(passage, start_block=start, end_block=max(s.end_block for s in held))


def _newest_first(passages: list[Passage]) -> list[int]:
    """Places in `passages`, from the end of the newest source to the beginning of the oldest."""
    return sorted(
        range(len(passages)), key=lambda i: (passages[i].partition, passages[i].start_block)
    )[::-1]


def _best(scores: NDArray[np.float32], count: int) -> list[int]:
    """Places of the `count` best of the positive scores, best first."""
    order = np.argsort(-scores, kind="stable")[:count]
    return [int(place) for place in order if scores[place] > 0.0]


def _spread(
    nearest: Evidence,
    places: NDArray[np.int64],
    scores: NDArray[np.float32],
    weights: tuple[float, ...],
) -> NDArray[np.int64]:
    """Raise `nearest` to the weighted scores around `places`; returns the places touched, each
    once.

    A term's hits are distinct blocks, so that each shift writes every place at most once.
    """
    touched = []
    for distance, weight in enumerate(weights):
        for shift in (distance, -distance) if distance else (0,):
            at = places + shift
            nearest[at] = np.maximum(nearest[at], weight * scores)
            touched.append(at)
    return np.unique(np.concatenate(touched))


def _recency(mask: NDArray[np.bool_]) -> Evidence:
    """0 at the oldest block, 1 at the newest."""
    return (np.cumsum(mask) / max(int(mask.sum()), 1)).astype(np.float32)
