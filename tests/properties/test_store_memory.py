"""Memory does not grow with the store: rows are mapped, what waits in memory is bounded."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import numpy as np
import megacontext_ext as mx

def anonymous_mib():  # private memory of the process; mapped files are not in it
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024

options = mx.StoreOptions(unsealed_bytes=4 << 20)
ids = np.arange(100_000, dtype=np.uint32)
texts = [f"w{i % 997} w{i % 31} w{i}" for i in range(len(ids) // 32)]
with mx.Store.create(sys.argv[1], {"model": "m"}, options) as store:
    before = anonymous_mib()
    for i in range(int(sys.argv[2])):
        p = store.add_partition(str(i))
        store.append_tokens(p, ids, ids)
        store.index_text(p, 0, texts)
    grown = anonymous_mib() - before
with mx.Store.open(sys.argv[1]) as store:
    before = anonymous_mib()
    total = sum(int(store.read_tokens(p, 0, 100_000).sum()) for p in range(int(sys.argv[2])))
    assert total == int(sys.argv[2]) * int(ids.sum())
    store.search("w5", 10)
    print(grown, anonymous_mib() - before)
"""


def test_two_million_tokens_take_little_private_memory(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "memory"), "20"],
        check=True,
        capture_output=True,
        text=True,
    )
    written, opened = map(float, done.stdout.split())
    assert written < 100
    assert opened < 30
