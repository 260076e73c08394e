"""The loop: question -> focus -> prompt -> tokens, with a refocus every K tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from megacontext.config import GenerationConfig
from megacontext.lens import Question, Scores
from megacontext.models import Prompt, PromptRunner, Sampler, TokenArray
from megacontext.models.generate import StopText
from megacontext.runtime.answer import Answer, AnswerStats
from megacontext.runtime.assemble import Assembled, Assembler, merge_runs
from megacontext.runtime.frame import QuestionFrame, question_frame
from megacontext.runtime.parts import Parts
from megacontext.runtime.provenance import spans_in_focus
from megacontext.runtime.refocus import Focus

# Of the answer so far, what a refocus looks at.
_CONTINUATION_TOKENS = 64


@dataclass(frozen=True, slots=True)
class _Turn:
    """One question on its way to an answer."""

    answer: Answer
    asked: Question
    frame: QuestionFrame
    focus: Focus
    generation: GenerationConfig
    began: float


class Session:
    """Questions over one memory. Keeps the KV cache between them; within a conversation also the
    working context. Outside of one, an answer does not depend on what was asked before, and answers
    may be read in turns. One thread."""

    def __init__(self, parts: Parts, conversation: int | None = None) -> None:
        self._parts = parts
        self._runner = PromptRunner(parts.base)
        self._assembler = Assembler(parts.store, parts.base.tokenizer, parts.gists, parts.config)
        self._conversation = conversation
        self.focus = Focus(parts, conversation)
        # What was assembled last, with the focus it came from.
        self.last: Assembled | None = None

    def ask(
        self, question: str, generation: GenerationConfig, retrieval_text: str | None = None
    ) -> Answer:
        """An answer that is computed as it is read.

        `retrieval_text` is what the lens looks for, where it is more than the question itself.
        Raises: OverBudget for a question that leaves no room, InvalidArgument for an empty one.
        """
        began = time.perf_counter()
        frame = self._frame(question)
        answer = Answer(question, iter(()), AnswerStats(budget_places=self._budget_places))
        asked = self._question(retrieval_text or question)
        turn = _Turn(answer, asked, frame, self._next_focus(), generation, began)
        answer._pieces = self._decode(turn)
        return answer

    def look(self, question: str) -> Assembled:
        """Focus on a question and assemble its prompt, without answering."""
        frame, focus = self._frame(question), self._next_focus()
        focus.open(self._entry_places(frame))
        focus.refocus(self._question(question))
        return self._assemble(focus, frame, 0)

    def _decode(self, turn: _Turn) -> Iterator[str]:
        answer, generation, focus = turn.answer, turn.generation, turn.focus
        stats, tokenizer = answer.stats, self._parts.base.tokenizer
        focus.open(self._entry_places(turn.frame))
        scores = focus.refocus(turn.asked)
        stats.refocus_count = 1
        stats.focus_seconds = time.perf_counter() - turn.began
        assembled = self._assemble(focus, turn.frame, generation.max_new_tokens)
        _note(stats, assembled)
        self._note_sources(turn, assembled)
        sampler, text = Sampler(generation), StopText(tokenizer.stream(), generation.stop)
        prompt, said = assembled.prompt, np.zeros(0, dtype=np.uint32)
        log_probability = 0.0
        while len(said) < generation.max_new_tokens:
            logits = self._runner.read(prompt)
            token = int(sampler.pick(logits[None])[0])
            log_probability += float(torch.log_softmax(logits, dim=-1)[token])
            stats.confidence = math.exp(log_probability / (len(said) + 1))
            stats.reused_places += self._runner.reused_places
            stats.computed_places += self._runner.computed_places
            stats.seconds = time.perf_counter() - turn.began
            stats.first_token_seconds = stats.first_token_seconds or stats.seconds
            if token in tokenizer.end_tokens:
                break
            said = np.append(said, np.uint32(token))
            stats.generated_tokens = len(said)
            yield text.push(token)
            if text.stopped:
                return
            prompt = prompt.then(token)
            if len(said) % self._parts.config.refocus_every_tokens == 0:
                self._look_again(turn, scores, said)
                assembled = self._assemble(focus, turn.frame, generation.max_new_tokens)
                self._note_sources(turn, assembled)
                prompt = _behind(assembled.prompt, said)
        yield text.end()

    def _look_again(self, turn: _Turn, scores: Scores, said: TokenArray) -> None:
        """Refocus on the question together with the newest of the answer."""
        tail = self._parts.base.tokenizer.decode(said[-_CONTINUATION_TOKENS:])
        question = self._question(f"{turn.asked.text} {tail}", reads=False)
        turn.focus.refocus_on_answer(question, scores)
        turn.answer.stats.refocus_count += 1

    def _note_sources(self, turn: _Turn, assembled: Assembled) -> None:
        sources = turn.answer._sources
        known = {(span.partition, span.token_start, span.token_end) for span in sources}
        for span in spans_in_focus(self._parts, turn.focus, assembled.runs):
            if (span.partition, span.token_start, span.token_end) in known:
                continue
            sources.append(span)
            self._parts.access.note(span.partition, span.token_start, span.token_end)
        sources.sort(key=lambda span: -span.score)

    def _next_focus(self) -> Focus:
        if self._conversation is None:
            self.focus = Focus(self._parts)
        return self.focus

    def _question(self, text: str, *, reads: bool = True) -> Question:
        tokens = self._parts.base.tokenizer.encode(f" {text}")
        return Question(text, self._parts.sketcher.question_row(tokens), reads=reads)

    @property
    def _budget_places(self) -> int:
        return self._parts.config.budget_places

    def _frame(self, question: str) -> QuestionFrame:
        return question_frame(self._parts.base.tokenizer, question, self._parts.config)

    def _entry_places(self, frame: QuestionFrame) -> int:
        return self._budget_places - frame.places - self._parts.config.marker_places

    def _assemble(self, focus: Focus, frame: QuestionFrame, answer_tokens: int) -> Assembled:
        facts, config = self._parts.base.facts, self._parts.config
        runs = merge_runs(focus.entries())
        limit = facts.trained_tokens - answer_tokens
        self.last = self._assembler.assemble(runs, frame, config.positions, limit)
        self.focus = focus
        return self.last


def _behind(prompt: Prompt, said: TokenArray) -> Prompt:
    """`prompt` with the tokens of an answer behind it."""
    positions = prompt.positions[-1] + 1 + np.arange(len(said), dtype=np.int64)
    return Prompt(
        np.concatenate([prompt.tokens, said.astype(np.int64)]),
        np.concatenate([prompt.positions, positions]),
        prompt.rows,
    )


def _note(stats: AnswerStats, assembled: Assembled) -> None:
    stats.history_tokens = sum(run.end - run.start for run in assembled.runs)
    stats.left_out_tokens = assembled.left_out_tokens
    stats.prompt_places = len(assembled.prompt)
    stats.entry_places = assembled.entry_places
    stats.marker_places = assembled.marker_places
    stats.frame_places = assembled.frame_places
    stats.positions = assembled.positions
