"""Segments of remote memories on this machine's disk, shared by its processes, under a limit.

    objects/<sha256>            content, checked by hash when it was downloaded
    partial/<sha256>            a download that goes on at the next attempt
    views/<store>-<commit>/     a store directory made of hard links to objects
    locks/                      flock: one download an object; readers of a view share its lock

What is open is never dropped; of the rest the least recently used goes first.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megacontext.config import RemoteConfig, remote_cache_folder
from megacontext.remote.objects import file_sha256
from megacontext.remote.place import Remote
from megacontext.remote.record import Blob, Commit
from megacontext_ext.errors import IoError

__all__ = ["Cache", "FetchReport", "View"]

# A download without progress for so long has no process any more.
_RUNNING_S = 3600.0


@dataclass(frozen=True, slots=True)
class FetchReport:
    """What making a view or a copy cost."""

    fetched_objects: int
    fetched_bytes: int


class View:
    """A directory with one commit of a memory, kept while this is open. Open it read-only."""

    def __init__(self, path: Path, commit: Commit, lock_file: int, report: FetchReport) -> None:
        self.path, self.commit, self.report = path, commit, report
        self._lock_file: int | None = lock_file

    def close(self) -> None:
        """Lets the cache drop the directory. A store opened from it keeps what it mapped."""
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None


class Cache:
    """See the module. Any number of threads and processes may use one folder."""

    def __init__(self, folder: Path | None = None, config: RemoteConfig | None = None) -> None:
        self.folder = folder or remote_cache_folder()
        self.config = config or RemoteConfig()
        for name in ("objects", "partial", "views", "locks"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def view(self, remote: Remote, commit: Commit) -> View:
        """The directory of a commit; what is missing is downloaded.

        Raises: NotFound when an object is gone (a newer commit was collected around it), Corruption
        when no store has it whole, RemoteError, IoError when the limit is too small for it.
        """
        name = f"{commit.store_id}-{commit.commit_id}"
        path = self.folder / "views" / name
        lock_file = self._lock(f"view-{name}", shared=True)
        try:
            report = FetchReport(0, 0)
            if not (path / "MANIFEST").exists():
                with self._locked(f"make-{name}"):
                    if not (path / "MANIFEST").exists():
                        self._require_room(remote, commit)
                        report = self.build(remote, commit, path)
            os.utime(path)
            return View(path, commit, lock_file, report)
        except BaseException:
            os.close(lock_file)
            raise

    def build(
        self, remote: Remote, commit: Commit, path: Path, own_files: bool = False
    ) -> FetchReport:
        """Makes a store directory at `path`; its manifest comes last, so that it is whole or none.

        Args:
            own_files: copies instead of links, for a store that will be written.

        Raises: as `view`.
        """
        missing = [blob for blob in commit.blobs if not self._object(blob).exists()]
        with ThreadPoolExecutor(self.config.parallel) as pool:
            for job in [pool.submit(self._fetch, remote, blob) for blob in missing]:
                job.result()
        path.mkdir(parents=True, exist_ok=True)
        for blob in sorted(commit.blobs, key=lambda blob: blob.folder == "manifests"):
            # A sidecar `.gists/name` lies beside the store, in `<store>.gists/name`.
            target = path / blob.name
            if blob.folder == "sidecars":
                target = Path(f"{path}{blob.name}")
                target.parent.mkdir(exist_ok=True)
            self._place(remote, blob, target, own_files)
        return FetchReport(len(missing), sum(blob.byte_count for blob in missing))

    def used_bytes(self) -> int:
        """Of all objects and unfinished downloads."""
        return sum(size for _, _, size in self._entries())

    def shrink(self, room_bytes: int = 0) -> int:
        """Drops what is not in use, least recently used first, until `room_bytes` fit under the
        limit; returns the bytes dropped."""
        dropped = 0
        with self._locked("shrink"):
            used = self.used_bytes()
            if used + room_bytes <= self.config.cache_bytes:
                return 0
            self._drop_views()
            running = time.time() - _RUNNING_S
            for modified, path, size in sorted(self._entries()):
                if used - dropped + room_bytes <= self.config.cache_bytes:
                    break
                if path.parent.name == "partial" and modified > running:
                    continue
                if path.stat().st_nlink == 1:  # no view shows it
                    path.unlink()
                    dropped += size
        return dropped

    def verify(self) -> list[str]:
        """Hashes every object; removes those that rotted and returns their names."""
        rotten = []
        for path in sorted((self.folder / "objects").iterdir()):
            if file_sha256(path) != path.name:
                rotten.append(path.name)
                path.unlink()
        return rotten

    # ---- parts ----

    def _object(self, blob: Blob) -> Path:
        return self.folder / "objects" / blob.sha256

    def _fetch(self, remote: Remote, blob: Blob) -> None:
        with self._locked(f"object-{blob.sha256}"):
            if self._object(blob).exists():
                return
            partial = self.folder / "partial" / blob.sha256
            remote.fetch(blob, partial)
            os.replace(partial, self._object(blob))

    def _place(self, remote: Remote, blob: Blob, target: Path, own_files: bool) -> None:
        source = self._object(blob)
        for _ in range(3):  # another process may shrink the cache meanwhile
            try:
                os.utime(source)
                fresh = target.with_name(f".{target.name}.{os.getpid()}")
                fresh.unlink(missing_ok=True)
                if own_files:
                    shutil.copyfile(source, fresh)
                else:
                    os.link(source, fresh)
                os.replace(fresh, target)
                fresh.unlink(missing_ok=True)  # replace() of two links to one file does nothing
                return
            except FileNotFoundError:
                self._fetch(remote, blob)
        raise IoError(f"{source}: was dropped from the cache 3 times while {target} was made")

    def _require_room(self, remote: Remote, commit: Commit) -> None:
        held = {blob.sha256: blob.byte_count for blob in commit.blobs}
        missing = sum(n for sha, n in held.items() if not (self.folder / "objects" / sha).exists())
        for sha in held:  # the newest of all: they are not what shrinking drops
            if (self.folder / "objects" / sha).exists():
                os.utime(self.folder / "objects" / sha)
        self.shrink(missing)
        used = self.used_bytes()
        if used + missing > self.config.cache_bytes:
            raise IoError(
                f"{self.folder}: {remote.url} generation {commit.generation} needs {missing:,} "
                f"bytes, the limit is {self.config.cache_bytes:,} and {used:,} are in use"
            )

    def _drop_views(self) -> None:
        views = sorted((self.folder / "views").iterdir(), key=lambda path: path.stat().st_mtime)
        for path in views:
            if path.suffix == ".gists":
                continue
            lock_path = self.folder / "locks" / f"view-{path.name}"
            lock_file = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (path / "MANIFEST").unlink(missing_ok=True)  # first: half a view is none
                shutil.rmtree(path)
                shutil.rmtree(f"{path}.gists", ignore_errors=True)
            except BlockingIOError:
                continue  # open in some process
            finally:
                os.close(lock_file)

    def _entries(self) -> list[tuple[float, Path, int]]:
        entries = []
        for folder in ("objects", "partial"):
            for path in (self.folder / folder).iterdir():
                try:
                    found = path.stat()
                except FileNotFoundError:
                    continue
                entries.append((found.st_mtime, path, found.st_size))
        return entries

    def _lock(self, name: str, shared: bool = False) -> int:
        file = os.open(self.folder / "locks" / name, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        return file

    @contextmanager
    def _locked(self, name: str) -> Iterator[float]:
        """One process at a time; yields the seconds that it had to wait."""
        start = time.monotonic()
        file = self._lock(name)
        try:
            yield time.monotonic() - start
        finally:
            os.close(file)
