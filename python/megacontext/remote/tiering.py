"""Hot on the local disk, cold in the object store only.

A memory that nobody opened for a while is released: its segments are removed here once every
object is proven to be there. `ensure_local` brings it back, from the cache where it is still warm.
The unit is a memory, for the engine maps all segments of one that it opens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from megacontext.remote.cache import Cache
from megacontext.remote.errors import Fenced, RemoteError
from megacontext.remote.place import Remote, open_remote
from megacontext.remote.record import Commit
from megacontext.remote.sealed import content_of, side_folder, write_json
from megacontext.remote.writer import Writer
from megacontext_ext import Store
from megacontext_ext.errors import Corruption, MegaContextError, NotFound
from megacontext_ext.sealed import MANIFEST_NAME, sealed_store

__all__ = ["TierPolicy", "apply_policy", "ensure_local", "release", "released"]

_STATE = "released.json"


@dataclass(frozen=True, slots=True)
class TierPolicy:
    """Which memories stay hot: those opened within `hot_s`, then the most recent ones while they
    fit into `hot_bytes`."""

    hot_bytes: int
    hot_s: float = 0.0


def release(remote: Remote, path: str | Path) -> int:
    """Removes the local segments of a memory that is safely remote; returns the bytes freed.

    Pushes what is not published yet, then proves that each object is there with its length in as
    many stores as the quorum asks for. The lock of the writer is held meanwhile.

    Raises: StoreLocked when the memory is open for writing; Fenced when another writes to `remote`;
    RemoteError, QuorumMissed when the proof fails. The local files are then untouched.
    """
    target = Path(path)
    with Store.open(target) as store:
        store.checkpoint()
        writer = Writer.resume(remote, target)
        writer.push()
        commit = remote.latest()
        if commit is None or (commit.epoch, commit.writer) != (writer.epoch, writer.name):
            raise Fenced(f"[release] {remote.url}: another writer came between, {target} stays")
        with content_of(target) as content:
            if commit.keys != {blob.key for blob in content.blobs}:
                raise RemoteError(f"[release] {remote.url}: shows another state than {target}")
        _prove(remote, commit)
        state = {"urls": [each.url for each in remote.stores], "quorum": remote.quorum,
                 "commit_id": commit.commit_id, "bytes": commit.byte_count}  # fmt: skip
        write_json(side_folder(target) / _STATE, state)
        freed = 0
        # The manifest goes first: half a directory must never look like a store.
        names = [MANIFEST_NAME, *(file.name for file in content.store.files)]
        for name in names:
            freed += (target / name).stat().st_size
            (target / name).unlink()
    for log in target.glob("wal-*.log"):  # closing wrote its end; everything in it was sealed
        freed += log.stat().st_size
        log.unlink()
    return freed


def released(path: str | Path) -> bool:
    """Whether the memory at `path` is in an object store only."""
    return (side_folder(path) / _STATE).exists() and not (Path(path) / MANIFEST_NAME).exists()


def ensure_local(path: str | Path, cache: Cache | None = None) -> bool:
    """Brings a released memory back; whether it had to be fetched.

    Raises: NotFound, RemoteError, Corruption; Fenced when another machine wrote meanwhile: the
    memory is then not this directory's any more, promote to take it back.
    """
    target = Path(path)
    state_path = side_folder(target) / _STATE
    if not released(target):
        state_path.unlink(missing_ok=True)
        return False
    try:
        state = json.loads(state_path.read_text())
        remote = open_remote(state["urls"], state["quorum"])
    except (ValueError, KeyError) as error:
        raise Corruption(f"{state_path}:0: expected a released memory, got {error!r}") from error
    latest = remote.latest()
    if latest is None:
        raise NotFound(f"[fetch] {remote.url}: the memory that {target} left there is gone")
    Writer.resume(remote, target).require_current()
    (cache or Cache(config=remote.config)).build(remote, latest, target, own_files=True)
    state_path.unlink()
    return True


def apply_policy(policy: TierPolicy, memories: Iterable[tuple[Path, Remote]]) -> dict[Path, int]:
    """Releases the least recently written memories until the rest fits; bytes freed by path.

    One that cannot be released now (open, or its store does not answer) stays and is not counted.
    """
    hot = [(path, remote) for path, remote in memories if (path / MANIFEST_NAME).exists()]
    sizes = {path: sealed_store(path).byte_count for path, _ in hot}
    ages = {path: time.time() - (path / MANIFEST_NAME).stat().st_mtime for path, _ in hot}
    used, freed = sum(sizes.values()), {}
    for path, remote in sorted(hot, key=lambda pair: -ages[pair[0]]):
        if used <= policy.hot_bytes or ages[path] < policy.hot_s:
            break
        try:
            freed[path] = release(remote, path)
        except MegaContextError as error:
            remote.troubles.append(f"{type(error).__name__}: {error}")
            continue
        used -= sizes[path]
    return freed


def _prove(remote: Remote, commit: Commit) -> None:
    for blob in commit.blobs:
        whole, missing = 0, []
        for store in remote.stores:
            try:
                found = store.head(blob.key)
            except RemoteError as error:
                missing.append(str(error))
                continue
            if found is not None and found.byte_count == blob.byte_count:
                whole += 1
            else:
                missing.append(f"{store.where(blob.key)}: {found}")
        if whole < remote.quorum:
            raise RemoteError(f"[release] {blob.key}: whole in {whole} stores, must be in "
                              f"{remote.quorum}: {'; '.join(missing)}")  # fmt: skip
