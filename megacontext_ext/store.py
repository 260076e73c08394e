"""A store: a directory with one context, its tokens, rows and lexical index.

One process writes, any number may read (`read_only=True` sees the store as of its opening). A
change is visible when its call returns and durable when `commit()` returns; after a crash the
store holds exactly the changes up to some point at or after the last commit. Every method may be
called from any thread; blocking calls release the GIL.

>>> import tempfile
>>> import numpy as np
>>> with Store.create(tempfile.mkdtemp(), {"model": "none"}) as store:
...     notes = store.add_partition("notes.txt")
...     ready = store.append_tokens(notes, np.arange(70, dtype=np.uint32))
...     store.commit()
...     print(ready, store.token_count(notes))
(0, 2) 70
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from megacontext_ext import _engine
from megacontext_ext.errors import InvalidArgument, NotFound
from megacontext_ext.metrics import Metric, metrics_from
from megacontext_ext.prefetch import Prefetch

__all__ = [
    "NO_CHAR_START",
    "SCALED_DTYPES",
    "Partition",
    "Reencoded",
    "RowFamily",
    "Snapshot",
    "Store",
    "StoreOptions",
]

RowDtype = Literal["f32", "bf16", "f16", "i8", "u8", "u32", "q8", "e4m3", "q4"]
FloatDtype = Literal["f32", "bf16", "f16"]
SCALED_DTYPES = ("q8", "e4m3", "q4")
Tokens = npt.NDArray[np.uint32]
Indices = npt.NDArray[np.uint64]

NO_CHAR_START = 2**64 - 1
"""What `block_char_starts` gives for blocks whose tokens were appended without."""


@dataclass(frozen=True)
class Partition:
    """One source and its timeline."""

    id: int
    source: str
    metadata_json: str
    token_count: int
    created_ms: int  # since 1970-01-01 UTC
    hidden: bool = False  # read as ever, but not searched


@dataclass(frozen=True)
class RowFamily:
    """Rows of one kind: fixed width, one for each node of one LOD."""

    name: str
    lod: int
    dtype: RowDtype
    width: int  # elements
    group_size: int = 0  # elements that share a scale, of q8, e4m3 and q4
    row_bytes: int = field(default=0, compare=False)  # of one row, scales included


@dataclass(frozen=True, slots=True)
class Reencoded:
    """What `Store.reencode` did; zeros when all sealed rows were so already."""

    rows: int
    bytes_before: int  # of the segment files
    bytes_after: int
    relative_error: float  # root mean squared, over the root mean square of the values
    largest_error: float

    @property
    def saved_bytes(self) -> int:
        return self.bytes_before - self.bytes_after


def _request(
    name: str, partitions: npt.ArrayLike, indices: npt.ArrayLike
) -> tuple[str, Tokens, Indices]:
    return (
        name,
        _integers("partitions", partitions, np.uint32),
        _integers("indices", indices, np.uint64),
    )


@dataclass(frozen=True)
class StoreOptions:
    """Sizes. The defaults suit a laptop and a server; tests make them small."""

    unsealed_bytes: int = 64 << 20  # kept in memory and in the WAL until a checkpoint seals them
    close_wal_bytes: int = 1 << 20  # close() seals when the WAL is longer than this
    wal_first_file_bytes: int = 256 << 10  # the first WAL file; each new one doubles ...
    wal_most_file_bytes: int = 32 << 20  # ... up to this
    most_segments_per_family: int = 8  # more are merged after a checkpoint
    # beside: by a thread, for which a writer waits only when it falls far behind; inline: by the
    # writer itself, at the checkpoint.
    merges: Literal["beside", "inline"] = "beside"
    # auto: rows that the system has in memory are copied from the mapped file, others are read in
    # one batch; mapped: all are copied from the mapped file; direct: only the page cache below.
    read_mode: Literal["auto", "mapped", "direct"] = "auto"
    read_engine: Literal["auto", "io_uring", "threads"] = "auto"  # of those batches
    read_depth: int = 64  # reads at once
    page_cache_bytes: int = 64 << 20  # used by direct, and by auto beyond half of the memory
    prefetch_bytes: int = 16 << 20  # most that may wait to be prefetched


_OPTION_CODES = {
    "merges": {"beside": 0, "inline": 1},
    "read_mode": {"auto": 0, "mapped": 1, "direct": 2},
    "read_engine": {"auto": 0, "io_uring": 1, "threads": 2},
}


def _settings(options: StoreOptions | None) -> dict[str, int]:
    """The options as the engine takes them."""
    settings = asdict(options or StoreOptions())
    for name, codes in _OPTION_CODES.items():
        if settings[name] not in codes:
            raise InvalidArgument(
                f"[open] {name} must be one of {', '.join(codes)}, got {settings[name]!r}"
            )
        settings[name] = codes[settings[name]]
    return settings


def _integers(name: str, values: npt.ArrayLike, dtype: type[np.unsignedinteger[Any]]) -> Any:
    """`values` as a contiguous 1-d array of `dtype`; refuses what would not fit."""
    array = np.asarray(values)
    if array.size == 0:
        return np.empty(0, dtype)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidArgument(
            f"{name} must be a 1-d array of integers, got {array.ndim}-d {array.dtype}"
        )
    if array.dtype != dtype:
        limits = np.iinfo(dtype)
        least, most = int(array.min()), int(array.max())
        if least < 0 or most > limits.max:
            raise InvalidArgument(f"{name} must lie in [0, {limits.max}], got [{least}, {most}]")
    return np.ascontiguousarray(array, dtype)


class _Reader:
    """Every read. A store answers with what is there now, a snapshot with what was."""

    _handle: Any

    def partitions(self) -> list[Partition]:
        """All partitions that were not erased, by id."""
        return [Partition(*fields) for fields in self._handle.partitions()]

    def partition(self, partition: int) -> Partition:
        """One partition. Raises NotFound."""
        return Partition(*self._handle.partition(partition))

    def token_count(self, partition: int) -> int:
        return self._handle.token_count(partition)

    def read_tokens(self, partition: int, start: int, end: int) -> Tokens:
        """Token ids of positions [start, end), [end - start] uint32, copied."""
        return self._handle.read_tokens(partition, start, end)

    def block_char_starts(self, partition: int, start_block: int, end_block: int) -> Indices:
        """Character offset in its source of each block's first token, [n] uint64.

        The last block may be the partial one. `NO_CHAR_START` where none was given.
        """
        return self._handle.block_char_starts(partition, start_block, end_block)

    def row_families(self) -> list[RowFamily]:
        """The families that were defined, in that order."""
        return [RowFamily(*fields) for fields in self._handle.row_families()]

    def row_count(self, name: str, partition: int) -> int:
        return self._handle.row_count(name, partition)

    def read_rows(
        self, name: str, partition: int, start: int, end: int, dtype: FloatDtype | None = None
    ) -> npt.NDArray[Any]:
        """Rows [start, end), copied: [n, width] as `dtype`, for families of floats; without it as
        the family declares them. bf16 comes as uint16, its bits; undecoded rows of q8, e4m3 and q4
        as [n, row_bytes] uint8."""
        return self._handle.read_rows(name, partition, start, end, dtype)

    def gather_rows(
        self, name: str, partitions: npt.ArrayLike, indices: npt.ArrayLike, out: npt.NDArray[Any]
    ) -> npt.NDArray[Any]:
        """Row indices[i] of partitions[i] goes to out[i]; returns `out`.

        Args:
            partitions: [N] integers.
            indices: [N] integers, each below the row count of its partition.
            out: contiguous, [N, width] of the family's dtype (uint16 for bf16). Of a family of
                floats also float32, float16 or uint16: rows are decoded on the way; and of q8, e4m3
                and q4 [N, row_bytes] uint8, which is undecoded.

        Cost: one copy of each row; each page is checked against its checksum once.
        """
        self._handle.gather_rows(
            name,
            _integers("partitions", partitions, np.uint32),
            _integers("indices", indices, np.uint64),
            out,
        )
        return out

    def gather(
        self, parts: Iterable[tuple[str, npt.ArrayLike, npt.ArrayLike, npt.NDArray[Any]]]
    ) -> None:
        """`gather_rows` for several families (and LODs) at once.

        Args:
            parts: (name, partitions, indices, out), each as in `gather_rows`.

        Cost: what is not in memory is one batch of reads, and rows side by side are one read.
        """
        self._handle.gather([(*_request(*part[:3]), part[3]) for part in parts])

    def prefetch(self, parts: Iterable[tuple[str, npt.ArrayLike, npt.ArrayLike]]) -> Prefetch:
        """Brings rows into memory in the background.

        Args:
            parts: (name, partitions, indices), each as in `gather_rows`.

        Returns: what can be awaited, waited for, or cancelled.

        Raises: OverBudget when more than `prefetch_bytes` would wait.
        """
        return Prefetch(self._handle.prefetch([_request(*part) for part in parts]))

    def indexed_blocks(self, partition: int) -> int:
        """Blocks that `index_text` has covered."""
        return self._handle.indexed_blocks(partition)

    def search(
        self, query: str, k: int, partition: int | None = None
    ) -> tuple[Tokens, Indices, npt.NDArray[np.float32]]:
        """The k best blocks by BM25, best first: partitions, block indices, scores.

        Ties go to the lower partition, then to the lower block. `partition` restricts the blocks,
        not the statistics.
        """
        return self._handle.search(query, k, partition)


class Snapshot(_Reader):
    """A view that later writes, checkpoints and the store's closing leave unchanged."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle


