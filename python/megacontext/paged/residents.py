"""Which pages are in the pool. Pages that a store holds give way, least recently used first."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from megacontext.paged.kept import decode_kept
from megacontext.paged.page_store import PageStore
from megacontext.paged.pool import PagePool
from megacontext.paged.stream import Stream
from megacontext.paged.tiling import GistPage
from megacontext_ext.errors import Corruption, InvalidArgument

log = logging.getLogger("megacontext.paged")

AHEAD_PAGES = 16


class PageKey(NamedTuple):
    """A page by what it holds: a block of a stream, by number, or one of its gist pages."""

    stream: int
    what: int | GistPage


@dataclass
class PageTraffic:
    """Pages since the memory was attached."""

    brought_in: int = 0
    evicted: int = 0
    ahead: int = 0  # of those brought in, how many had been read ahead


class LostPages(Exception):
    """Pages that the store cannot give back. `errors`: what it said of each."""

    def __init__(self, errors: dict[PageKey, Corruption]) -> None:
        super().__init__(f"{len(errors)} pages are damaged")
        self.errors = errors


class Residents:
    """Pages of all streams in one pool.

    With a store every complete block can leave the pool and come back; without one nothing leaves.
    """

    def __init__(self, streams: list[Stream], pool: PagePool, store: PageStore | None) -> None:
        self.pool = pool
        self.traffic = PageTraffic()
        self._streams = streams
        self._store = store
        self._recent: OrderedDict[PageKey, None] = OrderedDict()
        self._ahead: dict[PageKey, Future[Tensor]] = {}
        self._reader = ThreadPoolExecutor(1, "page-reader") if store is not None else None

    def pages_of(self, key: PageKey) -> dict[Any, int]:
        """Block or gist page -> page of the pool, for those of this kind that are there."""
        stream = self._streams[key.stream]
        return stream.gist_pages if isinstance(key.what, GistPage) else stream.pages

    def missing(self, keys: Iterable[PageKey]) -> list[PageKey]:
        return [key for key in keys if key.what not in self.pages_of(key)]

    def has_room(self, count: int) -> bool:
        """Whether `count` pages can be added, whatever has to leave."""
        limit = self.pool.pages_max
        return not limit or self._store is not None or self.pool.page_count + count <= limit

    def bring(self, needed: list[PageKey], fresh: list[PageKey]) -> None:
        """Makes `needed` resident and gives `fresh`, which nobody wrote yet, a page each.

        Raises:
            InvalidArgument: the pool's limit is below what is needed at once. Nothing changed.
            LostPages: some of `needed` cannot be read. The others are there, `fresh` are not.
        """
        absent = self.missing(needed)
        fresh = self.missing(fresh)
        self._make_room(needed, fresh, len(absent) + len(fresh))
        errors: dict[PageKey, Corruption] = {}
        for key in absent:
            try:
                found = self._ahead.pop(key, None)
                content = self._content(key) if found is None else found.result()
                self.traffic.ahead += found is not None
                self._learn_whose(key)
            except Corruption as error:
                errors[key] = error
                continue
            (page,) = self.pool.allocate(1)
            self.pool.write_pages([page], content[None])
            self.pages_of(key)[key.what] = page
            self.traffic.brought_in += 1
        if errors:
            raise LostPages(errors)
        for key, page in zip(fresh, self.pool.allocate(len(fresh)), strict=True):
            self.pages_of(key)[key.what] = page
        for key in (*needed, *fresh):
            self._recent[key] = None
            self._recent.move_to_end(key)

    def read_ahead(self, keys: list[PageKey]) -> None:
        """Begins to read what may be needed next; `bring` takes what is ready. At most
        `AHEAD_PAGES`; what an earlier call asked for and this one does not is dropped."""
        if self._reader is None or self._store is None:
            return
        wanted = self.missing(keys)[:AHEAD_PAGES]
        self._ahead = {key: found for key, found in self._ahead.items() if key in wanted}
        for key in wanted:
            if key not in self._ahead:
                self._ahead[key] = self._reader.submit(self._content, key)

    def close(self) -> None:
        """Ends the thread that reads ahead."""
        if self._reader is not None:
            self._reader.shutdown(cancel_futures=True)

    def drop(self, keys: list[PageKey]) -> None:
        """Gives the pages of resident `keys` back; nothing keeps what they held."""
        for key in keys:
            self._recent.pop(key, None)
            self.pool.release([self._pop(key)])

    def put(self, key: PageKey, content: Tensor) -> None:
        """Makes one page resident with this content [L, 2, Hkv, 32, E]."""
        self.bring([], [key])
        self.pool.write_pages([self.pages_of(key)[key.what]], content[None])

    def _content(self, key: PageKey) -> Tensor:
        assert self._store is not None, "pages leave the pool only where a store has them"
        if not isinstance(key.what, GistPage):
            return self._store.read_block(key.stream, key.what)
        blocks = self._streams[key.stream].gist_blocks(key.what)
        return self._store.read_gist(key.stream, key.what, blocks)

    def _learn_whose(self, key: PageKey) -> None:
        """Whose the rows of a gist page are, known while it is resident."""
        if not isinstance(key.what, GistPage) or self._store is None:
            return
        whose = self._store.read_whose(key.stream, key.what)
        if whose is not None:
            self._streams[key.stream].kept[key.what] = decode_kept(*whose)

    def _pop(self, key: PageKey) -> int:
        if isinstance(key.what, GistPage):
            self._streams[key.stream].kept.pop(key.what, None)
        return self.pages_of(key).pop(key.what)

    def _make_room(self, needed: list[PageKey], fresh: list[PageKey], count: int) -> None:
        limit = self.pool.pages_max
        if not limit or self._store is None:
            return
        excess = self.pool.page_count + count - limit
        if excess <= 0:
            return
        kept = {*needed, *fresh}
        leaving: list[PageKey] = []
        for key in self._recent:
            if len(leaving) == excess:
                break
            if key not in kept and self._may_leave(key):
                leaving.append(key)
        if len(leaving) < excess:
            wanted = limit + excess - len(leaving)
            raise InvalidArgument(
                f"[paged] this step needs {wanted} pages ({wanted * self.pool.page_bytes >> 20} "
                f"MiB) at once, the limit is {limit} "
                f"({limit * self.pool.page_bytes >> 20} MiB); allow more or lower the budget"
            )
        for key in leaving:
            del self._recent[key]
            self.pool.release([self._pop(key)])
        self.traffic.evicted += len(leaving)

    def _may_leave(self, key: PageKey) -> bool:
        if isinstance(key.what, GistPage):
            return True
        return key.what < self._streams[key.stream].stored_blocks
