"""One way of asking the frozen base, shared by every baseline: frame, context, question, prefix.

The prompt never takes more places than the budget, except for the method that reads everything.
Decoding is greedy, so that a difference between methods is a difference in what they showed.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from transformers.cache_utils import Cache

from megacontext.config import FrameConfig, GenerationConfig
from megacontext.eval.long.example import Example
from megacontext.models import FrozenBase, Prompt, PromptRunner, StepInput, TokenArray
from megacontext.models.generate import generate_batch
from megacontext_ext.errors import InvalidArgument

T = TypeVar("T")
# Prompts of a batch: enough to share the reading of weights, few enough for its keys and values.
_BATCH = 8


class NotApplicable(Exception):
    """A method cannot be run on an example; the text says why. Reports show it as such."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a method answered, and what it took."""

    text: str
    # Places of the largest prompt that the model read for this answer.
    places: int
    # From the question to the first token, without ingest.
    ttft_s: float
    total_s: float
    ingest_s: float = 0.0
    # Kept between ingest and question: text, indexes, caches, files.
    state_bytes: int = 0
    # Geometric mean probability of the answer's tokens; None where the method does not tell.
    confidence: float | None = None
    # Half-open character spans of the history that the model had in front of it, where known.
    shown: tuple[tuple[int, int], ...] | None = None


class Method(Protocol):
    """A way of answering questions about a long history within a budget of places."""

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> str:
        """One line for the report: what is done, with which settings."""
        ...

    def answer(self, example: Example) -> Reply:
        """Ingest the history, then answer. Raises NotApplicable."""
        ...


@dataclass(frozen=True, slots=True)
class Reading:
    text: str
    places: int
    ttft_s: float
    decode_s: float
    confidence: float


