"""The store of a paged memory: tokens, pages and gist rows of its streams, written behind.

A stream is a partition. Its complete blocks have one row each in the family `kv-FORMAT`; what it
has beyond them, the tail, is one row of `kv-tail` that a commit replaces. Tokens are always
written before the pages that hold their keys, so after a crash there may be tokens with no pages:
they are read again on opening.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megacontext.config import K
from megacontext.paged.page_codec import PageCodec, PageFormat, Rows, format_of
from megacontext.paged.tiling import LODS, GistPage
from megacontext.paged.write_behind import WriteBehind
from megacontext_ext import Store
from megacontext_ext.errors import InvalidArgument, IoError, MegaContextError, NotFound, StoreFailed

TAIL_ROWS = "kv-tail"
QUERY_ROWS = "kv-queries"  # of the blocks that no gist page has yet, in a ring
_TAIL_LOD = 8  # one node: a partition has one tail
_COUNT_BYTES = 8  # a tail's row begins with the token count it belongs to
PENDING_BYTES_MAX = 64 << 20
KEYS_AT_ONCE = 2048  # blocks whose mean keys are read at once


@dataclass(frozen=True)
class PageLayout:
    """What the pages of a model are: (layers, KV heads, head width), and its dtype; and how many
    heads ask."""

    layers: int
    kv_heads: int
    head_width: int
    dtype: torch.dtype
    heads: int

    def page_shape(self, rows: int = K) -> tuple[int, ...]:
        return (self.layers, 2, self.kv_heads, rows, self.head_width)


@dataclass(frozen=True)
class StoredStream:
    """What the store holds of a stream. `tail` [L, 2, Hkv, 32, E] covers tokens from
    `blocks` * 32 on; without one, tokens beyond the blocks have no keys and values."""

    tokens: NDArray[np.uint32]
    blocks: int
    gisted_blocks: int
    tail: Tensor | None


class BlockRows:
    """One row for each complete block of a stream, or node of a higher LOD: pages, gist rows, mean
    keys.

    What was given to `write` can be read at once, whether or not it is in the store yet.
    """

    def __init__(
        self, store: Store, writer: WriteBehind, name: str, codec: PageCodec, lod: int = 1
    ) -> None:
        self.codec = codec
        self.name = name
        self._store = store
        self._writer = writer
        self._pending: dict[tuple[int, int], Rows] = {}
        self._lock = threading.Lock()
        self._dtype = codec.define_rows(store, name, lod)

    def count(self, partition: int) -> int:
        """Blocks that have their row in the store."""
        return self._store.row_count(self.name, partition)

    def keep(self, partition: int, first: int, rows: Rows) -> Callable[[], None]:
        """Takes encoded rows of blocks from `first` on; the write of them, for the writer."""
        keys = [(partition, first + at) for at in range(len(rows))]
        with self._lock:
            self._pending.update(zip(keys, rows, strict=True))

        def write() -> None:
            self._store.put_rows(self.name, partition, first, rows.view(self._dtype))
            with self._lock:
                for key in keys:
                    self._pending.pop(key, None)

        return write

    def read(self, partition: int, start: int, end: int, dtype: torch.dtype) -> Tensor:
        """Content [end - start, *shape] of blocks [start, end).

        Raises:
            Corruption: the store's copy is damaged.
        """
        with self._lock:
            waiting = [self._pending.get((partition, at)) for at in range(start, end)]
        there = [row for row in waiting if row is not None]
        if there and len(there) == end - start:
            return self.codec.decode(np.stack(there), dtype)
        if there:
            self._writer.drain()
        rows = self._store.read_rows(self.name, partition, start, end)
        return self.codec.decode(rows.view(np.uint8), dtype)


@dataclass(frozen=True)
class GistRows:
    """The gist pages of one LOD, each in `parts` rows of the store; of kept rows also whose they
    are, [2, L, Hkv, R], and their use, [L, Hkv, R] (-1: kept by a version that did not keep it)."""

    parts: int
    rows: BlockRows
    owners: BlockRows | None = None
    use: BlockRows | None = None

    def count(self, partition: int) -> int:
        """Rows, whole with what belongs to them."""
        kinds = (self.rows, self.owners)
        return min(kind.count(partition) for kind in kinds if kind is not None)


class PageStore:
    """An open store with the streams of one model.

    The thread that runs the model calls everything but `BlockRows.read`, which any thread may;
    one thread of its own writes.
    """

    def __init__(
        self, store: Store, codec: PageCodec, layout: PageLayout, commit_tokens: int = 4096
    ) -> None:
        """Wraps an open store; `open_page_store` makes one from a path.

        Args:
            commit_tokens: a commit follows behind after so many tokens.
        """
        self.store = store
        self._layout = layout
        self._writer = WriteBehind(PENDING_BYTES_MAX)
        self.pages = BlockRows(store, self._writer, f"kv-{codec.format}", codec)
        self.gists: dict[int, GistRows] = {}
        self.keys: BlockRows | None = None
        self._query_codec: PageCodec | None = None
        self._tail_codec = PageCodec(format_of(layout.dtype), layout.page_shape())
        self._commit_tokens = commit_tokens
        self._since_commit = 0
        self._written: dict[int, int] = {}  # stream -> tokens submitted
        tail_bytes = _COUNT_BYTES + self._tail_codec.row_bytes
        store.define_rows(TAIL_ROWS, _TAIL_LOD, "u8", tail_bytes)

    @property
    def stream_count(self) -> int:
        """Streams that the store has."""
        count = 0
        while self.store.find_partition(_source(count)) is not None:
            count += 1
        return count

    def use_gists(self, name: str, rows: int) -> None:
        """Keeps gist rows too: `rows` a block, made by what `name` names."""
        codec = PageCodec(format_of(self._layout.dtype), self._layout.page_shape(rows))
        family = f"kv-gist-{name}-{codec.format}-{rows}"
        held = BlockRows(self.store, self._writer, family, codec)
        self.gists = {1: GistRows(K // rows, held)}

    def use_kept(self, name: str, rows: int, asking_layers: int) -> None:
        """Keeps kept rows of every LOD: whose they are, their use, and the queries of the blocks of
        the next page, of so many layers.

        A page of LOD 1 is a row a block. One of a higher LOD, which covers as many blocks as it
        has places, or a multiple of them, is a row a node of 1,024 tokens.
        """
        layout = self._layout
        self.use_gists(name, rows)
        family = self.gists[1].rows.name
        for lod in LODS:
            parts = GistPage(lod, 0).width * K // rows // (1 if lod == 1 else K)
            self.gists[lod] = self._kept_rows(family if lod == 1 else f"{family}-lod{lod}",
                                              min(lod, 2), parts)  # fmt: skip
        shape = (asking_layers, K, layout.heads, layout.head_width)
        self._query_codec = PageCodec(format_of(layout.dtype), shape)
        self.store.define_rows(QUERY_ROWS, 1, "u8", _COUNT_BYTES + self._query_codec.row_bytes)

    def _kept_rows(self, family: str, lod: int, parts: int) -> GistRows:
        layout, rows = self._layout, K // parts
        shape = (layout.layers, layout.kv_heads, rows)
        codecs = {
            "": PageCodec(format_of(layout.dtype), layout.page_shape(rows)),
            "-owners": PageCodec("f32", (2, *shape)),
            "-use": PageCodec("f32", shape),
        }
        return GistRows(parts, *(
            BlockRows(self.store, self._writer, family + kind, codec, lod)
            for kind, codec in codecs.items()
        ))  # fmt: skip

    def use_keys(self, layers: tuple[int, ...]) -> None:
        """Keeps mean keys of these layers too."""
        codec = PageCodec("bf16", (len(layers), self._layout.kv_heads, self._layout.head_width))
        family = "kv-mean-" + "-".join(map(str, layers))
        self.keys = BlockRows(self.store, self._writer, family, codec)

    def add_stream(self, number: int) -> None:
        """Makes the partition of a new stream."""
        self.store.add_partition(_source(number))

    def partition(self, number: int) -> int:
        """The partition of a stream."""
        found = self.store.find_partition(_source(number))
        if found is None:
            raise NotFound(f"[paged] {self.store.path} has no stream {number}")
        return found.id

    def load_stream(self, number: int) -> StoredStream:
        """What was written of a stream."""
        partition = self.partition(number)
        count = self.store.token_count(partition)
        tokens = self.store.read_tokens(partition, 0, count)
        blocks = min(count // K, self.pages.count(partition))
        gisted = min(blocks, self.gists[1].count(partition)) if self.gists else 0
        self._written[number] = count
        tail = None
        if self.store.row_count(TAIL_ROWS, partition):
            row = self.store.read_rows(TAIL_ROWS, partition, 0, 1)
            covers = int(row[0, :_COUNT_BYTES].view(np.uint64)[0])
            if covers == count and count // K == blocks:
                tail = self._tail_codec.decode(row[:, _COUNT_BYTES:], self._layout.dtype)[0]
        return StoredStream(tokens, blocks, gisted, tail)

    def load_keys(self, number: int, blocks: int) -> Iterator[Tensor]:
        """Mean keys of the first blocks, those that have them and at most `blocks`: [N, A, Hkv, E],
        a part at a time."""
        assert self.keys is not None
        partition = self.partition(number)
        end = min(blocks, self.keys.count(partition))
        for first in range(0, end, KEYS_AT_ONCE):
            yield self.keys.read(partition, first, min(first + KEYS_AT_ONCE, end), torch.bfloat16)

    def write_blocks(self, number: int, first: int, tokens: NDArray[np.uint32], rows: Rows) -> None:
        """Queues the tokens and encoded pages of blocks from `first` on. Returns before they are
        written, unless more than 64 MiB wait."""
        self.raise_failure()
        fresh = self._fresh_tokens(number, first * K, tokens)
        partition = self.partition(number)
        put = self.pages.keep(partition, first, rows)
        self._since_commit += len(fresh)
        commits = self._since_commit >= self._commit_tokens
        if commits:
            self._since_commit = 0

        def write() -> None:
            if len(fresh):
                self.store.append_tokens(partition, fresh)
            put()
            if commits:
                self.store.commit()

        self._writer.submit(write, rows.nbytes)

    def write_side(self, kind: BlockRows, number: int, first: int, content: Tensor) -> None:
        """Queues rows of `kind` (gists or keys) of blocks from `first` on."""
        self.raise_failure()
        rows = kind.codec.encode(content)
        self._writer.submit(kind.keep(self.partition(number), first, rows), rows.nbytes)

    def read_block(self, number: int, block: int) -> Tensor:
        """The page [L, 2, Hkv, 32, E] of a complete block. Raises Corruption."""
        dtype = self._layout.dtype
        return self.pages.read(self.partition(number), block, block + 1, dtype)[0]

    def coarse_pages(self, number: int) -> list[int]:
        """Gist pages of LOD 2 and above that a stream has."""
        partition = self.partition(number)
        return [self.gists[lod].count(partition) // self.gists[lod].parts for lod in LODS[1:]]

    def read_gist(self, number: int, page: GistPage, blocks: range) -> Tensor:
        """A gist page [L, 2, Hkv, 32, E] with the rows of so many blocks. Raises Corruption."""
        kind = self.gists[page.lod]
        first, count = page.number * kind.parts, min(kind.parts, len(blocks))
        partition = self.partition(number)
        held = kind.rows.read(partition, first, first + count, self._layout.dtype)
        flat = torch.cat(tuple(held), -2)
        return torch.nn.functional.pad(flat, (0, 0, 0, K - flat.shape[-2]))

    def read_whose(self, number: int, page: GistPage) -> tuple[Tensor, Tensor] | None:
        """Whose the kept rows of a page are, [2, L, Hkv, 32], and their use, [L, Hkv, 32]; None for
        rows that are not kept ones. Raises Corruption."""
        kind = self.gists[page.lod]
        if kind.owners is None or kind.use is None:
            return None
        span = (page.number * kind.parts, (page.number + 1) * kind.parts)
        partition = self.partition(number)
        owners = kind.owners.read(partition, *span, torch.float32)
        use = kind.use.read(partition, *span, torch.float32)
        return torch.cat(tuple(owners), -1), torch.cat(tuple(use), -1)

    def fill_use(self, number: int, unknown: float) -> None:
        """Writes the use of rows that a version kept without, as `unknown`."""
        partition = self.partition(number)
        for kind in self.gists.values():
            if kind.use is None:
                continue
            page = torch.full((kind.parts, *kind.use.codec.shape), unknown)
            for first in range(kind.use.count(partition), kind.count(partition), kind.parts):
                self.write_side(kind.use, number, first, page)

    def write_queries(self, number: int, ring: int, asked: Tensor, end: int) -> None:
        """Queries [layers, T, Hq, E] of a block whose tokens so far end at `end` and are written;
        the next commit makes them durable."""
        assert self._query_codec is not None
        full = asked.new_zeros(self._query_codec.shape)
        full[:, : asked.shape[1]] = asked
        row = self._query_codec.encode(full[None])[0]
        head = np.array([end], np.uint64).view(np.uint8)
        self.drain()
        there = self.store.row_count(QUERY_ROWS, self.partition(number))
        rows = np.concatenate((head, row))[None]
        self.store.put_rows(QUERY_ROWS, self.partition(number), min(ring, there), rows)

    def read_queries(self, number: int, ring: int, end: int) -> Tensor | None:
        """Queries [layers, 32, Hq, E] of the block whose tokens end at `end`; None: not there."""
        assert self._query_codec is not None
        partition = self.partition(number)
        if ring >= self.store.row_count(QUERY_ROWS, partition):
            return None
        row = self.store.read_rows(QUERY_ROWS, partition, ring, ring + 1)
        if int(row[0, :_COUNT_BYTES].view(np.uint64)[0]) != end:
            return None
        return self._query_codec.decode(row[:, _COUNT_BYTES:], self._layout.dtype)[0]

    def write_tail(
        self, number: int, tokens: NDArray[np.uint32], count: int, page: Tensor | None
    ) -> None:
        """Writes a stream's tokens from the last complete block on, of `count` in all, and their
        page, once all complete blocks are written; the next commit makes them durable."""
        self.drain()
        partition = self.partition(number)
        fresh = self._fresh_tokens(number, count - len(tokens), tokens)
        if len(fresh):
            self.store.append_tokens(partition, fresh)
        if page is not None and count:
            row = self._tail_codec.encode(page[None])[0]
            head = np.array([count], np.uint64).view(np.uint8)
            self.store.put_rows(TAIL_ROWS, partition, 0, np.concatenate((head, row))[None])

    def commit(self) -> None:
        """Everything written so far is durable on return."""
        self.drain()
        self.store.commit()
        self._since_commit = 0

    def drain(self) -> None:
        """Returns when everything queued is in the store. Raises StoreFailed."""
        self._writer.drain()
        self.raise_failure()

    def close(self) -> None:
        """Writes what waits and lets the next writer in. Raises what kept a write from the disk."""
        self._writer.close()
        try:
            self.store.close()
        except (IoError, StoreFailed):
            if self._writer.failure is None:
                raise
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raises StoreFailed when a write behind the reading failed."""
        error = self._writer.failure
        if error is not None:
            raise StoreFailed(
                f"[paged] {self.store.path} no longer takes pages; what was committed is kept, "
                f"the rest of this stream is in memory only. Attach again to go on: {error}"
            ) from error

    def _fresh_tokens(
        self, number: int, start: int, tokens: NDArray[np.uint32]
    ) -> NDArray[np.uint32]:
        """Of `tokens` that begin at `start`, those that were not submitted yet."""
        there = self._written.get(number, 0)
        fresh = tokens[max(0, there - start) :]
        self._written[number] = max(there, start + len(tokens))
        return fresh


def open_page_store(
    path: str | os.PathLike[str],
    identity: dict[str, str],
    layout: PageLayout,
    page_format: PageFormat | None,
    commit_tokens: int,
) -> PageStore:
    """The page store at `path`, made where there is none.

    Args:
        identity: of the model and its tokenizer.
        page_format: None: what the store has; for a new one, the model's dtype.

    Raises:
        InvalidArgument: the store is of another model, tokenizer or page format.
        StoreLocked: another writer has it. Corruption: it is damaged.
    """
    try:
        store = Store.open(path, identity=identity)
    except NotFound:
        chosen = page_format or format_of(layout.dtype)
        store = Store.create(path, {**identity, "pages": chosen})
    try:
        held: Any = store.identity.get("pages")
        if held is None or page_format not in (None, held):
            raise InvalidArgument(
                f"[paged] {store.path} keeps pages as {held or 'nothing'}, "
                f"got pages={page_format!r}"
            )
        return PageStore(store, PageCodec(held, layout.page_shape()), layout, commit_tokens)
    except MegaContextError:
        store.close()
        raise


def _source(number: int) -> str:
    return f"stream-{number}"
