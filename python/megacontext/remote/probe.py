"""What a store can do, found by doing it: stores differ, and some say yes and do nothing.

Measured (LOG.md): SeaweedFS and moto do both conditional puts; Ceph RGW refuses every If-Match,
also the right one; OpenStack Swift answers 501 to both; the local file system has no swap.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from megacontext.remote.errors import ObjectExists, RemoteError
from megacontext.remote.objects import Objects
from megacontext_ext.errors import Unsupported

__all__ = ["Capabilities", "probe"]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """`create`: If-None-Match: * holds; `swap`: If-Match holds; `ranges`, `lists`: what was just
    written is found. `reasons` says in the store's words why something is missing."""

    create: bool
    swap: bool
    ranges: bool
    lists: bool
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def commit_path(self) -> str | None:
        """ "swap", "numbered", or None where no commit would be safe."""
        if self.create and self.swap:
            return "swap"
        return "numbered" if self.create and self.lists else None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "commit_path": self.commit_path}


def probe(objects: Objects) -> Capabilities:
    """Tries each operation on objects of its own below `probe/`, and removes them.

    Raises: RemoteError when not even a plain put goes through; Unsupported when ranges are wrong.
    Cost: about 12 requests.
    """
    name = secrets.token_hex(8)
    plain, fresh = f"probe/{name}-plain", f"probe/{name}-fresh"
    reasons: dict[str, str] = {}

    def holds(what: str, check: Callable[[], str]) -> bool:
        try:
            reasons[what] = check()
        except (ObjectExists, RemoteError) as error:
            reasons[what] = str(error)
        return not reasons[what]

    try:
        objects.put(plain, b"0123456789")
        found = Capabilities(
            create=holds("create", lambda: _create(objects, fresh)),
            swap=holds("swap", lambda: _swap(objects, plain)),
            ranges=holds("ranges", lambda: _range(objects, plain)),
            lists=holds("lists", lambda: _list(objects, plain)),
            reasons={},
        )
    finally:
        objects.delete(plain)
        objects.delete(fresh)
    if not found.ranges:
        raise Unsupported(f"[probe] {objects.url}: reads of ranges must work, {reasons['ranges']}")
    missing = {what: why for what, why in reasons.items() if why}
    return Capabilities(found.create, found.swap, found.ranges, found.lists, missing)


def _create(objects: Objects, key: str) -> str:
    objects.create(key, b"first")
    try:
        objects.create(key, b"second")
    except ObjectExists:
        kept = objects.get(key)
        return "" if kept == b"first" else f"a refused create left {kept!r}"
    return "a second create of the same object was let through"


def _swap(objects: Objects, key: str) -> str:
    _, tag = objects.get_tagged(key)
    if tag is None:
        return "objects have no ETag"
    objects.swap(key, b"abcdefghij", tag)
    try:
        objects.swap(key, b"9876543210", tag)
    except ObjectExists:
        kept = objects.get(key)
        return "" if kept == b"abcdefghij" else f"a refused swap left {kept!r}"
    return "a swap with a stale ETag was let through"


def _range(objects: Objects, key: str) -> str:
    whole = objects.get(key)
    part = objects.get_range(key, 3, 7)
    return "" if part == whole[3:7] else f"bytes [3, 7) of {whole!r} came as {part!r}"


def _list(objects: Objects, key: str) -> str:
    keys = [info.key for info in objects.list("probe")]
    return "" if key in keys else f"{key} was written and is not among {len(keys)} listed objects"
