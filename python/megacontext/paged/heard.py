"""The queries of tokens that no gist page stands for yet, as the model asked them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megacontext_ext.errors import InvalidArgument


class HeardQueries:
    """Un-rotated queries of the newest tokens of one stream, layer by layer.

    Memory: layers * Hq * E numbers a token: 34 KB in bf16 for SmolLM2-135M, for at most a gist page
    of tokens and a step.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self.first = 0  # token that the oldest queries belong to
        self._parts: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}

    @property
    def end(self) -> int:
        """One past the newest token heard in every layer."""
        return self.first + sum(len(part) for part in self._parts[self.layers[-1]])

    def hear(self, layer: int, queries: Tensor, at: int) -> None:
        """Takes a layer's queries [T, Hq, E] of tokens from `at` on, in place of any it has there.

        Raises:
            InvalidArgument: tokens between what was heard and `at` are missing.
        """
        if at < self.first:  # the stream was taken back beyond its last gist page
            self._parts = {each: [] for each in self.layers}
            self.first = at
        parts = self._parts[layer]
        held = sum(map(len, parts))
        if at > self.first + held:
            raise InvalidArgument(
                f"[paged] queries of layer {layer} end at token {self.first + held}, got {at}"
            )
        if at < self.first + held:
            parts[:] = [torch.cat(parts)[: at - self.first]]
        parts.append(queries.detach().clone())

    def take(self, layer: int, start: int, end: int) -> Tensor:
        """Queries [end - start, Hq, E] of tokens [start, end), which must have been heard."""
        parts = self._parts[layer]
        if len(parts) != 1:
            parts[:] = [torch.cat(parts)]
        return parts[0][start - self.first : end - self.first]

    def has(self, start: int, end: int) -> bool:
        return self.first <= start and end <= self.end

    def drop_before(self, token: int) -> None:
        """Lets go of what stands before `token`."""
        for layer in self.layers:
            if self._parts[layer]:
                self._parts[layer] = [self.take(layer, min(token, self.end), self.end).clone()]
        self.first = max(self.first, token)
