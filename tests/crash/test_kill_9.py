"""A writer killed with SIGKILL at random moments: what it acknowledged is there, in order."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import megacontext_ext as mx

# `make soak` asks for more.
KILLS = int(os.environ.get("MC_SOAK_KILLS", "12"))
# Of one store, which is read whole after each of them, so that it must not grow for ever.
KILLS_A_STORE = 50

# Appends runs of tokens that count upwards, and writes a line after each commit.
WRITER = """
import sys
import numpy as np
import megacontext_ext as mx

path, seed = sys.argv[1], int(sys.argv[2])
options = mx.StoreOptions(unsealed_bytes=60_000, wal_first_file_bytes=8192,
                          wal_most_file_bytes=32768, most_segments_per_family=3)
random = np.random.default_rng(seed)
with mx.Store.open_or_create(path, {"model": "m"}, options) as store:
    found = store.find_partition("log")
    p = found.id if found else store.add_partition("log")
    store.define_rows("gist", 1, "f32", 8)
    count = store.token_count(p)
    print("open", count, flush=True)
    while True:
        n = int(random.integers(1, 400))
        first, last = store.append_tokens(p, np.arange(count, count + n))
        count += n
        rows = store.row_count("gist", p)
        store.put_rows("gist", p, rows, np.repeat(np.arange(rows, last, dtype=np.float32), 8)
                       .reshape(-1, 8))
        indexed = store.indexed_blocks(p)
        store.index_text(p, indexed, [f"block{b} word" for b in range(indexed, last)])
        if random.random() < 0.5:
            store.commit()
            print("durable", count, flush=True)
"""


def run_and_kill(path: str, seed: int, after_s: float) -> int:
    """The token count that the writer last said was durable."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, path, str(seed)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("open")
    time.sleep(after_s)
    os.kill(process.pid, signal.SIGKILL)
    lines = process.stdout.read().splitlines()
    process.wait()
    whole = [line for line in lines if line.startswith("durable ") and line != lines[-1]]
    return int(whole[-1].split()[1]) if whole else 0


@pytest.mark.slow
@pytest.mark.timeout(300 + 5 * KILLS)
def test_nothing_acknowledged_is_lost_when_the_writer_is_killed(tmp_path):
    random.seed(1)
    for seed in range(KILLS):
        path = str(tmp_path / f"memory-{seed // KILLS_A_STORE}")
        durable = run_and_kill(path, seed, random.uniform(0.0, 0.25))
        with mx.Store.open(path, read_only=seed % 2 == 0) as store:
            count = store.token_count(0)
            assert count >= durable
            assert store.read_tokens(0, 0, count).tolist() == list(range(count))
            rows = store.row_count("gist", 0)
            assert rows <= count // 32
            gists = store.read_rows("gist", 0, 0, rows)
            np.testing.assert_array_equal(gists[:, 0], np.arange(rows))
            for block in range(0, store.indexed_blocks(0), 97):
                assert store.search(f"block{block}", 1)[1].tolist() == [block]
            store.check()
