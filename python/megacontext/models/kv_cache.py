"""A KV cache that grows in place.

transformers' DynamicCache copies every key and value of every layer for each new token. Here a
layer keeps buffers with room to spare and hands out views, so a token costs its own row; cropping
is setting a length. Knows nothing about attention.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.cache_utils import Cache, DynamicLayer

# What a model's forward calls its cache: transformers renamed the argument in 5.24.
CACHE_ARGUMENT = (
    "cache"
    if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    else "past_key_values"
)

# Places to spare behind what is there, at least, when a buffer is made.
_SPARE_PLACES = 64


class GrowingLayer(DynamicLayer):
    """Keys and values [B, H, P, E] of one layer, in buffers with spare places behind P."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.key_buffer: Tensor | None = None
        self.value_buffer: Tensor | None = None
        self.length = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the new rows; returns views of all rows so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        self.key_buffer = _with_room(self.key_buffer, key_states, self.length, end)
        self.value_buffer = _with_room(self.value_buffer, value_states, self.length, end)
        self.key_buffer[:, :, self.length : end] = key_states
        self.value_buffer[:, :, self.length : end] = value_states
        return self._show(end)

    def get_seq_length(self) -> int:
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` places (transformers' sign)."""
        if tokens_to_remove > 0:
            raise ValueError(f"[crop] tokens_to_remove must be 0 or less, got {tokens_to_remove}")
        if self.is_initialized:
            self._show(max(0, self.length + tokens_to_remove))

    def reset(self) -> None:
        self.key_buffer = self.value_buffer = None
        self.length = 0
        super().reset()

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        assert self.key_buffer is not None
        assert self.value_buffer is not None
        self.length = length
        self.keys = self.key_buffer[:, :, :length]
        self.values = self.value_buffer[:, :, :length]
        return self.keys, self.values


class GrowingCache(Cache):
    """Growing layers for a model of any depth. Sliding-window layers keep all places too: the mask
    applies the window, and a crop can then go back further than one window."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=GrowingLayer)

    def crop_to(self, place_count: int) -> None:
        """Keep the first `place_count` places."""
        super().crop(min(0, place_count - self.get_seq_length()))


def _with_room(buffer: Tensor | None, new: Tensor, length: int, end: int) -> Tensor:
    if buffer is not None and buffer.shape[-2] >= end:
        return buffer
    # A power of two: such a buffer is a pool of one page (`seen_places.py`).
    places = 1 << (end + _SPARE_PLACES - 1).bit_length()
    grown = torch.empty((*new.shape[:2], places, new.shape[-1]), dtype=new.dtype, device=new.device)
    if buffer is not None:
        grown[:, :, :length] = buffer[:, :, :length]
    return grown
