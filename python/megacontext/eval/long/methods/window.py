"""Baselines that keep a fixed part of the history: all, both ends, the newest, the gold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megacontext.eval.long.example import SOURCE_GAP, Example
from megacontext.eval.long.methods.reader import NotApplicable, Reader, Reply, reply_of


@dataclass
class FullContext:
    """The whole history in one prompt, as far as the base was trained: no budget."""

    reader: Reader
    # Above this the prompt takes minutes on a CPU; 0 means only the trained length counts.
    max_places: int = 0
    name: str = "full"

    @property
    def about(self) -> str:
        return (
            f"the whole history in the prompt, up to {self._limit()} places; not held to the budget"
        )

    def _limit(self) -> int:
        trained = self.reader.base.facts.trained_tokens
        return min(trained, self.max_places) if self.max_places else trained

    def answer(self, example: Example) -> Reply:
        tokens = self.reader.history_tokens(example)
        places = len(tokens) + self.reader.budget_places - self.reader.room(example)
        if places + example.max_new_tokens > self._limit():
            raise NotApplicable(f"{places} places do not fit in {self._limit()}")
        facts = self.reader.base.facts
        row_bytes = 2 * facts.layer_count * facts.kv_head_count * facts.head_width
        reading = self.reader.read(tokens, example)
        kept = reading.places * row_bytes * facts.dtype.itemsize
        return reply_of(reading, state_bytes=kept)


@dataclass
class Truncation:
    """The first and the last half budget of the history, without the middle, as in LongBench."""

    reader: Reader
    name: str = "truncation"

    @property
    def about(self) -> str:
        return "the beginning and the end of the history, half of the budget each"

    def answer(self, example: Example) -> Reply:
        tokens, room = self.reader.history_tokens(example), self.reader.room(example)
        if len(tokens) > room:
            gap = self.reader.encode("\n[...]\n")
            half = (room - len(gap)) // 2
            tokens = np.concatenate([tokens[:half], gap, tokens[-half:]])
        reading = self.reader.read(tokens, example)
        return reply_of(reading, state_bytes=len(example.history.encode()))


@dataclass
class SinksWindow:
    """Attention sinks and a sliding window: the first four tokens and the newest ones, contiguous.

    The window is recomputed from its text, so nothing of the dropped middle leaks through old keys.
    Source: StreamingLLM (Xiao et al. 2023), with its four sinks.
    """

    reader: Reader
    sink_tokens: int = 4
    name: str = "sinks_window"

    @property
    def about(self) -> str:
        return f"{self.sink_tokens} sink tokens and the newest tokens up to the budget"

    def answer(self, example: Example) -> Reply:
        tokens, room = self.reader.history_tokens(example), self.reader.room(example)
        if len(tokens) > room:
            newest = tokens[len(tokens) - (room - self.sink_tokens) :]
            tokens = np.concatenate([tokens[: self.sink_tokens], newest])
        reading = self.reader.read(tokens, example)
        return reply_of(reading, state_bytes=room * 4)


@dataclass
class Ceiling:
    """The gold spans alone: what this base can do when memory is perfect."""

    reader: Reader
    # Characters shown on each side of a gold span, so that a sentence is not read bare.
    around: int = 120
    name: str = "ceiling"

    @property
    def about(self) -> str:
        return f"the gold spans with {self.around} characters on each side; no memory can do better"

    def answer(self, example: Example) -> Reply:
        if not example.gold:
            raise NotApplicable("the answer rests on the whole history")
        tokens = self.reader.encode(SOURCE_GAP.join(self._texts(example)))
        room = self.reader.room(example)
        if len(tokens) > room:
            raise NotApplicable(f"the gold takes {len(tokens)} places of {room}")
        return reply_of(self.reader.read(tokens, example))

    def _texts(self, example: Example) -> list[str]:
        merged: list[tuple[int, int, int]] = []
        for span in sorted(example.gold, key=lambda s: (s.source, s.start)):
            start = max(0, span.start - self.around)
            end = span.end + self.around
            if merged and merged[-1][0] == span.source and start <= merged[-1][2]:
                merged[-1] = (span.source, merged[-1][1], max(end, merged[-1][2]))
            else:
                merged.append((span.source, start, end))
        return [example.sources[i].text[start:end] for i, start, end in merged]


@dataclass
class NoContext:
    """The question alone: what the base knows, or guesses."""

    reader: Reader
    name: str = "no_context"
    about: str = "the question without any history: knowledge and luck"

    def answer(self, example: Example) -> Reply:
        return reply_of(self.reader.read([], example))
