"""Doing what a plan says, taking it back, and making it final."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megacontext.curate.audit import AuditEntry, AuditLog
from megacontext.curate.report import SourceReport, report, state_of
from megacontext.curate.rules import PROTECTED_TAGS, Plan, Step
from megacontext.runtime import source_info
from megacontext_ext import Store
from megacontext_ext.errors import InvalidArgument, NotFound

_STATES = {"archive": "archived", "delete": "deleted"}


@dataclass(frozen=True, slots=True)
class Applied:
    """What a plan came to: entries of the log, and steps whose source had changed since."""

    done: tuple[AuditEntry, ...]
    skipped: tuple[tuple[Step, str], ...]


def apply_plan(store: Store, plan: Plan, actor: str) -> Applied:
    """Do each step that still fits: logged first, then done and durable.

    A step is skipped, with the reason, when its source is gone, has another length than when it was
    planned, or bears a protected tag by now. Each step can be restored until `purge`.
    """
    log = AuditLog(store.path)
    done: list[AuditEntry] = []
    skipped: list[tuple[Step, str]] = []
    for step in plan.steps:
        known = {source.partition: source for source in report(store)}
        reason = _unfit(step, known.get(step.partition), plan.protected_tags)
        if reason:
            skipped.append((step, reason))
        elif step.action == "compact":
            done.append(_compact(store, log, step, actor))
        else:
            done.append(_hide(store, log, step, actor))
    return Applied(tuple(done), tuple(skipped))


def _unfit(step: Step, source: SourceReport | None, protected: Sequence[str]) -> str:
    if source is None or source.source != step.source:
        return "is not there any more"
    if source.tokens != step.tokens:
        return f"has {source.tokens:,} tokens, had {step.tokens:,} when planned"
    tags = sorted(set(source.tags) & set(protected))
    return f"has the protected tag {tags[0]!r}" if tags else ""


def _hide(store: Store, log: AuditLog, step: Step, actor: str) -> AuditEntry:
    old = state_of(store, source_info(store, step.source))
    entry = log.append(
        step.action,
        (step.source, step.partition),
        ({"state": old}, {"state": _STATES[step.action]}),
        actor=actor,
        reason=step.reason,
    )
    _set_state(store, step.partition, _STATES[step.action])
    return entry


def _compact(store: Store, log: AuditLog, step: Step, actor: str) -> AuditEntry:
    known = {family.name for family in store.row_families()}
    rows = {
        name: store.read_rows(name, step.partition, 0, store.row_count(name, step.partition))
        for name in step.families
        if name in known
    }
    entry = log.append(
        "compact",
        (step.source, step.partition),
        ({"families": list(rows)}, {"families": []}),
        actor=actor,
        reason=step.reason,
        rows=rows,
    )
    for name in rows:
        store.clear_rows(name, step.partition)
    store.commit()
    return entry


def _set_state(store: Store, partition: int, state: str) -> None:
    """ "live", "archived" or "deleted"; durable on return."""
    metadata = json.loads(store.partition(partition).metadata_json)
    metadata["curation"] = "" if state == "live" else state
    store.set_hidden(partition, state != "live")
    store.set_metadata(partition, json.dumps(metadata))
    store.commit()


def restore(store: Store, number: int, actor: str) -> AuditEntry:
    """Take back the action of a log entry. Doing so twice changes nothing more.

    Raises: NotFound for an unknown entry, or one whose source or rows a purge took;
    InvalidArgument for an entry that is no action of a plan, or rows of a source edited since.
    """
    log = AuditLog(store.path)
    entry = next((one for one in log.entries() if one.number == number), None)
    if entry is None:
        raise NotFound(f"[restore] entry must be in the log, got {number}")
    if entry.action not in ("archive", "delete", "compact"):
        raise InvalidArgument(
            f"[restore] entry {number} must be an archive, delete or compact, got {entry.action}"
        )
    known = store.find_partition(entry.source)
    if known is None or known.id != entry.partition:
        raise NotFound(f"[restore] source of entry {number} must be there, it was erased")
    if entry.action != "compact":
        new = log.append(
            "restore",
            (entry.source, known.id),
            (entry.new, entry.old),
            actor=actor,
            reason=f"of entry {number}",
        )
        _set_state(store, known.id, entry.old["state"])
        return new
    rows = log.rows(entry)
    _put_back(store, known.id, rows)
    return log.append(
        "restore",
        (entry.source, known.id),
        (entry.new, entry.old),
        actor=actor,
        reason=f"of entry {number}",
    )


def _put_back(store: Store, partition: int, rows: dict[str, Any]) -> None:
    families = {family.name: family for family in store.row_families()}
    for name, saved in rows.items():
        if name not in families:
            raise NotFound(f"[restore] row family {name!r} must be there, it was dropped")
        there = store.row_count(name, partition)
        if there >= len(saved):
            continue  # made anew since, or restored before
        store.put_rows(name, partition, there, saved[there:])
    store.commit()


def purge(
    store: Store, actor: str, protected_tags: Sequence[str] = PROTECTED_TAGS
) -> tuple[list[str], int]:
    """Make deletions and compactions final: sources in state "deleted" are erased, rows set aside
    are removed, and no file holds a byte of either. Protected sources stay.

    Returns: the names erased, and the bytes by which the store's segments became smaller.
    """
    log = AuditLog(store.path)
    before = int(store.stats()["segment_bytes"])
    erased = []
    for source in report(store):
        if source.state == "deleted" and not set(source.tags) & set(protected_tags):
            store.erase_partition(source.partition)
            erased.append(source.source)
    store.commit()
    store.purge()
    for entry in log.entries():
        log.erase(entry.source, rows_only=True)
    for name in erased:
        log.erase(name)
    log.append("purge", ("", -1), ({"erased": len(erased)}, {}), actor=actor)
    return erased, before - int(store.stats()["segment_bytes"])


def forget_traces(store_path: str, source: str) -> None:
    """Remove what the log and rows set aside say of a source that was erased."""
    log = AuditLog(store_path)
    if log.folder.exists():
        log.erase(source)
