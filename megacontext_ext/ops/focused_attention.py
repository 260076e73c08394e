"""Focused attention: queries over the places of working contexts, read where they lie.

table = EntryTable.from_pages(pages, starts)                     # what may be seen
plan = make_read_plan(table, query_starts, query_positions)      # who reads what, on the device
out, lse = focused_attention(q, keys, values, table, plan)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megacontext_ext.entry_table import PLAIN_RULES, AttentionRules, EntryTable, ReadPlan, Rope
from megacontext_ext.ops._errors import refused
from megacontext_ext.ops._grad import needs_graph
from megacontext_ext.ops._load import load

load()
_ops = torch.ops.megacontext

__all__ = [
    "AttentionRules",
    "EntryTable",
    "ReadPlan",
    "Rope",
    "dense_query_starts",
    "focused_attention",
    "make_read_plan",
    "merge_attention",
]


def focused_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    table: EntryTable,
    plan: ReadPlan,
    rules: AttentionRules = PLAIN_RULES,
) -> tuple[Tensor, Tensor]:
    """Attention of each query over the places that its plan lists and that it may see.

    Args:
        q: [T, Hq, E] float32, bfloat16 or float16; E is 64, 128 or 256. The queries of a batch of
            sequences of any lengths, one after another.
        keys, values: [P, Hkv, R, E] as q: pools of pages of R rows (a power of two; 32 is one
            LOD-0 block a page). Hkv divides Hq. Keys are un-rotated when ``rules.rope`` is given.
        table: the places, what row each points to, positions, bias.
        plan: which blocks of places each block of queries reads; carries causality and window.
        rules: scale, softcap, learned sink, rotary tables.

    Returns:
        out [T, Hq, E] as q, and lse [T, Hq] float32, the log of the sum of exp(score). A query
        that sees nothing gets zeros and -inf; one whose list was cut (see ReadPlan) gets NaN.

    Raises:
        InvalidArgument: a shape, dtype or device differs from the above; a tensor is not
            contiguous; on CPU also a row, block or start out of range.

    Gradients: q, keys, values, ``table.bias`` and ``rules.sink``; not the tables. Deterministic.
    Cost: 4 * E * (queries * places read) * Hq operations; nothing of the pools is copied on CPU;
        on CUDA a rotated copy of the table's keys is made when ``rules.rope`` is given.
    Source: online softmax (Milakov & Gimelshein 2018), FlashAttention-2 (Dao 2023).
    """
    rope = rules.rope
    scale = 1.0 / math.sqrt(q.shape[-1]) if rules.scale is None else rules.scale
    wanted = needs_graph(q, keys, values, table.bias, rules.sink)
    return _raising(
        _ops.focused_attention if wanted else _ops.focused_attention_no_grad,
        *(q, keys, values, table.rows, table.positions, table.bias),
        *(plan.query_starts, plan.query_positions, plan.counts, plan.blocks, rules.sink),
        *(None if rope is None else rope.keys, None if rope is None else rope.queries),
        *(scale, rules.softcap, plan.window, plan.query_tile),
    )


def make_read_plan(
    table: EntryTable,
    query_starts: Tensor,
    query_positions: Tensor | None = None,
    block_ranges: Tensor | None = None,
    block_mask: Tensor | None = None,
    *,
    query_tile: int = 128,
    window: int = 0,
    capacity: int | None = None,
) -> ReadPlan:
    """The plan that reads every block with a visible place; made on the device, without a sync.

    Args:
        table: the places.
        query_starts: [M + 1] int32, see ReadPlan.
        query_positions: [T] int32; given: causal.
        block_ranges: [M, 2] int32, the blocks [first, last) of the sequence that each query block
            belongs to; None: all blocks.
        block_mask: [Hp, M, N] bool, what focus selected, per head or Hp = 1; None: everything.
        query_tile: most queries in a query block (1 for decode); the caller's promise.
        window: how many positions back a query sees; 0 is without limit.
        capacity: longest list; None: all N blocks. A longer list is cut and yields NaN.

    Safe inside a CUDA graph: shapes depend on shapes alone. Cost: O(N * 32 + M * N).
    """
    counts, blocks = _raising(
        _ops.make_read_plan,
        *(table.rows, table.positions, query_starts, query_positions, block_ranges, block_mask),
        *(window, table.rows.shape[0] if capacity is None else capacity),
    )
    return ReadPlan(query_starts, counts, blocks, query_positions, query_tile, window)


def dense_query_starts(lengths: list[int], query_tile: int, device: Any = "cpu") -> Tensor:
    """[M + 1] int32: query blocks of at most query_tile queries that cross no sequence's end."""
    starts, total = [0], 0
    for length in lengths:
        starts += [total + min(i + query_tile, length) for i in range(0, length, query_tile)]
        total += length
    return torch.tensor(starts, dtype=torch.int32, device=device)


