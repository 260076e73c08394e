"""A stream inside a real store, searched as at run time, and the blocks that hold its answers."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from megacontext.config import K
from megacontext.eval.lens.streams import Stream, StreamQuestion
from megacontext.lens import Question, Sketcher
from megacontext.models import FrozenBase
from megacontext.runtime import Ingestor, StoreHistory, text_source
from megacontext_ext import Store
from megacontext_ext.errors import NotFound

Block = tuple[int, int]
_SENTENCE_CHARS = 400
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)|\n")


@dataclass(frozen=True)
class StreamHistory:
    """A stream's history as the lens sees it."""

    stream: Stream
    store: Store
    history: StoreHistory
    base: FrozenBase
    sketcher: Sketcher

    def question(self, asked: StreamQuestion, *, reads: bool = False) -> Question:
        tokens = self.base.tokenizer.encode(f" {asked.question}")
        return Question(asked.question, self.sketcher.question_row(tokens), reads=reads)

    def gold_blocks(self, asked: StreamQuestion) -> list[Block]:
        """(partition, block) of each place that the answer rests on, each once, in order."""
        found = dict.fromkeys(self._block_at(name, at) for name, at in asked.gold)
        return list(found)

    def grounds(self, asked: StreamQuestion) -> list[list[frozenset[Block]]]:
        """What the answer rests on: for each fact its alternatives, each the blocks of one
        sentence. The alternative that `gold` names comes first."""
        same = asked.same or ((),) * len(asked.gold)
        return [
            [self._sentence_blocks(*place) for place in (gold, *others)]
            for gold, others in zip(asked.gold, same, strict=True)
        ]

    def _sentence_blocks(self, name: str, at: int) -> frozenset[Block]:
        start, end = sentence_span(self.stream.documents[name], at)
        partition, first = self._block_at(name, start)
        _, last = self._block_at(name, end - 1)
        # A last block that is not full is in no search and has no score.
        last = min(last, self.history.block_counts()[partition] - 1)
        return frozenset((partition, block) for block in range(first, last + 1))

    def _block_at(self, name: str, character: int) -> Block:
        partition = self.store.find_partition(name)
        assert partition is not None
        starts = self.store.block_char_starts(partition.id, 0, -(-partition.token_count // K))
        return partition.id, bisect_right(starts.tolist(), character) - 1


def sentence_span(text: str, at: int) -> tuple[int, int]:
    """Characters [start, end) of the sentence around character `at`, at most 400 on each side."""
    first, last = max(0, at - _SENTENCE_CHARS), min(len(text), at + _SENTENCE_CHARS)
    before = [match.end() for match in _SENTENCE_END.finditer(text, first, at)]
    after = _SENTENCE_END.search(text, at, last)
    start = before[-1] if before else first
    while start < at and text[start].isspace():
        start += 1
    return start, max(after.end() if after else last, at + 1)


def open_history(stream: Stream, folder: Path, base: FrozenBase) -> StreamHistory:
    """The stream's documents ingested below `folder`, opened for reading, by as many processes as
    like to. A second call finds them there."""
    path = folder / f"{stream.split}.mc"
    identity = {"model": base.facts.identity, "tokenizer": base.tokenizer.hash}
    sketcher = Sketcher(base)
    if not _is_whole(stream, path, identity):
        folder.mkdir(parents=True, exist_ok=True)
        with Store.open_or_create(path, identity) as store:
            ingestor = Ingestor(store, base.tokenizer, sketcher)
            for name, text in stream.documents.items():
                if not _complete(store, name):
                    ingestor.ingest(text_source(name, text))
    store = Store.open(path, read_only=True, identity=identity)
    return StreamHistory(
        stream, store, StoreHistory(store, base.tokenizer, sketcher), base, sketcher
    )


def _is_whole(stream: Stream, path: Path, identity: dict[str, str]) -> bool:
    try:
        with Store.open(path, read_only=True, identity=identity) as store:
            return all(_complete(store, name) for name in stream.documents)
    except NotFound:
        return False


def _complete(store: Store, name: str) -> bool:
    partition = store.find_partition(name)
    return partition is not None and bool(json.loads(partition.metadata_json).get("complete"))
