"""The loop: question -> focus -> prompt -> tokens, with a refocus every K tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from megacontext.config import GenerationConfig
from megacontext.lens import Question
from megacontext.models import Prompt, PromptRunner, Sampler
from megacontext.models.generate import StopText
from megacontext.runtime.answer import Answer, AnswerStats
from megacontext.runtime.assemble import Assembled, Assembler, merge_runs
from megacontext.runtime.frame import QuestionFrame, question_frame
from megacontext.runtime.parts import Parts
from megacontext.runtime.provenance import spans_in_focus
from megacontext.runtime.refocus import Focus

# Of the answer so far, what a refocus looks at.
_CONTINUATION_TOKENS = 64


class Session:
    """Questions over one memory, one after the other. Keeps the KV cache and the working context
    between them. One thread."""

    def __init__(self, parts: Parts, conversation: int | None = None) -> None:
        self._parts = parts
        self._runner = PromptRunner(parts.base)
        self._assembler = Assembler(parts.store, parts.base.tokenizer, parts.gists, parts.config)
        self.focus = Focus(parts, conversation)
        self.last: Assembled | None = None

    def ask(
        self, question: str, generation: GenerationConfig, retrieval_text: str | None = None
    ) -> Answer:
        """An answer that is computed as it is read.

        `retrieval_text` is what the lens looks for, where it is more than the question itself.
        Raises: OverBudget for a question that leaves no room, InvalidArgument for an empty one.
        """
        began = time.perf_counter()
        config = self._parts.config
        frame = question_frame(
            self._parts.base.tokenizer, question, config.frame, config.budget_places
        )
        stats = AnswerStats(budget_places=config.budget_places)
        answer = Answer(question, iter(()), stats)
        asked = self._question(retrieval_text or question)
        answer._pieces = self._decode(answer, asked, frame, generation, began)
        return answer

    def look(self, question: str) -> Assembled:
        """Focus on a question and assemble its prompt, without answering."""
        config = self._parts.config
        frame = question_frame(
            self._parts.base.tokenizer, question, config.frame, config.budget_places
        )
        self._open(frame)
        self.focus.refocus(self._question(question))
        return self._assemble(frame, 0)

    def _decode(
        self,
        answer: Answer,
        asked: Question,
        frame: QuestionFrame,
        generation: GenerationConfig,
        began: float,
    ) -> Iterator[str]:
        stats, tokenizer = answer.stats, self._parts.base.tokenizer
        self._open(frame)
        self.focus.refocus(asked)
        stats.refocus_count = 1
        stats.focus_seconds = time.perf_counter() - began
        assembled = self._assemble(frame, generation.max_new_tokens)
        _note(stats, assembled)
        answer._sources[:] = spans_in_focus(self._parts, self.focus, assembled.runs)
        sampler, text = Sampler(generation), StopText(tokenizer.stream(), generation.stop)
        prompt, said = assembled.prompt, np.zeros(0, dtype=np.uint32)
        while len(said) < generation.max_new_tokens:
            token = int(sampler.pick(self._runner.read(prompt)[None])[0])
            stats.reused_places += self._runner.reused_places
            stats.computed_places += self._runner.computed_places
            if not stats.first_token_seconds:
                stats.first_token_seconds = time.perf_counter() - began
            stats.seconds = time.perf_counter() - began
            if token in tokenizer.end_tokens:
                break
            said = np.append(said, np.uint32(token))
            stats.generated_tokens = len(said)
            yield text.push(token)
            if text.stopped:
                return
            prompt = prompt.then(token)
            if len(said) % self._parts.config.refocus_every_tokens == 0:
                prompt = self._refocus(answer, asked, frame, said, generation)
        yield text.end()

    def _refocus(
        self,
        answer: Answer,
        asked: Question,
        frame: QuestionFrame,
        said: np.ndarray,
        generation: GenerationConfig,
    ) -> Prompt:
        """Look again with what was said, and put the answer so far behind the new prompt."""
        tail = self._parts.base.tokenizer.decode(said[-_CONTINUATION_TOKENS:])
        self.focus.refocus_on_answer(self._question(f"{asked.text} {tail}", reads=False))
        answer.stats.refocus_count += 1
        assembled = self._assemble(frame, generation.max_new_tokens)
        known = {(span.partition, span.token_start, span.token_end) for span in answer._sources}
        answer._sources.extend(
            span
            for span in spans_in_focus(self._parts, self.focus, assembled.runs)
            if (span.partition, span.token_start, span.token_end) not in known
        )
        answer._sources.sort(key=lambda span: -span.score)
        prompt = assembled.prompt
        behind = prompt.positions[-1] + 1 + np.arange(len(said), dtype=np.int64)
        return Prompt(
            np.concatenate([prompt.tokens, said.astype(np.int64)]),
            np.concatenate([prompt.positions, behind]),
            prompt.rows,
        )

    def _question(self, text: str, *, reads: bool = True) -> Question:
        tokens = self._parts.base.tokenizer.encode(f" {text}")
        return Question(text, self._parts.sketcher.question_row(tokens), reads=reads)

    def _open(self, frame: QuestionFrame) -> None:
        room = self._parts.config.budget_places - frame.places - self._parts.config.marker_places
        self.focus.open(max(room, 0))

    def _assemble(self, frame: QuestionFrame, answer_tokens: int) -> Assembled:
        facts, config = self._parts.base.facts, self._parts.config
        runs = merge_runs(self.focus.entries())
        limit = facts.trained_tokens - answer_tokens
        self.last = self._assembler.assemble(runs, frame, config.positions, limit)
        return self.last


def _note(stats: AnswerStats, assembled: Assembled) -> None:
    stats.history_tokens = sum(run.end - run.start for run in assembled.runs)
    stats.left_out_tokens = assembled.left_out_tokens
    stats.prompt_places = len(assembled.prompt)
    stats.entry_places = assembled.entry_places
    stats.marker_places = assembled.marker_places
    stats.frame_places = assembled.frame_places
    stats.positions = assembled.positions
