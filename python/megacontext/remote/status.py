"""What stands at a place, without reading any content."""

from __future__ import annotations

from typing import Any

from megacontext.remote.errors import RemoteError
from megacontext.remote.place import Remote
from megacontext.remote.probe import probe
from megacontext_ext.errors import Corruption, NotFound, Unsupported

__all__ = ["status"]


def status(remote: Remote, *, with_probe: bool = False) -> dict[str, Any]:
    """Generation, epoch, writer, sizes, and the state of each store, as plain values.

    Raises: NotFound where there is no memory, RemoteError when no store answers.
    """
    newest = remote.latest()
    if newest is None:
        raise NotFound(f"[status] {remote.url}: nothing was published yet")
    stores = []
    for store in remote.stores:
        found: dict[str, Any] = {"url": store.url}
        try:
            log = remote.log(store)
            commit = log.latest()
            found["commit_path"] = log.commit_path
            if commit is not None and commit.commit_id == newest.commit_id:
                found["state"] = "newest"
            else:
                found["state"] = f"behind, generation {commit.generation if commit else 0}"
            if with_probe:
                found["can"] = probe(store).to_json()
        except (RemoteError, NotFound, Corruption, Unsupported) as error:
            found["state"] = f"{type(error).__name__}: {error}"
        stores.append(found)
    return {
        "store_id": newest.store_id,
        "generation": newest.generation,
        "epoch": newest.epoch,
        "writer": newest.writer,
        "created_ms": newest.created_ms,
        "objects": len(newest.blobs),
        "bytes": newest.byte_count,
        "stores": stores,
    }
