"""A prompt as the model reads it, and the runner that keeps its prefix in the KV cache.

A prompt is a row of places; each holds a token or a gist row, and a position. The runner compares a
new prompt with the one it read last and computes only what follows the first difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megacontext.models.base import FrozenBase, StepInput
from megacontext.models.kv_cache import GrowingCache
from megacontext_ext.errors import InvalidArgument

# Stands in `Prompt.tokens` where a place holds a gist row.
GIST_PLACE = -1


@dataclass(frozen=True, slots=True)
class Prompt:
    """`tokens` int64 [S] (GIST_PLACE where a row stands), `positions` int64 [S], `rows` [G, D] in
    order of the gist places."""

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        gists = int((self.tokens == GIST_PLACE).sum())
        rows = 0 if self.rows is None else self.rows.shape[0]
        if self.tokens.shape != self.positions.shape or gists != rows:
            raise InvalidArgument(
                f"[prompt] must have one position a place and one row a gist place, got "
                f"{self.tokens.shape} tokens, {self.positions.shape} positions, "
                f"{gists} gist places, {rows} rows"
            )

    @classmethod
    def of_tokens(cls, tokens: Sequence[int] | NDArray[np.uint32], first: int = 0) -> Prompt:
        """Plain tokens at positions first, first + 1, ..."""
        ids = np.asarray(tokens, dtype=np.int64)
        return cls(ids, np.arange(first, first + len(ids), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.tokens)

    def then(self, token: int) -> Prompt:
        """This prompt with one more token, at the next position."""
        return replace(
            self,
            tokens=np.append(self.tokens, token),
            positions=np.append(self.positions, self.positions[-1] + 1),
        )

    def common_places(self, other: Prompt) -> int:
        """Leading places that are the same in both."""
        count = min(len(self), len(other))
        same = (self.tokens[:count] == other.tokens[:count]) & (
            self.positions[:count] == other.positions[:count]
        )
        if self.rows is not None and other.rows is not None:
            # In order: both agree on the gist places before the first difference.
            places = np.flatnonzero(self.tokens[:count] == GIST_PLACE)[: other.rows.shape[0]]
            equal = (self.rows[: len(places)] == other.rows[: len(places)]).all(dim=-1)
            same[places] &= equal.numpy()
        return count if same.all() else int(np.argmin(same))


class PromptRunner:
    """Reads prompts, one after the other, with one KV cache. Not for several threads."""

    def __init__(self, base: FrozenBase) -> None:
        self._base = base
        self._cache = GrowingCache()
        self._read: Prompt | None = None
        # Of the last `read`: places taken from the cache, and places computed.
        self.reused_places = 0
        self.computed_places = 0

    def read(self, prompt: Prompt) -> Tensor:
        """Logits [V] float32 behind the last place of `prompt`."""
        if len(prompt) == 0:
            raise InvalidArgument("[read] prompt must have at least one place, got 0")
        common = 0 if self._read is None else prompt.common_places(self._read)
        # The last place is computed again even when it is cached: its logits are wanted.
        start = min(common, len(prompt) - 1)
        # Nothing is known of the cache if the step below is interrupted.
        self._read = None
        self._cache.crop_to(start)
        with torch.inference_mode():
            logits = self._base.step(_step_input(self._base, prompt, start), self._cache)
        self._read = prompt
        self.reused_places, self.computed_places = start, len(prompt) - start
        return logits[0, -1]


def _step_input(base: FrozenBase, prompt: Prompt, start: int) -> StepInput:
    tokens = torch.from_numpy(prompt.tokens[start:])[None]
    positions = torch.from_numpy(prompt.positions[start:])[None]
    if prompt.rows is None or not (tokens == GIST_PLACE).any():
        return StepInput(positions, tokens=tokens)
    return StepInput(positions, rows=prompt_rows(base, prompt)[None, start:])


def prompt_rows(base: FrozenBase, prompt: Prompt) -> Tensor:
    """[S, D]: the row of every place, token embeddings and gists."""
    rows = base.embed(torch.from_numpy(np.maximum(prompt.tokens, 0)))
    if prompt.rows is not None:
        rows = rows.clone()
        places = torch.from_numpy(prompt.tokens == GIST_PLACE).to(rows.device)
        rows[places] = prompt.rows.to(rows)
    return rows


def left_pad(base: FrozenBase, prompts: Sequence[Prompt]) -> StepInput:
    """One batch of prompts, the shorter ones padded on the left and masked there. Prompts of one
    length need no mask, which is faster: a mask keeps attention from skipping what is later."""
    places = max(len(prompt) for prompt in prompts)
    pad = base.tokenizer.pad_token
    tokens = np.full((len(prompts), places), pad, dtype=np.int64)
    positions = np.zeros((len(prompts), places), dtype=np.int64)
    attend = np.zeros((len(prompts), places), dtype=bool)
    for line, prompt in enumerate(prompts):
        start = places - len(prompt)
        tokens[line, start:] = np.maximum(prompt.tokens, 0)
        positions[line, start:] = prompt.positions
        attend[line, start:] = True
    mask = None if attend.all() else torch.from_numpy(attend)
    where = torch.from_numpy(positions)
    if all(prompt.rows is None for prompt in prompts):
        return StepInput(where, tokens=torch.from_numpy(tokens), attend=mask)
    rows = base.embed(torch.from_numpy(tokens)).clone()
    for line, prompt in enumerate(prompts):
        rows[line, places - len(prompt) :] = prompt_rows(base, prompt)
    return StepInput(where, rows=rows, attend=mask)
