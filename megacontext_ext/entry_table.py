"""What focused attention is told besides queries, keys and values: plain records of tensors.

A working context is laid out in **blocks** of 32 **places**. A place points to one row of the key
and value pools: a token's row, or a gist's. Nothing here computes; the operators that fill and read
these records are in ``megacontext_ext.ops.focused_attention``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "ALWAYS_VISIBLE",
    "NO_ROW",
    "PLACES",
    "PLAIN_RULES",
    "AttentionRules",
    "EntryTable",
    "ReadPlan",
    "Rope",
]

PLACES = 32  # places in a block: the fan-out K of the tree
NO_ROW = -1  # EntryTable.rows: the place is empty
ALWAYS_VISIBLE = -1  # EntryTable.positions: neither causality nor the window hides the place


@dataclass(frozen=True)
class EntryTable:
    """The places of one or more working contexts, block by block.

    Attributes:
        rows: [N, 32] int32. Row of the pools at each place, or ``NO_ROW``. Pools are
            [P, Hkv, R, E] pages of R rows; row r is page ``r // R``, slot ``r % R``.
        positions: [N, 32] int32, tokens on the timeline, or ``ALWAYS_VISIBLE`` for an attention
            sink. A gist takes the position of the *last* token it covers, so that no query sees
            a summary of its own future. None: no place has a position, nothing is causal.
        bias: [Hb, N, 32] float32, added to the scores after scale and softcap (the log-mass of a
            gist). Hb divides the query heads: 1 is per entry, Hkv or Hq per head. None: zero.
    """

    rows: Tensor
    positions: Tensor | None = None
    bias: Tensor | None = None

    @classmethod
    def from_pages(cls, pages: Tensor, starts: Tensor | None = None) -> EntryTable:
        """Whole LOD-0 pages of 32 tokens.

        Args:
            pages: [N] int32, page of each block in pools of 32-row pages.
            starts: [N] int32, position of each page's first token; None: no positions.
        """
        slots = torch.arange(PLACES, dtype=torch.int32, device=pages.device)
        rows = pages.to(torch.int32)[:, None] * PLACES + slots
        positions = None if starts is None else starts.to(torch.int32)[:, None] + slots
        return cls(rows=rows, positions=positions)


@dataclass(frozen=True)
class ReadPlan:
    """Which blocks each query block reads. ``make_read_plan`` fills it on the device.

    Attributes:
        query_starts: [M + 1] int32. Query block i holds queries ``query_starts[i]`` to
            ``query_starts[i + 1]``, at most ``query_tile`` of them, of one sequence.
        counts: [Hp, M] int32, blocks in each list. Hp divides Hkv: 1 shares one list.
        blocks: [Hp, M, C] int32. Block numbers, none twice in one list; ``FULL`` (1 << 30) is
            added where every place is filled and visible to every query of the query block.
            A list with more than C blocks was cut: its queries get NaN, never a wrong answer.
        query_positions: [T] int32, positions of the queries. Given: attention is causal.
        query_tile: 1 for decode, 64 or 128 for prefill; any number up to 128 works.
        window: how many positions back a query sees; 0 is without limit.
    """

    query_starts: Tensor
    counts: Tensor
    blocks: Tensor
    query_positions: Tensor | None = None
    query_tile: int = 128
    window: int = 0


@dataclass(frozen=True)
class Rope:
    """Rotary tables for keys stored before rotation, made once a refocus and used by every layer.

    Attributes:
        keys: [N, 32, R] float32 for the places, cosines in [..., :R/2] and sines in [..., R/2:].
            The first R of E dimensions rotate, element j with j + R/2.
        queries: [T, R] float32, the same for the queries.
    """

    keys: Tensor
    queries: Tensor

    @classmethod
    def gaussian(
        cls,
        frequencies: Tensor,
        key_positions: Tensor,
        query_positions: Tensor,
        key_sigmas: Tensor | None = None,
    ) -> Rope:
        """Rotation by a position that is known up to a Gaussian of width sigma.

        E[exp(i w x)] for x ~ N(p, sigma^2) is exp(i w p) exp(-(w sigma)^2 / 2); sigma 0 is plain
        rotary embedding, bit for bit.

        Args:
            frequencies: [R/2], radians a token.
            key_positions: [N, 32], tokens; a gist's is the centre of its span.
            query_positions: [T], tokens.
            key_sigmas: [N, 32], tokens, 0 for raw tokens; None: all zero.
        """
        damping = None
        if key_sigmas is not None:
            spread = key_sigmas.double()[..., None] * frequencies.double()
            damping = torch.exp(-0.5 * spread**2)
        return cls(
            keys=_table(frequencies, key_positions, damping),
            queries=_table(frequencies, query_positions, None),
        )


def _table(frequencies: Tensor, positions: Tensor, damping: Tensor | None) -> Tensor:
    """[..., R] cosines and sines. Angles in float64: at position 1e7 float32 is off by a radian."""
    angles = positions.double()[..., None] * frequencies.double()
    cosines, sines = angles.cos(), angles.sin()
    if damping is not None:
        cosines, sines = cosines * damping, sines * damping
    return torch.cat((cosines, sines), dim=-1).float()


@dataclass(frozen=True)
class AttentionRules:
    """How scores become weights.

    Attributes:
        scale: multiplies q . k; None is 1 / sqrt(E).
        softcap: > 0 bounds scaled scores to softcap * tanh(score / softcap) (Gemma); 0 is off.
        sink: [Hq] float32, a learned logit in each softmax that carries no value (gpt-oss).
        rope: tables for un-rotated keys; None when keys and queries are rotated already.
    """

    scale: float | None = None
    softcap: float = 0.0
    sink: Tensor | None = None
    rope: Rope | None = None


PLAIN_RULES = AttentionRules()
