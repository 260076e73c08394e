"""What `transformers` sees of a paged memory: a cache that reports only the present call.

Keys and values never pass through it: the attention function writes them to pages and reads what is
in focus. A call of `generate` therefore gives only new tokens; what came before is in the memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from megacontext_ext.errors import Unsupported


class CallLayer(CacheLayerMixin):
    """Counts the tokens that a layer has read since the call began; keeps nothing."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.call_tokens = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.is_initialized = True
        self.call_tokens += key_states.shape[-2]
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self.call_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.call_tokens + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.call_tokens = 0

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        raise Unsupported("[paged] beam search would mix memories; use sampling or greedy decoding")


class PagedCache(Cache):
    """One `CallLayer` a layer."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[CallLayer() for _ in range(layers)])

    def begin_call(self) -> None:
        """Starts counting anew: the next tokens continue the memory."""
        for layer in self.layers:
            layer.reset()
