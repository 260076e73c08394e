"""Small stores to push and what must be in them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megacontext.config import RemoteConfig
from megacontext.remote import Cache
from megacontext_ext import Store, StoreOptions

# Another real store to run everything against, e.g. Ceph RGW (remote/README.md).
NAMED = os.environ.get("MEGACONTEXT_TEST_S3")
QUICK = RemoteConfig(
    request_timeout_s=5.0, connect_timeout_s=1.0, retries=1, retry_timeout_s=5.0, parallel=2
)


@dataclass
class Machine:
    """A directory of its own, as another machine would have."""

    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / "notes.mc"

    def cache(self, config: RemoteConfig = QUICK) -> Cache:
        return Cache(self.folder / "cache", config)

    def append(self, count: int, source: str = "log") -> int:
        """Appends tokens that count upwards, with rows and text; seals them. The new total."""
        options = StoreOptions(most_segments_per_family=3)
        with Store.open_or_create(self.path, {"model": "m"}, options) as store:
            found = store.find_partition(source)
            part = found.id if found else store.add_partition(source)
            store.define_rows("gist", 1, "f32", 64)
            have = store.token_count(part)
            first, last = store.append_tokens(part, np.arange(have, have + count))
            rows = np.repeat(np.arange(first, last, dtype=np.float32), 64).reshape(-1, 64)
            store.put_rows("gist", part, first, rows)
            store.index_text(part, first, [f"block{b} word" for b in range(first, last)])
            store.checkpoint()
            return store.token_count(part)


def require_counts_up(store: Store, count: int) -> None:
    """The store holds what `Machine.append` wrote, all of it and nothing else."""
    store.check()
    assert store.token_count(0) == count
    assert store.read_tokens(0, 0, count).tolist() == list(range(count))
    rows = store.row_count("gist", 0)
    np.testing.assert_array_equal(store.read_rows("gist", 0, 0, rows)[:, 0], np.arange(rows))
    assert store.search("block1", 1)[1].tolist() == [1]
