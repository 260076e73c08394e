"""The log of commits at one store: what was published, decided by conditional puts.

Two paths; `format.json`, made once, says which one a prefix uses, so that nobody takes the other:

    swap       commit.json, replaced by If-Match on its ETag
    numbered   commits/<generation>.json, each created by If-None-Match: *

An answer may get lost on its way. Whether a put arrived is then read back: each commit has a random
`commit_id`, so our own is told from somebody else's.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Protocol

from megacontext.remote.errors import ObjectExists, RemoteError
from megacontext.remote.objects import Objects
from megacontext.remote.probe import Capabilities, probe
from megacontext.remote.record import FORMAT, Commit
from megacontext_ext.errors import Corruption, NotFound, Unsupported

__all__ = ["CommitLog", "NumberedLog", "Superseded", "SwapLog", "begin_log", "open_log"]

FORMAT_KEY = "format.json"
HEAD_KEY = "commit.json"
_FOLDER = "commits"
_DIGITS = 16


class Superseded(ObjectExists):
    """A commit was not the next one any more: `latest` is what stands there."""

    def __init__(self, message: str, latest: Commit) -> None:
        super().__init__(message)
        self.latest = latest


class CommitLog(Protocol):
    """Both paths. Everything raises RemoteError when the store does not answer."""

    commit_path: str
    objects: Objects

    def latest(self) -> Commit | None:
        """The newest commit, None before the first. Raises Corruption."""

    def publish(self, commit: Commit) -> None:
        """Makes `commit` the newest, if the newest is its parent. Raises: Superseded when it is not
        (nothing was changed); RemoteError when the outcome is unknown."""

    def adopt(self, commit: Commit) -> bool:
        """For a copy of another log: makes `commit` the newest unless a higher rank stands here.
        Returns whether it stands here now."""

    def prune(self, keep: int) -> int:
        """Removes all but the newest `keep` records; returns how many."""


def open_log(objects: Objects) -> CommitLog:
    """The log of a prefix. Raises: NotFound where there is no memory, Unsupported for a newer
    format."""
    try:
        content = objects.get(FORMAT_KEY)
    except NotFound:
        raise NotFound(f"{objects.url}: there is no memory here, {FORMAT_KEY} is missing") from None
    where = objects.where(FORMAT_KEY)
    try:
        found = json.loads(content)
        version, path = int(found["format"]), found["commit_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise Corruption(f"{where}:0: expected the format of a memory, got {error!r}") from error
    if version > FORMAT or path not in ("swap", "numbered"):
        raise Unsupported(f"{where}:0: expected format <= {FORMAT} with commits by swap or "
                          f"numbered, got {version} with {path!r}")  # fmt: skip
    return SwapLog(objects) if path == "swap" else NumberedLog(objects)


def begin_log(objects: Objects) -> tuple[CommitLog, Capabilities]:
    """The log of a prefix for a writer, begun where there is none; the store is probed first.

    Raises: Unsupported when the store has no safe commit path, or no longer the prefix's own.
    """
    can = probe(objects)
    if can.commit_path is None:
        raise Unsupported(
            f"{objects.url}: no commit here would be safe from a second writer: If-None-Match must "
            f"hold and listings be complete, got {can.reasons}"
        )
    content = json.dumps({"format": FORMAT, "commit_path": can.commit_path}).encode()
    # Begun earlier, or by a second writer just now: its path holds.
    with suppress(ObjectExists):
        objects.create(FORMAT_KEY, content)
    log = open_log(objects)
    if not (can.swap if log.commit_path == "swap" else can.create and can.lists):
        raise Unsupported(f"{objects.url}: commits here are by {log.commit_path}, which the store "
                          f"no longer does: {can.reasons}")  # fmt: skip
    return log, can


class SwapLog:
    """One object, replaced only by who has seen it as it is."""

    commit_path = "swap"

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    def latest(self) -> Commit | None:
        found = self._read()
        return None if found is None else found[0]

    def publish(self, commit: Commit) -> None:
        found = self._read()
        _require_parent(self.objects, commit, None if found is None else found[0])
        self._put(commit, None if found is None else found[1])

    def adopt(self, commit: Commit) -> bool:
        try:
            found = self._read()
        except Corruption:
            self.objects.put(HEAD_KEY, commit.to_bytes())  # a broken copy decides nothing
            return True
        if found is not None and found[0].rank >= commit.rank:
            return found[0].commit_id == commit.commit_id
        try:
            self._put(commit, None if found is None else found[1])
        except Superseded:
            return False
        return True

    def prune(self, keep: int) -> int:
        return 0

    def _read(self) -> tuple[Commit, str] | None:
        try:
            content, tag = self.objects.get_tagged(HEAD_KEY)
        except NotFound:
            return None
        return Commit.from_bytes(content, self.objects.where(HEAD_KEY)), tag or ""

    def _put(self, commit: Commit, tag: str | None) -> None:
        try:
            if tag is None:
                self.objects.create(HEAD_KEY, commit.to_bytes())
            else:
                self.objects.swap(HEAD_KEY, commit.to_bytes(), tag)
        except (ObjectExists, RemoteError) as error:
            _settle(self, commit, error)


class NumberedLog:
    """One object a commit. A number is taken once, whoever asks."""

    commit_path = "numbered"

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._seen: str | None = None  # the newest key so far: listings begin after it

    def latest(self) -> Commit | None:
        for _ in range(8):
            keys = [info.key for info in self.objects.list(_FOLDER, after=self._seen)]
            key = max(keys, default=self._seen)
            if key is None:
                return None
            try:
                commit = Commit.from_bytes(self.objects.get(key), self.objects.where(key))
            except NotFound:
                self._seen = None  # pruned, or the prefix was cleared
                continue
            self._seen = key
            return commit
        raise RemoteError(f"{self.objects.where(_FOLDER)}: 8 times a commit was listed and gone")

    def publish(self, commit: Commit) -> None:
        _require_parent(self.objects, commit, self.latest())
        try:
            self.objects.create(self._key(commit), commit.to_bytes())
        except (ObjectExists, RemoteError) as error:
            _settle(self, commit, error)
        # A writer that slept while its number was pruned finds newer ones now.
        newest = self.latest()
        if newest is None or newest.generation <= commit.generation:
            return
        after = self._at(commit.generation + 1)
        if after is None or after.parent != commit.commit_id:
            self.objects.delete(self._key(commit))
            raise Superseded(_superseded(self.objects, commit, newest), newest)

    def adopt(self, commit: Commit) -> bool:
        try:
            newest = self.latest()
        except Corruption:
            newest = None
        if newest is not None and newest.rank >= commit.rank:
            return newest.commit_id == commit.commit_id
        # A copy may lie at the same or a later number with a lower epoch: it was never more than
        # a put that nobody acknowledged.
        for info in list(self.objects.list(_FOLDER)):
            if info.key > self._key(commit):
                self.objects.delete(info.key)
        self.objects.put(self._key(commit), commit.to_bytes())
        self._seen = None
        return True

    def prune(self, keep: int) -> int:
        keys = sorted(info.key for info in self.objects.list(_FOLDER))
        for key in keys[:-keep]:
            self.objects.delete(key)
        return max(0, len(keys) - keep)

    def _at(self, generation: int) -> Commit | None:
        key = f"{_FOLDER}/{generation:0{_DIGITS}d}.json"
        try:
            return Commit.from_bytes(self.objects.get(key), self.objects.where(key))
        except NotFound:
            return None

    def _key(self, commit: Commit) -> str:
        return f"{_FOLDER}/{commit.generation:0{_DIGITS}d}.json"


def _require_parent(objects: Objects, commit: Commit, latest: Commit | None) -> None:
    if (latest.commit_id if latest is not None else "") == commit.parent:
        return
    if latest is None:
        raise Corruption(f"{objects.url}: the log of commits is empty, expected commit "
                         f"{commit.parent} of generation {commit.generation - 1}")  # fmt: skip
    raise Superseded(_superseded(objects, commit, latest), latest)


def _settle(log: CommitLog, commit: Commit, error: ObjectExists | RemoteError) -> None:
    """After a put that failed or got no answer: returns when it stands there all the same."""
    try:
        latest = log.latest()
    except RemoteError as second:
        raise RemoteError(
            f"[publish] {log.objects.url}: whether generation {commit.generation} was published "
            f"is unknown: {error}; reading back: {second}"
        ) from error
    if latest is not None and latest.commit_id == commit.commit_id:
        return
    if isinstance(error, RemoteError):
        raise error
    if latest is None:
        raise RemoteError(f"[publish] {log.objects.url}: the put was refused and nothing stands "
                          f"there: {error}") from error  # fmt: skip
    raise Superseded(_superseded(log.objects, commit, latest), latest) from error


def _superseded(objects: Objects, commit: Commit, latest: Commit) -> str:
    return (
        f"[publish] {objects.url}: generation {commit.generation} of epoch {commit.epoch} must "
        f"follow the newest commit, which is generation {latest.generation} of epoch "
        f"{latest.epoch} by {latest.writer}"
    )
