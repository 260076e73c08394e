"""Entries of the working context become the prompt that the model reads.

Raw blocks become their tokens, gists their rows, and everything that takes no place a short marker
that says how much was left out. Knows no policy: which entries are raw was decided before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megacontext.config import PositionRule, RuntimeConfig
from megacontext.models import GIST_PLACE, Prompt, TextTokenizer
from megacontext.runtime.frame import QuestionFrame
from megacontext.runtime.gist_records import ShownGists
from megacontext_ext import Store
from megacontext_ext.errors import InvalidArgument

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EntryRun:
    """Neighbouring entries of one partition that are shown in one way: raw, one LOD of gists, or
    not.

    `timeline_start` is the position of `start` when all partitions stand one behind the other.
    """

    partition: int
    lod: int
    start: int
    end: int
    places: int
    timeline_start: int

    @property
    def shown(self) -> bool:
        return self.places > 0


@dataclass(frozen=True, slots=True)
class Assembled:
    """A prompt, and what its places are spent on."""

    prompt: Prompt
    runs: Sequence[EntryRun]
    left_out_tokens: int
    marker_places: int
    frame_places: int
    positions: PositionRule

    @property
    def entry_places(self) -> int:
        return len(self.prompt) - self.marker_places - self.frame_places


@dataclass(frozen=True, slots=True)
class _Piece:
    """Places of one run, marker or frame part; `at` is its first position on the timeline."""

    ids: Ids
    at: int
    # Positions relative to `at`; None for 0, 1, 2, ...
    steps: Ids | None = None


class Assembler:
    """Builds prompts from one store for one tokenizer."""

    def __init__(
        self, store: Store, tokenizer: TextTokenizer, gists: ShownGists, config: RuntimeConfig
    ) -> None:
        self._store = store
        self._gists = gists
        self._tokenizer = tokenizer
        self._marker = config.frame.marker
        self._marker_budget = config.marker_places
        self._separator = tokenizer.encode("\n\n").astype(np.int64)
        self._short_marker = tokenizer.encode(config.frame.short_marker).astype(np.int64)

    def assemble(
        self,
        runs: Sequence[EntryRun],
        frame: QuestionFrame,
        rule: PositionRule,
        position_limit: int,
    ) -> Assembled:
        """The prompt of `runs` in `frame`. By rule "auto", positions are those of the timeline
        while all of them lie below `position_limit`, else contiguous."""
        before, after = frame.before.astype(np.int64), frame.after.astype(np.int64)
        markers = self._markers(runs)
        pieces = [_Piece(before, 0)]
        rows: list[Tensor] = []
        for place, run in enumerate(runs):
            at = len(before) + run.timeline_start
            if place in markers:
                pieces.append(_Piece(markers[place], at))
            elif place and run.shown and runs[place - 1].partition != run.partition:
                pieces.append(_Piece(self._separator, at))
            if run.shown:
                pieces.append(self._shown(run, at, rows))
        timeline_tokens = runs[-1].timeline_start + runs[-1].end - runs[-1].start if runs else 0
        pieces.append(_Piece(after, len(before) + timeline_tokens))
        ids = np.concatenate([piece.ids for piece in pieces])
        last = len(before) + timeline_tokens + len(after)
        timeline = rule == "timeline" or (rule == "auto" and last <= position_limit)
        return Assembled(
            prompt=Prompt(
                ids,
                _timeline_positions(pieces) if timeline else np.arange(len(ids), dtype=np.int64),
                torch.cat(rows) if rows else None,
            ),
            runs=runs,
            left_out_tokens=sum(run.end - run.start for run in runs if not run.shown),
            marker_places=len(ids) - frame.places - sum(run.places for run in runs),
            frame_places=frame.places,
            positions="timeline" if timeline else "contiguous",
        )

    def _shown(self, run: EntryRun, at: int, rows: list[Tensor]) -> _Piece:
        if run.lod == 0:
            tokens = self._store.read_tokens(run.partition, run.start, run.end)
            return _Piece(tokens.astype(np.int64), at)
        found = self._gists.rows(self._store, run.lod, run.partition, run.start, run.end)
        if len(found) != run.places:
            raise InvalidArgument(
                f"[assemble] gists of LOD {run.lod} at [{run.start}, {run.end}) must fill "
                f"{run.places} places, got {len(found)} rows"
            )
        rows.append(found)
        # Each gist stands at the centre of its share of the span.
        width = (run.end - run.start) / run.places
        centres = ((np.arange(run.places) + 0.5) * width).astype(np.int64)
        return _Piece(np.full(run.places, GIST_PLACE, dtype=np.int64), at, centres)

    def _markers(self, runs: Sequence[EntryRun]) -> dict[int, Ids]:
        """Marker of each gap, by the place of its first run. Where the marker budget is too small
        for the long form, the largest gaps keep it, others get the short form, the smallest
        none."""
        gaps = _gaps(runs)
        budget = self._marker_budget - self._separator_places(runs)
        short = len(self._short_marker)
        chosen: dict[int, Ids] = {}
        by_size = sorted(gaps, key=lambda place: (-gaps[place], place))
        by_size = by_size[: max(0, budget // short)]
        spare = budget - short * len(by_size)
        for place in by_size:
            text = self._marker.replace("{tokens}", f"{gaps[place]:,}")
            text = text.replace("{amount}", in_words(gaps[place]))
            long = self._tokenizer.encode(text).astype(np.int64)
            if len(long) - short <= spare:
                spare -= len(long) - short
                chosen[place] = long
            else:
                chosen[place] = self._short_marker
        return chosen

    def _separator_places(self, runs: Sequence[EntryRun]) -> int:
        changes = sum(
            later.shown and earlier.partition != later.partition
            for earlier, later in pairwise(runs)
        )
        return changes * len(self._separator)


def in_words(token_count: int) -> str:
    """The order of magnitude, without a digit: "hundreds of thousands of" for 150,000."""
    names = ("", "thousands of ", "millions of ", "billions of ")
    thousands = min((len(str(max(token_count, 1))) - 1) // 3, len(names) - 1)
    few = ("", "tens of ", "hundreds of ")[min(len(str(token_count // 1000**thousands)) - 1, 2)]
    return f"{few}{names[thousands]}".strip() or "a few"


def _gaps(runs: Sequence[EntryRun]) -> dict[int, int]:
    """First run of every stretch that is left out -> its tokens, over partitions."""
    gaps: dict[int, int] = {}
    first = None
    for place, run in enumerate(runs):
        if run.shown:
            first = None
            continue
        first = place if first is None else first
        gaps[first] = gaps.get(first, 0) + run.end - run.start
    return gaps


def _timeline_positions(pieces: Sequence[_Piece]) -> Ids:
    """True positions; a piece that would begin before the end of the one before is moved behind it
    (a marker is a few tokens and stands in a gap of a block or more)."""
    positions = []
    at = 0
    for piece in pieces:
        at = max(at, piece.at)
        steps = np.arange(len(piece.ids), dtype=np.int64) if piece.steps is None else piece.steps
        positions.append(at + steps)
        at += int(steps[-1]) + 1 if len(steps) else 0
    return np.concatenate(positions)


def merge_runs(entries: NDArray[np.void]) -> list[EntryRun]:
    """Entries of a working context, neighbours of one kind merged.

    `entries` has the fields partition, lod, start, end, places, in partition then timeline order.
    """
    runs: list[EntryRun] = []
    at = 0
    for partition, lod, start, end, places in zip(
        *(entries[name].tolist() for name in ("partition", "lod", "start", "end", "places")),
        strict=True,
    ):
        kind = -1 if places == 0 else lod
        last = runs[-1] if runs else None
        if last and last.partition == partition and last.lod == kind and last.end == start:
            runs[-1] = EntryRun(
                partition, kind, last.start, end, last.places + places, last.timeline_start
            )
        else:
            runs.append(EntryRun(partition, kind, start, end, places, at))
        at += end - start
    return runs
