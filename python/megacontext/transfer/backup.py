"""A copy of all that belongs to a memory: its store, and the folders beside it.

`MEMORY.curate` (the log of what was done, and rows set aside) and `MEMORY.gists` (records of gists)
are copied. `MEMORY.remote` is not: it says who publishes the memory, and a copy is not the writer.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from megacontext_ext import Store
from megacontext_ext.errors import InvalidArgument

__all__ = ["backup_memory"]

_BESIDE = (".curate", ".gists")


def backup_memory(store: Store, target: str | os.PathLike[str]) -> None:
    """Copies the memory of an open store to a new directory and checks the copy.

    Writing and reading go on meanwhile. The directory gets its name when everything is there: a
    copy that was interrupted is none, and is made again.

    Raises: InvalidArgument when the directory, or a folder beside it, is there already.
    Cost: one read and one write of everything.
    """
    path = Path(os.path.abspath(target))
    part = Path(f"{path}.part")
    # While this is there, folders beside the target are of a copy that was interrupted.
    interrupted = part.exists()
    for taken in (path, *(Path(f"{path}{name}") for name in _BESIDE if not interrupted)):
        if taken.exists() and (not taken.is_dir() or any(taken.iterdir())):
            raise InvalidArgument(f"[backup] {taken} must be new or empty")
    for name in ("", *_BESIDE):
        shutil.rmtree(f"{path}{name}" if name else part, ignore_errors=True)
    store.backup(part)
    # After the store: of an action that was logged and is not in the copy, restoring changes
    # nothing, but rows that were cleared must be among those set aside.
    for name in _BESIDE:
        if Path(f"{store.path}{name}").is_dir():
            shutil.copytree(f"{store.path}{name}", f"{path}{name}")
            _sync_folder(Path(f"{path}{name}"))
    os.rename(part, path)
    _sync(path.parent)


def _sync_folder(folder: Path) -> None:
    for file in folder.rglob("*"):
        _sync(file)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
