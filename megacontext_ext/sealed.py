"""What a store's manifest names, so that its files can be copied elsewhere.

Segments never change and the manifest is replaced whole, so a copy of the manifest and of the
segments that it names is a store as of that checkpoint. It has no WAL: one that was opened for
writing begins a new one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from megacontext_ext import _engine
from megacontext_ext.errors import Corruption, NotFound

__all__ = ["MANIFEST_NAME", "SealedFile", "SealedStore", "read_manifest", "sealed_store"]

MANIFEST_NAME = "MANIFEST"


@dataclass(frozen=True, slots=True)
class SealedFile:
    """One immutable segment. `crc` is that of its header, which says when and of what it was
    made: name, length and crc together identify the content."""

    name: str
    byte_count: int
    crc: int


@dataclass(frozen=True, slots=True)
class SealedStore:
    """One manifest, and what it says."""

    manifest: bytes
    store_id: str  # 32 hexadecimal digits
    generation: int  # grows with each manifest of a store
    identity: dict[str, str]
    files: tuple[SealedFile, ...]

    @property
    def byte_count(self) -> int:
        return len(self.manifest) + sum(file.byte_count for file in self.files)


def read_manifest(manifest: bytes, where: str) -> SealedStore:
    """Decodes the bytes of a MANIFEST. `where` names them in errors.

    Raises: Corruption, Unsupported for a newer format.
    """
    try:
        found = _engine.sealed_files(manifest)
    except Corruption as error:
        raise Corruption(f"{where}:{error}") from error
    files = tuple(SealedFile(*fields) for fields in found["files"])
    return SealedStore(
        manifest, found["store_id"], found["generation"], dict(found["identity"]), files
    )


def sealed_store(path: str | os.PathLike[str]) -> SealedStore:
    """The last checkpoint of the store at `path`, which may be open, also by another process.

    Raises: NotFound where there is no store, Corruption. Cost: one small file.
    """
    manifest = Path(path) / MANIFEST_NAME
    try:
        content = manifest.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"{path}: the directory has no store") from None
    return read_manifest(content, str(manifest))
