"""The writer of a memory: it alone publishes, until another takes its place.

`acquire` raises the writer epoch by a conditional put. From then on every publish of an older
writer is refused with `Fenced`; its local store keeps everything it has.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from megacontext.remote.cache import Cache
from megacontext.remote.commits import Superseded
from megacontext.remote.errors import Fenced, RemoteError
from megacontext.remote.place import Remote
from megacontext.remote.record import Blob, Commit
from megacontext.remote.sealed import Content, content_of, side_folder, write_json
from megacontext_ext.errors import Corruption, InvalidArgument, NotFound
from megacontext_ext.sealed import sealed_store

__all__ = ["PushReport", "Writer", "promote", "written_places"]

_ACQUIRE_ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class PushReport:
    """What one push did."""

    generation: int
    epoch: int
    published: bool  # False: what stands there is the same already
    uploaded_objects: int
    uploaded_bytes: int
    total_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _State:
    """What a directory remembers of its role; `commit_id` and `manifest` are of the last commit
    that it published or was pulled from, `urls` all stores that it ever published to, the deciding
    one first."""

    urls: list[str]
    epoch: int
    writer: str
    commit_id: str
    manifest: str

    @property
    def is_writer(self) -> bool:
        """Not so for a directory that was only pulled."""
        return self.epoch > 0


class Writer:
    """Publishes one local store. One process at a time for one directory."""

    def __init__(self, remote: Remote, path: str | Path, state: _State) -> None:
        self.remote, self.path = remote, Path(path)
        self._state = state

    @property
    def epoch(self) -> int:
        return self._state.epoch

    @property
    def name(self) -> str:
        return self._state.writer

    @classmethod
    def acquire(cls, remote: Remote, path: str | Path) -> Writer:
        """Becomes the writer of `remote` with the store at `path`; older writers are fenced.

        The directory must hold what was published last, or nothing have been published.

        Raises: InvalidArgument when the directory is of another memory or has gone its own way;
        Unsupported when the store has no safe commit; Fenced when another writer was quicker 8
        times; RemoteError.
        """
        store = sealed_store(path)
        known = _read_state(remote, path)
        remote.begin()
        name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        for _ in range(_ACQUIRE_ATTEMPTS):
            latest = remote.latest()
            if latest is None:
                commit = Commit.first(store.store_id, name)
            else:
                _require_same_history(remote, path, store.store_id, latest, known)
                commit = latest.next(epoch=latest.epoch + 1, writer=name)
            try:
                remote.publish(commit, latest)
            except Superseded:
                continue
            return cls(remote, path, _remember(remote, path, commit))
        raise Fenced(
            f"[acquire] {remote.url}: other writers were quicker {_ACQUIRE_ATTEMPTS} times"
        )

    @classmethod
    def resume(cls, remote: Remote, path: str | Path) -> Writer:
        """The writer that this directory was, in another process perhaps; the first push of a
        memory acquires.

        Raises: Fenced when another has taken its place, or it never was one.
        """
        state = _read_state(remote, path)
        if state is not None and state.is_writer:
            return cls(remote, path, state)
        try:
            latest = remote.latest()
        except NotFound:
            latest = None
        if latest is not None:
            raise Fenced(f"[push] {remote.url}: {latest.writer} is the writer, of epoch "
                         f"{latest.epoch}; {path} was never its writer: take its place with "
                         "promote, or push to a new URL")  # fmt: skip
        return cls.acquire(remote, path)

    def push(self) -> PushReport:
        """Publishes the last checkpoint of the store (call `Store.checkpoint()` before).

        Made again after any failure it goes on: content that is there is not sent twice.

        Raises: Fenced when a newer writer is there, and nothing was changed; QuorumMissed,
        RemoteError, NotFound, Corruption.
        Cost: new segments once, plus one small object.
        """
        start = time.perf_counter()
        with content_of(self.path, self.remote.config.parallel) as content:
            latest = self.require_current()
            if latest is None:
                raise Corruption(f"[push] {self.remote.url}: the log of commits is empty, expected "
                                 f"commit {self._state.commit_id}")  # fmt: skip
            if latest.store_id != content.store.store_id:
                raise InvalidArgument(f"[push] {self.remote.url}: holds memory {latest.store_id}, "
                                      f"{self.path} is {content.store.store_id}")  # fmt: skip
            fresh = self._upload(content, latest)
            same = latest.keys == {blob.key for blob in content.blobs}
            commit = latest if same else latest.next(blobs=content.blobs)
            if not same:
                self._publish(commit, latest)
        self._state = _remember(self.remote, self.path, commit)
        return PushReport(
            commit.generation,
            commit.epoch,
            not same,
            len(fresh),
            sum(blob.byte_count for blob in fresh),
            commit.byte_count,
            time.perf_counter() - start,
        )

    def require_current(self) -> Commit | None:
        """The newest commit, which this writer or its memory's first push made. Raises: Fenced."""
        latest = self.remote.latest()
        own = latest is None or (latest.epoch, latest.writer) == (self.epoch, self.name)
        if latest is None or own:
            return latest
        raise self._fenced(latest)

    def _upload(self, content: Content, latest: Commit) -> list[Blob]:
        """What the newest commit names is there and stays; anything else is sent (again): an object
        that no commit names may be collected at any moment unless it is young."""
        once = {blob.key: blob for blob in content.blobs if blob.key not in latest.keys}
        sent = self._sent(once)
        wanted = [blob for key, blob in once.items() if key not in sent]
        with ThreadPoolExecutor(self.remote.config.parallel) as pool:
            jobs = [
                pool.submit(self.remote.put, blob.key, content.sources[blob.key], blob.byte_count)
                for blob in wanted
            ]
            for job in jobs:
                job.result()
        return wanted

    def _sent(self, blobs: dict[str, Blob]) -> set[str]:
        """Keys of an interrupted push that are whole in every store and too young to be collected
        before this push ends."""
        if not blobs:
            return set()
        young = time.time() - self.remote.config.grace_s / 2
        sent = set(blobs)
        for store in self.remote.stores:
            try:
                there = {
                    info.key
                    for folder in sorted({blob.folder for blob in blobs.values()})
                    for info in store.list(folder)
                    if info.modified_s > young
                    and info.key in blobs
                    and info.byte_count == blobs[info.key].byte_count
                }
            except RemoteError:
                return set()
            sent &= there
        return sent

    def _publish(self, commit: Commit, latest: Commit) -> None:
        try:
            self.remote.publish(commit, latest)
        except Superseded as error:
            raise self._fenced(error.latest) from error

    def _fenced(self, latest: Commit) -> Fenced:
        return Fenced(
            f"[push] {self.remote.url}: epoch {self.epoch} of {self.name} is over, epoch "
            f"{latest.epoch} of {latest.writer} writes now (generation {latest.generation}). "
            f"{self.path} keeps everything: push it to a new URL"
        )