def merge_attention(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of S disjoint sets of places, from the results over each.

    Args:
        outs: [S, T, H, E] float32, bfloat16 or float16; E a multiple of 16.
        lses: [S, T, H] float32.

    Returns:
        out [T, H, E] as outs, lse [T, H].
    """
    return _raising(_ops.merge_attention, outs, lses)


def _raising(op: Callable[..., Any], *arguments: Any) -> Any:
    """Calls an operator; what it refuses becomes InvalidArgument."""
    try:
        return op(*arguments)
    except RuntimeError as error:
        raise refused(error) from None


@torch.library.register_fake("megacontext::focused_attention_no_grad")
@torch.library.register_fake("megacontext::focused_attention")
def _focused_attention_fake(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)


@torch.library.register_fake("megacontext::focused_attention_backward")
def _backward_fake(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    positions: Tensor | None,
    bias: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_bias = q.new_empty(0, dtype=torch.float32) if bias is None else torch.empty_like(bias)
    return torch.empty_like(q), torch.empty_like(keys), torch.empty_like(values), grad_bias


@torch.library.register_fake("megacontext::make_read_plan")
def _make_read_plan_fake(
    rows: Tensor,
    positions: Tensor | None,
    query_starts: Tensor,
    query_positions: Tensor | None,
    block_ranges: Tensor | None,
    block_mask: Tensor | None,
    window: int,
    capacity: int,
) -> tuple[Tensor, Tensor]:
    heads = 1 if block_mask is None else block_mask.shape[0]
    query_blocks = query_starts.shape[0] - 1
    counts = rows.new_empty((heads, query_blocks), dtype=torch.int32)
    return counts, rows.new_empty((heads, query_blocks, capacity), dtype=torch.int32)


@torch.library.register_fake("megacontext::merge_attention")
def _merge_attention_fake(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    return outs.new_empty(outs.shape[1:]), lses.new_empty(lses.shape[1:])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:13], *output)
    ctx.options = inputs[13:]


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor | None) -> tuple[Any, ...]:
    *tensors, out, lse = ctx.saved_tensors
    grad_out = grad_out.contiguous()
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    grad_q, grad_keys, grad_values, grad_bias = _ops.focused_attention_backward(
        grad_out, grad_lse, out, lse, *tensors, *ctx.options
    )
    bias, sink = tensors[5], tensors[10]
    grad_sink = None
    if sink is not None and ctx.needs_input_grad[10]:
        delta = (grad_out.float() * out.float()).sum(-1)
        if grad_lse is not None:
            delta = delta - grad_lse
        grad_sink = -(torch.exp(sink - lse) * delta).sum(0)
    grads: list[Any] = [grad_q, grad_keys, grad_values] + [None] * (10 + len(ctx.options))
    grads[5] = None if bias is None else grad_bias
    grads[10] = grad_sink
    return tuple(grads)


torch.library.register_autograd(
    "megacontext::focused_attention", _backward, setup_context=_setup_context
)


def _merge_setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _merge_backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor, Tensor]:
    outs, lses, out, lse = ctx.saved_tensors
    weights = torch.exp(lses - lse.masked_fill(torch.isneginf(lse), 0.0))
    gain = ((outs.float() - out.float()) * grad_out.float()).sum(-1)
    return (weights[..., None] * grad_out).to(outs.dtype), weights * (gain + grad_lse)


torch.library.register_autograd(
    "megacontext::merge_attention", _merge_backward, setup_context=_merge_setup
)
