"""Candidates drawn at random, with everything that a policy reads of them."""

from __future__ import annotations

import numpy as np

from megacontext.lens.candidates import STATIC, Candidates


def candidates(count: int = 12, seed: int = 0, *, partitions: int = 2, blocks: int = 40):
    """`count` distinct blocks of `partitions` sources of `blocks` blocks each."""
    rng = np.random.default_rng(seed)
    places = rng.choice(partitions * blocks, count, replace=False)
    scores = np.sort(rng.random(count).astype(np.float32) - 0.3)[::-1].copy()
    static = rng.random((count, len(STATIC))).astype(np.float32)
    static[:, 0] = scores
    weights = rng.random(5).astype(np.float32)
    pairs = [rng.random((count, count)).astype(np.float32) for _ in range(4)]
    return Candidates(
        partitions=(places // blocks).astype(np.uint32),
        blocks=(places % blocks).astype(np.int64),
        scores=scores,
        static=static,
        terms=rng.random((count, 5)).astype(np.float32),
        weights=weights / weights.sum(),
        words=pairs[0],
        close=pairs[1],
        names=pairs[2],
        beside=pairs[3],
    )


def permuted(found: Candidates, order: np.ndarray) -> Candidates:
    """The same candidates in another order."""
    both = np.ix_(order, order)
    return Candidates(
        partitions=found.partitions[order],
        blocks=found.blocks[order],
        scores=found.scores[order],
        static=found.static[order],
        terms=found.terms[order],
        weights=found.weights,
        words=found.words[both],
        close=found.close[both],
        names=found.names[both],
        beside=found.beside[both],
    )
