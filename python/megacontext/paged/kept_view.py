"""What each layer reads of the gist pages in focus: its kept rows, rotated, in pages of their own.

Made when the gist pages in focus change; when only blocks come into focus or leave, the rows of
their tokens are hidden or shown by the bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from megacontext.config import K
from megacontext.paged.page_store import PageLayout
from megacontext.paged.pool import PagePool
from megacontext.paged.rotary import LayerRotary, rotated
from megacontext.paged.step import Focus, Step
from megacontext.paged.stream import Stream
from megacontext.paged.tiling import LODS, GistPage
from megacontext_ext.ops.focused_attention import EntryTable, ReadPlan, Rope, make_read_plan


class _Segment(NamedTuple):
    """A layer's rows of one gist page, head by head: keys, values [M, E], rows of each head
    [Hkv], and each row's block [M]."""

    lod: int
    keys: Tensor
    values: Tensor
    counts: Tensor
    block: Tensor


class _Layer:
    """A layer's rows of all gist pages in focus, as pools of pages [P, Hkv, 32, E]."""

    def __init__(self, streams: list[list[_Segment]], like: Tensor) -> None:
        """streams: the segments of each stream of the batch. like: a pool's keys."""
        parts = [_line_up(segments, like) for segments in streams]
        self.keys, self.values = (
            _paged(torch.cat([part[at] for part in parts], 1)) for at in (0, 1)
        )
        blocks = [part[2] for part in parts]
        self.lod = torch.cat([part[3] for part in parts], 1)
        self.lengths = [block.shape[1] // K for block in blocks]
        # Which stream, so that a block number names one block of the batch.
        self.block = torch.cat(blocks, 1)
        owner = torch.arange(len(blocks)).repeat_interleave(torch.tensor(self.lengths) * K)
        self.stream = owner.expand(self.block.shape)
        count = self.keys.shape[0]
        device = self.keys.device
        self.rows = torch.arange(count * K, dtype=torch.int32, device=device).view(count, K)
        self.bias: Tensor | None = None
        self.still: Tensor | None = None  # the rotation of keys that are rotated already
        self._plans: dict[tuple[int, ...], ReadPlan] = {}

    def hide(self, hidden: Tensor) -> None:
        """hidden: [streams, LODs, blocks + 1] True for blocks whose rows of that LOD nobody shall
        see; last: True."""
        out = hidden[self.stream, self.lod - 1, self.block]
        bias = torch.zeros(out.shape).masked_fill_(out, float("-inf"))
        self.bias = bias.view(len(bias), -1, K).to(self.keys.device)

    def table(self) -> EntryTable:
        return EntryTable(rows=self.rows, bias=self.bias)

    def plan(self, step: Step, counts: Sequence[int]) -> ReadPlan:
        """counts: new tokens of each stream in the step. Steps alike share a plan."""
        key = (*counts, step.query_tile)
        if key not in self._plans:
            ranges, first = [], 0
            for count, length in zip(counts, self.lengths, strict=True):
                ranges += [(first, first + length)] * -(-count // step.query_tile)
                first += length
            self._plans[key] = make_read_plan(
                EntryTable(rows=self.rows),
                step.query_starts,
                None,
                torch.tensor(ranges, dtype=torch.int32, device=self.keys.device),
                query_tile=step.query_tile,
            )
        return self._plans[key]

    def rope_keys(self, rotary: LayerRotary) -> Tensor:
        """[P, 32, R]: no rotation, but the scaling that goes with one."""
        if self.still is None:
            one = rotary.tables(torch.zeros(1, K), torch.zeros(1)).keys
            self.still = one.expand(len(self.rows), -1, -1).contiguous().to(self.keys.device)
        return self.still


class KeptView:
    """The rows of the gist pages in focus, for every layer; kept from step to step."""

    def __init__(
        self, layout: PageLayout, rotary: Sequence[LayerRotary], size: int, trained_tokens: int
    ) -> None:
        self._layout = layout
        self._rotary = rotary
        self._size = size
        self._trained_tokens = trained_tokens
        self._segments: dict[tuple[int, GistPage, bool], list[_Segment | None]] = {}
        self._layers: list[_Layer | None] = []
        self._made_of: tuple[object, ...] = ()
        self._hides: tuple[object, ...] = ()
        self._step: Step | None = None
        self._queries: dict[int, Tensor] = {}
        self._places = torch.zeros(0)
        self._counts: list[int] = []

    def prepare(
        self,
        streams: list[Stream],
        counts: list[int],
        focuses: list[Focus],
        pool: PagePool,
        step: Step,
    ) -> None:
        """Makes ready what the step of `counts` new tokens reads."""
        fits = [
            s.token_count + n <= self._trained_tokens for s, n in zip(streams, counts, strict=True)
        ]
        made_of = tuple((tuple(f.gists), fit) for f, fit in zip(focuses, fits, strict=True))
        if made_of != self._made_of:
            self._gather(streams, focuses, fits, pool)
            self._made_of, self._hides = made_of, ()
        hides = tuple(
            (tuple(f.blocks), frozenset(s.excluded)) for f, s in zip(focuses, streams, strict=True)
        )
        if hides != self._hides:
            self._hide(streams, focuses)
            self._hides = hides
        self._step, self._queries = step, {}
        behind = [0 if fit else self._size * K for fit in fits]
        self._places = step.query_places + torch.tensor(behind).repeat_interleave(
            torch.tensor(counts)
        ).to(step.query_places.device)
        self._counts = counts

    def read(self, layer: int) -> tuple[Tensor, Tensor, EntryTable, ReadPlan, Rope] | None:
        """Keys, values, table, plan and rotation of a layer; None when it has no rows to read."""
        held = self._layers[layer] if self._layers else None
        if held is None or self._step is None:
            return None
        rotary = self._rotary[layer]
        key = id(rotary.frequencies)
        if key not in self._queries:
            nowhere = torch.zeros(1, K)
            self._queries[key] = rotary.tables(nowhere, self._places).queries
        rope = Rope(keys=held.rope_keys(rotary), queries=self._queries[key])
        return held.keys, held.values, held.table(), held.plan(self._step, self._counts), rope

    def _gather(
        self, streams: list[Stream], focuses: list[Focus], fits: list[bool], pool: PagePool
    ) -> None:
        wanted = {
            (number, page, fit)
            for number, (focus, fit) in enumerate(zip(focuses, fits, strict=True))
            for page in focus.gists
        }
        self._segments = {key: made for key, made in self._segments.items() if key in wanted}
        for key in wanted - set(self._segments):
            self._segments[key] = self._split(streams[key[0]], key[1], key[2], pool)
        self._layers = []
        for layer in range(self._layout.layers):
            parts = [
                [
                    segment
                    for page in focus.gists
                    if (segment := self._segments[number, page, fit][layer]) is not None
                ]
                for number, (focus, fit) in enumerate(zip(focuses, fits, strict=True))
            ]
            self._layers.append(_Layer(parts, pool.keys[layer]) if any(parts) else None)

    def _split(
        self, stream: Stream, page: GistPage, fits: bool, pool: PagePool
    ) -> list[_Segment | None]:
        """Each layer's rows of one resident gist page, rotated to where they stand: on the timeline
        while it fits the trained range; beyond it, at their offset in their page of LOD 1, which is
        where their use was measured."""
        layout, kept = self._layout, stream.kept[page]
        content = pool.read_pages([stream.gist_pages[page]])[0].transpose(0, 1)
        lines = content.flatten(1, 3)  # [2, L * Hkv * 32, E]
        counts = torch.bincount(kept.owner, minlength=layout.layers * layout.kv_heads)
        counts = counts.view(layout.layers, layout.kv_heads)
        first = page.span.start * self._size
        token = kept.token.long()
        stands = token + first * K if fits else token % (self._size * K)
        block = token // K + first
        found: list[_Segment | None] = []
        at = 0
        for layer, rows in enumerate(counts.unbind(0)):
            part = slice(at, at + int(rows.sum()))
            at = part.stop
            keys, values = (side[part] for side in lines)
            keys = rotated(keys, self._rotary[layer].frequencies, stands[part])
            # A copy, so that the page's un-rotated keys need not be kept with its values.
            segment = _Segment(page.lod, keys, values.clone(), rows, block[part])
            found.append(segment if len(keys) else None)
        return found

    def _hide(self, streams: list[Stream], focuses: list[Focus]) -> None:
        most = max((s.token_count // K for s in streams), default=0) + 2
        hidden = torch.zeros(len(streams), len(LODS), most, dtype=torch.bool)
        hidden[..., -1] = True  # where block -1 points
        for rows, stream, focus in zip(hidden, streams, focuses, strict=True):
            out = [b for b in (*focus.blocks, *stream.excluded) if b < most - 1]
            rows[:, torch.tensor(out, dtype=torch.long)] = True
            for page in focus.gists:  # what a finer page shows
                span = page.span
                rows[page.lod :, span.start * self._size : span.stop * self._size] = True
        for layer in self._layers:
            if layer is not None:
                layer.hide(hidden)


def _line_up(segments: list[_Segment], like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys, values [Hkv, R, E], and each row's block and LOD [Hkv, R]: the rows of each head of
    all segments in one line, padded (block -1) to whole pages of the head that has most."""
    heads, width = like.shape[1], like.shape[3]
    counts = torch.stack([s.counts for s in segments]) if segments else torch.zeros(0, heads).long()
    totals = counts.sum(0)
    length = -(-int(totals.max()) // K) * K
    begins = (counts.cumsum(0) - counts + torch.arange(heads) * length).flatten()
    sizes = counts.flatten()
    ends = sizes.cumsum(0)
    within = torch.arange(int(totals.sum())) - (ends - sizes).repeat_interleave(sizes)
    place = begins.repeat_interleave(sizes) + within
    keys, values = like.new_zeros(2, heads * length, width)
    block, lod = torch.full((heads * length,), -1), torch.ones(heads * length, dtype=torch.long)
    if segments:
        there = place.to(like.device)
        keys[there] = torch.cat([s.keys for s in segments])
        values[there] = torch.cat([s.values for s in segments])
        block[place] = torch.cat([s.block for s in segments])
        lod[place] = torch.tensor([s.lod for s in segments]).repeat_interleave(counts.sum(1))
    line = (heads, length, width)
    return keys.view(line), values.view(line), block.view(line[:2]), lod.view(line[:2])


def _paged(line: Tensor) -> Tensor:
    """[Hkv, P * 32, E] -> [P, Hkv, 32, E]."""
    return line.unflatten(1, (-1, K)).transpose(0, 1).contiguous()
