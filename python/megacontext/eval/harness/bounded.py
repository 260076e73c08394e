"""A frozen base behind plain text in, text or likelihood out, whatever the length of the text.

Other people's harnesses hand over one string. Where it fits the budget, the base reads it as it is
and gives exactly the plain model's numbers. Where it does not, the text goes into a memory on disk,
its last question is asked of it, and the prompt that the memory assembles stands in its place.
Knows no harness.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from megacontext import memory as memories
from megacontext.config import FrameConfig, GenerationConfig, RuntimeConfig
from megacontext.eval.long.methods.memory import LedBase
from megacontext.models import FrozenBase, Prompt, PromptRunner, StepInput, TokenArray
from megacontext.models.generate import generate
from megacontext.models.prompt import prompt_rows
from megacontext_ext.errors import InvalidArgument

QUESTION_MARK = "\n\nQuestion: "
ANSWER_MARK = "\nAnswer:"
# Of a text without a question, how much of its end is what the memory is asked.
_TAIL_CHARACTERS = 400


@dataclass(frozen=True, slots=True)
class SplitText:
    """One string as history, question and the first words of the answer.

    `asked` is False when no question was marked and the end of the text stands for it.
    """

    history: str
    question: str
    prefix: str
    asked: bool


def split_text(text: str) -> SplitText:
    """Split at the last "\\n\\nQuestion: ... \\nAnswer:"; without one, at the last paragraph."""
    history, found, rest = text.rpartition(QUESTION_MARK)
    if found:
        question, _, prefix = rest.partition(ANSWER_MARK)
        return SplitText(history, question.strip(), prefix, asked=True)
    history, _, tail = text.rstrip().rpartition("\n\n")
    if not history or len(tail) > _TAIL_CHARACTERS:
        cut = max(0, len(text) - _TAIL_CHARACTERS)
        history, tail = text[:cut], text[cut:]
    return SplitText(history, tail.strip(), "", asked=False)


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of a continuation: ln p summed over its tokens, and whether greedy decoding writes it."""

    log_probability: float
    is_greedy: bool


