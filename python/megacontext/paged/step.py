"""One forward pass: which rows its queries read, where those rows stand, and the plan for them.

Made once a step and used by every layer; only the rotary tables differ where layers do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from megacontext.config import K
from megacontext.paged.rotary import LayerRotary
from megacontext.paged.stream import Stream
from megacontext.paged.tiling import GistPage
from megacontext_ext.entry_table import NO_ROW
from megacontext_ext.ops.focused_attention import (
    EntryTable,
    ReadPlan,
    Rope,
    dense_query_starts,
    make_read_plan,
)

QUERY_TILE = 64
Page = TypeVar("Page", int, GistPage)


@dataclass
class Step:
    """The queries of a step, all streams one after another, and what they read.

    Attributes:
        rows: [T] rows of the pool that the new tokens are written to.
        table: the places in focus, stream by stream.
        query_positions: [T] positions on the timeline, for causality.
        key_places: [N, 32] positions for rotation, tokens; query_places: [T].
    """

    rows: Tensor
    table: EntryTable
    query_starts: Tensor
    query_positions: Tensor
    block_ranges: Tensor
    key_places: Tensor
    query_places: Tensor
    query_tile: int
    _plans: dict[int, ReadPlan] = field(default_factory=dict)
    _ropes: dict[int, Rope] = field(default_factory=dict)

    def plan(self, window: int) -> ReadPlan:
        """The read plan for layers with this sliding window (0: none)."""
        if window not in self._plans:
            self._plans[window] = make_read_plan(
                self.table,
                self.query_starts,
                self.query_positions,
                self.block_ranges,
                query_tile=self.query_tile,
                window=window,
            )
        return self._plans[window]

    def rope(self, rotary: LayerRotary) -> Rope:
        """Rotary tables of a layer; layers that share frequencies share them."""
        key = id(rotary.frequencies)
        if key not in self._ropes:
            self._ropes[key] = rotary.tables(self.key_places, self.query_places)
        return self._ropes[key]


class Focus(NamedTuple):
    """What a stream's step reads: blocks and gist pages, both ascending."""

    blocks: list[int]
    gists: list[GistPage]


def make_step(
    streams: list[Stream],
    new_tokens: list[int],
    focuses: list[Focus],
    trained_tokens: int,
    device: torch.device,
) -> Step:
    """The step in which stream i reads `new_tokens[i]` more tokens and attends to `focuses[i]`,
    whose pages are resident.

    Rotary positions are those of the timeline while it fits in the trained range; beyond it the
    blocks in focus stand one after another in timeline order, so that no position is new to the
    model.
    """
    rows, positions, places, query_positions, query_places, own_rows = [], [], [], [], [], []
    ranges: list[tuple[int, int]] = []
    slots = torch.arange(K)
    first = 0
    for stream, count, focus in zip(streams, new_tokens, focuses, strict=True):
        entries = _entries(stream, focus)
        timeline = entries.positions
        end = stream.token_count + count
        fits = end <= trained_tokens
        stands = entries.places if fits else torch.arange(len(timeline))[:, None] * K + slots
        queries = torch.arange(stream.token_count, end)
        # Beyond the trained range everything moves left by what lies before the own blocks.
        shift = 0 if fits or not count else int(timeline[-1, 0] - stands[-1, 0])
        rows.append(entries.rows)
        positions.append(timeline)
        places.append(stands)
        query_positions.append(queries)
        query_places.append(queries - shift)
        own_rows.append(_own_rows(stream, queries))
        tiles = -(-count // _tile(new_tokens))
        ranges += [(first, first + len(timeline))] * tiles
        first += len(timeline)
    table = EntryTable(
        rows=torch.cat(rows).to(device, torch.int32),
        positions=torch.cat(positions).to(device, torch.int32),
    )
    return Step(
        rows=torch.cat(own_rows).to(device),
        table=table,
        query_starts=dense_query_starts(new_tokens, _tile(new_tokens), device),
        query_positions=torch.cat(query_positions).to(device, torch.int32),
        block_ranges=torch.tensor(ranges, dtype=torch.int32, device=device),
        key_places=torch.cat(places).to(device),
        query_places=torch.cat(query_places).to(device),
        query_tile=_tile(new_tokens),
    )


class _Entries(NamedTuple):
    """Pages in timeline order, [N, 32] each: rows of the pool, positions for causality, places."""

    rows: Tensor
    positions: Tensor
    places: Tensor


def _entries(stream: Stream, focus: Focus) -> _Entries:
    """What a stream reads: blocks of tokens, and gist pages of LOD 1 without the rows of those
    blocks.

    A gist row is visible from the last token of its share on and stands at its share's centre.
    Cost: in proportion to the focus, whatever the length of the stream.
    """
    slots = torch.arange(K)
    numbers = torch.tensor(focus.blocks, dtype=torch.long)
    timeline = numbers[:, None] * K + slots
    rows = _rows_of(stream.pages, focus.blocks)
    if not focus.gists:
        return _Entries(rows, timeline, timeline)
    width = K // stream.gist_rows
    gists = torch.tensor([page.number for page in focus.gists])
    share = (gists[:, None] * K + slots) * width  # first token of each share
    block = share // K
    covered = range(int(gists[0]) * width, (int(gists[-1]) + 1) * width)
    out = [b for b in stream.excluded if b in covered] + focus.blocks
    hidden = torch.isin(block, torch.tensor(out)) | (block >= stream.gisted_blocks)
    gist_rows = _rows_of(stream.gist_pages, focus.gists).masked_fill(hidden, NO_ROW)
    order = torch.argsort(torch.cat((timeline[:, 0], share[:, 0])), stable=True)
    return _Entries(
        torch.cat((rows, gist_rows))[order],
        torch.cat((timeline, share + width - 1))[order],
        torch.cat((timeline, share + width // 2))[order],
    )


def _rows_of(pages: dict[Page, int], numbers: list[Page]) -> Tensor:
    """[N, 32] rows of the pool of these pages."""
    chosen = torch.tensor([pages[number] for number in numbers], dtype=torch.long)
    return chosen[:, None] * K + torch.arange(K)


def _tile(new_tokens: list[int]) -> int:
    return 1 if max(new_tokens) == 1 else QUERY_TILE


def _own_rows(stream: Stream, queries: Tensor) -> Tensor:
    own = stream.own_blocks(len(queries))
    rows = _rows_of(stream.pages, list(own)).flatten()
    first = stream.token_count % K
    return rows[first : first + len(queries)]
