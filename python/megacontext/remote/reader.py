"""A memory that another machine writes, opened by URL.

with Reader(open_remote("s3://memories/notes")) as reader:
    store = reader.store()      # a megacontext_ext.Store, read-only, as of the newest commit
    ...
    if reader.refresh():        # True: something newer is there now; only new segments travel
        store = reader.store()
"""

from __future__ import annotations

from pathlib import Path

from megacontext.remote.cache import Cache, FetchReport, View
from megacontext.remote.errors import RemoteError
from megacontext.remote.place import Remote
from megacontext.remote.record import Commit
from megacontext_ext import Store
from megacontext_ext.errors import NotFound

__all__ = ["Reader"]

# A commit may be replaced, and its objects collected, while they are on their way.
_ATTEMPTS = 5


class Reader:
    """Holds one commit of a memory in the local cache, and moves on when told to. Not for several
    threads; any number of processes may share one cache."""

    def __init__(self, remote: Remote, cache: Cache | None = None) -> None:
        self.remote = remote
        self.cache = cache or Cache(config=remote.config)
        self._view: View | None = None
        self._stores: list[Store] = []

    @property
    def commit(self) -> Commit:
        """What is shown now. Raises as `refresh`."""
        return self._now().commit

    @property
    def path(self) -> Path:
        """The directory that is shown now, to be opened read-only. Raises as `refresh`."""
        return self._now().path

    @property
    def fetched(self) -> FetchReport:
        """What the last move downloaded."""
        return self._now().report

    def refresh(self) -> bool:
        """Moves to the newest commit; whether there was one.

        Raises: NotFound when nothing was published, RemoteError when no store answers (what was
        shown stays), Corruption when no store has some object whole, IoError (cache limit).
        """
        for _ in range(_ATTEMPTS):
            latest = self.remote.latest()
            if latest is None or latest.manifest is None:
                raise NotFound(f"{self.remote.url}: nothing was published yet")
            if self._view is not None and self._view.commit.keys == latest.keys:
                return False
            try:
                view = self.cache.view(self.remote, latest)
            except NotFound as error:
                gone = error
                continue
            if self._view is not None:
                self._view.close()
            self._view = view
            return True
        raise RemoteError(f"{self.remote.url}: {_ATTEMPTS} commits in a row named objects that are "
                          f"gone, the last: {gone}")  # fmt: skip

    def store(self) -> Store:
        """Opens what is shown now; closed with the reader. Raises as `refresh`."""
        self._stores.append(Store.open(self.path, read_only=True))
        return self._stores[-1]

    def close(self) -> None:
        """Closes the stores it opened and lets the cache drop the files."""
        for store in self._stores:
            store.close()
        self._stores.clear()
        if self._view is not None:
            self._view.close()
            self._view = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _now(self) -> View:
        if self._view is None:
            self.refresh()
        assert self._view is not None
        return self._view
