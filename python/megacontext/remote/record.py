"""A commit: everything about one published state of a memory, in one small JSON object.

The bytes of the memory are objects named by their SHA-256, uploaded once:

    segments/<sha256>    one sealed segment
    manifests/<sha256>   the engine's manifest
    sidecars/<sha256>    what lies beside a store, e.g. records of gists
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from megacontext_ext.errors import Corruption, Unsupported

__all__ = ["CONTENT_FOLDERS", "FORMAT", "Blob", "Commit"]

FORMAT = 1
CONTENT_FOLDERS = ("segments", "manifests", "sidecars")
Folder = Literal["segments", "manifests", "sidecars"]


@dataclass(frozen=True, slots=True)
class Blob:
    """One object of content, and the name of its file in the memory."""

    folder: Folder
    name: str
    sha256: str
    byte_count: int

    @property
    def key(self) -> str:
        return f"{self.folder}/{self.sha256}"


@dataclass(frozen=True, slots=True)
class Commit:
    """One published state. Generations grow by one; epochs by one with each new writer."""

    store_id: str
    generation: int
    epoch: int
    writer: str
    commit_id: str  # random: tells our own put from somebody else's after a lost answer
    parent: str  # commit_id of the one before, "" for the first
    created_ms: int
    blobs: tuple[Blob, ...] = ()  # empty until the first push

    @classmethod
    def first(cls, store_id: str, writer: str) -> Commit:
        return cls(store_id, 1, 1, writer, secrets.token_hex(16), "", _now_ms())

    def next(self, **changes: Any) -> Commit:
        """The commit that would follow this one."""
        return replace(
            self,
            generation=self.generation + 1,
            commit_id=secrets.token_hex(16),
            parent=self.commit_id,
            created_ms=_now_ms(),
            **changes,
        )

    @property
    def rank(self) -> tuple[int, int]:
        """Of two copies the one with the higher rank is the truth: a later epoch wins."""
        return (self.epoch, self.generation)

    @property
    def manifest(self) -> Blob | None:
        """The engine's manifest, None before the first push."""
        return next((blob for blob in self.blobs if blob.folder == "manifests"), None)

    def of(self, folder: Folder) -> Iterator[Blob]:
        return (blob for blob in self.blobs if blob.folder == folder)

    @property
    def keys(self) -> set[str]:
        return {blob.key for blob in self.blobs}

    @property
    def byte_count(self) -> int:
        return sum(blob.byte_count for blob in self.blobs)

    def to_bytes(self) -> bytes:
        body = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)
        check = hashlib.sha256(body.encode()).hexdigest()
        return f'{{"body": {body},\n "sha256": "{check}"}}\n'.encode()

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> Commit:
        """Raises: Corruption, Unsupported for a newer format."""
        try:
            outer = json.loads(content)
            body = outer["body"]
            check = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
            if check != outer["sha256"]:
                raise ValueError(f"SHA-256 is {check[:16]}..., recorded {outer['sha256'][:16]}...")
            found = body.pop("format")
            if found > FORMAT:
                raise Unsupported(f"{where}:0: expected remote format <= {FORMAT}, got {found}; "
                                  "a newer MegaContext wrote it")  # fmt: skip
            blobs = tuple(Blob(**blob) for blob in body.pop("blobs"))
            return cls(**body, blobs=blobs)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Corruption(f"{where}:0: expected a commit record, got {error!r}") from error


def _now_ms() -> int:
    return int(time.time() * 1000)
