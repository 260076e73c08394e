"""Focused attention, plan building and merging in plain torch: the meaning of the operators."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megacontext_ext.entry_table import PLACES, PLAIN_RULES, AttentionRules, EntryTable, ReadPlan

__all__ = ["focused_attention", "make_read_plan", "merge_attention", "read_mask", "visible"]

FULL = 1 << 30


def visible(table: EntryTable, plan: ReadPlan) -> Tensor:
    """[T, N * 32] bool: which places each query may see by row, position and window alone."""
    queries = int(plan.query_starts[-1])
    seen = (table.rows.reshape(1, -1) >= 0).expand(queries, -1)
    if plan.query_positions is None or table.positions is None:
        return seen
    place = table.positions.reshape(1, -1)
    query = plan.query_positions.reshape(-1, 1)
    allowed = place <= query
    if plan.window > 0:
        allowed = allowed & (query - place < plan.window)
    return seen & (allowed | (place < 0))


def read_mask(table: EntryTable, plan: ReadPlan) -> Tensor:
    """[Hp, T, N * 32] bool: which places each query reads: in its plan, and visible."""
    heads, query_blocks = plan.counts.shape
    in_plan = torch.zeros(
        heads, int(plan.query_starts[-1]), table.rows.shape[0], dtype=torch.bool
    ).to(table.rows.device)
    for head in range(heads):
        for i in range(query_blocks):
            start, end = int(plan.query_starts[i]), int(plan.query_starts[i + 1])
            listed = plan.blocks[head, i, : int(plan.counts[head, i])].long() % FULL
            in_plan[head, start:end, listed] = True
    return in_plan.repeat_interleave(PLACES, dim=-1) & visible(table, plan)


def _rows(pool: Tensor, rows: Tensor) -> Tensor:
    """[Hkv, N * 32, E]: the pool's rows at the places; zeros at empty places."""
    flat = pool.transpose(1, 2).reshape(-1, pool.shape[1], pool.shape[3])
    flat = torch.cat((flat, flat.new_zeros(1, *flat.shape[1:])))
    index = torch.where(rows < 0, flat.shape[0] - 1, rows).reshape(-1).long()
    return flat[index].transpose(0, 1)


def _rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotates the first R dimensions of x [..., E] by a table [..., R]."""
    half = table.shape[-1] // 2
    cosines, sines = table[..., :half].to(x.dtype), table[..., half:].to(x.dtype)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat(
        (first * cosines - second * sines, second * cosines + first * sines, rest), dim=-1
    )


def focused_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    table: EntryTable,
    plan: ReadPlan,
    rules: AttentionRules = PLAIN_RULES,
) -> tuple[Tensor, Tensor]:
    """See ``megacontext_ext.ops.focused_attention``. Computes in the dtype of q."""
    queries, query_heads, width = q.shape
    group = query_heads // keys.shape[1]
    k, v = _rows(keys, table.rows), _rows(values, table.rows)
    q = q.transpose(0, 1)  # [Hq, T, E]
    if rules.rope is not None:
        k = _rotate(k, rules.rope.keys.flatten(0, 1)[None])
        q = _rotate(q, rules.rope.queries[None])
    scale = 1.0 / math.sqrt(width) if rules.scale is None else rules.scale
    scores = scale * q @ k.repeat_interleave(group, dim=0).transpose(1, 2)
    if rules.softcap > 0:
        scores = rules.softcap * torch.tanh(scores / rules.softcap)
    if table.bias is not None:
        bias = table.bias.to(q.dtype).flatten(1)
        scores = scores + bias.repeat_interleave(query_heads // bias.shape[0], dim=0)[:, None]
    mask = read_mask(table, plan)
    mask = mask.repeat_interleave(query_heads // mask.shape[0], dim=0)
    scores = scores.masked_fill(~mask, -math.inf)
    if rules.sink is not None:
        sink = rules.sink.to(q.dtype)[:, None, None].expand(-1, queries, 1)
        scores = torch.cat((scores, sink), dim=-1)
    lse = torch.logsumexp(scores, dim=-1)
    dead = torch.isneginf(lse)
    weights = torch.exp(scores - lse.masked_fill(dead, 0.0)[..., None])
    out = weights[..., : k.shape[1]] @ v.repeat_interleave(group, dim=0)
    return out.transpose(0, 1), lse.transpose(0, 1)


def make_read_plan(
    table: EntryTable,
    query_starts: Tensor,
    query_positions: Tensor | None = None,
    block_ranges: Tensor | None = None,
    block_mask: Tensor | None = None,
    window: int = 0,
) -> tuple[Tensor, Tensor]:
    """counts [Hp, M] and blocks [Hp, M, N] as ``megacontext_ext.ops.make_read_plan`` has them."""
    query_blocks, block_count = query_starts.shape[0] - 1, table.rows.shape[0]
    heads = 1 if block_mask is None else block_mask.shape[0]
    counts = torch.zeros(heads, query_blocks, dtype=torch.int32)
    blocks = torch.zeros(heads, query_blocks, block_count, dtype=torch.int32)
    plan = ReadPlan(query_starts, counts, blocks, query_positions, window=window)
    seen = visible(table, plan).unflatten(1, (block_count, PLACES))
    for i in range(query_blocks):
        start, end = int(query_starts[i]), int(query_starts[i + 1])
        first, last = (0, block_count) if block_ranges is None else block_ranges[i].tolist()
        for block in range(first, last):
            tile = seen[start:end, block]
            if not bool(tile.any()):
                continue
            for head in range(heads):
                if block_mask is None or bool(block_mask[head, i, block]):
                    blocks[head, i, counts[head, i]] = block + (FULL if bool(tile.all()) else 0)
                    counts[head, i] += 1
    return counts, blocks


def merge_attention(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """(out [T, H, E], lse [T, H]) of attention over the union of S disjoint sets of places.

    Args:
        outs: [S, T, H, E], each normalised over its own places.
        lses: [S, T, H].
    """
    lse = torch.logsumexp(lses, dim=0)
    dead = torch.isneginf(lse)
    weights = torch.exp(lses - lse.masked_fill(dead, 0.0))
    return (outs * weights[..., None].to(outs.dtype)).sum(0), lse
