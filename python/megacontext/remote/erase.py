"""True erasure reaches the copies: a purged memory is published, and nothing else stays.

What must go is written down beside the memory before anything is published, so that an erasure
which was interrupted, or met a store that did not answer, goes on when it is called again.

The rule for older states: they go. Only the newest commit is kept, and only objects that it names;
a writer epoch of its own keeps pushes that were under way from naming what is being removed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megacontext.config import RemoteConfig
from megacontext.remote.collect import CollectReport, collect_store
from megacontext.remote.errors import ErasureIncomplete, RemoteError
from megacontext.remote.objects import Objects
from megacontext.remote.place import Remote, open_remote
from megacontext.remote.record import CONTENT_FOLDERS, Commit
from megacontext.remote.scrub import scrub
from megacontext.remote.sealed import content_of, side_folder, write_json
from megacontext.remote.writer import Writer, written_places
from megacontext_ext.errors import Corruption, NotFound

__all__ = ["EraseReport", "erase", "erase_everywhere"]

_SHOWN = 5  # objects that a message names


@dataclass(frozen=True, slots=True)
class EraseReport:
    """What went; `stores` are those that were shown to hold the newest commit and nothing else."""

    stores: tuple[str, ...]
    removed_objects: int
    removed_bytes: int
    removed_commits: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def erase_everywhere(path: str | Path, config: RemoteConfig | None = None) -> EraseReport:
    """`erase` at every place that this directory publishes to, with every mirror it ever had there.

    Raises: ErasureIncomplete, with what remains at all of them; Fenced when another machine took
    the writer's place: erase there.
    """
    reports: list[EraseReport] = []
    failures: list[ErasureIncomplete] = []
    for urls in written_places(path):
        try:
            reports.append(erase(open_remote(urls, config=config), path))
        except ErasureIncomplete as error:
            failures.append(error)
    if failures:
        remaining = tuple(name for error in failures for name in error.remaining)
        raise ErasureIncomplete("; ".join(map(str, failures)), remaining)
    return EraseReport(
        tuple(url for report in reports for url in report.stores),
        sum(report.removed_objects for report in reports),
        sum(report.removed_bytes for report in reports),
        sum(report.removed_commits for report in reports),
    )


def erase(remote: Remote, path: str | Path) -> EraseReport:
    """Leaves nothing at any store of `remote` but the last checkpoint of the memory at `path`,
    which was purged before (`Store.purge`).

    A mirror that lacks the newest state gets it first. Made again it goes on, and does nothing to
    stores that are done.

    Raises: ErasureIncomplete when a store did not answer or could not be shown to be clean (the
    others are then), or has no memory at all any more (nothing was changed then). Fenced when this
    directory is not the writer; NotFound when nothing was published.
    Cost: a push of what the purge rewrote, and two listings of each store.
    """
    latest = remote.latest()
    if latest is None:
        raise NotFound(f"[erase] {remote.url}: nothing was published yet")
    writer = Writer.resume(remote, path)
    doomed = _write_down(remote, path, latest)
    lost = {store: why for store in remote.stores if (why := _lost(remote, store))}
    if lost:
        raise _incomplete(remote, lost, doomed, is_there=lambda *_: True)
    try:
        writer.push()
        Writer.acquire(remote, path)
        newest = remote.latest()
        assert newest is not None
    except RemoteError as error:
        raise _incomplete(remote, {store: str(error) for store in remote.stores}, doomed) from error
    report = CollectReport(dry_run=False)
    troubles = _clean(remote, path, newest, report)
    if troubles:
        raise _incomplete(remote, troubles, doomed)
    _plan_path(remote, path).unlink()
    return EraseReport(
        tuple(store.url for store in remote.stores),
        report.removed_objects,
        report.removed_bytes,
        report.removed_commits,
    )


def _clean(
    remote: Remote, path: str | Path, newest: Commit, report: CollectReport
) -> dict[Objects, str]:
    """Why some stores could not be shown to hold nothing else; the others do now."""
    faults = scrub(remote, deep=False, repair=True, local=Path(path)).faults
    troubles: dict[Objects, str] = {}
    for store in remote.stores:
        wrong = [fault for fault in faults if fault.store == store.url and not fault.repaired]
        if wrong:
            troubles[store] = f"{wrong[0].key}: {wrong[0].what}"
            continue
        try:
            collect_store(remote, store, newest, 0.0, report)
            left = [key for key in _content_keys(store) if key not in newest.keys]
        except (RemoteError, NotFound, Corruption) as error:
            troubles[store] = str(error)
            continue
        if left:
            troubles[store] = f"{len(left)} objects were removed and are listed, e.g. {left[0]}"
    return troubles


def _lost(remote: Remote, store: Objects) -> str:
    """Why a store that answers is not the one that was pushed to, "" when it is. A folder that is
    not mounted must not be taken for a clean one."""
    try:
        remote.log(store)
    except NotFound as error:
        return f"{error}: bring it back, or name the places that count"
    except RemoteError:
        return ""  # met again when it is cleaned
    return ""


def _content_keys(store: Objects) -> list[str]:
    return [info.key for folder in CONTENT_FOLDERS for info in store.list(folder)]


def _write_down(remote: Remote, path: str | Path, latest: Commit) -> list[str]:
    """Keys that must go: those of an erasure before this one, and all that lies at a store, for a
    commit or no more, and is not in the memory now. A store that does not answer has what the
    others have."""
    with content_of(path) as content:
        kept = {blob.key for blob in content.blobs}
    there = set(latest.keys)
    for store in remote.stores:
        with suppress(RemoteError):
            there.update(_content_keys(store))
    where = _plan_path(remote, path)
    try:
        before = json.loads(where.read_text()) if where.exists() else []
        doomed = sorted(there.union(map(str, before)) - kept)
    except (ValueError, TypeError) as error:
        raise Corruption(f"{where}:0: expected a list of keys, got {error!r}") from error
    write_json(where, doomed)
    return doomed


def _plan_path(remote: Remote, path: str | Path) -> Path:
    return side_folder(path) / f"erasing-{remote.digest}.json"


def _is_listed(store: Objects, key: str) -> bool:
    return store.head(key) is not None


def _incomplete(
    remote: Remote,
    troubles: dict[Objects, str],
    doomed: list[str],
    is_there: Callable[[Objects, str], bool] = _is_listed,
) -> ErasureIncomplete:
    """What may remain: at a store that does not answer, everything that had to go."""
    remaining: list[str] = []
    for store in troubles:
        try:
            there = [key for key in doomed if is_there(store, key)]
        except RemoteError:
            there = doomed
        remaining += [store.where(key) for key in there]
    shown = ", ".join(remaining[:_SHOWN])
    more = f" and {len(remaining) - _SHOWN} more" if len(remaining) > _SHOWN else ""
    told = "; ".join(f"{store.url}: {trouble}" for store, trouble in troubles.items())
    return ErasureIncomplete(
        f"[erase] {remote.url}: {len(troubles)} of {len(remote.stores)} stores may still hold what "
        f"was erased ({told}): {len(remaining)} objects, {shown}{more}. Erase again when they are "
        "back",
        tuple(remaining),
    )
