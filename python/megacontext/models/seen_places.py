"""A KV cache and a mask of transformers, as focused attention is told of them.

The buffers of `GrowingLayer` hold a power of two of places, so that each is a pool of one page a
stream, and a place's row is its number. Tables depend on a step's shapes and mask alone: all layers
share them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from megacontext_ext import ops
from megacontext_ext.entry_table import NO_ROW, PLACES, EntryTable, ReadPlan

# Queries of a block at prefill: fewer read less beyond the diagonal, more share a place's reading.
_QUERY_TILE = 64


class Shape(NamedTuple):
    """Of one step: B streams, S queries each at the end of P places, in buffers of C places."""

    streams: int
    queries: int
    places: int
    room: int


class Seen(NamedTuple):
    table: EntryTable
    plan: ReadPlan


# Mask -> what was made of it, for as long as the mask lives: one step of the model.
_of_mask: WeakIdKeyDictionary = WeakIdKeyDictionary()


def cache_pool(held: Tensor) -> Tensor | None:
    """[B, G, C, E]: the whole buffer that `held` [B, G, P, E] is the beginning of; None where it is
    not one of a power of two of places."""
    batch, groups, _, width = held.shape
    room = held.stride(1) // width
    strides = (groups * room * width, room * width, width, 1)
    if room < 1 or room & (room - 1) or held.stride() != strides:
        return None
    end = (held.storage_offset() + batch * groups * room * width) * held.element_size()
    if room < held.shape[2] or held.untyped_storage().nbytes() < end:
        return None
    return held.as_strided((batch, groups, room, width), strides)


def seen_places(mask: Tensor | None, shape: tuple[int, int, int, int], window: int) -> Seen | None:
    """What each query may see; None for a mask that is not causal within a window.

    Args:
        mask: [B or 1, 1, S, P] bool as transformers' sdpa_mask gives it, or None: all places for
            one query, causal for as many queries as places.
        shape: B, S, P, C, see Shape.
        window: places back that a query sees, itself included; 0 is without limit.

    Cost: once a step, O(B * S * P) with a mask.
    """
    step = Shape(*shape)
    if mask is None:
        return _without_mask(step) if step.queries in (1, step.places) else None
    known = _of_mask.setdefault(mask, {})
    # A caller's own mask may be written to between steps; inference tensors cannot tell.
    key = step, window, 0 if mask.is_inference() else mask._version
    if key not in known:
        known[key] = _with_mask(mask, step, window)
    return known[key]


@lru_cache(maxsize=16)
def _without_mask(step: Shape) -> Seen:
    return _told(step, None, 0)


def _with_mask(mask: Tensor, step: Shape, window: int) -> Seen | None:
    if mask.dtype != torch.bool or mask.shape[1:] != (1, step.queries, step.places):
        return None
    shown = mask[:, 0].expand(step.streams, -1, -1)
    real = shown.any(dim=1)
    if step.queries > 1:
        place = torch.arange(step.places)
        now = torch.arange(step.places - step.queries, step.places)[:, None]
        causal = place <= now
        if window > 0:
            causal &= place > now - window
        # A query at padding sees nothing, in transformers' mask as in this one.
        padding = real[:, None, :] & real[:, step.places - step.queries :, None]
        if not torch.equal(shown, causal & padding):
            return None
    return _told(step, real, window if step.queries > 1 else 0)


def _told(step: Shape, real: Tensor | None, window: int) -> Seen:
    """Table and plan for places that are real ([B, P] bool; None: all)."""
    blocks = -(-step.places // PLACES)
    place = torch.arange(blocks * PLACES, dtype=torch.int32)
    rows = place + step.room * torch.arange(step.streams, dtype=torch.int32)[:, None]
    rows[:, step.places :] = NO_ROW
    if real is not None:
        rows[:, : step.places].masked_fill_(~real, NO_ROW)
    many = step.queries > 1
    table = EntryTable(
        rows.view(-1, PLACES), place.repeat(step.streams).view(-1, PLACES) if many else None
    )
    now = torch.arange(step.places - step.queries, step.places, dtype=torch.int32)
    tile = _QUERY_TILE if many else 1
    tiles = -(-step.queries // tile)
    ranges = torch.arange(step.streams, dtype=torch.int32).repeat_interleave(tiles)[:, None]
    plan = ops.make_read_plan(
        table,
        ops.dense_query_starts([step.queries] * step.streams, tile),
        now.repeat(step.streams) if many else None,
        torch.cat([ranges, ranges + 1], dim=1) * blocks,
        query_tile=tile,
        window=window,
    )
    return Seen(table, plan)