@dataclass
class Reader:
    """The base with a budget, asked in the words that MegaContext uses itself (`FrameConfig`), so
    that no method has the better prompt. Not for several threads."""

    base: FrozenBase
    budget_places: int = 2048
    frame: FrameConfig = field(default_factory=FrameConfig)
    _before: TokenArray = field(init=False, repr=False)
    _after: TokenArray = field(init=False, repr=False)
    # What was derived from the example that was asked about last, with the seconds it took.
    _example: Example | None = field(default=None, init=False, repr=False)
    _derived: dict[str, tuple[Any, float]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        parts = self.base.tokenizer.chat_parts(self.frame.system)
        self._before = np.concatenate([parts.before, self.encode(self.frame.lead)])
        self._after = parts.after

    def encode(self, text: str) -> TokenArray:
        return self.base.tokenizer.encode(text)

    def count_tokens(self, text: str) -> int:
        return len(self.encode(text))

    def derived(self, example: Example, what: str, make: Callable[[], T]) -> tuple[T, float]:
        """`make()` and the seconds it took. Methods that derive the same from one history share
        it, and each is charged as if it had been alone."""
        if self._example is not example:
            self._example, self._derived = example, {}
        if what not in self._derived:
            started = time.perf_counter()
            made = make()
            self._derived[what] = made, time.perf_counter() - started
        return self._derived[what]

    def history_tokens(self, example: Example) -> TokenArray:
        """Tokens of the whole history."""
        return self.derived(example, "tokens", lambda: self.encode(example.history))[0]

    def room(self, example: Example) -> int:
        """Places left for context beside frame, question and prefix. Raises InvalidArgument."""
        room = self.budget_places - len(self._before) - len(self._tail(example))
        if room < 32:
            raise InvalidArgument(
                f"[read] budget_places must leave 32 places for context, {self.budget_places} "
                f"leaves {room} beside the question"
            )
        return room

    def around(self, example: Example) -> tuple[TokenArray, TokenArray]:
        """Tokens before and after the context: frame, question, answer prefix."""
        return self._before, self._tail(example)

    def read(
        self,
        context: Sequence[int] | TokenArray,
        example: Example,
        runner: PromptRunner | None = None,
    ) -> Reading:
        """Greedy answer to the example's question with `context` in front of it; a `runner` has
        read the beginning of it before."""
        tokens = np.concatenate(
            [self._before, np.asarray(context, dtype=np.uint32), self._tail(example)]
        )
        return self.generate(tokens, example.max_new_tokens, runner)

    def instruct(
        self, text: str, instruction: str, max_new_tokens: int, runner: PromptRunner | None = None
    ) -> Reading:
        """Greedy reply to `text` followed by `instruction`."""
        tokens = self._instructed(self.encode(text), instruction)
        return self.generate(tokens, max_new_tokens, runner)

    def instruct_all(
        self, texts: Sequence[TokenArray], instruction: str, max_new_tokens: int
    ) -> list[str]:
        """Greedy replies to several texts, each followed by `instruction`; those of one length in
        one batch."""
        prompts = [Prompt.of_tokens(self._instructed(text, instruction)) for text in texts]
        config = GenerationConfig(max_new_tokens=max_new_tokens)
        replies: dict[int, str] = {}
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for _, group in itertools.groupby(by_length, key=lambda i: len(prompts[i])):
            numbers = list(group)
            for at in range(0, len(numbers), _BATCH):
                batch = numbers[at : at + _BATCH]
                told = generate_batch(self.base, [prompts[i] for i in batch], config)
                replies.update(zip(batch, told, strict=True))
        return [replies[i] for i in range(len(prompts))]

    def _instructed(self, text: TokenArray, instruction: str) -> TokenArray:
        tail = np.concatenate([self.encode("\n\n" + instruction), self._after])
        room = self.budget_places - len(self._before) - len(tail)
        return np.concatenate([self._before, text[:room], tail])

    def generate(
        self, tokens: TokenArray, max_new_tokens: int, runner: PromptRunner | None = None
    ) -> Reading:
        started = time.perf_counter()
        runner, prompt = runner or PromptRunner(self.base), Prompt.of_tokens(tokens)
        stream, text, logs, first = self.base.tokenizer.stream(), "", [], math.nan
        for step in range(max_new_tokens):
            logits = runner.read(prompt)
            token = int(logits.argmax())
            if step == 0:
                first = time.perf_counter() - started
            logs.append(float(torch.log_softmax(logits, dim=-1)[token]))
            if token in self.base.tokenizer.end_tokens:
                break
            text += stream.push(token)
            prompt = prompt.then(token)
        text += stream.end()
        took = time.perf_counter() - started
        confidence = math.exp(sum(logs) / len(logs))
        return Reading(text, len(tokens), first, took - first, confidence)

    @torch.inference_mode()
    def go_on(
        self, cache: Cache, tokens: TokenArray, at: int, max_new_tokens: int, places: int
    ) -> Reading:
        """Greedy decoding behind `tokens`, of which the first stands at position `at`, over what
        `cache` holds. `places` is what the answer is said to have taken."""
        ends, stream = self.base.tokenizer.end_tokens, self.base.tokenizer.stream()
        started, text, logs, first = time.perf_counter(), "", [], math.nan
        asked = torch.from_numpy(tokens.astype(np.int64))[None]
        for step in range(max_new_tokens):
            positions = torch.arange(at, at + asked.shape[1])[None]
            logits = self.base.step(StepInput(positions, tokens=asked), cache)[0, -1]
            at += asked.shape[1]
            token = int(logits.argmax())
            if step == 0:
                first = time.perf_counter() - started
            logs.append(float(torch.log_softmax(logits, dim=-1)[token]))
            if token in ends:
                break
            text += stream.push(token)
            asked = torch.tensor([[token]])
        text += stream.end()
        took = time.perf_counter() - started
        return Reading(text, places, first, took - first, math.exp(sum(logs) / len(logs)))

    def question_likelihood(self, passage: TokenArray, question: str) -> float:
        """Mean log-probability of `question` behind `passage`: how well the passage prepares it."""
        wanted = self.encode("\nQuestion: " + question)
        tokens = torch.from_numpy(np.concatenate([self._before, passage, wanted]).astype(np.int64))
        positions = torch.arange(len(tokens))[None]
        with torch.inference_mode():
            logits = self.base.step(
                StepInput(positions, tokens=tokens[None]), self.base.new_cache(), len(wanted) + 1
            )
        logs = torch.log_softmax(logits[0, :-1], dim=-1)
        ids = tokens[-len(wanted) :, None]
        return float(logs.gather(1, ids).mean())

    def _tail(self, example: Example) -> TokenArray:
        question = self.encode(self.frame.ask.replace("{question}", example.question))
        return np.concatenate([question, self._after, self.encode(example.answer_prefix)])


def reply_of(
    reading: Reading, *, ingest_s: float = 0.0, before_s: float = 0.0, state_bytes: int = 0
) -> Reply:
    """A reply whose only prompt was `reading`, after `before_s` of work on the question."""
    return Reply(
        text=reading.text,
        places=reading.places,
        ttft_s=before_s + reading.ttft_s,
        total_s=before_s + reading.ttft_s + reading.decode_s,
        ingest_s=ingest_s,
        state_bytes=state_bytes,
        confidence=reading.confidence,
    )
