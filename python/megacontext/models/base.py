"""What the rest of MegaContext asks of a frozen language model.

A base is a causal model whose weights are never changed. Everything above it works with token ids,
rows (vectors of the model's input width), positions and logits, and knows no model family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from megacontext.models.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """Numbers about a base that never change while it is loaded."""

    name: str
    family: str
    # SHA-256 of the configuration and a sample of every weight, the same for any load dtype.
    fingerprint: str
    width: int
    layer_count: int
    head_count: int
    kv_head_count: int
    head_width: int
    vocabulary_tokens: int
    # Longest timeline the base was trained on; positions stay below it.
    trained_tokens: int
    dtype: torch.dtype

    @property
    def identity(self) -> str:
        """What a store remembers of the base that its gists were made for."""
        return f"{self.family}-{self.width}x{self.layer_count}-{self.fingerprint[:16]}"


@dataclass(frozen=True, slots=True)
class StepInput:
    """What one forward pass reads: token ids or rows, and where they stand.

    Exactly one of `tokens` [B, S] and `rows` [B, S, D] is given. `positions` [B, S] are rotary
    positions; they need not be contiguous. `attend` [B, P + S] is False at left padding, over the P
    places already in the cache and the S new ones; None means that nothing is padded.
    """

    positions: Tensor
    tokens: Tensor | None = None
    rows: Tensor | None = None
    attend: Tensor | None = None


class FrozenBase(Protocol):
    """A causal language model whose weights are never changed."""

    @property
    def facts(self) -> BaseFacts: ...

    @property
    def tokenizer(self) -> TextTokenizer: ...

    @property
    def device(self) -> torch.device: ...

    def embed(self, tokens: Tensor) -> Tensor:
        """Rows [..., D] that the model reads for `tokens` [...], scaled as it scales them."""
        ...

    def new_cache(self) -> Cache:
        """An empty KV cache that can be cropped."""
        ...

    def step(self, step_input: StepInput, cache: Cache, keep_logits: int = 1) -> Tensor:
        """Logits [B, keep_logits, V] float32 of the last places; 0 keeps all. Fills `cache`."""
        ...
