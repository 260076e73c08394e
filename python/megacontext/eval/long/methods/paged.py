"""Paged memory: the base reads the whole history once, and attends to what the question needs.

No text is put into a prompt: keys and values of every block were computed when it was first read,
and the question chooses blocks. So a history far beyond the trained length is read, at the price of
one pass of the model over it.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megacontext.config import K
from megacontext.eval.long.example import Example
from megacontext.eval.long.methods.reader import NotApplicable, Reader, Reply, reply_of
from megacontext.models import TokenArray
from megacontext.paged import PagedConfig, PagedMemory, attach
from megacontext.paged.stream import FocusLimits
from megacontext_ext.errors import OverBudget, Unsupported


@dataclass
class PagedMethod:
    """`megacontext.attach(model, store=...)`, `memory.read(...)`, `memory.focus_on(question)`."""

    reader: Reader
    workspace: Path
    # The base reads every token once: above this an example takes more than minutes on a CPU.
    max_tokens: int = 100_000
    name: str = "paged"

    @property
    def config(self) -> PagedConfig:
        budget = self.reader.budget_places
        # A step's own tokens are a quarter of what it attends to, or less.
        steps = min(512, max(K, budget // 4))
        return PagedConfig(limits=FocusLimits(budget), read_tokens=steps)

    @property
    def history_places(self) -> int:
        """Places for the history while a question is answered. A small model answers better from
        little (looked at once, at 4k: a quarter of the budget was no worse than all of it)."""
        return max(self.reader.budget_places // 4, 8 * K)

    @property
    def about(self) -> str:
        return (
            f"the paged memory of this package, up to {self.max_tokens} tokens: {self.config}; "
            f"the question chooses {self.history_places} places of the history"
        )

    def answer(self, example: Example) -> Reply:
        before, _ = self.reader.around(example)
        history = np.concatenate([before, self.reader.history_tokens(example)])
        if len(history) > self.max_tokens:
            raise NotApplicable(f"{len(history)} tokens, read one by one at most {self.max_tokens}")
        model: Any = getattr(self.reader.base, "model", None)
        if model is None:
            raise NotApplicable("pages need a transformers model")
        tokenizer = self.reader.base.tokenizer
        with tempfile.TemporaryDirectory(dir=self.workspace) as folder:
            store = Path(folder) / "pages"
            try:
                with attach(model, self.config, store=store, tokenizer=tokenizer) as memory:
                    started = time.perf_counter()
                    memory.read(_row(history))
                    memory.commit()
                    ingest_s = time.perf_counter() - started
                    reply = replace(self.ask(memory, example), ingest_s=ingest_s)
            except (OverBudget, Unsupported) as reason:
                raise NotApplicable(str(reason)) from reason
            kept = sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
        return replace(reply, state_bytes=kept)

    def ask(self, memory: PagedMemory, example: Example) -> Reply:
        """The answer to the example's question over what `memory` has read; in an aside, so that
        the next question finds the memory as it was."""
        _, tail = self.reader.around(example)
        end, count = memory.token_count, example.max_new_tokens
        # The question and the answer so far stay in view whole, beside what is chosen for them.
        own = (len(tail) + count) // K + 2
        places = min(self.history_places + own * K, self.reader.budget_places)
        config = memory.config
        started = time.perf_counter()
        with memory.aside():
            memory.config = replace(config, limits=FocusLimits(places, recent_tokens=count))
            try:
                memory.focus_on(example.question)
                memory.read(_row(tail[:-1]))
                memory.pin(list(range(end // K, memory.token_count // K)))
                before_s = time.perf_counter() - started
                at = end + len(tail) - 1
                reading = self.reader.go_on(memory.cache, tail[-1:], at, count, places)
            finally:
                memory.config = config
        return reply_of(reading, before_s=before_s)


def _row(tokens: TokenArray) -> torch.Tensor:
    return torch.from_numpy(tokens.astype(np.int64))[None]
