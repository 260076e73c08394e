"""Random operations on the working context and on the plain model, compared after every step."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from megacontext_ext import errors
from megacontext_ext.focus import (
    ACTION_DTYPE,
    MAX_LOD,
    Allocator,
    AllocatorConfig,
    FocusPlan,
    ScoreField,
    WorkingContext,
)

_SPEC = importlib.util.spec_from_file_location(
    "focus_model", Path(__file__).with_name("focus_model.py")
)
assert _SPEC is not None
assert _SPEC.loader is not None
focus_model = importlib.util.module_from_spec(_SPEC)
sys.modules["focus_model"] = focus_model
_SPEC.loader.exec_module(focus_model)
Model, ModelAllocator, Refused = (
    focus_model.Model,
    focus_model.ModelAllocator,
    focus_model.Refused,
)

REFUSALS = (errors.InvalidArgument, errors.OverBudget, errors.NotFound)
PARTITIONS = st.sampled_from([0, 1, 7])
# Around every border of the tree that is small enough for a model that is slow.
GROWTH = st.sampled_from(
    [0, 1, 5, 31, 32, 33, 64, 200, 991, 1023, 1024, 1025, 3000, 31_700, 33_000]
)
TAILS = st.sampled_from([None, None, 0, 5, 64, 200])
GISTS = st.sampled_from(
    [(1,) * MAX_LOD, (0,) * MAX_LOD, (1,), (2, 1), (0, 1, 3), (1, 0, 1), (), (5, 32)]
)
# Eighths: sums of them are exact, and equal scores are common.
EIGHTHS = st.sampled_from([0.0, 0.125, 0.25, 0.5])
CONFIGS = st.builds(
    AllocatorConfig,
    expand_threshold=EIGHTHS,
    collapse_threshold=EIGHTHS,
    hysteresis=EIGHTHS,
    max_actions=st.sampled_from([0, 1, 5, 40, 4096]),
    cooldown_steps=st.integers(0, 3),
    reserve_places=st.sampled_from([0, 0, 40, 10_000]),
)


class FocusMachine(RuleBasedStateMachine):
    @initialize(
        budget=st.sampled_from([0, 33, 160, 500, 1000, 2048]),
        gists=GISTS,
        tail=st.sampled_from([0, 40, 128]),
        tokens=st.lists(st.sampled_from([40, 1024, 3333, 34_000, 66_000]), max_size=3),
    )
    def begin(self, budget, gists, tail, tokens):
        self.real = WorkingContext(budget, gists, tail)
        self.model = Model(budget, gists, tail)
        self.field = ScoreField()
        self.scores = {}
        for partition, count in zip([0, 1, 7], tokens, strict=False):
            self.both("set_partition", partition, count, None)

    def both(self, name, *arguments):
        """The same call on both: both succeed or both refuse."""
        try:
            getattr(self.model, name)(*arguments)
            refused = False
        except Refused:
            refused = True
        if refused:
            with pytest.raises(REFUSALS):
                getattr(self.real, name)(*arguments)
        else:
            getattr(self.real, name)(*arguments)

    def tokens(self, partition):
        known = self.model.partitions.get(partition)
        return known.tokens if known else 0

    @rule(partition=PARTITIONS, growth=GROWTH, tail=TAILS)
    def set_partition(self, partition, growth, tail):
        tokens = self.tokens(partition) + growth
        if tokens <= 70_000:
            self.both("set_partition", partition, tokens, tail)

    @rule(partition=PARTITIONS, tokens=st.integers(1, 40))
    def decode_tokens(self, partition, tokens):
        for _ in range(tokens):
            self.both("set_partition", partition, self.tokens(partition) + 1, None)

    @rule(partition=PARTITIONS)
    def shorten(self, partition):
        if self.tokens(partition) > 0:
            self.both("set_partition", partition, self.tokens(partition) - 1, None)

    @rule(partition=PARTITIONS)
    def remove_partition(self, partition):
        self.both("remove_partition", partition)
        self.field.remove(partition)
        self.scores.pop(partition, None)

    @rule()
    def reset(self):
        self.both("reset")

    @rule(
        name=st.sampled_from(["pin", "unpin", "exclude", "include"]),
        partition=PARTITIONS,
        where=st.floats(0, 1),
        length=st.sampled_from([0, 1, 32, 40, 300]),
    )
    def mark(self, name, partition, where, length):
        start = int(where * self.tokens(partition))
        self.both(name, partition, start, start + length)

    @rule(partition=PARTITIONS, seed=st.integers(0, 999), density=st.sampled_from([0.01, 0.1, 1.0]))
    def set_scores(self, partition, seed, density):
        random = np.random.default_rng(seed)
        blocks = -(-self.tokens(partition) // 32)
        scores = random.integers(-8, 9, blocks if seed % 3 else blocks // 2) / 8
        scores[random.random(len(scores)) > density] = random.choice([0.0, -0.5])
        self.scores[partition] = scores.tolist()
        self.field.set(partition, scores)

    @rule(
        seed=st.integers(0, 999), found=st.integers(1, 60), background=st.sampled_from([0, 1, -0.5])
    )
    def ask(self, seed, found, background):
        """A question as in use: few blocks of all partitions score high; plan and apply."""
        random = np.random.default_rng(seed)
        for partition in self.model.partitions:
            blocks = -(-self.tokens(partition) // 32)
            scores = random.integers(-8, 2, blocks) / 8 * background
            scores[random.integers(0, blocks, found)] = random.integers(2, 17, found) / 8
            self.scores[partition] = scores.tolist()
            self.field.set(partition, scores)
        self.plan_agrees(AllocatorConfig(hysteresis=0.125, cooldown_steps=seed % 3), True)

    @rule(config=CONFIGS, does_apply=st.booleans())
    def plan(self, config, does_apply):
        self.plan_agrees(config, does_apply)

    @rule(cooldown=st.integers(0, 2))
    def plan_as_usual(self, cooldown):
        self.plan_agrees(AllocatorConfig(hysteresis=0.125, cooldown_steps=cooldown), True)

    def plan_agrees(self, config, does_apply):
        plan = Allocator(config).plan(self.real, self.field)
        actions = plan.actions
        expected = ModelAllocator(self.model, self.scores, config).plan()
        assert [
            (int(a["action"]), int(a["partition"]), (int(a["lod"]), int(a["index"])), a["score"])
            for a in actions
        ] == expected
        assert (Allocator(config).plan(self.real, self.field).actions == actions).all()
        if does_apply:
            self.real.apply(plan)
            self.model.apply([action[:3] for action in expected])

    @rule(seed=st.integers(0, 99_999), valid=st.integers(0, 3))
    def apply_any_actions(self, seed, valid):
        """Plans of a policy that may be wrong: some valid actions, then a random one."""
        random = np.random.default_rng(seed)
        actions = []
        trial = self.model.copy()
        for _ in range(valid):
            choices = [
                *((0, i, n) for i, p in trial.partitions.items() for n in p.entries[:50] if n[0]),
                *((1, i, n) for i, p in trial.partitions.items() for n in trial.collapsible(p)),
            ]
            if not choices:
                return
            action = choices[random.integers(len(choices))]
            actions.append(action)
            try:
                trial.apply([action])
            except Refused:
                break
        if seed % 2:
            any_node = (int(random.integers(0, 11)), int(2 ** random.uniform(0, 62)) - 1)
            actions.append((int(random.integers(0, 4)), int(random.integers(0, 9)), any_node))
        self.apply_both(actions)

    def apply_both(self, actions):
        rows = [(kind, partition, node[0], node[1], 0.0) for kind, partition, node in actions]
        plan = FocusPlan(np.array(rows, dtype=ACTION_DTYPE))
        try:
            if any(kind > 1 for kind, _, _ in actions):
                raise Refused
            self.model.apply(actions)
        except Refused:
            with pytest.raises(REFUSALS):
                self.real.apply(plan)
        else:
            self.real.apply(plan)

    @invariant()
    def agrees_with_the_model(self):
        if not hasattr(self, "real"):
            return
        self.real.check()
        entries = self.real.entries()
        assert entries.tolist() == self.model.rows()
        assert self.real.places == self.model.places <= self.real.budget_places
        assert self.real.step == self.model.step
        scorer = ModelAllocator(self.model, self.scores, AllocatorConfig())
        expected = [
            scorer.score(partition, node)
            for partition, p in sorted(self.model.partitions.items())
            for node in p.entries
        ]
        assert self.field.entry_scores(self.real).tolist() == expected


TestFocus = FocusMachine.TestCase
TestFocus.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
