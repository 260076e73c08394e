"""gaussian_rope in plain torch: the meaning of the operator, in any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gaussian_rope", "gaussian_rope_tables"]


def gaussian_rope_tables(
    positions: Tensor, sigmas: Tensor | None, inv_freq: Tensor, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Damped cosines and sines, [..., P] for positions [...] and inv_freq [P]."""
    angles = positions[..., None] * inv_freq
    damping = torch.ones_like(angles)
    if sigmas is not None:
        damping = torch.exp(-0.5 * (sigmas[..., None] * inv_freq) ** 2)
    return scale * damping * angles.cos(), scale * damping * angles.sin()


def gaussian_rope(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool = False) -> Tensor:
    """x [B, H, T, E] turned by tables [1 or B, T, P]; columns from 2*P on are left alone."""
    pairs = cos.shape[-1]
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    if inverse:
        sin = -sin
    first, second, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat((*turned, rest), dim=-1)
