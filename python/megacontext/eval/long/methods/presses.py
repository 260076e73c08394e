"""Baselines that read the whole history and then drop keys and values: the presses of kvpress.

The optional package gives the scores and the choice (`press.compress`). Its own hook reads forward
arguments that transformers 5.24 renamed, so the hook is ours: after each layer's attention over the
history, that layer keeps as many places as the budget leaves beside question and answer prefix:
those that the press chose, or in a layer with a sliding window the newest, which is all it sees.
Positions stay the true ones. Knows no task.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from megacontext.eval.long.example import Example
from megacontext.eval.long.methods.reader import NotApplicable, Reader, Reply, reply_of
from megacontext.models import StepInput, TokenArray
from megacontext.models.kv_cache import CACHE_ARGUMENT

# One pass over a history serves all of them: what a layer keeps is chosen after its attention.
PRESSES = ("KnormPress", "SnapKVPress", "ExpectedAttentionPress")
# Keys and values [1, G, P, E] of one layer.
KeysValues = tuple[Tensor, Tensor]
INSTALL = "pip install --no-deps kvpress==0.5.5, with the extra megacontext[kvpress]"


def no_kvpress() -> str:
    """Why presses cannot run here; empty when they can."""
    for name in ("kvpress", "datasets", "cachetools"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed: {INSTALL}"
    return ""


@dataclass
class Press:
    """One press of kvpress at the budget's compression ratio, its other settings as shipped."""

    reader: Reader
    press: str
    name: str
    # The whole history is read once; above the trained length the base reads badly whoever presses.
    max_places: int = 0

    @property
    def about(self) -> str:
        return (
            f"{self.press} of kvpress: the whole history is read, up to {self._limit()} places, "
            "then each layer keeps the keys and values that fit in the budget beside the question"
        )

    def _limit(self) -> int:
        trained = self.reader.base.facts.trained_tokens
        return min(trained, self.max_places) if self.max_places else trained

    def _classes(self) -> dict[str, Any]:
        """Presses by name."""
        if reason := no_kvpress():
            raise NotApplicable(reason)
        logging.getLogger("kvpress").setLevel(logging.ERROR)
        import kvpress

        return {name: getattr(kvpress, name) for name in PRESSES}

    def answer(self, example: Example) -> Reply:
        classes = self._classes()
        before, tail = self.reader.around(example)
        history = np.concatenate([before, self.reader.history_tokens(example)])
        if len(history) + len(tail) + example.max_new_tokens > self._limit():
            places = len(history) + len(tail)
            raise NotApplicable(f"{places} places do not fit in {self._limit()}")
        kept = self.reader.budget_places - len(tail)
        pressed, ingest_s = self.reader.derived(
            example, "pressed", lambda: self._pressed(classes, history, kept)
        )
        cache = DynamicCache()
        for layer_number, rows in enumerate(pressed[self.press]):
            cache.update(*rows, layer_number)
        places = cache.get_seq_length() + len(tail)
        reading = self.reader.go_on(cache, tail, len(history), example.max_new_tokens, places)
        layers: list[Any] = list(cache.layers)
        state = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
        return reply_of(reading, ingest_s=ingest_s, state_bytes=state)

    @torch.inference_mode()
    def _pressed(
        self, classes: dict[str, Any], history: TokenArray, kept: int
    ) -> dict[str, list[KeysValues]]:
        """By press and layer: keys and values of `history`, `kept` places of each."""
        base, cache = self.reader.base, DynamicCache()
        # Half a place more, so that rounding down gives exactly `kept`.
        ratio = max(0.0, 1.0 - (kept + 0.5) / len(history))
        presses = {name: made(compression_ratio=ratio) for name, made in classes.items()}
        pressed: dict[str, list[KeysValues]] = {name: [] for name in classes}
        tokens = torch.from_numpy(history.astype(np.int64))[None]
        with _pressing(getattr(base, "model", None), presses, cache, pressed, kept):
            base.step(StepInput(torch.arange(len(history))[None], tokens=tokens), cache)
        return pressed


@contextlib.contextmanager
def _pressing(
    model: Any,
    presses: dict[str, Any],
    cache: DynamicCache,
    pressed: dict[str, list[KeysValues]],
    newest: int,
) -> Iterator[None]:
    """While open, every layer of `model` adds to `pressed` what each press keeps of what its
    attention has just written into `cache`, which stays whole; a layer with a sliding window its
    `newest` places."""
    decoder = getattr(model, "model", None)
    if decoder is None or not all(hasattr(layer, "self_attn") for layer in decoder.layers):
        raise NotApplicable("presses need a decoder with layers of self-attention")
    for press in presses.values():
        press.post_init_from_model(model)

    def hook(module: Any, _args: Any, given: dict[str, Any], output: Any) -> Any:
        layer = cache.layers[module.layer_idx]
        if getattr(module, "is_sliding", False):
            recent = layer.keys[:, :, -newest:], layer.values[:, :, -newest:]
            for rows in pressed.values():
                rows.append(recent)
            return output
        # The names that presses look for.
        known = given | {"past_key_values": given.get(CACHE_ARGUMENT)}
        for name, press in presses.items():
            kept = press.compress(
                module, given["hidden_states"], layer.keys, layer.values, None, known
            )
            pressed[name].append(kept)
        return output

    with contextlib.ExitStack() as stack:
        for layer in decoder.layers:
            attention = layer.self_attn
            if not hasattr(attention, "rotary_emb"):
                attention.rotary_emb = _rotary(decoder, attention)
                stack.callback(delattr, attention, "rotary_emb")
            handle = attention.register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _rotary(decoder: Any, attention: Any) -> Any:
    """The rotary embedding of one layer, called with rows and positions as presses do."""
    rotary = decoder.rotary_emb
    if "layer_type" not in inspect.signature(rotary.forward).parameters:
        return rotary
    return partial(rotary, layer_type=attention.layer_type)
