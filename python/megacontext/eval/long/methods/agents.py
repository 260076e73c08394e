"""Baselines in which the model itself works on the history: recursive summaries, and paging.

Both cost many more tokens than one prompt; the reports count them as ingest and as time to answer.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from megacontext.eval.long.example import Example
from megacontext.eval.long.methods.passages import Index, Indexed, Passages, best
from megacontext.eval.long.methods.reader import NotApplicable, Reader, Reply, reply_of
from megacontext.models import PromptRunner

_SUMMARISE = (
    "Summarise the text above in a few sentences. Keep all names, numbers, dates and places."
)
_SEARCH = "SEARCH:"


@dataclass
class RecursiveSummary:
    """Summaries of parts, then of summaries, until all fit in the budget (Wu et al. 2021)."""

    reader: Reader
    summary_tokens: int = 80
    # 64k tokens are 34; more would take too long on a CPU, and the report shows "not applicable".
    max_parts: int = 40
    name: str = "summary"

    @property
    def about(self) -> str:
        return (
            f"parts as large as the budget, each summarised in {self.summary_tokens} tokens, again "
            f"until they fit; at most {self.max_parts} parts"
        )

    def answer(self, example: Example) -> Reply:
        room = self.reader.room(example)
        started = time.perf_counter()
        tokens = self.reader.history_tokens(example)
        part = self.reader.budget_places - 96
        parts = -(-len(tokens) // part)
        if parts > self.max_parts:
            raise NotApplicable(f"{parts} parts to summarise, at most {self.max_parts} are tried")
        while len(tokens) > room:
            texts = [tokens[i : i + part] for i in range(0, len(tokens), part)]
            summaries = self.reader.instruct_all(texts, _SUMMARISE, self.summary_tokens)
            tokens = self.reader.encode("\n".join(text.strip() for text in summaries))
        ingest = time.perf_counter() - started
        reading = self.reader.read(tokens, example)
        return reply_of(reading, ingest_s=ingest, state_bytes=len(tokens) * 4)


@dataclass
class PagingAgent:
    """A model that pages its own memory in, as MemGPT does (Packer et al. 2023).

    Main memory holds the newest page and a queue of pages that searches brought in, oldest out
    first. The question is the first search; then the model may answer, or write "SEARCH: words" to
    page more in. A small model seldom asks; then this is search by page.
    """

    reader: Reader
    page_tokens: int = 256
    max_searches: int = 3
    name: str = "paging_agent"

    @property
    def about(self) -> str:
        return (
            f"pages of {self.page_tokens} tokens in a queue beside the newest page; BM25 search by "
            f"the question, then by the model's own words, at most {self.max_searches} searches"
        )

    def answer(self, example: Example) -> Reply:
        indexed = Indexed.of(self.reader, example, self.page_tokens, ("bm25",))
        pages, (index,) = indexed.passages, indexed.indexes
        started = time.perf_counter()
        room = self.reader.room(example)
        slots = max(1, room // self.page_tokens - 1)
        queue: deque[int] = deque(maxlen=slots)
        query, largest = example.question, 0
        # The pages that were read to decide need not be read again to answer.
        runner = PromptRunner(self.reader.base)
        for _ in range(self.max_searches - 1):
            self._page_in(queue, index, query)
            step = self.reader.instruct(
                self._shown(pages, queue),
                f"Question: {example.question}\nIf the text above holds the answer, write it. "
                f"If not, write {_SEARCH} and a few words to look for.",
                24,
                runner,
            )
            largest = max(largest, step.places)
            head, found, words = step.text.partition(_SEARCH)
            if not found or head.strip() or not words.strip():
                break
            query = words.strip().splitlines()[0]
        else:
            self._page_in(queue, index, query)
        tokens = self.reader.encode(self._shown(pages, queue))[-room:]
        before = time.perf_counter() - started
        reading = self.reader.read(tokens, example, runner)
        reply = reply_of(
            reading, ingest_s=indexed.seconds, before_s=before, state_bytes=indexed.state_bytes
        )
        assert reply.places <= self.reader.budget_places
        assert largest <= self.reader.budget_places
        return reply

    def _page_in(self, queue: deque[int], index: Index, query: str) -> None:
        """Bring in the best pages that are not there yet, a third of the queue at a time."""
        count = max(1, (queue.maxlen or 1) // 3)
        scores = index.rank(query)
        scores[list(queue)] = -np.inf
        for page in best(scores, count):
            if scores[page] > 0:
                queue.append(page)

    @staticmethod
    def _shown(pages: Passages, queue: deque[int]) -> str:
        numbers = sorted({*queue, len(pages) - 1})
        return "\n\n".join(pages[i] for i in numbers)
