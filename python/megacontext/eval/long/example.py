"""What a task hands to a method: a history, a question, the answers, and where they stand.

Examples are made from a seed and nothing else: the same request gives the same bytes on every
machine and in any order of making. Knows no model and no engine.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Protocol

from megacontext_ext.errors import InvalidArgument

# Tokens of a text. The runner passes the base's own tokenizer.
CountTokens = Callable[[str], int]

# Between two sources of one history, wherever a history is shown as one text.
SOURCE_GAP = "\n\n"

_PIECE = re.compile(r"[^\W\d_]+|\d|[^\w\s]|_")


def estimate_tokens(text: str) -> int:
    """Tokens of `text` by rule of thumb: a token for 7 letters of a word, a digit, a sign.

    Within 20% of SmolLM2's tokenizer on English prose, code and identifiers; needs no model.
    """
    return sum(1 + (len(piece) - 1) // 7 for piece in _PIECE.findall(text))


@dataclass(frozen=True, slots=True)
class Source:
    """One document, file or session of a history."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class GoldSpan:
    """Characters `[start, end)` of source number `source` that the answer rests on."""

    source: int
    start: int
    end: int


@dataclass(frozen=True)
class Example:
    """One history with one question. `depth` is the gold's mean place in the history, 0 to 1."""

    task: str
    index: int
    length_tokens: int
    sources: tuple[Source, ...]
    question: str
    answers: tuple[str, ...]
    scorer: str
    gold: tuple[GoldSpan, ...] = ()
    # First words of the answer, given to every method alike. Small models need to be led.
    answer_prefix: str = ""
    max_new_tokens: int = 32
    # For scorer `first_named`: of these, the first that is named must be the answer.
    # For scorer `passes_tests`: the code before the answer and the code behind it.
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.sources or not self.question or not self.answers:
            raise InvalidArgument(
                f"[example] {self.task} must have sources, a question and answers, got "
                f"{len(self.sources)}, {len(self.question)} characters, {len(self.answers)}"
            )
        for span in self.gold:
            text = self.sources[span.source].text if span.source < len(self.sources) else ""
            if not 0 <= span.start < span.end <= len(text):
                raise InvalidArgument(
                    f"[example] gold span of {self.task} must lie in its source of {len(text)} "
                    f"characters, got [{span.start}, {span.end})"
                )

    @cached_property
    def history(self) -> str:
        """All sources as one text."""
        return SOURCE_GAP.join(source.text for source in self.sources)

    @property
    def source_starts(self) -> list[int]:
        """The character of `history` at which each source begins."""
        starts = [0]
        for source in self.sources[:-1]:
            starts.append(starts[-1] + len(source.text) + len(SOURCE_GAP))
        return starts

    @property
    def gold_texts(self) -> list[str]:
        """What the answer rests on, in the order of the history."""
        spans = sorted(self.gold, key=lambda span: (span.source, span.start))
        return [self.sources[s.source].text[s.start : s.end] for s in spans]

    @cached_property
    def depth(self) -> float | None:
        """Mean place of the gold, 0 at the beginning of the history; None without gold."""
        if not self.gold:
            return None
        starts = self.source_starts
        middles = [starts[span.source] + (span.start + span.end) / 2 for span in self.gold]
        return sum(middles) / len(middles) / (starts[-1] + len(self.sources[-1].text))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that a method or a scorer can see."""
        seen = json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(seen.encode("utf-8")).hexdigest()


@dataclass(frozen=True)
class ExampleRequest:
    """Which example is wanted: number `index` of a run with `seed`, of about `length_tokens`."""

    length_tokens: int
    index: int = 0
    seed: int = 0
    count_tokens: CountTokens = field(default=estimate_tokens, compare=False)

    def __post_init__(self) -> None:
        if self.length_tokens < 256:
            raise InvalidArgument(
                f"[example] length_tokens must be at least 256, got {self.length_tokens}"
            )
        if self.index < 0:
            raise InvalidArgument(f"[example] index must be 0 or more, got {self.index}")

    def rng(self, task: str) -> random.Random:
        """Draws that depend on the task, the length, the seed and the index alone."""
        label = f"{task}|{self.length_tokens}|{self.seed}|{self.index}"
        return random.Random(hashlib.sha256(label.encode()).digest())

    def spread_depth(self, task: str) -> float:
        """A depth in (0, 1) that fills the range evenly, however many examples there are."""
        offset = random.Random(f"{task}|{self.length_tokens}|{self.seed}").random()
        return (offset + self.index * 0.6180339887498949) % 1.0


class Task(Protocol):
    """A kind of question. `category` groups tasks in reports."""

    @property
    def name(self) -> str: ...

    @property
    def category(self) -> str: ...

    def make(self, request: ExampleRequest) -> Example:
        """The example of `request`; the history is within 10% of its length, and never above it by
        more than one unit of filler."""
        ...
