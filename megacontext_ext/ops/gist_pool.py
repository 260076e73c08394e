"""gist_pool: blocks of rows become one row each, by mean, weighted mean or attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megacontext_ext.ops._errors import refused
from megacontext_ext.ops._grad import needs_graph
from megacontext_ext.ops._load import load

__all__ = ["gist_pool", "gist_pool_tree", "gist_pool_tree_counts"]

load()
_OPS = torch.ops.megacontext


def gist_pool(
    rows: Tensor,
    block_size: int,
    *,
    weights: Tensor | None = None,
    query: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """The gist of each block of `block_size` consecutive rows.

    A gist is the sum of ``share[i] * rows[i]`` over its block. The shares are 1/block_size, or in
    proportion to ``weights``, or to ``weights * exp(scale * rows @ query)``.

    Args:
        rows: [N*block_size, D] float32, bfloat16 or float16, contiguous.
        block_size: rows in a block, 1 to 1024.
        weights: [N*block_size] float32, >= 0. A row of weight 0 takes no part and may be NaN; it
            gets no gradient. A block with no weight at all gives zeros.
        query: [D], dtype of rows: learned-query attention pooling.
        scale: multiplies the scores before the softmax; 1/sqrt(D) is usual.

    Returns:
        [N, D], dtype of rows; sums are kept in float32.

    Raises:
        InvalidArgument: a shape, dtype or device differs from the above.

    Cost: reads the rows once from memory; 3 FLOPs an element with weights, 5 with a query.
    Example:
        >>> gist_pool(torch.arange(8.0).view(4, 2), 2)
        tensor([[1., 2.],
                [5., 6.]])
    """
    op = _OPS.gist_pool if needs_graph(rows, weights, query) else _OPS.gist_pool_no_grad
    try:
        return op(rows, block_size, weights, query, scale)
    except RuntimeError as error:
        raise refused(error) from None


def gist_pool_tree(
    rows: Tensor,
    block_size: int = 32,
    *,
    weights: Tensor | None = None,
    query: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor | None]:
    """The gists of every LOD of the tree over `rows`, LOD 1 first.

    LOD n+1 pools the gists of LOD n, with the same bits as `gist_pool` on each LOD. Rows at the end
    that fill no block have no gist. The weight of a node is the sum of its children's.

    Args:
        rows: [R, D] as in `gist_pool`, R any number.
        block_size: fan-out of the tree, 2 to 1024.
        weights, query, scale: as in `gist_pool`.

    Returns:
        nodes: [sum of gist_pool_tree_counts(R, block_size), D].
        node_weights: [same count] float32, or None without weights.

    Raises:
        InvalidArgument: a shape, dtype or device differs from the above.
    """
    try:
        nodes, node_weights = _OPS.gist_pool_tree(rows, block_size, weights, query, scale)
    except RuntimeError as error:
        raise refused(error) from None
    return nodes, None if weights is None else node_weights


def gist_pool_tree_counts(row_count: int, block_size: int = 32) -> list[int]:
    """Number of nodes of LOD 1, 2, ... over `row_count` rows.

    Example:
        >>> gist_pool_tree_counts(70_000)
        [2187, 68, 2]
    """
    counts = []
    while (row_count := row_count // block_size) > 0:
        counts.append(row_count)
    return counts


@torch.library.register_fake("megacontext::gist_pool_no_grad")
@torch.library.register_fake("megacontext::gist_pool")
def _fake(rows, block_size, weights=None, query=None, scale=1.0):
    return rows.new_empty(rows.shape[0] // block_size, rows.shape[1])


@torch.library.register_fake("megacontext::gist_pool_out")
def _fake_out(rows, block_size, weights, query, scale, gists):
    return None


@torch.library.register_fake("megacontext::gist_pool_backward")
def _fake_backward(grad_gists, rows, block_size, weights, query, scale, *wants):
    count, width = rows.shape
    wants_rows, wants_weights, wants_query = wants
    return (
        rows.new_empty(count if wants_rows else 0, width),
        rows.new_empty(count if wants_weights else 0, dtype=torch.float32),
        rows.new_empty(width if wants_query else 0),
    )


@torch.library.register_fake("megacontext::gist_pool_tree")
def _fake_tree(rows, block_size, weights=None, query=None, scale=1.0):
    nodes = sum(gist_pool_tree_counts(rows.shape[0], block_size))
    node_weights = rows.new_empty(0 if weights is None else nodes, dtype=torch.float32)
    return rows.new_empty(nodes, rows.shape[1]), node_weights


def _setup_context(ctx, inputs, output):
    rows, block_size, weights, query, scale = inputs
    ctx.save_for_backward(rows, weights, query)
    ctx.block_size, ctx.scale = block_size, scale


def _needs_grad(ctx):
    """Of each of the five arguments; torch leaves out those at the end that have their default."""
    return (*ctx.needs_input_grad, *[False] * (5 - len(ctx.needs_input_grad)))


def _backward(ctx, grad_gists):
    rows, weights, query = ctx.saved_tensors
    needs = _needs_grad(ctx)
    wants = (needs[0], needs[2], needs[3])
    grads = _OPS.gist_pool_backward(
        grad_gists.contiguous(), rows, ctx.block_size, weights, query, ctx.scale, *wants
    )
    grad_rows, grad_weights, grad_query = (
        grad if wanted else None for grad, wanted in zip(grads, wants, strict=True)
    )
    return grad_rows, None, grad_weights, grad_query, None


def _setup_context_tree(ctx, inputs, output):
    rows, block_size, weights, query, scale = inputs
    nodes, node_weights = output
    ctx.save_for_backward(rows, weights, query, nodes, node_weights)
    ctx.block_size, ctx.scale = block_size, scale
    ctx.set_materialize_grads(True)


def _backward_tree(ctx, grad_nodes, grad_node_weights):
    """From the top LOD down: each LOD adds what its parents pass to it."""
    rows, weights, query, nodes, node_weights = ctx.saved_tensors
    needs = _needs_grad(ctx)
    wants_weights = weights is not None and (needs[0] or needs[2])
    wants = (True, wants_weights, needs[3])
    counts = gist_pool_tree_counts(rows.shape[0], ctx.block_size)
    starts = [sum(counts[:lod]) for lod in range(len(counts))]
    grad_query = None if query is None else torch.zeros_like(query)
    grads = [grad_nodes[s : s + n].contiguous() for s, n in zip(starts, counts, strict=True)]
    mass_grads: list[Any] = [
        grad_node_weights[s : s + n] if wants_weights else None
        for s, n in zip(starts, counts, strict=True)
    ]
    grad_rows = torch.zeros_like(rows)
    grad_weights: Any = torch.zeros_like(weights) if wants_weights else None
    for lod in reversed(range(len(counts))):
        used = counts[lod] * ctx.block_size
        below = slice(starts[lod - 1], starts[lod - 1] + used) if lod else slice(0, used)
        from_rows, from_weights = (nodes, node_weights) if lod else (rows, weights)
        to_rows, to_weights, to_query = _OPS.gist_pool_backward(
            grads[lod],
            from_rows[below],
            ctx.block_size,
            None if weights is None else from_weights[below],
            query,
            ctx.scale,
            *wants,
        )
        if wants_weights:
            to_weights = to_weights + mass_grads[lod].repeat_interleave(ctx.block_size)
        if wants[2]:
            grad_query = grad_query + to_query
        if lod:
            grads[lod - 1][:used] += to_rows
            if wants_weights:
                mass_grads[lod - 1] = mass_grads[lod - 1].clone()
                mass_grads[lod - 1][:used] += to_weights
        else:
            grad_rows[:used] = to_rows
            if wants_weights:
                grad_weights[:used] = to_weights
    return grad_rows, None, grad_weights, grad_query if wants[2] else None, None


torch.library.register_autograd("megacontext::gist_pool", _backward, setup_context=_setup_context)
torch.library.register_autograd(
    "megacontext::gist_pool_tree", _backward_tree, setup_context=_setup_context_tree
)
