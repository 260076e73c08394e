"""Export to and import from JSON lines. See README.md for the form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TextIO

import numpy as np

from megacontext.config import K
from megacontext.models import TextTokenizer
from megacontext.runtime import Ingestor, SourceState, text_source
from megacontext_ext import Store
from megacontext_ext.errors import Corruption, InvalidArgument
from megacontext_ext.store import NO_CHAR_START

FORM_VERSION = 1
_CHUNK_TOKENS = 8192
# Kind of a source whose tokens are not all there yet.
_UNFINISHED = "unfinished import"


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What came in; `retokenised` when the ids were those of another tokenizer."""

    sources: int
    tokens: int
    retokenised: bool


def export_store(store: Store, out: TextIO, tokenizer: TextTokenizer | None = None) -> int:
    """Write every source that was not erased; with a tokenizer its text too. Returns the sources.

    What is there when the call begins, while writing goes on. Memory: one chunk.
    """
    snapshot = store.snapshot()
    partitions, tokens = snapshot.partitions(), 0
    _write(out, {"megacontext": FORM_VERSION, "identity": dict(store.identity)})
    for partition in partitions:
        _write(
            out,
            {
                "source": partition.source,
                "metadata": json.loads(partition.metadata_json),
                "created_ms": partition.created_ms,
                "hidden": partition.hidden,
                "tokens": partition.token_count,
            },
        )
        stream = tokenizer.stream() if tokenizer else None
        for start in range(0, partition.token_count, _CHUNK_TOKENS):
            end = min(start + _CHUNK_TOKENS, partition.token_count)
            ids = snapshot.read_tokens(partition.id, start, end).tolist()
            starts = snapshot.block_char_starts(partition.id, start // K, -(-end // K))
            line: dict[str, Any] = {"ids": ids, "starts": _starts_as_json(starts)}
            if stream is not None:
                line["text"] = "".join(stream.push(token) for token in ids)
                if end == partition.token_count:
                    line["text"] += stream.end()
            _write(out, line)
        tokens += partition.token_count
    _write(out, {"end": {"sources": len(partitions), "tokens": tokens}})
    return len(partitions)


def import_lines(
    lines: Iterable[str], store: Store, ingestor: Ingestor, tokenizer_hash: str
) -> ImportReport:
    """Take in an export; each source is durable before the next begins, so a call that was cut is
    made again. Sources that are there with the same tokens are left as they are.

    Raises: Corruption for a damaged or cut export, InvalidArgument for a source that is there
    with other tokens, or an export without text for another tokenizer.
    """
    read = _Reader(lines)
    header = read.next()
    if header.get("megacontext") != FORM_VERSION:
        raise Corruption(f"line 1: expected an export of version {FORM_VERSION}, got {header}")
    same = header["identity"].get("tokenizer", tokenizer_hash) == tokenizer_hash
    sources = tokens = 0
    while "end" not in (line := read.next()):
        chunks = read.chunks(line["tokens"])
        if _erase_unfinished(store, line["source"]):
            partition = (_take_ids if same else _take_text)(line, chunks, store, ingestor)
            store.set_hidden(partition, line["hidden"])
            store.commit()
        elif not same or not _is_there(line, chunks, store):
            raise InvalidArgument(f"[import] source must be new, got {line['source']!r} again")
        sources, tokens = sources + 1, tokens + line["tokens"]
    if line["end"] != {"sources": sources, "tokens": tokens}:
        raise Corruption(f"line {read.number}: expected {sources} sources, {tokens} tokens, "
                         f"got {line['end']}")  # fmt: skip
    return ImportReport(sources, tokens, not same)


def _erase_unfinished(store: Store, source: str) -> bool:
    """Whether the source is new, or was the unfinished last one of an import that was cut."""
    known = store.find_partition(source)
    if known is None:
        return True
    state = SourceState.from_json(known.metadata_json)
    if state.kind == _UNFINISHED:
        store.erase_partition(known.id)
    return state.kind == _UNFINISHED


def _is_there(line: dict[str, Any], chunks: Iterator[dict[str, Any]], store: Store) -> bool:
    known = store.find_partition(line["source"])
    if known is None or known.token_count != line["tokens"]:
        return False
    at = 0
    for chunk in chunks:
        end = at + len(chunk["ids"])
        if store.read_tokens(known.id, at, end).tolist() != chunk["ids"]:
            return False
        at = end
    return True


def _take_ids(
    line: dict[str, Any], chunks: Iterator[dict[str, Any]], store: Store, ingestor: Ingestor
) -> int:
    # Metadata comes last: an import that was cut is an interrupted ingestion until then.
    partition = store.add_partition(line["source"], SourceState(kind=_UNFINISHED).to_json())
    for chunk in chunks:
        blocks = np.array([NO_CHAR_START if s is None else s for s in chunk["starts"]], np.uint64)
        starts = np.repeat(blocks, K)[: len(chunk["ids"])]
        store.append_tokens(partition, np.array(chunk["ids"], np.uint32), starts)
    ingestor.index(partition)
    store.set_metadata(partition, json.dumps(line["metadata"]))
    return partition


def _take_text(
    line: dict[str, Any], chunks: Iterator[dict[str, Any]], store: Store, ingestor: Ingestor
) -> int:
    texts = []
    for chunk in chunks:
        if "text" not in chunk:
            raise InvalidArgument(
                f"[import] export must hold text for another tokenizer, {line['source']!r} has none"
            )
        texts.append(chunk["text"])
    report = ingestor.ingest(text_source(line["source"], "".join(texts)))
    state = SourceState.from_json(store.partition(report.partition).metadata_json)
    old = SourceState.from_json(json.dumps(line["metadata"]))
    user = {name: value for name, value in old.user.items() if name != "spans"}
    state = replace(state, kind=old.kind, path=old.path, user=user, curation=old.curation)
    store.set_metadata(report.partition, state.to_json())
    return report.partition


class _Reader:
    """Lines as objects, with their numbers for errors."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self.number = 0

    def next(self) -> dict[str, Any]:
        self.number += 1
        try:
            found = json.loads(next(self._lines))
        except StopIteration:
            raise Corruption(f"line {self.number}: expected more, the export was cut") from None
        except json.JSONDecodeError as error:
            raise Corruption(f"line {self.number}: expected JSON, got {error}") from error
        if not isinstance(found, dict):
            raise Corruption(f"line {self.number}: expected an object, got {type(found).__name__}")
        return found

    def chunks(self, tokens: int) -> Iterator[dict[str, Any]]:
        left = tokens
        while left > 0:
            line = self.next()
            if "ids" not in line or not 0 < len(line["ids"]) <= left:
                raise Corruption(f"line {self.number}: expected at most {left} tokens")
            left -= len(line["ids"])
            yield line


def _starts_as_json(starts: Any) -> list[int | None]:
    return [None if start == NO_CHAR_START else start for start in starts.tolist()]


def _write(out: TextIO, line: dict[str, Any]) -> None:
    out.write(json.dumps(line, ensure_ascii=False) + "\n")
