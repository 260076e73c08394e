"""Exact selection of the best rows, in plain torch: the meaning of ``topk`` and ``score_topk``."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["score_beam", "score_topk", "score_topk_at", "topk"]


def topk(scores: Tensor, k: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k best of each list: greater first, of equals the lower position first.

    NaN counts as -inf and -0 as +0. A masked position is never returned: where fewer than k are
    allowed the value is -inf and the index -1.

    Args:
        scores: [B, N], floating.
        k: 0 to N.
        mask: [N] or [B, N] bool, True allows; None allows all.

    Returns:
        values [B, k] in the dtype of `scores`, indices [B, k] int64.
    """
    minus_inf = float("-inf")
    ordered = torch.nan_to_num(scores, nan=minus_inf, posinf=float("inf"), neginf=minus_inf) + 0.0
    allowed = torch.ones_like(scores, dtype=torch.bool)
    if mask is not None:
        allowed = allowed & mask
    # Two stable sorts: by value, then the forbidden behind everything.
    order = torch.sort(ordered, dim=-1, descending=True, stable=True).indices
    behind = torch.sort((~allowed).gather(-1, order).to(torch.int8), dim=-1, stable=True).indices
    order = order.gather(-1, behind)[:, :k]
    found = allowed.gather(-1, order)
    values = torch.where(found, ordered.gather(-1, order), minus_inf)
    return values, torch.where(found, order, -1)


def _dots(queries: Tensor, rows: Tensor, scales: Tensor | None) -> Tensor:
    dtype = torch.promote_types(queries.dtype, torch.float32)
    scores = queries.to(dtype) @ rows.to(dtype).mT
    return scores if scales is None else scores * scales.to(dtype).unsqueeze(-2)


def score_topk(
    queries: Tensor,
    rows: Tensor,
    k: int,
    scales: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k rows with the greatest dot product with each query, times the row's scale.

    Args:
        queries: [Q, D] floating.
        rows: [N, D] floating or int8.
        k: 0 to N.
        scales: [N] floating, for int8 rows.
        mask: [N] or [Q, N] bool.

    Returns:
        values [Q, k], indices [Q, k]; see `topk` for order, NaN and masks.
    """
    return topk(_dots(queries, rows, scales), k, mask)


def score_topk_at(
    queries: Tensor,
    rows: Tensor,
    candidates: Tensor,
    k: int,
    scales: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`score_topk` among the rows that `candidates` [Q, C] names; others than 0..N-1 are skipped.

    Of equal scores the earlier candidate comes first. Indices are positions in `rows`.
    """
    valid = (candidates >= 0) & (candidates < len(rows))
    at = torch.where(valid, candidates, 0)
    if len(rows) == 0:
        scores = torch.zeros(candidates.shape, dtype=torch.float32, device=queries.device)
    else:
        named = None if scales is None else scales[at]
        scores = _dots(queries.unsqueeze(1), rows[at], named).squeeze(1)
    values, places = topk(scores, k, valid)
    found = places >= 0
    return values, torch.where(found, candidates.gather(-1, places.clamp(min=0)), -1)


def score_beam(
    queries: Tensor,
    lods: list[Tensor],
    k: int,
    beam: int,
    *,
    scales: list[Tensor] | None = None,
    fan_out: int = 32,
) -> list[tuple[Tensor, Tensor]]:
    """Hierarchical search: at each LOD only the children of the `beam` best nodes are scored.

    Args:
        queries: [Q, D].
        lods: rows of each LOD, coarsest first: [N_l, D]; node i has children fan_out*i ... in the
            next.
        k: places returned at the finest LOD.
        beam: nodes kept at every coarser LOD.
        scales: [N_l] for each LOD, with int8 rows.
        fan_out: children of a node.

    Returns:
        (values, indices) of each LOD, coarsest first; fewer than asked are padded with -inf and -1.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    for number, rows in enumerate(lods):
        width = k if number == len(lods) - 1 else beam
        of_lod = None if scales is None else scales[number]
        if number == 0:
            kept.append(score_topk(queries, rows, min(width, len(rows)), of_lod))
            continue
        parents = torch.sort(kept[-1][1], dim=-1).values
        children = parents.unsqueeze(-1) * fan_out + torch.arange(fan_out, device=parents.device)
        children = torch.where(parents.unsqueeze(-1) >= 0, children, -1).flatten(-2)
        width = min(width, children.shape[-1])
        kept.append(score_topk_at(queries, rows, children, width, of_lod))
    return kept
