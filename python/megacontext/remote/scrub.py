"""Is every copy of a memory whole? And mending those that are not, from one that is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from megacontext.remote.commits import begin_log, open_log
from megacontext.remote.errors import RemoteError
from megacontext.remote.objects import Objects
from megacontext.remote.place import Remote
from megacontext.remote.record import Blob, Commit
from megacontext.remote.sealed import content_of
from megacontext_ext.errors import Corruption, MegaContextError, NotFound

__all__ = ["Fault", "ScrubReport", "scrub"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is not as the newest commit says. `repaired` from where, or ""."""

    store: str
    key: str
    what: str
    repaired: str = ""


@dataclass(slots=True)
class ScrubReport:
    """What was looked at and found."""

    generation: int
    epoch: int
    objects: int = 0
    bytes_read: int = 0
    faults: list[Fault] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Nothing is wrong now."""
        return all(fault.repaired for fault in self.faults)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "healthy": self.healthy}


def scrub(
    remote: Remote, *, deep: bool = True, repair: bool = False, local: Path | None = None
) -> ScrubReport:
    """Compares every store with the newest commit that any of them shows.

    Args:
        deep: reads and hashes every object; else only lengths are compared.
        repair: copies what is missing or rotten from another store, or from `local`.
        local: a store directory that may have it too (the writer's own).

    Raises: NotFound when nothing was published, RemoteError when no store answers.
    Cost: deep reads every byte of every store once.
    """
    newest = remote.latest()
    if newest is None:
        raise NotFound(f"[scrub] {remote.url}: nothing was published yet")
    report = ScrubReport(newest.generation, newest.epoch)
    with ThreadPoolExecutor(remote.config.parallel) as pool:
        for store in remote.stores:
            jobs = {
                blob: pool.submit(_fault, store, blob, deep)
                for blob in {blob.key: blob for blob in newest.blobs}.values()
            }
            for blob, job in jobs.items():
                what = job.result()
                report.objects += 1
                report.bytes_read += blob.byte_count if deep else 0
                if what:
                    fixed = _mend(remote, store, blob, local) if repair else ""
                    report.faults.append(Fault(store.url, blob.key, what, fixed))
            fault = _log_fault(store, newest)
            if fault:
                # A commit is copied only after what it names.
                whole = all(each.repaired for each in report.faults if each.store == store.url)
                fixed = _mend_log(remote, store, newest) if repair and whole else ""
                report.faults.append(Fault(store.url, "commit", fault, fixed))
    return report


def _fault(store: Objects, blob: Blob, deep: bool) -> str:
    """What is wrong with one object, "" for nothing."""
    try:
        if deep:
            with TemporaryDirectory() as folder:
                store.download(blob.key, Path(folder) / "blob", blob.byte_count, blob.sha256)
        found = store.head(blob.key)
    except (NotFound, Corruption, RemoteError) as error:
        return f"{type(error).__name__}: {error}"
    if found is None:
        return "NotFound: there is no such object"
    if found.byte_count != blob.byte_count:
        return f"Corruption: expected {blob.byte_count} bytes, got {found.byte_count}"
    return ""


def _mend(remote: Remote, store: Objects, blob: Blob, local: Path | None) -> str:
    """Puts a whole copy of an object to `store`; where it came from, "" when nobody has one."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "blob"
        for other in remote.stores:
            if other is store:
                continue
            try:
                other.download(blob.key, path, blob.byte_count, blob.sha256)
                store.put(blob.key, path)
                return other.url
            except (NotFound, Corruption, RemoteError):
                path.unlink(missing_ok=True)
    if local is not None:
        try:
            with content_of(local) as content:
                if blob.key in content.sources:
                    store.put(blob.key, content.sources[blob.key])
                    return "" if _fault(store, blob, deep=True) else str(local)
        except MegaContextError:
            return ""
    return ""


def _log_fault(store: Objects, newest: Commit) -> str:
    try:
        found = open_log(store).latest()
    except (NotFound, Corruption, RemoteError) as error:
        return f"{type(error).__name__}: {error}"
    if found is None:
        return "NotFound: no commit"
    if found.commit_id != newest.commit_id:
        return (
            f"generation {found.generation} of epoch {found.epoch}, the newest is "
            f"{newest.generation} of epoch {newest.epoch}"
        )
    return ""


def _mend_log(remote: Remote, store: Objects, newest: Commit) -> str:
    try:
        log, _ = begin_log(store)
        return "the newest commit" if log.adopt(newest) else ""
    except (RemoteError, MegaContextError) as error:
        remote.troubles.append(f"{type(error).__name__}: {error}")
        return ""
