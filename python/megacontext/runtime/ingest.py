"""Text into the store: cut, tokenise, append, sketch, index; and go on after any interruption.

Everything about how far a source has come lies in the store: the token count of its partition, and
in its metadata the last piece border with the digest of the text before it. To resume, the text is
read again from its start (without tokenising), compared with the digest, and tokenised from the
border; the pieces are the same as before, so the tokens already there are simply skipped.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacontext.config import K
from megacontext.lens import Sketcher
from megacontext.models import TextTokenizer, TokenArray
from megacontext.runtime.block_text import block_texts, look_back
from megacontext.runtime.history import SKETCH_ROWS
from megacontext.runtime.pieces import TextPiece, cut_pieces
from megacontext.runtime.sources import Source
from megacontext_ext import Store
from megacontext_ext.errors import InvalidArgument, NotFound

# Pieces tokenised and appended at once: half a megabyte of text, some 100,000 tokens.
PIECES_PER_BATCH = 64
# Stored tokens read at once to find the first that a replaced text changes.
_COMPARED_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """Told after every batch. `length` is the source's size where known (bytes for a file)."""

    source: str
    characters: int
    tokens: int
    length: int | None


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What one source brought."""

    source: str
    partition: int
    added_tokens: int
    total_tokens: int
    characters: int
    invalid_bytes: int
    # Tokens that an earlier, interrupted or shorter, ingestion had left.
    resumed_at_tokens: int
    seconds: float
    # Tokens that a replaced text left as they were: all up to the block of its first change.
    kept_tokens: int = 0


@dataclass(frozen=True, slots=True)
class SourceState:
    """How far a source has come; kept as JSON in the metadata of its partition."""

    kind: str = "unknown"
    path: str | None = None
    # The last piece border: characters before it, tokens of them, and the digest of their UTF-8.
    characters: int = 0
    tokens: int = 0
    digest: str = ""
    complete: bool = False
    invalid_bytes: int = 0
    user: dict[str, Any] = field(default_factory=dict)
    # "archived" or "deleted" of a hidden source, else empty (curate/).
    curation: str = ""

    def to_json(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def from_json(cls, text: str) -> SourceState:
        fields = json.loads(text)
        return cls(**{name: fields[name] for name in cls.__slots__ if name in fields})


class Ingestor:
    """Writes sources into one store. One thread."""

    def __init__(self, store: Store, tokenizer: TextTokenizer, sketcher: Sketcher) -> None:
        self._store = store
        self._tokenizer = tokenizer
        self._sketcher = sketcher
        if all(family.name != SKETCH_ROWS for family in store.row_families()):
            store.define_rows(SKETCH_ROWS, 1, "i8", sketcher.width)

    def ingest(
        self,
        source: Source,
        metadata: dict[str, Any] | None = None,
        progress: Callable[[IngestProgress], None] | None = None,
    ) -> IngestReport:
        """Bring `source` into the store completely; what is there already is not done again.

        Raises: InvalidArgument when the text differs from what was ingested under this name.
        """
        began = time.perf_counter()
        partition, state = self._partition(source, metadata or {})
        start_tokens = self._store.token_count(partition)
        digest = hashlib.sha256()
        pieces = cut_pieces(_after(source, state, digest), state.characters)
        for batch in _batches(pieces, PIECES_PER_BATCH):
            digest.update(_utf8("".join(piece.text for piece in batch)))
            state = replace(
                state,
                tokens=self._append(partition, state.tokens, batch),
                characters=batch[-1].end,
                digest=digest.hexdigest(),
                complete=False,
            )
            self._save(partition, state)
            if progress is not None:
                told = IngestProgress(source.name, state.characters, state.tokens, source.length)
                progress(told)
        complete = replace(state, complete=True, invalid_bytes=source.invalid_bytes)
        self.index(partition)
        if complete != state or state.characters == 0:
            self._save(partition, complete)
        total = self._store.token_count(partition)
        return IngestReport(
            source=source.name,
            partition=partition,
            added_tokens=total - start_tokens,
            total_tokens=total,
            characters=complete.characters,
            invalid_bytes=source.invalid_bytes,
            resumed_at_tokens=start_tokens,
            seconds=time.perf_counter() - began,
        )

    def replace(self, source: Source, metadata: dict[str, Any] | None = None) -> IngestReport:
        """Bring a known source to the text of `source`; the store then holds what a first ingestion
        of that text would have given, in every row and every search.

        Kept is everything up to the block of the first token that differs, gists included. The
        change of tokens and metadata is one: after a crash it is the old text or the new one.
        Cost: tokenising the whole text; storing, sketching and indexing the part from the change.

        Raises: NotFound for a source that is not there.
        """
        began = time.perf_counter()
        known = self._store.find_partition(source.name)
        if known is None:
            raise NotFound(f"[replace] source must be ingested already, got {source.name!r}")
        text = "".join(source.portions)
        tokens, starts = self._encode(text)
        kept = self._first_change(known.id, tokens) // K * K
        state = SourceState.from_json(known.metadata_json)
        state = replace(
            state,
            characters=len(text),
            tokens=len(tokens),
            digest=hashlib.sha256(_utf8(text)).hexdigest() if text else "",
            complete=True,
            invalid_bytes=source.invalid_bytes,
            user=_kept_notes(state.user, kept) if metadata is None else metadata,
        )
        self._store.replace_tail(known.id, kept, tokens[kept:], starts[kept:], state.to_json())
        self.index(known.id)
        self._store.commit()
        return IngestReport(
            source=source.name,
            partition=known.id,
            added_tokens=len(tokens) - kept,
            total_tokens=len(tokens),
            characters=len(text),
            invalid_bytes=source.invalid_bytes,
            resumed_at_tokens=known.token_count,
            seconds=time.perf_counter() - began,
            kept_tokens=kept,
        )

    def _encode(self, text: str) -> tuple[TokenArray, NDArray[np.uint64]]:
        """Tokens of a whole text, and the character at which each begins."""
        tokens = [np.zeros(0, np.uint32)]
        starts = [np.zeros(0, np.uint64)]
        for batch in _batches(cut_pieces([text]), PIECES_PER_BATCH):
            for piece, encoded in zip(
                batch, self._tokenizer.encode_pieces([piece.text for piece in batch]), strict=True
            ):
                tokens.append(encoded.tokens)
                starts.append(encoded.char_starts + np.uint64(piece.start))
        return np.concatenate(tokens), np.concatenate(starts)

    def _first_change(self, partition: int, tokens: TokenArray) -> int:
        """The first position at which the stored tokens differ from `tokens`, or end."""
        both = min(len(tokens), self._store.token_count(partition))
        for start in range(0, both, _COMPARED_TOKENS):
            end = min(start + _COMPARED_TOKENS, both)
            different = self._store.read_tokens(partition, start, end) != tokens[start:end]
            if different.any():
                return start + int(different.argmax())
        return both

    def index(self, partition: int) -> None:
        """Sketch and index every full block that is not yet; also what a crash left undone."""
        full = self._store.token_count(partition) // K
        sketched = self._store.row_count(SKETCH_ROWS, partition)
        indexed = self._store.indexed_blocks(partition)
        first = min(sketched, indexed)
        if first == full:
            return
        start = look_back(first * K)
        tokens = self._store.read_tokens(partition, start, full * K)
        before, blocks = tokens[: first * K - start], tokens[first * K - start :]
        if sketched < full:
            fresh = blocks[(sketched - first) * K :].reshape(-1, K)
            self._store.put_rows(SKETCH_ROWS, partition, sketched, self._sketcher.block_rows(fresh))
        if indexed < full:
            texts = block_texts(self._tokenizer, before, blocks)
            self._store.index_text(partition, indexed, texts[indexed - first :])

    def _append(self, partition: int, batch_start: int, batch: list[TextPiece]) -> int:
        """Append a batch whose first token is token `batch_start`; returns the token behind it."""
        encoded = self._tokenizer.encode_pieces([piece.text for piece in batch])
        tokens = np.concatenate([piece.tokens for piece in encoded])
        starts = [
            text.start + piece.char_starts for text, piece in zip(batch, encoded, strict=True)
        ]
        # Tokens that an interrupted run had appended behind the last recorded border.
        there = self._store.token_count(partition) - batch_start
        if there < len(tokens):
            char_starts: NDArray[np.uint64] = np.concatenate(starts).astype(np.uint64)
            self._store.append_tokens(partition, tokens[there:], char_starts[there:])
        self.index(partition)
        return batch_start + len(tokens)

    def _partition(self, source: Source, user: dict[str, Any]) -> tuple[int, SourceState]:
        known = self._store.find_partition(source.name)
        if known is not None:
            return known.id, SourceState.from_json(known.metadata_json)
        state = SourceState(kind=source.kind, path=source.path, user=user)
        return self._store.add_partition(source.name, state.to_json()), state

    def _save(self, partition: int, state: SourceState) -> None:
        self._store.set_metadata(partition, state.to_json())
        self._store.commit()


def _kept_notes(user: dict[str, Any], kept_tokens: int) -> dict[str, Any]:
    """Metadata after an edit: notes on spans that are not wholly kept go with them."""
    if "spans" not in user:
        return user
    return {**user, "spans": [span for span in user["spans"] if span["end"] <= kept_tokens]}


def _after(source: Source, state: SourceState, digest: Any) -> Iterator[str]:
    """The portions of `source` behind the recorded border, after comparing those before it."""
    before = state.characters
    for portion in source.portions:
        if before:
            digest.update(_utf8(portion[:before]))
            portion, before = portion[before:], before - min(before, len(portion))
            if before == 0 and digest.hexdigest() != state.digest:
                raise _changed(source, state)
        if portion:
            yield portion
    if before:
        raise _changed(source, state)


def _changed(source: Source, state: SourceState) -> InvalidArgument:
    return InvalidArgument(
        f"[ingest] source {source.name!r} must begin with the {state.characters:,} characters that "
        "were ingested under this name, it has changed; ingest it under another name"
    )


def _batches(pieces: Iterable[TextPiece], count: int) -> Iterator[list[TextPiece]]:
    iterator = iter(pieces)
    while batch := list(islice(iterator, count)):
        yield batch


def _utf8(text: str) -> bytes:
    return text.encode("utf-8")
