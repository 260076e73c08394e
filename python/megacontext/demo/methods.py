"""The methods that the demo compares. All use one base, one wording, one scoring.

plain      the last tokens of the history that fit the budget, question behind them
rag        the best fixed pieces of 128 tokens until the budget is full
rag few    the same with the two best pieces alone
ceiling    the paragraph that holds the answer, simply given
megacontext the product: `memory.ask`
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import numpy as np

from megacontext.config import GenerationConfig, K
from megacontext.demo.corpus import TextQuestion
from megacontext.lens import similarity
from megacontext.memory import Memory
from megacontext.models import Prompt, PromptRunner, TokenArray, generate, generate_batch
from megacontext.runtime.frame import QuestionFrame, question_frame

# Blocks of one fixed piece of the retrieval baseline: 128 tokens.
PIECE_BLOCKS = 4
# Prompts answered in one batch; a step costs little more than for one.
_BATCH_PROMPTS = 8

Tell = Callable[[], None]


class Baselines:
    """Answers from the same store without the working context."""

    def __init__(self, memory: Memory, generation: GenerationConfig) -> None:
        self._memory = memory
        self._base = memory.base
        self._parts = memory._parts
        self._generation = generation

    def plain(self, questions: Sequence[TextQuestion]) -> Iterator[str]:
        """Truncation. The prefix of all questions is the same, so its keys and values are
        reused."""
        runner = PromptRunner(self._base)
        longest = max(self._frame(question).places for question in questions)
        recent = self._last_tokens(self._memory.config.budget_places - longest)
        for question in questions:
            prompt = self._prompt(question, recent)
            yield "".join(generate(runner, self._base, prompt, self._generation))

    def retrieval(self, questions: Sequence[TextQuestion]) -> Iterator[str]:
        """Fixed pieces by BM25 and sketch similarity, best first, until the budget is full.

        One by one: a left-padded batch of long prompts needs a dense mask, which costs more than
        it saves.
        """
        for question in questions:
            room = self._memory.config.budget_places - self._frame(question).places
            count = room // (PIECE_BLOCKS * K + len(self._separator))
            prompt, runner = self._retrieved(question, count), PromptRunner(self._base)
            yield "".join(generate(runner, self._base, prompt, self._generation))

    def best_pieces(
        self, questions: Sequence[TextQuestion], tell: Tell, piece_count: int
    ) -> list[str]:
        """The same with a few pieces only, which suits a small model better."""
        prompts = [self._retrieved(question, piece_count) for question in questions]
        return self._batches(prompts, tell)

    def ceiling(self, questions: Sequence[TextQuestion], tell: Tell) -> list[str]:
        """The paragraph with the answer, and nothing else."""
        encode = self._base.tokenizer.encode
        return self._batches([self._prompt(q, encode(q.span)) for q in questions], tell)

    def prefill_seconds(self, repeats: int = 3) -> float:
        """Median seconds of the plain model's first token over one full budget, nothing reused."""
        tokens = self._last_tokens(self._memory.config.budget_places)
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            PromptRunner(self._base).read(Prompt.of_tokens(tokens))
            seconds.append(time.perf_counter() - began)
        return median(seconds)

    def _retrieved(self, question: TextQuestion, piece_count: int) -> Prompt:
        best = self._best_pieces(question.question, piece_count)
        return self._prompt(question, self._joined([self._piece(*place) for place in best]))

    def _batches(self, prompts: Sequence[Prompt], tell: Tell) -> list[str]:
        answers: list[str] = []
        for start in range(0, len(prompts), _BATCH_PROMPTS):
            batch = prompts[start : start + _BATCH_PROMPTS]
            answers += generate_batch(self._base, batch, self._generation)
            for _ in batch:
                tell()
        return answers

    def _frame(self, question: TextQuestion) -> QuestionFrame:
        return question_frame(self._base.tokenizer, question.question, self._memory.config)

    def _prompt(self, question: TextQuestion, tokens: TokenArray) -> Prompt:
        frame = self._frame(question)
        return Prompt.of_tokens(np.concatenate([frame.before, tokens, frame.after]))

    @property
    def _separator(self) -> TokenArray:
        return self._base.tokenizer.encode("\n\n")

    def _joined(self, pieces: Sequence[TokenArray]) -> TokenArray:
        parts = [part for piece in pieces for part in (self._separator, piece)]
        return np.concatenate(parts[1:])

    def _last_tokens(self, count: int) -> TokenArray:
        """The end of the history: the last sources' last tokens, oldest first."""
        runs: list[TokenArray] = []
        for partition in reversed(self._memory.store.partitions()):
            start = max(0, partition.token_count - count)
            tokens = self._memory.store.read_tokens(partition.id, start, partition.token_count)
            runs.insert(0, tokens)
            count -= len(tokens)
        return np.concatenate(runs)

    def _best_pieces(self, question: str, count: int) -> list[tuple[int, int]]:
        """(partition, piece) by falling score; ties by place."""
        history = self._parts.history
        counts = history.block_counts()
        hits = history.search(question, sum(counts.values()))
        tokens = self._base.tokenizer.encode(f" {question}")
        sketch = self._parts.sketcher.question_row(tokens)
        places: list[tuple[float, int, int]] = []
        lexical = {
            partition: np.zeros(-(-blocks // PIECE_BLOCKS)) for partition, blocks in counts.items()
        }
        for partition, block, score in zip(hits.partitions, hits.blocks, hits.scores, strict=True):
            lexical[int(partition)][int(block) // PIECE_BLOCKS] += score
        best = max((float(scores.max()) for scores in lexical.values()), default=0.0) or 1.0
        weight = self._memory.config.lens.sketch_weight
        for partition, scores in lexical.items():
            near = np.maximum(similarity(history.sketches(partition), sketch), 0.0)
            for piece, score in enumerate(scores / best):
                own = near[piece * PIECE_BLOCKS : (piece + 1) * PIECE_BLOCKS]
                total = score + weight * float(own.max(initial=0.0))
                places.append((-total, partition, piece))
        return [(partition, piece) for _, partition, piece in sorted(places)[:count]]

    def _piece(self, partition: int, piece: int) -> TokenArray:
        return self._parts.history.tokens(
            partition, piece * PIECE_BLOCKS, (piece + 1) * PIECE_BLOCKS
        )
