"""The 32-token window transformer in plain torch: what ``block_encoder`` and its pieces mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "add_norm",
    "block_encoder",
    "gated_act",
    "rope_table",
    "window_attention",
]

WINDOW = 32


def rope_table(head_width: int, theta: float = 10_000.0) -> Tensor:
    """[32, head_width] float32: cosines of each place in a window, then sines."""
    half = head_width // 2
    speeds = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(WINDOW, dtype=torch.float64).unsqueeze(1) * speeds
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()


def add_norm(
    x: Tensor, delta: Tensor | None, gain: Tensor, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """(x + delta, its RMS norm times gain); [R, D] and [D]."""
    s = x if delta is None else x + delta
    inverse = torch.rsqrt(s.square().mean(-1, keepdim=True) + epsilon)
    return s, s * inverse * gain


def window_attention(qkv: Tensor, table: Tensor) -> Tensor:
    """Attention of each row over its window of 32 rows, rotated by place; [R, 3*D] to [R, D]."""
    head_width = table.shape[1]
    windows = qkv.view(-1, WINDOW, 3, qkv.shape[1] // (3 * head_width), head_width)
    q, k, v = windows.permute(2, 0, 3, 1, 4)  # each [N, H, 32, E]
    cosine, sine = table.to(qkv.dtype).chunk(2, dim=1)

    def rotate(rows: Tensor) -> Tensor:
        low, high = rows.chunk(2, dim=-1)
        return torch.cat([low * cosine - high * sine, high * cosine + low * sine], dim=-1)

    scores = rotate(q) @ rotate(k).mT / head_width**0.5
    out = torch.softmax(scores, dim=-1) @ v
    return out.transpose(1, 2).reshape(qkv.shape[0], qkv.shape[1] // 3)


def gated_act(gate_up: Tensor) -> Tensor:
    """silu(gate) * up; [R, 2*F] to [R, F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def block_encoder(
    x: Tensor, layers: Sequence[Sequence[Tensor]], final_norm: Tensor, table: Tensor
) -> tuple[Tensor, Tensor]:
    """Encoded rows [N, 32, D] and their mean [N, D].

    Args:
        x: [N, 32, D].
        layers: of each layer (attention_norm [D], qkv [3D, D], out [D, D], mlp_norm [D],
            gate_up [2F, D], down [D, F]).
        final_norm: [D].
        table: `rope_table(head_width)`.
    """
    rows = x.reshape(-1, x.shape[-1])
    for attention_norm, qkv, out, mlp_norm, gate_up, down in layers:
        _, y = add_norm(rows, None, attention_norm)
        rows = rows + F.linear(window_attention(F.linear(y, qkv), table), out)
        _, y = add_norm(rows, None, mlp_norm)
        rows = rows + F.linear(gated_act(F.linear(y, gate_up)), down)
    encoded = add_norm(rows, None, final_norm)[1].view(x.shape)
    return encoded, encoded.mean(1)
