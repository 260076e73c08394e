"""Ways of choosing windows of a history for a question, all of the same places."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from megacontext.config import HopConfig
from megacontext.eval.lens.gains import Window
from megacontext.eval.lens.histories import StreamHistory
from megacontext.eval.lens.streams import StreamQuestion
from megacontext.lens import QuestionReader, UntrainedLens
from megacontext.lens.block_axis import BlockAxis
from megacontext.lens.features import FEATURES, ROOM, block_fields
from megacontext.lens.hops import Hops
from megacontext.lens.net import LensNet
from megacontext.lens.trained import TrainedLens

# (history, question) -> evidence on an axis of room ROOM, 0 in the rooms.
Ranking = Callable[[StreamHistory, StreamQuestion], NDArray[np.float32]]


def rankings(nets: Mapping[str, LensNet], held: StreamHistory) -> dict[str, Ranking]:
    """Every ranking by name: baselines, the untrained lens, and a trained lens for each net."""
    kept: dict[str, NDArray[np.float32]] = {}
    columns = {"most recent": "recency", "embedding": "sketch", "bm25": "bm25"}
    found: dict[str, Ranking] = {
        "random": _random,
        **{name: _column(column, kept) for name, column in columns.items()},
    }
    return {**found, **{name: _lens(lens) for name, lens in lenses(nets, held).items()}}


def lenses(
    nets: Mapping[str, LensNet], held: StreamHistory, *, read: bool = False
) -> dict[str, UntrainedLens]:
    """The untrained lens and a trained one for each net; with `read` the base reads passages behind
    each, and names are followed, as at run time."""
    reader = QuestionReader(held.base) if read else None
    hops = Hops(held.base, HopConfig()) if read else None
    found = {"untrained": UntrainedLens(reader=reader, hops=hops)}
    for name, net in nets.items():
        tokenizer = held.base.tokenizer
        found[name] = TrainedLens(net, held.sketcher, tokenizer, reader=reader, hops=hops)
    return found


def windows(
    axis: BlockAxis, evidence: NDArray[np.float32], count: int, spread: int = 2
) -> list[Window]:
    """The `count` best peaks with `spread` blocks on each side, none of them overlapping."""
    left = np.where(axis.block_mask(), evidence, -np.inf)
    chosen: list[Window] = []
    while len(chosen) < count and np.isfinite(left.max()):
        peak = int(left.argmax())
        partition, block = axis.locate(peak)
        span = axis.span(partition)
        start, end = max(span.start, peak - spread), min(span.stop, peak + spread + 1)
        # A peak whose own window would overlap this one is this one's flank.
        left[max(span.start, start - spread) : end + spread] = -np.inf
        chosen.append((partition, block - (peak - start), block + end - peak))
    return chosen


def window_axis(held: StreamHistory) -> BlockAxis:
    return BlockAxis(held.history.block_counts(), ROOM)


def _column(name: str, kept: dict[str, NDArray[np.float32]]) -> Ranking:
    """One feature as a ranking. `kept` holds the last question's features for the next column."""
    number = FEATURES.index(name)

    def ranking(held: StreamHistory, asked: StreamQuestion) -> NDArray[np.float32]:
        if asked.question not in kept:
            kept.clear()
            kept[asked.question] = block_fields(held.history, held.question(asked)).features
        return kept[asked.question][:, number]

    return ranking


def _lens(lens: UntrainedLens) -> Ranking:
    def ranking(held: StreamHistory, asked: StreamQuestion) -> NDArray[np.float32]:
        return lens.evidence(held.history, window_axis(held), held.question(asked))

    return ranking


def _random(held: StreamHistory, asked: StreamQuestion) -> NDArray[np.float32]:
    digest = hashlib.sha256(asked.question.encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    return rng.random(window_axis(held).length, dtype=np.float32)
