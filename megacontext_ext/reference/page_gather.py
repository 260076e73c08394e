"""page_gather and page_scatter in plain torch: the meaning of the operators."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LARGEST_CODE", "encode", "page_gather", "page_scatter"]

LARGEST_CODE = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def page_gather(
    pool: Tensor, index: Tensor, scales: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Pages [N, S, D] by number; zeros for -1."""
    present = (index >= 0)[:, None, None]
    safe = index.clamp(min=0)
    if scales is None:
        rows = pool[safe] if pool.shape[0] else pool.new_zeros(len(index), *pool.shape[1:])
    else:
        rows = pool[safe].double() * scales[safe].double()[..., None]
    return torch.where(present, rows, torch.zeros_like(rows)).to(dtype or rows.dtype)


def encode(rows: Tensor, code: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes [N, S, D] and scales [N, S], the largest |value| of each row at the largest code."""
    largest = LARGEST_CODE[code]
    if rows.shape[-1] == 0:
        return rows.to(code), rows.new_zeros(rows.shape[:-1], dtype=torch.float32)
    highest = rows.float().abs().amax(-1)
    inverse = torch.where(highest == 0, torch.zeros_like(highest), largest / highest)
    scaled = (rows.float() * inverse[..., None]).clamp(-largest, largest)
    codes = scaled.round() if code == torch.int8 else scaled
    return codes.to(code), highest / largest


def page_scatter(rows: Tensor, index: Tensor, pool: Tensor, scales: Tensor | None = None) -> None:
    """Writes pages by number into `pool` (and `scales`); nothing for -1."""
    present = index >= 0
    if scales is None:
        pool[index[present]] = rows[present]
        return
    codes, row_scales = encode(rows[present], pool.dtype)
    pool.view(torch.uint8)[index[present]] = codes.view(torch.uint8)
    scales[index[present]] = row_scales
