"""Retrieval: values hidden under keys. The eight shapes of RULER's needle tasks, in our own words.

Source: RULER (Hsieh et al. 2024) for the shapes (what is hidden, how often, among what).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from megacontext.eval.long import vocabulary
from megacontext.eval.long.example import Example, ExampleRequest
from megacontext.eval.long.filler import filler
from megacontext.eval.long.haystack import Placed, place, scattered_depths

_REPEATED = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
)
_DRAW: dict[str, Callable[[random.Random], str]] = {
    "words": vocabulary.key_name,
    "numbers": vocabulary.number_value,
    "uuids": vocabulary.uuid_value,
}
_CALLED = {"numbers": "number", "uuids": "uuid"}


@dataclass(frozen=True)
class NeedleTask:
    """`asked` keys are asked for, each with `values` values; `others` keys are there as well."""

    name: str
    haystack: str = "essays"  # "repeated", "needles", or a filler
    key_kind: Literal["words", "uuids"] = "words"
    value_kind: Literal["numbers", "uuids"] = "numbers"
    asked: int = 1
    values: int = 1
    others: int = 0
    category: str = "retrieval"

    def make(self, request: ExampleRequest) -> Example:
        rng = request.rng(self.name)
        kind = _CALLED[self.value_kind]
        needles_of_filler = self.haystack == "needles"
        key_count = self.asked + self.others
        if needles_of_filler:
            # The haystack is made of needles: as many keys as fit.
            key_count += request.length_tokens // request.count_tokens(self._line(rng, kind)) + 1
        keys = vocabulary.distinct(rng, self._draw_key, key_count)
        asked, others = keys[: self.asked], keys[self.asked :]
        values = {
            key: vocabulary.distinct(rng, _DRAW[self.value_kind], self.values) for key in asked
        }
        needles = [self._needle(key, value, kind) for key in asked for value in values[key]]
        hidden = len(needles)
        decoys = [self._needle(key, _DRAW[self.value_kind](rng), kind) for key in others]
        room = request.length_tokens - sum(map(request.count_tokens, needles)) - len(needles)
        if needles_of_filler:
            units, decoys = self._fit(decoys, room, request), []
        else:
            room -= sum(map(request.count_tokens, decoys)) + len(decoys)
            units = self._hay(rng, room, request)
        depths = [request.spread_depth(self.name)] if hidden == 1 else scattered_depths(rng, hidden)
        rng.shuffle(depths)
        depths += scattered_depths(rng, len(decoys))
        joiner = "\n" if needles_of_filler else " "
        placed = place(units, needles + decoys, depths, joiner)
        return Example(
            task=self.name,
            index=request.index,
            length_tokens=request.length_tokens,
            sources=placed.source("haystack"),
            question=self._question(asked, kind),
            answers=tuple(value for key in asked for value in values[key]),
            scorer="recall",
            gold=placed.gold(range(hidden)),
            answer_prefix=self._prefix(asked, kind),
            max_new_tokens=(12 if self.value_kind == "numbers" else 40) * hidden + 16,
        )

    def _draw_key(self, rng: random.Random) -> str:
        if self.key_kind == "words" and self.haystack == "needles":
            return vocabulary.long_key_name(rng)
        return _DRAW[self.key_kind](rng)

    def _line(self, rng: random.Random, kind: str) -> str:
        return self._needle(self._draw_key(rng), _DRAW[self.value_kind](rng), kind)

    @staticmethod
    def _needle(key: str, value: str, kind: str) -> str:
        return f"The secret {kind} of {key} is {value}."

    def _question(self, asked: list[str], kind: str) -> str:
        names = ", ".join(asked[:-1]) + (" and " if len(asked) > 1 else "") + asked[-1]
        if self.asked * self.values == 1:
            return f"What is the secret {kind} of {names}?"
        return f"What are all the secret {kind}s of {names} in the text? Name every one."

    def _prefix(self, asked: list[str], kind: str) -> str:
        if len(asked) == 1:
            many = self.values > 1
            return f"The secret {kind}{'s' * many} of {asked[0]} {'are' if many else 'is'}"
        return f"The secret {kind}s are: {asked[0]}:"

    def _hay(self, rng: random.Random, room: int, request: ExampleRequest) -> list[str]:
        if self.haystack == "repeated":
            return [_REPEATED] * max(1, room // (request.count_tokens(_REPEATED) + 1))
        return filler(self.haystack).take(rng, room, request.count_tokens)

    @staticmethod
    def _fit(lines: list[str], room: int, request: ExampleRequest) -> list[str]:
        kept, used = [], 0
        for line in lines:
            used += request.count_tokens(line) + 1
            if used > room:
                break
            kept.append(line)
        return kept


@dataclass(frozen=True)
class KeyValueTask:
    """One value out of a long table of random keys (as InfiniteBench's Retrieve.KV)."""

    name: str = "key_value"
    category: str = "retrieval"

    def make(self, request: ExampleRequest) -> Example:
        rng = request.rng(self.name)
        used, lines, pairs = 0, [], []
        while used < request.length_tokens:
            key, value = vocabulary.uuid_value(rng), vocabulary.uuid_value(rng)
            line = f'"{key}": "{value}",'
            used += request.count_tokens(line) + 1
            if used <= request.length_tokens:
                pairs.append((key, value))
                lines.append(line)
        chosen = min(len(lines) - 1, int(request.spread_depth(self.name) * len(lines)))
        key, value = pairs[chosen]
        start = sum(len(line) + 1 for line in lines[:chosen])
        table = Placed("\n".join(lines), ((start, start + len(lines[chosen])),))
        return Example(
            task=self.name,
            index=request.index,
            length_tokens=request.length_tokens,
            sources=table.source("table"),
            question=f'What is the value of the key "{key}"?',
            answers=(value,),
            scorer="contains",
            gold=table.gold(),
            answer_prefix=f'The value of the key "{key}" is "',
            max_new_tokens=48,
        )


NEEDLE_TASKS = (
    NeedleTask("niah_single_1", haystack="repeated"),
    NeedleTask("niah_single_2"),
    NeedleTask("niah_single_3", value_kind="uuids"),
    NeedleTask("niah_multikey_1", others=3),
    NeedleTask("niah_multikey_2", haystack="needles"),
    NeedleTask("niah_multikey_3", haystack="needles", key_kind="uuids", value_kind="uuids"),
    NeedleTask("niah_multivalue", values=4),
    NeedleTask("niah_multiquery", asked=4),
    KeyValueTask(),
)
