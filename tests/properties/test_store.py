"""The store against a Python model: any sequence of calls, with restarts anywhere."""

from __future__ import annotations

import shutil
import tempfile

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import megacontext_ext as mx
from megacontext_ext.store import NO_CHAR_START

K = 32
WIDTH = 3
OPTIONS = mx.StoreOptions(
    unsealed_bytes=20_000,
    close_wal_bytes=8_000,
    wal_first_file_bytes=4096,
    wal_most_file_bytes=8192,
    most_segments_per_family=2,
)


def blocks(tokens: int) -> int:
    return -(-tokens // K)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.path = tempfile.mkdtemp(prefix="mc_store_")
        self.store = mx.Store.create(self.path, {"model": "m"}, OPTIONS)
        self.store.define_rows("gist", 1, "f32", WIDTH)
        self.store.define_rows("high", 2, "u8", 1)
        self.tokens: list[list[int]] = []
        self.starts: list[list[int]] = []
        self.gists: list[np.ndarray] = []
        self.high: list[int] = []
        self.needles: set[tuple[int, int]] = set()
        self.indexed: list[int] = []
        self.snapshots: list[tuple[mx.Snapshot, list[list[int]], list[np.ndarray], set]] = []

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.path)

    @initialize()
    def first(self) -> None:
        self.add_partition()

    @rule()
    def add_partition(self) -> None:
        if len(self.tokens) >= 4:
            return
        partition = self.store.add_partition(f"source {len(self.tokens)}")
        assert partition == len(self.tokens)
        self.tokens.append([])
        self.starts.append([])
        self.gists.append(np.empty((0, WIDTH), np.float32))
        self.high.append(0)
        self.indexed.append(0)

    @rule(
        which=st.integers(0, 3),
        count=st.sampled_from([0, 1, 31, 32, 33, 100, 1500]),
        with_starts=st.booleans(),
    )
    def append_tokens(self, which: int, count: int, with_starts: bool) -> None:
        p = which % len(self.tokens)
        first = len(self.tokens[p])
        new = list(range(first * 3, first * 3 + count))
        starts = [7 * token for token in new] if with_starts else None
        got = self.store.append_tokens(p, new, starts)
        assert got == (first // K, (first + count) // K)
        for position in range(first, first + count):
            if position % K == 0:
                self.starts[p].append(
                    7 * 3 * first + 7 * (position - first) if with_starts else NO_CHAR_START
                )
        self.tokens[p] += new

    @rule(
        which=st.integers(0, 3),
        part=st.floats(0, 1),
        value=st.integers(0, 100),
        overwrite=st.booleans(),
    )
    def put_rows(self, which: int, part: float, value: int, overwrite: bool) -> None:
        p = which % len(self.tokens)
        have, limit = len(self.gists[p]), blocks(len(self.tokens[p]))
        first = int(part * have) if overwrite else have
        count = (have - first) if overwrite else int(part * (limit - have))
        rows = (value + np.arange(count * WIDTH).reshape(count, WIDTH)).astype(np.float32)
        self.store.put_rows("gist", p, first, rows)
        self.gists[p] = np.concatenate(
            [self.gists[p][:first], rows, self.gists[p][first + count :]]
        )
        limit_high = -(-len(self.tokens[p]) // (K * K))
        if self.high[p] < limit_high:
            self.store.put_rows("high", p, self.high[p], np.full((1, 1), value, np.uint8))
            self.high[p] += 1

    @rule(which=st.integers(0, 3), needle=st.booleans())
    def index_text(self, which: int, needle: bool) -> None:
        p = which % len(self.tokens)
        first, limit = self.indexed[p], len(self.tokens[p]) // K
        texts = [
            f"needle {b}" if needle and b % 3 == 0 else f"hay {b}" for b in range(first, limit)
        ]
        self.store.index_text(p, first, texts)
        self.needles |= {(p, first + i) for i, text in enumerate(texts) if "needle" in text}
        self.indexed[p] = limit

    @rule()
    def commit(self) -> None:
        self.store.commit()

    @rule()
    def checkpoint(self) -> None:
        self.store.checkpoint()

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = mx.Store.open(self.path, identity={"model": "m"}, options=OPTIONS)

    @rule()
    def take_snapshot(self) -> None:
        self.snapshots.append(
            (
                self.store.snapshot(),
                [list(t) for t in self.tokens],
                [g.copy() for g in self.gists],
                set(self.needles),
            )
        )

    def compare(self, reader, tokens, gists, needles) -> None:
        assert [p.token_count for p in reader.partitions()] == [len(t) for t in tokens]
        for p, expected in enumerate(tokens):
            assert reader.read_tokens(p, 0, len(expected)).tolist() == expected
            np.testing.assert_array_equal(reader.read_rows("gist", p, 0, len(gists[p])), gists[p])
        found = reader.search("needle", 10_000)
        assert set(zip(found[0].tolist(), found[1].tolist(), strict=True)) == needles
        assert np.all(np.diff(found[2]) <= 0)

    @invariant()
    def reads_equal_the_model(self) -> None:
        self.compare(self.store, self.tokens, self.gists, self.needles)
        for p, starts in enumerate(self.starts):
            assert self.store.block_char_starts(p, 0, len(starts)).tolist() == starts
            assert self.store.row_count("high", p) == self.high[p]
            assert self.store.indexed_blocks(p) == self.indexed[p]
        pairs = [(p, i) for p, rows in enumerate(self.gists) for i in range(len(rows))][::3]
        out = np.empty((len(pairs), WIDTH), np.float32)
        self.store.gather_rows("gist", [p for p, _ in pairs], [i for _, i in pairs], out)
        for row, (p, i) in zip(out, pairs, strict=True):
            np.testing.assert_array_equal(row, self.gists[p][i])

    @invariant()
    def the_store_is_sound(self) -> None:
        self.store.check()

    @invariant()
    def snapshots_stay(self) -> None:
        for snapshot, tokens, gists, needles in self.snapshots[-3:]:
            self.compare(snapshot, tokens, gists, needles)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
