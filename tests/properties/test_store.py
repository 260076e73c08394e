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
        self.erased: set[int] = set()
        self.hidden: set[int] = set()
        self.rounded = False  # rows of "gist" were rounded once
        # A snapshot and what compare() expects of it.
        self.snapshots: list[tuple[mx.Snapshot, list[list[int] | None], list, set, bool]] = []

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.path)

    @initialize()
    def first(self) -> None:
        self.add_partition()

    @rule()
    def add_partition(self) -> None:
        if len(self.tokens) >= 6:
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
        p = self.pick(which)
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
        p = self.pick(which)
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
        p = self.pick(which)
        first, limit = self.indexed[p], len(self.tokens[p]) // K
        texts = [
            f"needle {b}" if needle and b % 3 == 0 else f"hay {b}" for b in range(first, limit)
        ]
        self.store.index_text(p, first, texts)
        self.needles |= {(p, first + i) for i, text in enumerate(texts) if "needle" in text}
        self.indexed[p] = limit

    def pick(self, which: int) -> int:
        alive = [p for p in range(len(self.tokens)) if p not in self.erased]
        return alive[which % len(alive)]

    def forget_from(self, p: int, kept: int) -> None:
        self.tokens[p] = self.tokens[p][:kept]
        self.starts[p] = self.starts[p][: blocks(kept)]
        self.gists[p] = self.gists[p][: kept // K]
        self.high[p] = min(self.high[p], kept // K**2)
        self.indexed[p] = min(self.indexed[p], kept // K)
        self.needles = {(q, b) for q, b in self.needles if q != p or b < kept // K}

    @rule(which=st.integers(0, 3), part=st.floats(0, 1), count=st.sampled_from([0, 1, 31, 500]))
    def edit(self, which: int, part: float, count: int) -> None:
        p = self.pick(which)
        kept = int(part * len(self.tokens[p]))
        if kept < len(self.tokens[p]):
            self.forget_from(p, kept)
        new = [50_000 + kept + i for i in range(count)]
        got = self.store.replace_tail(p, kept, new, [7 * token for token in new], '{"edited": 1}')
        assert got == (kept // K, (kept + count) // K)
        self.starts[p] += [7 * t for i, t in enumerate(new) if (kept + i) % K == 0]
        self.tokens[p] += new

    @rule(which=st.integers(1, 3))
    def erase(self, which: int) -> None:
        p = self.pick(which)
        if p == 0:
            return
        self.store.erase_partition(p)
        self.forget_from(p, 0)
        self.erased.add(p)
        self.hidden.discard(p)
        assert self.store.find_partition(f"source {p}") is None

    @rule(which=st.integers(0, 3), hidden=st.booleans())
    def archive_or_restore(self, which: int, hidden: bool) -> None:
        p = self.pick(which)
        self.store.set_hidden(p, hidden)
        (self.hidden.add if hidden else self.hidden.discard)(p)

    @rule()
    def drop_family(self) -> None:
        self.store.drop_rows("gist")
        self.store.define_rows("gist", 1, "f32", WIDTH)
        self.gists = [rows[:0] for rows in self.gists]

    @rule(which=st.integers(0, 3))
    def clear(self, which: int) -> None:
        p = self.pick(which)
        self.store.clear_rows("gist", p)
        self.gists[p] = self.gists[p][:0]

    @rule()
    def purge(self) -> None:
        self.store.purge()

    @rule(dtype=st.sampled_from(["q8", "f32"]))
    def reencode(self, dtype: str) -> None:
        """With a scale for each element whole numbers stay within a bit of themselves; from then on
        rows are compared as whole numbers, before it bit for bit."""
        self.rounded |= dtype == "q8"
        self.store.reencode("gist", dtype, 1 if dtype == "q8" else None)
        assert self.store.reencode("gist", dtype, 1 if dtype == "q8" else None).rows == 0

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
                [None if p in self.erased else list(t) for p, t in enumerate(self.tokens)],
                [g.copy() for g in self.gists],
                self.found(),
                self.rounded,
            )
        )

    def found(self) -> set[tuple[int, int]]:
        return {(p, block) for p, block in self.needles if p not in self.hidden}

    def compare(self, reader, tokens, gists, needles, rounded) -> None:
        shown = {p.id: p.token_count for p in reader.partitions()}
        assert shown == {p: len(t) for p, t in enumerate(tokens) if t is not None}
        for p, expected in enumerate(tokens):
            if expected is None:
                continue
            assert reader.read_tokens(p, 0, len(expected)).tolist() == expected
            rows = reader.read_rows("gist", p, 0, len(gists[p]))
            np.testing.assert_array_equal(np.rint(rows) if rounded else rows, gists[p])
        found = reader.search("needle", 10_000)
        assert set(zip(found[0].tolist(), found[1].tolist(), strict=True)) == needles
        assert np.all(np.diff(found[2]) <= 0)

    @invariant()
    def reads_equal_the_model(self) -> None:
        tokens = [None if p in self.erased else t for p, t in enumerate(self.tokens)]
        self.compare(self.store, tokens, self.gists, self.found(), self.rounded)
        for p, starts in enumerate(self.starts):
            if p in self.erased:
                continue
            assert self.store.block_char_starts(p, 0, len(starts)).tolist() == starts
            assert self.store.row_count("high", p) == self.high[p]
            assert self.store.indexed_blocks(p) == self.indexed[p]
        pairs = [(p, i) for p, rows in enumerate(self.gists) for i in range(len(rows))][::3]
        out = np.empty((len(pairs), WIDTH), np.float32)
        self.store.gather_rows("gist", [p for p, _ in pairs], [i for _, i in pairs], out)
        for row, (p, i) in zip(out, pairs, strict=True):
            np.testing.assert_array_equal(np.rint(row) if self.rounded else row, self.gists[p][i])

    @invariant()
    def the_store_is_sound(self) -> None:
        self.store.check()

    @invariant()
    def snapshots_stay(self) -> None:
        for snapshot, *expected in self.snapshots[-3:]:
            self.compare(snapshot, *expected)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