class Store(_Reader):
    """See the module. Use as a context manager, or call `close()`."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        identity: Mapping[str, str],
        options: StoreOptions | None = None,
    ) -> Store:
        """Makes a store in a new or empty directory.

        Args:
            identity: what the store belongs to, e.g. the model and a hash of its tokenizer.

        Raises: InvalidArgument when there is a store, or other files.
        """
        path = os.path.abspath(path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return cls(_engine.Store.create(path, dict(identity), _settings(options)))

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        identity: Mapping[str, str] | None = None,
        options: StoreOptions | None = None,
    ) -> Store:
        """Opens a store.

        Raises:
            NotFound: no such directory, or an empty one.
            InvalidArgument: `identity` differs from the store's.
            StoreLocked: another writer has it.
            Corruption: damaged, or a directory of something else.
            Unsupported: a newer version wrote it.
        """
        path = os.path.abspath(path)
        return cls(_engine.Store.open(path, read_only, dict(identity or {}), _settings(options)))

    @classmethod
    def open_or_create(
        cls,
        path: str | os.PathLike[str],
        identity: Mapping[str, str],
        options: StoreOptions | None = None,
    ) -> Store:
        """Opens the store at `path`, or makes it when there is none."""
        try:
            return cls.open(path, identity=identity, options=options)
        except NotFound:
            return cls.create(path, identity, options)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def path(self) -> str:
        return self._handle.path

    @property
    def read_only(self) -> bool:
        return self._handle.read_only

    @property
    def identity(self) -> dict[str, str]:
        return self._handle.identity

    def add_partition(self, source: str, metadata_json: str = "{}") -> int:
        """Adds a source that the store does not have yet; returns its partition id."""
        return self._handle.add_partition(source, metadata_json)

    def find_partition(self, source: str) -> Partition | None:
        found = self._handle.find_partition(source)
        return None if found is None else self.partition(found)

    def set_metadata(self, partition: int, metadata_json: str) -> None:
        self._handle.set_metadata(partition, metadata_json)

    def append_tokens(
        self, partition: int, tokens: npt.ArrayLike, char_starts: npt.ArrayLike | None = None
    ) -> tuple[int, int]:
        """Appends to the end of a timeline.

        Args:
            tokens: [n] token ids below 2**32.
            char_starts: [n] character offset of each token in its source.

        Returns: the half-open range of blocks (LOD-1 nodes) that became full.
        """
        starts = None if char_starts is None else _integers("char_starts", char_starts, np.uint64)
        return self._handle.append_tokens(partition, _integers("tokens", tokens, np.uint32), starts)

    def replace_tail(
        self,
        partition: int,
        kept_tokens: int,
        tokens: npt.ArrayLike,
        char_starts: npt.ArrayLike | None = None,
        metadata_json: str | None = None,
    ) -> tuple[int, int]:
        """Edits a timeline: its first `kept_tokens` tokens stay, `tokens` follow. One change: after
        a crash the timeline is the old one or the new one.

        Rows of nodes wholly within the kept tokens stay; of every family all later ones go, and the
        index goes from the first block that is not wholly kept.

        Args:
            tokens: [n] token ids below 2**32; none cuts only.
            char_starts: [n] character offset of each token in its source.
            metadata_json: the new metadata, when it changes too.

        Returns: the half-open range of full blocks that are new.
        """
        starts = None if char_starts is None else _integers("char_starts", char_starts, np.uint64)
        return self._handle.replace_tail(
            partition, kept_tokens, _integers("tokens", tokens, np.uint32), starts, metadata_json
        )

    def erase_partition(self, partition: int) -> None:
        """Takes a source away for every later reader. Its id is not used again; its bytes leave
        the files with `purge()`. Raises NotFound."""
        self._handle.erase_partition(partition)

    def set_hidden(self, partition: int, hidden: bool) -> None:
        """A hidden partition is read as ever but not found by `search`."""
        self._handle.set_hidden(partition, hidden)

    def drop_rows(self, name: str) -> None:
        """Takes a row family away; its files go at the next checkpoint. Raises NotFound."""
        self._handle.drop_rows(name)

    def clear_rows(self, name: str, partition: int) -> None:
        """Takes the rows of a family in one partition away. Raises NotFound."""
        self._handle.clear_rows(name, partition)

    def define_rows(
        self, name: str, lod: int, dtype: RowDtype, width: int, group_size: int | None = None
    ) -> None:
        """Defines a row family; the same definition again changes nothing.

        Args:
            dtype: q8, e4m3 and q4 are int8, fp8 and int4 codes with a float32 scale for each group.
            width: elements of a row.
            group_size: elements that share a scale; a whole row when left out, 64 for q4.
        """
        self._handle.define_rows(name, lod, dtype, width, group_size or 0)

    def reencode(self, name: str, dtype: RowDtype, group_size: int | None = None) -> Reencoded:
        """Rewrites all rows of a family of floats as `dtype`, to save space: readers get the
        family's own dtype as before, rounded. Rows put later lie as declared until the next call.
        Implies checkpoint(). A crash leaves all of them rewritten or none.

        Raises: InvalidArgument for a row with a value that is not finite; nothing is changed then.
        Cost: one read and one write of those rows. Other writers wait; readers do not.
        """
        return Reencoded(**self._handle.reencode(name, dtype, group_size or 0))

    def put_rows(self, name: str, partition: int, first_index: int, rows: npt.NDArray[Any]) -> None:
        """Appends rows at `row_count`, or overwrites rows that are there.

        Args:
            rows: contiguous, [n, width] of the family's dtype (uint16 for bf16). Of a family of
                floats also float32, float16 or uint16, rounded to the family's dtype; for q8, e4m3
                and q4 they must be finite, and [n, row_bytes] uint8 goes in as it is. A node may
                have a row when it has at least one token.
        """
        self._handle.put_rows(name, partition, first_index, rows)

    def index_text(self, partition: int, first_block: int, texts: Sequence[str]) -> None:
        """Adds the text of blocks to the lexical index.

        `first_block` must be `indexed_blocks(partition)`. The last text may be that of the partial
        block; tokens that it gets later are then never indexed.
        """
        self._handle.index_text(partition, first_block, list(texts))

    def commit(self) -> None:
        """Everything appended before is durable on return.

        Cost: one fdatasync, which threads that commit at the same time share.
        """
        self._handle.commit()

    def checkpoint(self) -> None:
        """Seals everything into immutable segments and cuts the WAL. Implies commit()."""
        self._handle.checkpoint()

    def purge(self) -> None:
        """A checkpoint after which no file of the store holds a byte of what was erased, cut,
        overwritten or dropped. Snapshots and other processes keep removed files until they let go
        of them. Cost: one rewrite of every segment that holds such bytes."""
        self._handle.purge()

    def snapshot(self) -> Snapshot:
        """A view of this moment. Cost: one pointer a partition."""
        return Snapshot(self._handle.snapshot())

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Writes what is there now to a new store at `path` and checks that copy. Writing and
        reading go on meanwhile; a copy that was interrupted is no store.

        Raises: InvalidArgument when the directory has a store or other files.
        Cost: one read and one write of every row.
        """
        path = os.path.abspath(path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self._handle.backup(path)

    def stats(self) -> dict[str, int | float]:
        return self._handle.stats()

    def metrics(self) -> list[Metric]:
        """Counters, gauges and histograms since opening. Cost: some microseconds."""
        return metrics_from(self._handle.metrics())

    def check(self) -> None:
        """Reads every byte and compares every count. Raises Corruption at the first fault."""
        self._handle.check()

    def close(self) -> None:
        """Commits and lets the next writer in. Writing afterwards is an error."""
        self._handle.close()
