"""The 32-token window transformer of GistNet: fused pieces around the platform's matrix products.

``block_encoder`` is the whole; ``add_norm``, ``window_attention`` and ``gated_act`` are its pieces,
each one pass over memory with its own backward. All are traced by torch.compile without a break.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from megacontext_ext.errors import InvalidArgument
from megacontext_ext.ops._errors import refused
from megacontext_ext.ops._load import load
from megacontext_ext.ops.gist_pool import gist_pool

__all__ = [
    "BlockEncoderLayer",
    "BlockEncoderWeights",
    "add_norm",
    "block_encoder",
    "gated_act",
    "init_block_encoder",
    "rope_table",
    "window_attention",
]

load()
_OPS = torch.ops.megacontext
WINDOW = 32
# Without gradients, on CPU, all layers run over so many windows at a time that the widest rows in
# between (gate_up) take this much a thread: they stay near it (measured with 1 MB of L2 cache in
# bf16: 1.2x all rows at once, and 1.2x a quarter of it, where the products are too small).
PIECE_BYTES = 1 << 21
# At least so many a thread, or the products have too few rows (measured in fp32, D = 512: 5 windows
# take 1.09 times as long as 24).
PIECE_WINDOWS = 24


class BlockEncoderLayer(NamedTuple):
    """Weights of one layer, all of one dtype; F is the width of the MLP."""

    attention_norm: Tensor  # [D]
    qkv: Tensor  # [3*D, D]
    out: Tensor  # [D, D]
    mlp_norm: Tensor  # [D]
    gate_up: Tensor  # [2*F, D], gate first
    down: Tensor  # [D, F]


class BlockEncoderWeights(NamedTuple):
    """One encoder. The same object for every LOD shares weights; another one a LOD does not."""

    layers: tuple[BlockEncoderLayer, ...]
    final_norm: Tensor  # [D]
    table: Tensor  # rope_table(head_width): [32, E] float32


def rope_table(
    head_width: int = 64, theta: float = 10_000.0, device: torch.device | str | None = None
) -> Tensor:
    """[32, head_width] float32: of each place in a window head_width/2 cosines, then sines."""
    half = head_width // 2
    speeds = theta ** (-torch.arange(half, dtype=torch.float64, device=device) / half)
    angles = torch.arange(WINDOW, dtype=torch.float64, device=device).unsqueeze(1) * speeds
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()


def init_block_encoder(
    width: int,
    layer_count: int = 2,
    *,
    mlp_width: int | None = None,
    head_width: int = 64,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> BlockEncoderWeights:
    """Random weights: normal with 1/sqrt(inputs), the two that end a branch scaled down by depth.

    Args:
        width: D, a multiple of 64.
        layer_count: transformer layers.
        mlp_width: F, a multiple of 64; 8/3 of D rounded up to one where it is not given.
        head_width: E, 32, 64 or 128; divides D.
        dtype, device: of the weights.
    """
    if width % 64 != 0 or width % head_width != 0:
        raise InvalidArgument(
            f"[block_encoder] width must be a multiple of 64 and of head_width={head_width}, "
            f"got {width}"
        )
    mlp = mlp_width or -(-8 * width // 192) * 64
    kwargs: Any = {"dtype": dtype, "device": device}

    def matrix(rows: int, columns: int, gain: float = 1.0) -> Tensor:
        return torch.randn(rows, columns, **kwargs) * (gain * columns**-0.5)

    ends = (2 * max(layer_count, 1)) ** -0.5
    layers = tuple(
        BlockEncoderLayer(
            torch.ones(width, **kwargs),
            matrix(3 * width, width),
            matrix(width, width, ends),
            torch.ones(width, **kwargs),
            matrix(2 * mlp, width),
            matrix(width, mlp, ends),
        )
        for _ in range(layer_count)
    )
    return BlockEncoderWeights(
        layers, torch.ones(width, **kwargs), rope_table(head_width, device=device)
    )


def block_encoder(
    x: Tensor, weights: BlockEncoderWeights, *, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Encodes windows of 32 rows and pools each to one.

    A layer is RMS norm, attention inside the window (not causal, rotary at places 0..31), residual,
    RMS norm, SwiGLU, residual; a last norm follows.

    Args:
        x: [N, 32, D] float32, bfloat16 or float16; D a multiple of 64.
        weights: dtype and device of x.
        epsilon: of the norms.

    Returns:
        rows [N, 32, D] and their mean [N, D].

    Raises:
        InvalidArgument: a shape, dtype or device differs from the above.

    Cost: a layer and row 8*D^2 + 6*D*F + 128*D FLOPs (24*D^2 where F = 8/3*D); backward twice that.
    """
    if x.dim() != 3 or x.shape[1] != WINDOW:
        raise InvalidArgument(f"[block_encoder] x must be [N, 32, D], got {list(x.shape)}")
    pieces = x.split(_piece_windows(x, weights)) if x.shape[0] > 0 else (x,)
    if len(pieces) == 1:
        return _encode(x, weights, epsilon)
    rows = torch.empty(x.shape, dtype=x.dtype)
    pooled = torch.empty((x.shape[0], x.shape[2]), dtype=x.dtype)
    start = 0
    for piece in pieces:
        end = start + piece.shape[0]
        rows[start:end], pooled[start:end] = _encode(piece, weights, epsilon)
        start = end
    return rows, pooled


