"""Tracing and counting: answers that lie in no single place.

Variables assigned through chains of other variables; the most common words of a list; the most
frequent words of a coded text. Source: RULER (Hsieh et al. 2024) for the shapes and frequencies.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

from megacontext.eval.long import vocabulary
from megacontext.eval.long.example import Example, ExampleRequest
from megacontext.eval.long.filler import filler
from megacontext.eval.long.haystack import Placed, place, scattered_depths


@dataclass(frozen=True)
class VariableTracking:
    """A value runs through a chain of `hops` assignments, beside `chains - 1` other chains."""

    name: str = "variable_tracking"
    chains: int = 1
    hops: int = 4
    haystack: str = "essays"
    category: str = "tracing"

    def make(self, request: ExampleRequest) -> Example:
        rng = request.rng(self.name)
        per_chain = self.hops + 1
        variables = vocabulary.distinct(rng, vocabulary.variable_name, self.chains * per_chain)
        values = vocabulary.distinct(rng, lambda r: str(r.randrange(10_000, 100_000)), self.chains)
        lines: list[str] = []
        depths: list[float] = []
        for chain, value in enumerate(values):
            names = variables[chain * per_chain : (chain + 1) * per_chain]
            lines.append(f"VAR {names[0]} = {value}.")
            lines += [f"VAR {new} = VAR {old}." for old, new in pairwise(names)]
            depths += scattered_depths(rng, per_chain)
        room = request.length_tokens - sum(request.count_tokens(line) + 1 for line in lines)
        units = filler(self.haystack).take(rng, room, request.count_tokens)
        placed = place(units, lines, depths, "\n")
        return Example(
            task=self.name,
            index=request.index,
            length_tokens=request.length_tokens,
            sources=placed.source("program"),
            question=(
                f"Which variables (VAR) hold the value {values[0]}, directly or through another "
                f"variable? There are {per_chain}."
            ),
            answers=tuple(variables[:per_chain]),
            scorer="recall",
            gold=placed.gold(range(per_chain)),
            answer_prefix=f"The {per_chain} variables that hold the value {values[0]} are:",
            max_new_tokens=64,
        )


@dataclass(frozen=True)
class CommonWords:
    """The ten words of a numbered list that come often; all others come a few times each."""

    name: str = "common_words"
    common_count: int = 10
    common_repeats: int = 30
    other_repeats: int = 3
    category: str = "aggregation"

    def make(self, request: ExampleRequest) -> Example:
        # Two words joined make 14,000 different ones, three a million.
        parts = 2 if request.length_tokens < 100_000 else 3
        entry_count = 100
        for _ in range(3):  # the tokens of an entry depend on the tokenizer, so the length is found
            common, lines = self._list(request.rng(self.name), entry_count, parts)
            text = "\n".join(lines)
            entry_count = int(
                entry_count * request.length_tokens * 0.99 / request.count_tokens(text)
            )
        return Example(
            task=self.name,
            index=request.index,
            length_tokens=request.length_tokens,
            sources=Placed(text, ()).source("list"),
            question=f"What are the {self.common_count} most common words in the list?",
            answers=tuple(common),
            scorer="recall",
            answer_prefix=f"The {self.common_count} most common words in the list are:",
            max_new_tokens=96,
        )

    def _list(
        self, rng: random.Random, entry_count: int, parts: int
    ) -> tuple[list[str], list[str]]:
        """The common words, and about `entry_count` numbered lines."""
        # Short lists keep the order of the two frequencies, not the frequencies.
        common_repeats = min(self.common_repeats, max(2, entry_count // (2 * self.common_count)))
        other_repeats = self.other_repeats if common_repeats == self.common_repeats else 1
        common = vocabulary.distinct(rng, lambda r: _word(r, parts), self.common_count)
        entries = common * common_repeats
        taken = set(common)
        while len(entries) < entry_count:
            word = _word(rng, parts)
            if word not in taken:
                taken.add(word)
                entries += [word] * other_repeats
        rng.shuffle(entries)
        return common, [f"{number}. {word}" for number, word in enumerate(entries, 1)]


@dataclass(frozen=True)
class FrequentWords:
    """The three most frequent of many invented words, whose frequencies fall as a power law."""

    name: str = "frequent_words"
    exponent: float = 2.0
    vocabulary_count: int = 400
    category: str = "aggregation"

    def make(self, request: ExampleRequest) -> Example:
        rng = request.rng(self.name)
        coded = vocabulary.distinct(rng, vocabulary.invented_word, self.vocabulary_count)
        weights = [rank**-self.exponent for rank in range(2, self.vocabulary_count + 2)]
        per_word = sum(map(request.count_tokens, coded)) / len(coded) + 0.1
        count = int(request.length_tokens / per_word)
        total = sum(weights)
        # Expected counts, rounded, so that the three winners are the same in every draw.
        text: list[str] = []
        for word, weight in zip(coded, weights, strict=True):
            text += [word] * round(count * weight / total)
        rng.shuffle(text)
        units = [" ".join(text[i : i + 20]) + "." for i in range(0, len(text), 20)]
        return Example(
            task=self.name,
            index=request.index,
            length_tokens=request.length_tokens,
            sources=Placed("\n".join(units), ()).source("coded text"),
            question="What are the three most frequent words in the coded text?",
            answers=tuple(coded[:3]),
            scorer="recall",
            answer_prefix="The three most frequent words in the coded text are:",
            max_new_tokens=40,
        )


def _word(rng: random.Random, parts: int) -> str:
    return "".join(rng.choices(vocabulary.NOUNS, k=parts))


TRACING_TASKS = (
    VariableTracking(),
    VariableTracking("variable_tracking_2", chains=2),
    CommonWords(),
    FrequentWords(),
)
