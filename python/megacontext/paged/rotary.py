"""Rotary positions, taken over from the model: it computes un-rotated keys, we rotate at use.

While attached, the model's rotary module answers cos = 1 and sin = 0, so queries and keys reach the
attention function exactly as projected. The frequencies it would have used are read here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megacontext_ext.errors import Unsupported
from megacontext_ext.ops.focused_attention import Rope


@dataclass(frozen=True)
class LayerRotary:
    """What turns a position into a rotation in one layer."""

    frequencies: Tensor  # [R / 2] radians a token
    scaling: float  # multiplies cosines and sines (YaRN)

    def tables(self, key_positions: Tensor, query_positions: Tensor) -> Rope:
        """Tables for places [N, 32] and queries [T] at float positions."""
        rope = Rope.gaussian(self.frequencies, key_positions, query_positions)
        if self.scaling == 1.0:
            return rope
        return Rope(keys=rope.keys * self.scaling, queries=rope.queries * self.scaling)


class RotaryTakeover:
    """Replaces the rotary module's forward while it lives; `restore` undoes it completely."""

    def __init__(self, model: nn.Module, layer_types: list[str]) -> None:
        # Image encoders have rotary modules of their own, which stay as they are.
        modules = [
            m
            for m in model.modules()
            if type(m).__name__.endswith("RotaryEmbedding") and "Vision" not in type(m).__name__
        ]
        if not modules:
            raise Unsupported(
                f"[paged] {type(model).__name__} has no rotary positions; paged memory places keys "
                "at positions chosen at use and needs them"
            )
        self._modules = modules
        # Some models leave positions out of some layers (SmolLM3): 1 where a layer rotates.
        config: Any = getattr(model, "config", None)
        text = config.get_text_config() if config is not None else None
        rotates = getattr(text, "no_rope_layers", None) or [1] * len(layer_types)
        rotary = {kind: _layer_rotary(modules[0], kind) for kind in dict.fromkeys(layer_types)}
        still = {kind: _unturned(layer) for kind, layer in rotary.items()}
        self.layers = [
            (rotary if turned else still)[kind]
            for kind, turned in zip(layer_types, rotates, strict=True)
        ]
        for module in modules:
            module.forward = _identity(module)  # type: ignore[method-assign]

    def restore(self) -> None:
        for module in self._modules:
            module.__dict__.pop("forward", None)


def _layer_rotary(module: nn.Module, layer_type: str) -> LayerRotary:
    kind: Any = getattr(module, "rope_type", "default")
    if isinstance(kind, dict):
        kind = kind[layer_type]
    if kind in ("dynamic", "longrope"):
        raise Unsupported(
            f"[paged] rope type {kind!r} changes its frequencies with the length of the input; "
            "keys that are kept cannot follow"
        )
    prefix = f"{layer_type}_" if hasattr(module, f"{layer_type}_inv_freq") else ""
    frequencies = getattr(module, f"{prefix}inv_freq")
    scaling = getattr(module, f"{prefix}attention_scaling", 1.0)
    return LayerRotary(frequencies.detach().double(), float(scaling))


def _unturned(layer: LayerRotary) -> LayerRotary:
    """The same shapes with every rotation by nothing."""
    return LayerRotary(torch.zeros_like(layer.frequencies), 1.0)


def _identity(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    original = type(module).forward

    def forward(x: Tensor, position_ids: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
        # Shapes differ between families, so the model's own function makes them; once a step.
        cos, sin = original(module, x, torch.zeros_like(position_ids), *rest, **named)
        return torch.ones_like(cos), torch.zeros_like(sin)

    return forward


def rotated(x: Tensor, frequencies: Tensor, positions: Tensor) -> Tensor:
    """x [..., T, E] rotated by positions that broadcast to [..., T]; the first 2 * len(frequencies)
    of E dimensions turn, in halves. Computed in float32, returned as x."""
    angles = (positions[..., None].double() * frequencies.cpu()).to(x.device)
    cos, sin = angles.cos().float(), angles.sin().float()
    half = len(frequencies)
    wide = x.float()
    first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    turned = (first * cos - second * sin, second * cos + first * sin, rest)
    return torch.cat(turned, -1).to(x.dtype)
