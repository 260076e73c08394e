"""Draws one token from logits. Knows nothing of text."""

from __future__ import annotations

import torch
from torch import Tensor

from megacontext.config import GenerationConfig


class Sampler:
    """Greedy, or temperature with top-k and top-p, from a seeded generator of its own."""

    def __init__(self, config: GenerationConfig) -> None:
        self._config = config
        self._generator = torch.Generator().manual_seed(config.seed)

    def pick(self, logits: Tensor) -> Tensor:
        """Token ids [B] for logits [B, V] float32."""
        logits = logits.cpu()
        if self._config.temperature == 0.0:
            return logits.argmax(dim=-1)
        kept = _top_p(
            _top_k(logits / self._config.temperature, self._config.top_k), self._config.top_p
        )
        probabilities = torch.softmax(kept, dim=-1)
        return torch.multinomial(probabilities, 1, generator=self._generator).squeeze(-1)


def _top_k(logits: Tensor, count: int) -> Tensor:
    if count == 0 or count >= logits.shape[-1]:
        return logits
    smallest_kept = logits.topk(count, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest_kept, -torch.inf)


def _top_p(logits: Tensor, mass: float) -> Tensor:
    """Keep the fewest tokens whose probability reaches `mass`; always at least one."""
    if mass >= 1.0:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    before = torch.softmax(ordered, dim=-1).cumsum(dim=-1) - torch.softmax(ordered, dim=-1)
    dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= mass)
    return logits.masked_fill(dropped, -torch.inf)
