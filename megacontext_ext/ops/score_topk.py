"""Exact top-k: of scores, of node vectors scored on the way, and down a tree by beam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from megacontext_ext.errors import InvalidArgument
from megacontext_ext.ops._errors import refused
from megacontext_ext.ops._grad import needs_graph
from megacontext_ext.ops._load import load

__all__ = ["score_beam", "score_topk", "score_topk_at", "topk"]

load()
_OPS = torch.ops.megacontext


def topk(scores: Tensor, k: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k best scores of each list and where they are.

    Greater first, of equals the lower position first: the same result on every device, run and
    number of threads. NaN counts as -inf, -0 as +0. A masked position is never returned; where
    fewer than k are allowed the value is -inf and the index -1.

    Args:
        scores: [N] or [B, N] float32, contiguous.
        k: 0 to N.
        mask: [N] or [B, N] bool, True allows; None allows all.

    Returns:
        values float32 and indices int64, [k] or [B, k]. Values carry gradient to `scores`.

    Raises:
        InvalidArgument: a shape or dtype differs from the above, or k is out of range.

    Cost: one read of `scores` on CPU, four on CUDA (of what is mostly in L2); no host sync.
    ``torch.ops.megacontext.topk_out(scores, mask, values, indices)`` writes into given tensors.
    Source: threshold from a sample, then exact radix selection; see csrc/kernels/score_topk.
    """
    op = _OPS.topk if needs_graph(scores) else _OPS.topk_no_grad
    try:
        return op(scores, k, mask)
    except RuntimeError as error:
        raise refused(error) from None