class BoundedBase:
    """Texts of any length for one base within `budget_places`. One thread.

    The memory of the newest long history is kept, so that several continuations or questions cost
    one ingest.
    """

    def __init__(self, base: FrozenBase, budget_places: int = 2048) -> None:
        if not 128 <= budget_places <= base.facts.trained_tokens:
            raise InvalidArgument(
                f"[bounded] budget_places must be 128 to the base's {base.facts.trained_tokens}, "
                f"got {budget_places}"
            )
        self.base = base
        self.budget_places = budget_places
        self._frame = FrameConfig()
        self._led = LedBase(base, "")
        self._held: tuple[str, memories.Memory] | None = None
        self._open = contextlib.ExitStack()
        # Of the last call: was a memory needed, and how many places did the model read?
        self.used_memory = False
        self.places = 0

    def close(self) -> None:
        """Remove the kept memory."""
        self._held = None
        self._open.close()

    def generate(self, text: str, max_new_tokens: int, until: Sequence[str] = ()) -> str:
        """Greedy continuation of `text`, up to an end token, one of `until`, or the limit."""
        config = GenerationConfig(
            max_new_tokens=max_new_tokens, stop=tuple(stop for stop in until if stop)
        )
        prompt = self._prompt(text)
        return "".join(generate(PromptRunner(self.base), self.base, prompt, config))

    def likelihood(self, text: str, continuation: str) -> Likelihood:
        """How likely `continuation` is behind `text`."""
        head, wanted = self._pair(text, continuation)
        if len(head) + len(wanted) <= self.budget_places:
            self.used_memory, self.places = False, len(head) + len(wanted)
            return self._scored(Prompt.of_tokens(np.concatenate([head, wanted])), len(wanted))
        prompt = self._prompt(text, reads_plain=False)
        wanted = self._encode(continuation)
        return self._scored(_longer(prompt, wanted), len(wanted))

    def rolling(self, text: str) -> float:
        """ln p of all of `text`, each token once, behind at least half a budget of what came before
        it. Windows slide; the memory is not asked, for there is no question."""
        head, wanted = self._pair("", text)
        tokens = np.concatenate([head, wanted])
        total, done, step = 0.0, len(head), self.budget_places // 2
        while done < len(tokens):
            end = min(len(tokens), max(done + step, self.budget_places))
            window = tokens[max(0, end - self.budget_places) : end]
            total += self._scored(Prompt.of_tokens(window), end - done).log_probability
            done = end
        self.used_memory, self.places = False, min(len(tokens), self.budget_places)
        return total

    def _prompt(self, text: str, *, reads_plain: bool = True) -> Prompt:
        split = split_text(text)
        tokens = self._framed(split) if split.asked else self._pair(text, "")[0]
        self.used_memory = not reads_plain or len(tokens) > self.budget_places
        if not self.used_memory:
            self.places = len(tokens)
            return Prompt.of_tokens(tokens)
        self._led.tokenizer.prefix = split.prefix
        view = self._memory(split.history).working_context(split.question)
        self.places = len(view.assembled.prompt)
        return view.assembled.prompt

    def _framed(self, split: SplitText) -> TokenArray:
        parts = self.base.tokenizer.chat_parts(self._frame.system)
        ask = self._frame.ask.replace("{question}", split.question)
        texts = [self._encode(t) for t in (self._frame.lead, split.history, ask)]
        return np.concatenate([parts.before, *texts, parts.after, self._encode(split.prefix)])

    def _memory(self, history: str) -> memories.Memory:
        if self._held is not None and self._held[0] == history:
            return self._held[1]
        self.close()
        folder = self._open.enter_context(tempfile.TemporaryDirectory(prefix="megacontext-"))
        config = RuntimeConfig(budget_places=self.budget_places)
        opened = memories.open(Path(folder) / "store", cast(FrozenBase, self._led), config=config)
        memory = self._open.enter_context(opened)
        memory.ingest(iter([history]), source="text")
        self._held = (history, memory)
        return memory

    def _scored(self, prompt: Prompt, count: int) -> Likelihood:
        """The last `count` tokens of `prompt` behind those before them."""
        if count == 0:
            return Likelihood(0.0, True)
        positions = torch.from_numpy(prompt.positions)[None]
        tokens = torch.from_numpy(prompt.tokens)[None]
        with torch.inference_mode():
            step = (
                StepInput(positions, tokens=tokens)
                if prompt.rows is None
                else StepInput(positions, rows=prompt_rows(self.base, prompt)[None])
            )
            logits = self.base.step(step, self.base.new_cache(), count + 1)[0, :-1].cpu()
        ids = tokens[0, -count:]
        chosen = torch.log_softmax(logits, dim=-1).gather(1, ids[:, None])
        return Likelihood(float(chosen.sum()), bool((logits.argmax(dim=-1) == ids).all()))

    def _pair(self, text: str, continuation: str) -> tuple[TokenArray, TokenArray]:
        """Tokens of both, tokenised as one text; something always stands before the continuation.

        Spaces between the two go with the continuation, where a tokenizer has them.
        """
        head_text = text.rstrip(" ") if continuation else text
        continuation = text[len(head_text) :] + continuation
        begin, start = self.base.tokenizer.begin_tokens, self.base.tokenizer.start_token
        head = self._encode(head_text)
        if len(begin) + len(head) == 0:
            begin = np.array([start], dtype=np.uint32)
        whole = self._encode(head_text + continuation)
        return np.concatenate([begin, head]), whole[len(head) :]

    def _encode(self, text: str) -> TokenArray:
        return self.base.tokenizer.encode(text)


def _longer(prompt: Prompt, tokens: TokenArray) -> Prompt:
    positions = prompt.positions[-1] + 1 + np.arange(len(tokens), dtype=np.int64)
    return Prompt(
        np.concatenate([prompt.tokens, tokens.astype(np.int64)]),
        np.concatenate([prompt.positions, positions]),
        prompt.rows,
    )
