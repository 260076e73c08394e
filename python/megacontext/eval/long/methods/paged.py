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
from megacontext_ext.errors import Unsupported


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
        return PagedConfig(limits=FocusLimits(self.reader.budget_places))

    @property
    def asked(self) -> FocusLimits:
        """What the question may attend to. A small model answers better from little (measured at
        4k: a quarter of the budget is as good as all of it or better on each of four tasks)."""
        return FocusLimits(max(self.reader.budget_places // 4, 8 * K), recent_tokens=K)

    @property
    def about(self) -> str:
        return (
            f"the paged memory of this package, up to {self.max_tokens} tokens: {self.config}; "
            f"the question chooses blocks, {self.asked.budget_places} places of them"
        )

    def answer(self, example: Example) -> Reply:
        before, tail = self.reader.around(example)
        history = np.concatenate([before, self.reader.history_tokens(example)])
        if len(history) > self.max_tokens:
            raise NotApplicable(f"{len(history)} tokens, read one by one at most {self.max_tokens}")
        model: Any = getattr(self.reader.base, "model", None)
        tokenizer = self.reader.base.tokenizer
        with tempfile.TemporaryDirectory(dir=self.workspace) as folder:
            store = Path(folder) / "pages"
            try:
                with attach(model, self.config, store=store, tokenizer=tokenizer) as memory:
                    reply = self._told(memory, example, history, tail)
            except Unsupported as reason:
                raise NotApplicable(str(reason)) from reason
            kept = sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
        return replace(reply, state_bytes=kept)

    def _told(
        self, memory: PagedMemory, example: Example, history: TokenArray, tail: TokenArray
    ) -> Reply:
        started = time.perf_counter()
        memory.read(torch.from_numpy(history.astype(np.int64))[None])
        memory.commit()
        ingest_s = time.perf_counter() - started
        started = time.perf_counter()
        memory.config = replace(self.config, limits=self.asked)
        memory.focus_on(example.question)
        before_s = time.perf_counter() - started
        blocks, gists = memory.streams[0].focus(self.asked, len(tail))
        places = (len(blocks) + len(gists)) * K
        count = example.max_new_tokens
        reading = self.reader.go_on(memory.cache, tail, len(history), count, places)
        return reply_of(reading, ingest_s=ingest_s, before_s=before_s)