def score_topk(
    queries: Tensor,
    rows: Tensor,
    k: int,
    *,
    scales: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k rows with the greatest dot product with each query.

    Order, NaN and masks as in `topk`. On CPU no score matrix exists; on CUDA scores of 8 queries
    at a time do.

    Args:
        queries: [D] or [Q, D] float32 or bfloat16, contiguous.
        rows: [N, D] float32, bfloat16 or int8, contiguous.
        k: 0 to N.
        scales: [N] float32, with int8 rows only: multiplies the score.
        mask: [N] or [Q, N] bool, True allows.

    Returns:
        values float32 and indices int64, [k] or [Q, k]. Values carry gradient to `queries`, and
        to `rows` unless they are int8.

    Raises:
        InvalidArgument: a shape or dtype differs from the above, or k is out of range.

    Cost: one read of the allowed rows for every 4 (CPU) or 8 (CUDA) queries.
    """
    op = _OPS.score_topk if needs_graph(queries, rows) else _OPS.score_topk_no_grad
    try:
        return op(queries, rows, k, scales, mask)
    except RuntimeError as error:
        raise refused(error) from None


def score_topk_at(
    queries: Tensor, rows: Tensor, candidates: Tensor, k: int, *, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`score_topk` among the rows that `candidates` names.

    Args:
        queries: [D] or [Q, D] float32 or bfloat16, contiguous.
        rows: [N, D] float32, bfloat16 or int8, contiguous.
        candidates: [C] or [Q, C] int64, positions in `rows`; any other number is skipped. Of equal
            scores the earlier candidate comes first.
        k: 0 to C.
        scales: [N] float32, with int8 rows only.

    Returns:
        values and indices (positions in `rows`, -1 with value -inf where too few are valid).

    Raises:
        InvalidArgument: a shape or dtype differs from the above, or k is out of range.
    """
    try:
        return _OPS.score_topk_at(queries, rows, candidates, k, scales)
    except RuntimeError as error:
        raise refused(error) from None


def score_beam(
    queries: Tensor,
    lods: Sequence[Tensor],
    k: int,
    beam: int,
    *,
    scales: Sequence[Tensor] | None = None,
    fan_out: int = 32,
) -> list[tuple[Tensor, Tensor]]:
    """Hierarchical search down a tree: only the children of the `beam` best nodes are scored.

    Args:
        queries: [Q, D] float32 or bfloat16.
        lods: rows of each LOD, coarsest first, each [N_l, D]; the children of node i are rows
            fan_out*i to fan_out*(i+1) of the next, as far as they exist.
        k: places returned at the finest LOD.
        beam: nodes kept at every coarser LOD.
        scales: [N_l] of each LOD, with int8 rows.
        fan_out: children of a node.

    Returns:
        (values, indices) of each LOD, coarsest first, each [Q, at most beam or k].

    Cost: beam * fan_out rows a query and LOD, instead of all; no host sync.
    """
    if queries.dim() != 2:
        raise InvalidArgument(f"[score_beam] queries must be [Q, D], got {tuple(queries.shape)}")
    kept: list[tuple[Tensor, Tensor]] = []
    for number, rows in enumerate(lods):
        width = k if number == len(lods) - 1 else beam
        of_lod = None if scales is None else scales[number]
        if number == 0:
            kept.append(score_topk(queries, rows, min(width, rows.shape[0]), scales=of_lod))
            continue
        children = _children(kept[-1][1], fan_out)
        width = min(width, children.shape[-1])
        kept.append(score_topk_at(queries, rows, children, width, scales=of_lod))
    return kept


def _children(parents: Tensor, fan_out: int) -> Tensor:
    """[Q, w * fan_out] children, ascending so that ties go to the lower node; of -1, -1."""
    parents = torch.sort(parents, dim=-1).values.unsqueeze(-1)
    children = parents * fan_out + torch.arange(fan_out, device=parents.device)
    return torch.where(parents >= 0, children, -1).flatten(-2)


def _selection(lists: Sequence[int | torch.SymInt], k: int, like: Tensor) -> tuple[Tensor, Tensor]:
    shape = [*lists, k]
    return (
        like.new_empty(shape, dtype=torch.float32),
        like.new_empty(shape, dtype=torch.int64),
    )


@torch.library.register_fake("megacontext::topk_no_grad")
@torch.library.register_fake("megacontext::topk")
def _topk_fake(scores: Tensor, k: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return _selection(scores.shape[:-1], k, scores)


@torch.library.register_fake("megacontext::topk_out")
def _topk_out_fake(scores: Tensor, mask: Tensor | None, values: Tensor, indices: Tensor) -> None:
    return None


@torch.library.register_fake("megacontext::score_topk_no_grad")
@torch.library.register_fake("megacontext::score_topk")
def _score_topk_fake(
    queries: Tensor,
    rows: Tensor,
    k: int,
    scales: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return _selection(queries.shape[:-1], k, rows)


@torch.library.register_fake("megacontext::score_topk_at")
def _score_topk_at_fake(
    queries: Tensor, rows: Tensor, candidates: Tensor, k: int, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return _selection(queries.shape[:-1], k, rows)


def _found(indices: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Places without a row are pointed at row 0 with gradient 0."""
    return indices.clamp(min=0), torch.where(indices >= 0, grad, 0.0)


def _topk_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.count = inputs[0].shape[-1]
    ctx.save_for_backward(output[1])


def _topk_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, None, None]:
    (indices,) = ctx.saved_tensors
    at, weight = _found(indices, grad)
    zeros = weight.new_zeros([*indices.shape[:-1], ctx.count])
    return zeros.scatter_add(-1, at, weight), None, None


def _score_topk_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    queries, rows, _, scales, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(queries, rows, output[1], scales)


def _score_topk_at_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    queries, rows, _, _, scales = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(queries, rows, output[1], scales)


def _score_grads(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    queries, rows, indices, scales = ctx.saved_tensors
    if rows.shape[0] == 0 or indices.numel() == 0:
        zero_rows = torch.zeros_like(rows) if ctx.needs_input_grad[1] else None
        return torch.zeros_like(queries), zero_rows
    at, weight = _found(indices, grad)
    if scales is not None:
        weight = weight * scales[at]
    grad_queries = grad_rows = None
    if ctx.needs_input_grad[0]:
        chosen = rows[at].to(torch.float32)
        grad_queries = (weight.unsqueeze(-2) @ chosen).squeeze(-2).to(queries.dtype)
    if ctx.needs_input_grad[1]:
        parts = weight.unsqueeze(-1) * queries.to(torch.float32).unsqueeze(-2)
        flat = rows.new_zeros(rows.shape, dtype=torch.float32)
        flat = flat.index_put((at.flatten(),), parts.flatten(0, -2), accumulate=True)
        grad_rows = flat.to(rows.dtype)
    return grad_queries, grad_rows


def _score_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    return (*_score_grads(ctx, grad), None, None, None)


torch.library.register_autograd("megacontext::topk", _topk_backward, setup_context=_topk_setup)
torch.library.register_autograd(
    "megacontext::score_topk", _score_backward, setup_context=_score_topk_setup
)
torch.library.register_autograd(
    "megacontext::score_topk_at", _score_backward, setup_context=_score_topk_at_setup
)