def promote(remote: Remote, path: str | Path, cache: Cache | None = None) -> Writer:
    """Makes the directory `path` the writer of `remote`: what was published last is pulled into it
    when it does not exist yet, and the epoch is raised.

    Raises: as `Writer.acquire`; NotFound when nothing was published.
    """
    target = Path(path)
    if not (target / "MANIFEST").exists():
        commit = remote.latest()
        if commit is None or commit.manifest is None:
            raise NotFound(f"[promote] {remote.url}: nothing was published yet")
        place = cache or Cache(config=remote.config)
        place.build(remote, commit, target, own_files=True)
        _remember(remote, target, replace(commit, epoch=0))
    return Writer.acquire(remote, target)


def _require_same_history(
    remote: Remote, path: str | Path, store_id: str, latest: Commit, known: _State | None
) -> None:
    if latest.store_id != store_id:
        raise InvalidArgument(f"[acquire] {remote.url}: holds memory {latest.store_id}, {path} is "
                              f"{store_id}")  # fmt: skip
    if latest.manifest is None:
        return
    if known and latest.manifest.sha256 == known.manifest:
        return
    if known and known.is_writer and latest.writer == known.writer:
        return  # our own, from just before a crash: the directory has all of it
    raise InvalidArgument(
        f"[acquire] {remote.url}: generation {latest.generation} (epoch {latest.epoch}) by "
        f"{latest.writer} was never in {path}, which would undo it: promote into a new directory, "
        "or push this one to a new URL"
    )


def written_places(path: str | Path) -> list[list[str]]:
    """URLs of every place that this directory is the writer of, each with all its mirrors."""
    found = []
    for where in sorted(side_folder(path).glob("writer-*.json")):
        state = _load_state(where)
        if state.is_writer:
            found.append(state.urls)
    return found


def _remember(remote: Remote, path: str | Path, commit: Commit) -> _State:
    known = _read_state(remote, path)
    urls = [store.url for store in remote.stores]
    earlier = known.urls if known is not None else []
    state = _State(
        [*urls, *(url for url in earlier if url not in urls)],
        commit.epoch,
        commit.writer,
        commit.commit_id,
        commit.manifest.sha256 if commit.manifest else "",
    )
    write_json(_state_path(remote, path), asdict(state))
    return state


def _state_path(remote: Remote, path: str | Path) -> Path:
    """One file for each URL, so that a store may be pushed to several."""
    return side_folder(path) / f"writer-{remote.digest}.json"


def _read_state(remote: Remote, path: str | Path) -> _State | None:
    where = _state_path(remote, path)
    return _load_state(where) if where.exists() else None


def _load_state(where: Path) -> _State:
    try:
        return _State(**json.loads(where.read_text()))
    except (ValueError, TypeError) as error:
        raise Corruption(f"{where}:0: expected the state of a writer, got {error!r}") from error
