"""gaussian_rope: rotary embedding for places with a width, such as gists have."""

from __future__ import annotations

import torch
from torch import Tensor

from megacontext_ext.ops._errors import refused
from megacontext_ext.ops._grad import needs_graph
from megacontext_ext.ops._load import load

__all__ = ["gaussian_rope", "gaussian_rope_", "gaussian_rope_tables"]

load()
_OPS = torch.ops.megacontext


def gaussian_rope_tables(
    positions: Tensor, sigmas: Tensor | None, inv_freq: Tensor, *, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `gaussian_rope`, damped by the width of each place.

    With positions spread around p as a Gaussian of width sigma, the expected rotation of frequency
    w is the plain one times exp(-(sigma*w)^2/2): fast frequencies fade, slow ones stay.

    Args:
        positions: [N] or [B, T] float32, the mean place in tokens, may be fractional.
        sigmas: shape of positions, float32, >= 0, in tokens; None or 0 is plain RoPE, exactly.
        inv_freq: [P] float32, radians a token (``rotary_emb.inv_freq`` of a transformers model).
        scale: multiplies both tables (``rotary_emb.attention_scaling``).

    Returns:
        (cos, sin), float32, [..., P]. Differentiable in positions and sigmas.

    Raises:
        InvalidArgument: a shape, dtype or device differs from the above.
    Source: the characteristic function of a Gaussian, applied to the angle.
    """
    shape = (*positions.shape, inv_freq.shape[-1])
    flat = None if sigmas is None else sigmas.reshape(-1)
    try:
        cos, sin = _OPS.gaussian_rope_tables(positions.reshape(-1), flat, inv_freq, scale)
    except RuntimeError as error:
        raise refused(error) from None
    return cos.view(shape), sin.view(shape)


def gaussian_rope(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False) -> Tensor:
    """Queries or keys turned to their places, in Llama's half-rotation layout.

    Args:
        x: [B, H, T, E] float32, bfloat16 or float16, contiguous.
        cos, sin: [T, P], [1, T, P] or [B, T, P] float32, 2*P <= E; columns from 2*P on are copied.
        inverse: turns back (exactly the inverse only where sigma is 0).

    Returns:
        [B, H, T, E], dtype of x; float32 arithmetic, rounded once.

    Raises:
        InvalidArgument: a shape, dtype or device differs from the above.

    Cost: reads and writes x once.
    """
    if cos.dim() == 2:
        cos, sin = cos[None], sin[None]
    op = _OPS.gaussian_rope if needs_graph(x, cos, sin) else _OPS.gaussian_rope_no_grad
    try:
        return op(x, cos, sin, inverse)
    except RuntimeError as error:
        raise refused(error) from None


def gaussian_rope_(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False) -> Tensor:
    """`gaussian_rope` written over x, which is returned. Without gradients."""
    if cos.dim() == 2:
        cos, sin = cos[None], sin[None]
    try:
        _OPS.gaussian_rope_inplace(x, cos, sin, inverse)
    except RuntimeError as error:
        raise refused(error) from None
    return x


@torch.library.register_fake("megacontext::gaussian_rope_tables")
def _fake_tables(positions, sigmas, inv_freq, scale=1.0):
    shape = (positions.shape[0], inv_freq.shape[0])
    return positions.new_empty(shape), positions.new_empty(shape)


@torch.library.register_fake("megacontext::gaussian_rope_no_grad")
@torch.library.register_fake("megacontext::gaussian_rope")
def _fake(x, cos, sin, inverse=False):
    return x.new_empty(x.shape)


@torch.library.register_fake("megacontext::gaussian_rope_inplace")
def _fake_inplace(x, cos, sin, inverse=False):
    return None


@torch.library.register_fake("megacontext::gaussian_rope_tables_backward")
def _fake_tables_backward(grad, x, copies, pairs):
    shape = (copies, x.shape[2], pairs)
    return tuple(x.new_empty(shape, dtype=torch.float32) for _ in range(2))


def _setup_tables(ctx, inputs, output):
    _, sigmas, inv_freq, _ = inputs
    ctx.save_for_backward(sigmas, inv_freq, *output)


def _backward_tables(ctx, grad_cos, grad_sin):
    sigmas, inv_freq, cos, sin = ctx.saved_tensors
    grad_positions = grad_sigmas = None
    if ctx.needs_input_grad[0]:
        grad_positions = ((grad_sin * cos - grad_cos * sin) * inv_freq).sum(-1)
    if sigmas is not None and ctx.needs_input_grad[1]:
        along = (grad_cos * cos + grad_sin * sin) * inv_freq * inv_freq
        grad_sigmas = -sigmas * along.sum(-1)
    return grad_positions, grad_sigmas, None, None


def _setup(ctx, inputs, output):
    x, cos, sin, ctx.inverse = inputs
    ctx.save_for_backward(x, cos, sin)


def _backward(ctx, grad):
    x, cos, sin = ctx.saved_tensors
    grad = grad.contiguous()
    grad_x = grad_cos = grad_sin = None
    if ctx.needs_input_grad[0]:
        grad_x = _OPS.gaussian_rope_no_grad(grad, cos, sin, not ctx.inverse)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        grad_cos, grad_sin = _OPS.gaussian_rope_tables_backward(grad, x, cos.shape[0], cos.shape[2])
        grad_sin = -grad_sin if ctx.inverse else grad_sin
    return grad_x, grad_cos, grad_sin, None


torch.library.register_autograd(
    "megacontext::gaussian_rope_tables", _backward_tables, setup_context=_setup_tables
)
torch.library.register_autograd("megacontext::gaussian_rope", _backward, setup_context=_setup)
