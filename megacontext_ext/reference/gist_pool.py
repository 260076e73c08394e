"""gist_pool in plain torch: the meaning of the operator, in any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gist_pool", "gist_pool_tree"]


def gist_pool(
    rows: Tensor,
    block_size: int,
    weights: Tensor | None = None,
    query: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """One row for each block of `block_size` rows; see ``megacontext_ext.ops.gist_pool``."""
    count, width = rows.shape
    blocks = rows.view(count // block_size, block_size, width)
    mass = rows.new_ones(blocks.shape[:2])
    if weights is not None:
        mass = weights.to(rows.dtype).view(-1, block_size)
        # Rows of weight 0 are not looked at: NaN in them reaches neither result nor gradients.
        blocks = blocks.masked_fill((mass == 0)[..., None], 0)
        mass = mass.masked_fill(mass == 0, 0)
    if query is not None:
        scores = (scale * (blocks @ query)).masked_fill(mass == 0, float("-inf"))
        highest = scores.detach().amax(-1, keepdim=True)
        highest = torch.where(highest.isfinite(), highest, torch.zeros_like(highest))
        mass = mass * torch.exp(scores - highest)
    total = mass.sum(-1, keepdim=True)
    shares = mass / torch.where(total == 0, torch.ones_like(total), total)
    return (shares[..., None] * blocks).sum(-2)


def gist_pool_tree(
    rows: Tensor,
    block_size: int,
    weights: Tensor | None = None,
    query: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor | None]:
    """Gists of every LOD, LOD 1 first, and their weights; the tail that fills no block is left."""
    levels, level_weights = [rows[:0]], [] if weights is None else [weights[:0]]
    while rows.shape[0] >= block_size:
        whole = rows.shape[0] // block_size * block_size
        rows = rows[:whole]
        weights = None if weights is None else weights[:whole]
        rows = gist_pool(rows, block_size, weights, query, scale)
        levels.append(rows)
        if weights is not None:
            weights = weights.view(-1, block_size).sum(-1)
            level_weights.append(weights)
    return torch.cat(levels), None if weights is None else torch.cat(level_weights)
