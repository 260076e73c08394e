"""What a span is worth: the change of an answer's NLL when it is shown to the frozen base.

    gain(span) = NLL(answer | nothing shown) - NLL(answer | span shown)        nats

Above zero the span helps. Its worth to a budget is the gain by the places that it takes. Attention
mass of one read over many spans is a cheaper, weaker teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache

from megacontext.models import (
    FrozenBase,
    Prompt,
    StepInput,
    TokenArray,
    TransformersBase,
    left_pad,
)
from megacontext_ext.errors import InvalidArgument

Nats = NDArray[np.float64]
# Rows of one batch behind a shared span: each holds a copy of the span's keys and values.
_ROWS_MAX = 8


@dataclass(frozen=True, slots=True)
class AskedTokens:
    """What stands behind the shown text: the question with its frame, and the answer's tokens."""

    after: TokenArray
    answer: TokenArray

    def __post_init__(self) -> None:
        if len(self.after) == 0 or len(self.answer) == 0:
            raise InvalidArgument(
                "[counterfactual] question and answer must have at least one token, got "
                f"{len(self.after)} and {len(self.answer)}"
            )


class AnswerCost:
    """NLL of answers behind shown text, in nats summed over the answer's tokens. One thread."""

    def __init__(self, base: FrozenBase, before: TokenArray) -> None:
        """before: what every prompt begins with, at least one token."""
        self._base = base
        self._before = before

    @torch.inference_mode()
    def nats(self, shown: TokenArray, asked: Sequence[AskedTokens]) -> Nats:
        """float64 [n]: NLL of each answer when `shown` (possibly nothing) is shown.

        Cost: before + shown once, and each question with its answer.
        """
        prefix = np.concatenate([self._before, shown]).astype(np.int64)
        cache = self._base.new_cache()
        tokens = torch.from_numpy(prefix)[None]
        self._base.step(StepInput(torch.arange(len(prefix))[None], tokens=tokens), cache)
        parts = [
            self._behind(cache, len(prefix), asked[at : at + _ROWS_MAX])
            for at in range(0, len(asked), _ROWS_MAX)
        ]
        return np.concatenate(parts)

    def gains(self, spans: Sequence[TokenArray], asked: Sequence[AskedTokens]) -> Nats:
        """float64 [spans, n]: nats that showing each span alone takes off each answer."""
        nothing = self.nats(np.zeros(0, np.uint32), asked)
        return np.stack([nothing - self.nats(span, asked) for span in spans])

    @torch.inference_mode()
    def nats_each(self, shown: Sequence[TokenArray], asked: AskedTokens) -> Nats:
        """float64 [n]: NLL of one answer behind each of several texts.

        Cost: every prompt whole, a few of like length at a time.
        """
        keep = len(asked.answer) + 1
        found = np.zeros(len(shown))
        order = np.argsort([len(text) for text in shown], kind="stable")
        for at in range(0, len(shown), _ROWS_MAX):
            rows = order[at : at + _ROWS_MAX]
            prompts = [
                Prompt.of_tokens(
                    np.concatenate([self._before, shown[row], asked.after, asked.answer])
                )
                for row in rows
            ]
            step_input = left_pad(self._base, prompts)
            logits = self._base.step(step_input, self._base.new_cache(), keep_logits=keep)
            found[rows] = [_nats(row, asked.answer) for row in logits]
        return found

    def _behind(self, cache: Cache, known: int, asked: Sequence[AskedTokens]) -> Nats:
        texts = [np.concatenate([each.after, each.answer]) for each in asked]
        longest = max(len(text) for text in texts)
        tokens = np.full((len(asked), longest), self._base.tokenizer.pad_token, dtype=np.int64)
        attend = np.zeros((len(asked), known + longest), dtype=bool)
        positions = np.zeros((len(asked), longest), dtype=np.int64)
        attend[:, :known] = True
        for row, text in enumerate(texts):
            pad = longest - len(text)
            tokens[row, pad:], attend[row, known + pad :] = text, True
            positions[row, pad:] = known + np.arange(len(text))
        keep = 1 + max(len(each.answer) for each in asked)
        step_input = StepInput(
            torch.from_numpy(positions), tokens=torch.from_numpy(tokens),
            attend=torch.from_numpy(attend),
        )  # fmt: skip
        logits = self._base.step(step_input, _repeated(self._base, cache, len(asked)), keep)
        return np.array([_nats(row, each.answer) for row, each in zip(logits, asked, strict=True)])


def worth(gain_nats: Nats, places: NDArray[np.int64]) -> Nats:
    """Gain per place: what a budget buys. Positive where showing helps."""
    return gain_nats / np.maximum(places, 1)


@torch.inference_mode()
def attention_mass(
    base: TransformersBase, before: TokenArray, spans: Sequence[TokenArray], asked: AskedTokens
) -> Nats:
    """float64 [spans], sum 1: where question and answer look when all spans stand in one prompt.

    Mean over layers, heads and the places of question and answer. Cost: one read with plain
    attention, quadratic in the prompt.
    """
    if not spans:
        raise InvalidArgument("[attention_mass] spans must have at least one span, got 0")
    runs = [before, *spans, asked.after, asked.answer]
    tokens = torch.from_numpy(np.concatenate(runs).astype(np.int64))[None]
    model: Any = base.model
    used = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        seen = model(input_ids=tokens.to(base.device), output_attentions=True, use_cache=False)
    finally:
        model.set_attn_implementation(used)
    borders = np.cumsum([len(run) for run in runs])
    start = borders[-3]
    to_places = sum(layer[0, :, start:].float().mean(dim=(0, 1)) for layer in seen.attentions)
    mass = [float(to_places[a:b].sum()) for a, b in pairwise(borders[:-2].tolist())]
    return np.array(mass) / max(sum(mass), 1e-12)


def _repeated(base: FrozenBase, cache: Cache, rows: int) -> Cache:
    """A cache of `rows` copies: a batch is appended to it, and `cache` stays as it is."""
    copy: Any = base.new_cache()
    layers: Sequence[Any] = cache.layers
    for number, layer in enumerate(layers):
        copy.update(
            layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), number
        )
    return copy


def _nats(logits: Tensor, answer: TokenArray) -> float:
    """NLL of `answer` [A] under logits [>= A + 1, V], whose last row stands at the last token."""
    chosen = torch.from_numpy(answer.astype(np.int64))
    ahead = torch.log_softmax(logits[-len(answer) - 1 : -1].double().cpu(), dim=-1)
    return -float(ahead.gather(-1, chosen[:, None]).sum())
