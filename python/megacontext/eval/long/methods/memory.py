"""MegaContext itself: everything into a store on disk, then one question through the public API."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from megacontext import memory as memories
from megacontext.config import GenerationConfig, RuntimeConfig
from megacontext.eval.long.example import Example
from megacontext.eval.long.methods.reader import Reader, Reply
from megacontext.models import FrozenBase
from megacontext.models.tokenizer import ChatParts
from megacontext.runtime import Answer


class LedTokenizer:
    """The base's tokenizer whose chat ends with the first words of the answer."""

    def __init__(self, tokenizer: Any, prefix: str) -> None:
        self._tokenizer, self.prefix = tokenizer, prefix

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def chat_parts(self, system: str | None = None) -> ChatParts:
        parts = self._tokenizer.chat_parts(system)
        return replace(parts, after=np.concatenate([parts.after, self.encode(self.prefix)]))


class LedBase:
    """The reader's base with the example's answer prefix, which every other method gets too."""

    def __init__(self, base: Any, prefix: str) -> None:
        self._base, self.tokenizer = base, LedTokenizer(base.tokenizer, prefix)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)


@dataclass
class MemoryMethod:
    """`megacontext.open(...).ingest(...)`, then `.ask(...)`, as a user has it."""

    reader: Reader
    workspace: Path
    name: str = "megacontext"

    @property
    def config(self) -> RuntimeConfig:
        return RuntimeConfig(budget_places=self.reader.budget_places)

    @property
    def about(self) -> str:
        return f"the memory of this package, default settings: {self.config}"

    def answer(self, example: Example) -> Reply:
        base = cast(FrozenBase, LedBase(self.reader.base, example.answer_prefix))
        with tempfile.TemporaryDirectory(dir=self.workspace) as folder:
            store = Path(folder) / "store"
            with memories.open(store, base, config=self.config) as memory:
                started = time.perf_counter()
                for name, text in _numbered_sources(example):
                    memory.ingest(iter([text]), source=name)
                ingest_s = time.perf_counter() - started
                generation = GenerationConfig(max_new_tokens=example.max_new_tokens)
                told = memory.ask(example.question, generation)
                text, stats = told.text, told.stats
                shown = _shown(example, told)
            state_bytes = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
        return Reply(
            text=text,
            places=stats.prompt_places,
            ttft_s=stats.first_token_seconds,
            total_s=stats.seconds,
            ingest_s=ingest_s,
            state_bytes=state_bytes,
            confidence=stats.confidence,
            shown=shown,
        )


def _numbered_sources(example: Example) -> list[tuple[str, str]]:
    """Every source under its own name; numbers keep names apart."""
    return [(f"{i} {source.name}", source.text) for i, source in enumerate(example.sources)]


def _shown(example: Example, told: Answer) -> tuple[tuple[int, int], ...]:
    """Raw spans in focus, as characters of the history."""
    starts = example.source_starts
    places = {name: i for i, (name, _) in enumerate(_numbered_sources(example))}
    return tuple(
        (starts[i] + span.char_start, starts[i] + span.char_end)
        for span in told.sources
        if span.lod == 0
        for i in (places[span.source],)
    )
