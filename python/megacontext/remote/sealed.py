"""A local store as content to upload: its sealed files with their SHA-256, held open.

Beside a store `notes.mc` lies `notes.mc.remote/`: `hashes.json` (what was hashed before) and
`writer.json` (writer.py). `notes.mc.gists/` travels along as sidecars.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path

from megacontext.remote.record import Blob
from megacontext_ext.errors import Corruption, NotFound
from megacontext_ext.sealed import MANIFEST_NAME, SealedFile, SealedStore, sealed_store

__all__ = ["Content", "content_of", "side_folder", "write_json"]

_SIDECARS = ".gists"
_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class Content:
    """Blobs of one checkpoint and where their bytes are. Valid inside `content_of` only."""

    store: SealedStore
    blobs: tuple[Blob, ...]
    sources: dict[str, bytes | Path]  # by key


def side_folder(path: str | os.PathLike[str], name: str = "remote") -> Path:
    """`notes.mc.remote` for `notes.mc`."""
    return Path(f"{os.path.abspath(path)}.{name}")


def write_json(path: Path, value: object) -> None:
    """Replaces a small file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(fresh, path)


@contextmanager
def content_of(path: str | os.PathLike[str], threads: int = 2) -> Iterator[Content]:
    """The last checkpoint of the store at `path`. A writer may go on meanwhile: the files are held
    open, so that merging them away takes nothing from us.

    Raises: NotFound, Corruption.
    """
    with ExitStack() as held:
        for attempt in range(_ATTEMPTS):
            store = sealed_store(path)
            try:
                opened = {file.name: _hold(held, Path(path) / file.name) for file in store.files}
                break
            except FileNotFoundError as error:
                # Merged between reading the manifest and here: a newer manifest is there.
                if attempt == _ATTEMPTS - 1:
                    raise NotFound(f"{error.filename}: named by {path}/{MANIFEST_NAME} and not "
                                   f"there, {_ATTEMPTS} times") from error  # fmt: skip
        yield _content(Path(path), store, opened, threads)


def _hold(held: ExitStack, path: Path) -> Path:
    file = held.enter_context(path.open("rb"))
    return Path(f"/proc/self/fd/{file.fileno()}") if Path("/proc/self/fd").is_dir() else path


def _content(path: Path, store: SealedStore, opened: dict[str, Path], threads: int) -> Content:
    blobs: list[Blob] = []
    sources: dict[str, bytes | Path] = {}

    def add(blob: Blob, source: bytes | Path) -> None:
        blobs.append(blob)
        sources[blob.key] = source

    hashes = _hashes(path, store, opened, threads)
    for file in store.files:
        blob = Blob("segments", file.name, hashes[_identity(store, file)], file.byte_count)
        add(blob, opened[file.name])
    digest = sha256(store.manifest).hexdigest()
    add(Blob("manifests", MANIFEST_NAME, digest, len(store.manifest)), store.manifest)
    for record in sorted(side_folder(path, _SIDECARS[1:]).glob("*.json")):
        content = record.read_bytes()
        name = f"{_SIDECARS}/{record.name}"
        add(Blob("sidecars", name, sha256(content).hexdigest(), len(content)), content)
    return Content(store, tuple(blobs), sources)


def _identity(store: SealedStore, file: SealedFile) -> str:
    return f"{store.store_id}/{file.name}/{file.byte_count}/{file.crc:08x}"


def _hashes(
    path: Path, store: SealedStore, opened: dict[str, Path], threads: int
) -> dict[str, str]:
    """SHA-256 by identity; a segment is hashed once in its life."""
    remembered = side_folder(path) / "hashes.json"
    try:
        known: dict[str, str] = json.loads(remembered.read_text())
    except (FileNotFoundError, ValueError):
        known = {}
    fresh = [file for file in store.files if _identity(store, file) not in known]

    def digest(file: SealedFile) -> str:
        with opened[file.name].open("rb") as content:
            length = os.fstat(content.fileno()).st_size
            if length != file.byte_count:
                raise Corruption(f"{path / file.name}:{length}: expected {file.byte_count} bytes, "
                                 f"got {length}")  # fmt: skip
            return file_digest(content, "sha256").hexdigest()

    with ThreadPoolExecutor(threads) as pool:
        found = dict(zip((_identity(store, file) for file in fresh), pool.map(digest, fresh),
                         strict=True))  # fmt: skip
    live = {_identity(store, file) for file in store.files}
    hashes = {name: value for name, value in {**known, **found}.items() if name in live}
    if hashes != known:
        write_json(remembered, hashes)
    return hashes
