"""page_gather and page_scatter: pages by number between a pool and a contiguous tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from megacontext_ext.errors import InvalidArgument
from megacontext_ext.ops._errors import refused
from megacontext_ext.ops._grad import needs_graph
from megacontext_ext.ops._load import load

__all__ = ["page_gather", "page_gather_out", "page_scatter"]

load()
_OPS = torch.ops.megacontext


def page_gather(
    pool: Tensor,
    index: Tensor,
    *,
    scales: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """The pages of `pool` that `index` names, one after another.

    Args:
        pool: [P, S, D] pages of S rows, or [P, D] pages of one row; any dtype, contiguous. With a
            CUDA index it may lie in pinned host memory.
        index: [N] int64 in [-1, P); -1 gives zeros. Outside: refused on CPU, -1 on CUDA.
        scales: [P, S] (or [P]) float32, for an int8 or float8_e4m3fn pool: value = code * scale.
        dtype: of the result, with scales only: float32, bfloat16 or float16.

    Returns:
        [N, S, D] (or [N, D]) on the device of index. Without scales it has the dtype of the pool
        and is differentiable in it.

    Raises:
        InvalidArgument: a shape, dtype, device or index differs from the above.

    Cost: reads and writes each page once.
    Example:
        >>> page_gather(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, -1]))
        tensor([[3., 4.],
                [0., 0.]])
    """
    if scales is not None:
        shape = (index.shape[0], *pool.shape[1:])
        return page_gather_out(pool, index, index.new_empty(shape, dtype=dtype), scales=scales)
    _check_place(pool, index)
    op = _OPS.page_gather if needs_graph(pool) else _OPS.page_gather_no_grad
    try:
        if pool.dim() == 2:
            return op(pool.unsqueeze(1), index).squeeze(1)
        return op(pool, index)
    except RuntimeError as error:
        raise refused(error) from None


def page_gather_out(
    pool: Tensor, index: Tensor, rows: Tensor, *, scales: Tensor | None = None
) -> Tensor:
    """`page_gather` into `rows`, which is returned; without gradients and without allocation."""
    _check_place(pool, index)
    try:
        if pool.dim() == 2:
            wide_scales = None if scales is None else scales.unsqueeze(1)
            _OPS.page_gather_out(pool.unsqueeze(1), index, wide_scales, rows.unsqueeze(1))
        else:
            _OPS.page_gather_out(pool, index, scales, rows)
    except RuntimeError as error:
        raise refused(error) from None
    return rows


def page_scatter(
    rows: Tensor, index: Tensor, pool: Tensor, *, scales: Tensor | None = None
) -> None:
    """Writes `rows` into the pages of `pool` that `index` names.

    Args:
        rows: [N, S, D] (or [N, D]), contiguous: the pool's dtype, or with scales float32, bfloat16
            or float16, and finite.
        index: [N] int64 in [-1, P), distinct but for -1, which writes nothing.
        pool: [P, S, D] (or [P, D]), written.
        scales: [P, S] (or [P]) float32, written, for an int8 or float8_e4m3fn pool: the largest
            |value| of each row over 127 or 448.

    Raises:
        InvalidArgument: a shape, dtype, device or index differs from the above.

    Cost: reads and writes each page once. Not differentiable.
    """
    _check_place(pool, index)
    try:
        if pool.dim() == 2:
            wide_scales = None if scales is None else scales.unsqueeze(1)
            _OPS.page_scatter(rows.unsqueeze(1), index, pool.unsqueeze(1), wide_scales)
        else:
            _OPS.page_scatter(rows, index, pool, scales)
    except RuntimeError as error:
        raise refused(error) from None


def _check_place(pool: Tensor, index: Tensor) -> None:
    """A CUDA kernel may read host memory only where it is pinned."""
    if pool.device != index.device and not (index.is_cuda and pool.is_pinned()):
        raise InvalidArgument(
            f"[page_gather] pool must be on {index.device} as index is, or in pinned host memory, "
            f"got {pool.device}"
        )


@torch.library.register_fake("megacontext::page_gather_no_grad")
@torch.library.register_fake("megacontext::page_gather")
def _fake(pool, index):
    return index.new_empty((index.shape[0], *pool.shape[1:]), dtype=pool.dtype)


@torch.library.register_fake("megacontext::page_gather_out")
def _fake_out(pool, index, scales, rows):
    return None


@torch.library.register_fake("megacontext::page_scatter")
def _fake_scatter(rows, index, pool, scales=None):
    return None


def _setup(ctx, inputs, output):
    pool, index = inputs
    ctx.save_for_backward(index)
    ctx.pool_shape = pool.shape


def _backward(ctx, grad):
    """Adds up over repeated pages; index_put_ sorts to accumulate, so the order is fixed."""
    (index,) = ctx.saved_tensors
    present = (index >= 0)[:, None, None]
    grad_pool = grad.new_zeros(ctx.pool_shape)
    if ctx.pool_shape[0]:
        grad_pool.index_put_((index.clamp(min=0),), grad * present, accumulate=True)
    return grad_pool, None


torch.library.register_autograd("megacontext::page_gather", _backward, setup_context=_setup)
