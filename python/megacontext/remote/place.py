"""Where a memory is kept: one object store, or several that mirror one another.

Of several, the first decides: a commit is published there by conditional put and then copied to the
others. A write counts when `quorum` of them have it (content and commit alike). A read takes the
newest commit that any store shows, and each object from the first store that has it whole.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from megacontext.config import RemoteConfig
from megacontext.remote.commits import CommitLog, Superseded, begin_log, open_log
from megacontext.remote.errors import Fenced, QuorumMissed, RemoteError
from megacontext.remote.objects import Objects, open_objects
from megacontext.remote.probe import Capabilities
from megacontext.remote.record import Blob, Commit
from megacontext_ext.errors import Corruption, InvalidArgument, MegaContextError, NotFound

__all__ = ["Remote", "open_remote"]

# A store that did not answer is asked last for so long.
_SHUNNED_S = 30.0
# One of these at one store, and the next store is asked.
_FAILURES = (RemoteError, NotFound, Corruption)
T = TypeVar("T")


def open_remote(
    urls: str | Sequence[str], quorum: int | None = None, config: RemoteConfig | None = None
) -> Remote:
    """The memory at a URL, or at several that mirror one another, the deciding one first.

    Args:
        quorum: stores that a write must reach; a majority when left out.

    Raises: InvalidArgument. No request is made yet.
    """
    given = [urls] if isinstance(urls, str) else list(urls)
    chosen = config or RemoteConfig()
    return Remote([open_objects(url, chosen) for url in given], quorum, chosen)


class Remote:
    """See the module. Thread safe. `troubles` says what failed at which store, newest last."""

    def __init__(self, stores: Sequence[Objects], quorum: int | None, config: RemoteConfig) -> None:
        if not stores or len({store.url for store in stores}) < len(stores):
            raise InvalidArgument("[remote] URLs must be one or more, each once, got "
                                  f"{[store.url for store in stores]}")  # fmt: skip
        self.stores = tuple(stores)
        self.quorum = len(stores) // 2 + 1 if quorum is None else quorum
        if not 1 <= self.quorum <= len(stores):
            raise InvalidArgument(f"[remote] quorum must be in [1, {len(stores)}], got {quorum}")
        self.config = config
        self.troubles: list[str] = []
        self._logs: dict[Objects, CommitLog] = {}
        self._shunned: dict[Objects, float] = {}

    @property
    def url(self) -> str:
        """Of the deciding store."""
        return self.stores[0].url

    @property
    def digest(self) -> str:
        """Of the deciding store's URL, for names of files."""
        return hashlib.sha256(self.url.encode()).hexdigest()[:12]

    # ---- commits ----

    def begin(self) -> dict[str, Capabilities]:
        """For a writer: probes every store, begins logs where there are none.

        Raises: Unsupported when the deciding store has no safe commit; RemoteError when it does not
        answer; QuorumMissed when too few stores do.
        """
        found: dict[str, Capabilities] = {}

        def begin(store: Objects) -> None:
            self._logs[store], found[store.url] = begin_log(store)

        begin(self.stores[0])
        self._need_quorum("begin", 1 + self._try_all(self.stores[1:], begin))
        return found

    def latest(self) -> Commit | None:
        """The newest commit of any store that answers; None where a memory was begun only.

        Raises: NotFound when enough of them have none; RemoteError, Corruption when none shows one.
        """
        seen: list[Commit | None] = []
        errors: list[MegaContextError] = []

        def ask(store: Objects) -> None:
            try:
                seen.append(self.log(store).latest())
            except _FAILURES as error:
                errors.append(error)
                raise

        self._try_all(self.stores, ask)
        if seen:
            return max((each for each in seen if each), key=lambda each: each.rank, default=None)
        # An acknowledged commit is in `quorum` stores: so many saying no is certain, fewer is not.
        absent = [each for each in errors if isinstance(each, NotFound)]
        if len(absent) > len(self.stores) - self.quorum:
            raise absent[0]
        raise next(each for each in errors if not isinstance(each, NotFound))

    def publish(self, commit: Commit, newest: Commit | None) -> None:
        """Makes `commit` the newest after `newest`, which `latest` gave.

        Raises: Superseded when another came first; Fenced when a copy has a higher epoch;
        QuorumMissed; RemoteError when the deciding store did not answer.
        """
        log = self.log(self.stores[0])
        if newest is not None and len(self.stores) > 1:
            log.adopt(newest)  # it may have been away
        log.publish(commit)
        refused: list[str] = []

        def copy(store: Objects) -> None:
            if not self.log(store).adopt(commit):
                refused.append(f"{store.url} has {_rank(self.log(store).latest())}")

        copies = 1 + self._try_all(self.stores[1:], copy)
        if refused:
            raise Fenced(f"[publish] {self.url}: epoch {commit.epoch} of {commit.writer} met a "
                         f"higher one in a mirror: {'; '.join(refused)}")  # fmt: skip
        self._need_quorum(f"publish generation {commit.generation}", copies)

    def log(self, store: Objects) -> CommitLog:
        """The log of one of the stores. Raises: NotFound, RemoteError."""
        if store not in self._logs:
            self._logs[store] = open_log(store)
        return self._logs[store]

    # ---- content ----

    def put(self, key: str, source: bytes | Path, byte_count: int) -> None:
        """Uploads one object to all stores and looks at its length there. Raises: QuorumMissed."""

        def put(store: Objects) -> None:
            store.put(key, source)
            found = store.head(key)
            if found is None or found.byte_count != byte_count:
                raise RemoteError(f"[put] {store.where(key)}: {byte_count} bytes were put, then "
                                  f"{found.byte_count if found else 'none'} found")  # fmt: skip

        self._need_quorum(f"put {key}", self._try_all(self.stores, put))

    def fetch(self, blob: Blob, path: Path) -> None:
        """Downloads one object to `path`, checked; the next store is asked where one fails.

        Raises: what the last store answered: NotFound, Corruption or RemoteError.
        """

        def fetch(store: Objects) -> None:
            store.download(blob.key, path, blob.byte_count, blob.sha256)

        self._first_good(fetch)

    def read(self, blob: Blob) -> bytes:
        """A small object, checked. Raises as `fetch`."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "blob"
            self.fetch(blob, path)
            return path.read_bytes()

    # ---- several stores ----

    def _in_order(self) -> list[Objects]:
        now = time.monotonic()
        return sorted(self.stores, key=lambda store: self._shunned.get(store, 0.0) > now)

    def _first_good(self, call: Callable[[Objects], T]) -> T:
        failures: list[MegaContextError] = []
        for store in self._in_order():
            try:
                return call(store)
            except _FAILURES as error:
                failures.append(error)
                self._note(store, error)
        # That an object is gone is only sure when all stores say so.
        raise next((each for each in failures if not isinstance(each, NotFound)), failures[-1])

    def _try_all(self, stores: Iterable[Objects], call: Callable[[Objects], object]) -> int:
        """Calls for each at the same time; how many went well."""

        def attempt(store: Objects) -> bool:
            try:
                call(store)
            except _FAILURES as error:
                self._note(store, error)
                return False
            return True

        listed = list(stores)
        if len(listed) == 1:
            return int(attempt(listed[0])) if len(self.stores) > 1 else _plain(call, listed[0])
        if not listed:
            return 0
        with ThreadPoolExecutor(len(listed)) as pool:
            return sum(pool.map(attempt, listed))

    def _note(self, store: Objects, error: MegaContextError) -> None:
        self.troubles = [*self.troubles[-99:], f"{type(error).__name__}: {error}"]
        if isinstance(error, RemoteError):
            self._shunned[store] = time.monotonic() + _SHUNNED_S

    def _need_quorum(self, what: str, count: int) -> None:
        if count < self.quorum:
            told = "; ".join(self.troubles[-len(self.stores) :])
            raise QuorumMissed(f"[{what}] {count} of {len(self.stores)} stores have it, the quorum "
                               f"is {self.quorum}: {told}")  # fmt: skip


def _plain(call: Callable[[Objects], object], store: Objects) -> int:
    """Of a single store the error itself says most."""
    call(store)
    return 1


def _rank(commit: Commit | None) -> str:
    if commit is None:
        return "no commit"
    return f"epoch {commit.epoch}, generation {commit.generation} by {commit.writer}"


__all__ += ["Superseded"]
