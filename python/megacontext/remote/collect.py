"""Removing what no commit names any more; also the end of an erasure.

An object that nothing names may belong to a push that goes on, so only objects older than the grace
period go. To erase now, take the writer's place first (`Writer.acquire`) and collect with a grace
of 0: pushes of older writers that were under way can then no longer be published.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from megacontext.remote.errors import Fenced, RemoteError
from megacontext.remote.objects import Objects
from megacontext.remote.place import Remote
from megacontext.remote.record import CONTENT_FOLDERS, Commit
from megacontext.remote.writer import Writer
from megacontext_ext.errors import InvalidArgument, NotFound

__all__ = ["CollectReport", "collect", "collect_store"]

_LEAST_GRACE_S = 3600.0
_BATCH = 100


@dataclass(slots=True)
class CollectReport:
    """What went (or would go, in a dry run) and what stayed, over all stores."""

    dry_run: bool
    removed_objects: int = 0
    removed_bytes: int = 0
    young_objects: int = 0  # named by nothing, not old enough
    kept_objects: int = 0
    removed_commits: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def collect(
    remote: Remote,
    *,
    grace_s: float | None = None,
    writer: Writer | None = None,
    dry_run: bool = False,
) -> CollectReport:
    """Removes objects that the newest commit does not name, and old commit records.

    Args:
        grace_s: least age of what goes; RemoteConfig.grace_s when left out. Below an hour only with
            `writer`, who must be the one that stands in the newest commit.

    Raises: InvalidArgument; Fenced when a newer writer appears meanwhile (it stops); NotFound;
    RemoteError when any store does not answer: what its copies name is then unknown.
    """
    grace = remote.config.grace_s if grace_s is None else grace_s
    if grace < _LEAST_GRACE_S and writer is None and not dry_run:
        raise InvalidArgument(f"[gc] grace_s must be at least {_LEAST_GRACE_S:g} for who is not "
                              f"the writer, got {grace:g}")  # fmt: skip
    newest = remote.latest()
    if newest is None:
        raise NotFound(f"[gc] {remote.url}: nothing was published yet")
    _require_writer(remote, newest, writer)
    report = CollectReport(dry_run)
    for store in remote.stores:
        there = remote.log(store).latest()
        if there is None or there.commit_id != newest.commit_id:
            raise RemoteError(f"[gc] {store.url}: lacks generation {newest.generation}: "
                              "scrub --repair first")  # fmt: skip
        collect_store(remote, store, newest, grace, report)
    return report


def collect_store(
    remote: Remote,
    store: Objects,
    newest: Commit,
    grace: float,
    report: CollectReport,
) -> None:
    """The part of `collect` that concerns one store, whose newest commit is `newest`.

    Raises: Fenced when a newer writer appears meanwhile; RemoteError.
    """
    old = time.time() - grace
    going = []
    for folder in CONTENT_FOLDERS:
        for info in store.list(folder):
            if info.key in newest.keys:
                report.kept_objects += 1
            elif grace > 0 and info.modified_s > old:
                report.young_objects += 1
            else:
                going.append(info)
    for start in range(0, len(going), _BATCH):
        # Before each batch: a commit since then may name what was listed.
        latest = remote.latest()
        if latest is None or latest.epoch != newest.epoch:
            raise Fenced(f"[gc] {remote.url}: a newer writer is there, {_who(latest)}; stopped "
                         f"after {report.removed_objects} objects")  # fmt: skip
        for info in going[start : start + _BATCH]:
            if info.key in latest.keys:
                continue
            if not report.dry_run:
                store.delete(info.key)
            report.removed_objects += 1
            report.removed_bytes += info.byte_count
    if not report.dry_run:
        kept = 1 if grace == 0 else remote.config.kept_commits
        report.removed_commits += remote.log(store).prune(kept)


def _require_writer(remote: Remote, newest: Commit, writer: Writer | None) -> None:
    if writer is not None and (newest.epoch, newest.writer) != (writer.epoch, writer.name):
        raise Fenced(f"[gc] {remote.url}: epoch {writer.epoch} of {writer.name} is over, "
                     f"{_who(newest)} writes now")  # fmt: skip


def _who(commit: Commit | None) -> str:
    return "nobody" if commit is None else f"epoch {commit.epoch} of {commit.writer}"