def _piece_windows(x: Tensor, weights: BlockEncoderWeights) -> int:
    """How many windows to encode at a time."""
    if x.is_cuda or torch.compiler.is_compiling() or not weights.layers:
        return x.shape[0]
    leaves = (x, weights.final_norm, *(t for layer in weights.layers for t in layer))
    if torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves):
        return x.shape[0]
    window_bytes = WINDOW * weights.layers[0].gate_up.shape[0] * x.element_size()
    return max(PIECE_WINDOWS, PIECE_BYTES // max(1, window_bytes)) * torch.get_num_threads()


def _encode(x: Tensor, weights: BlockEncoderWeights, epsilon: float) -> tuple[Tensor, Tensor]:
    rows = x.reshape(-1, x.shape[-1])
    if not weights.layers:
        encoded = add_norm(rows, None, weights.final_norm, epsilon)[1]
        return encoded.view(x.shape), gist_pool(encoded, WINDOW)
    y = add_norm(rows, None, weights.layers[0].attention_norm, epsilon)[1]
    next_norms = [layer.attention_norm for layer in weights.layers[1:]] + [weights.final_norm]
    for layer, next_norm in zip(weights.layers, next_norms, strict=True):
        attended = window_attention(F.linear(y, layer.qkv), weights.table)
        rows, y = add_norm(rows, F.linear(attended, layer.out), layer.mlp_norm, epsilon)
        hidden = gated_act(F.linear(y, layer.gate_up))
        rows, y = add_norm(rows, F.linear(hidden, layer.down), next_norm, epsilon)
    return y.view(x.shape), gist_pool(y, WINDOW)


def add_norm(
    x: Tensor, delta: Tensor | None, gain: Tensor, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """The residual sum ``x + delta`` and its RMS norm times `gain`, in one pass.

    Args:
        x, delta: [R, D]; without delta the sum is x itself.
        gain: [D].
        epsilon: added to the mean square.

    Returns:
        (sum, norm), both [R, D].

    Raises:
        InvalidArgument: a shape, dtype or device differs from the above.
    """
    try:
        total, y, _ = _OPS.add_norm(x, delta, gain, epsilon)
    except RuntimeError as error:
        raise refused(error) from None
    return (x if delta is None else total), y


def window_attention(qkv: Tensor, table: Tensor) -> Tensor:
    """Attention of each row over the 32 rows of its window, with rotary places.

    Args:
        qkv: [R, 3*D], R a multiple of 32; queries, keys, values, heads of E neighbouring columns.
        table: `rope_table(E)`.

    Returns:
        [R, D], dtype of qkv.

    Raises:
        InvalidArgument: a shape, dtype or device differs from the above.
    """
    try:
        return _OPS.window_attention(qkv, table)
    except RuntimeError as error:
        raise refused(error) from None


def gated_act(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [R, 2*F], gate first: [R, F]."""
    try:
        return _OPS.gated_act(gate_up)
    except RuntimeError as error:
        raise refused(error) from None


@torch.library.register_fake("megacontext::add_norm")
def _add_norm_fake(x, delta, gain, epsilon=1e-6):
    total = x.new_empty(x.shape[0] if delta is not None else 0, x.shape[1])
    return total, torch.empty_like(x), x.new_empty(x.shape[0], dtype=torch.float32)


@torch.library.register_fake("megacontext::add_norm_backward")
def _add_norm_backward_fake(grad_y, grad_sum, s, gain, inverse):
    return torch.empty_like(s), torch.empty_like(gain)


@torch.library.register_fake("megacontext::window_attention")
def _window_attention_fake(qkv, table):
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3)


@torch.library.register_fake("megacontext::window_attention_backward")
def _window_attention_backward_fake(grad_out, qkv, table):
    return torch.empty_like(qkv)


@torch.library.register_fake("megacontext::gated_act")
def _gated_act_fake(gate_up):
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


@torch.library.register_fake("megacontext::gated_act_backward")
def _gated_act_backward_fake(grad_out, gate_up):
    return torch.empty_like(gate_up)


def _add_norm_setup(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    x, delta, gain, _ = inputs
    total, _, inverse = output
    ctx.mark_non_differentiable(inverse)
    ctx.has_delta = delta is not None
    ctx.save_for_backward(total if ctx.has_delta else x, gain, inverse)
    ctx.set_materialize_grads(False)


def _add_norm_backward(ctx: Any, grad_sum: Tensor | None, grad_y: Tensor | None, _: Any) -> Any:
    s, gain, inverse = ctx.saved_tensors
    if not ctx.has_delta:
        grad_sum = None
    if grad_y is None:
        return grad_sum, grad_sum, None, None
    more = None if grad_sum is None else grad_sum.contiguous()
    grad_s, grad_gain = _OPS.add_norm_backward(grad_y.contiguous(), more, s, gain, inverse)
    return grad_s, grad_s if ctx.has_delta else None, grad_gain, None


def _window_attention_setup(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _window_attention_backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None]:
    return _OPS.window_attention_backward(grad_out.contiguous(), *ctx.saved_tensors), None


def _gated_act_setup(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gated_act_backward(ctx: Any, grad_out: Tensor) -> Tensor:
    return _OPS.gated_act_backward(grad_out.contiguous(), *ctx.saved_tensors)


torch.library.register_autograd(
    "megacontext::add_norm", _add_norm_backward, setup_context=_add_norm_setup
)
torch.library.register_autograd(
    "megacontext::window_attention",
    _window_attention_backward,
    setup_context=_window_attention_setup,
)
torch.library.register_autograd(
    "megacontext::gated_act", _gated_act_backward, setup_context=_gated_act_setup
)
