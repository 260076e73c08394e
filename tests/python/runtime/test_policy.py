"""An allocator that a net steers: plans that the working context takes, never over the budget, and
the greedy plan wherever there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from megacontext.config import K
from megacontext.lens.policy_net import PolicyNet
from megacontext.runtime.policy import (
    EMPTY,
    NOT_FINITE,
    REFUSED,
    STOPPED,
    PolicyAllocator,
    Tilings,
    raw_blocks,
)
from megacontext_ext import Allocator, AllocatorConfig, FocusPlan, ScoreField, WorkingContext
from megacontext_ext.focus import MAX_LOD
from tests.python.lens.some_candidates import candidates

BLOCKS = 40
HIDDEN = (0,) * MAX_LOD
SHOWN = (2, 1, 1, 1, 1, 1, 1, 1)


class Says(nn.Module):
    """A net that wants candidates in the order of `ranks`, and to stop after `stop` of them."""

    def __init__(self, ranks, stop: float = -1e3):
        super().__init__()
        self.ranks, self.stop = torch.as_tensor(ranks, dtype=torch.float32), stop

    def forward(self, static, view, may):
        logit = self.ranks.expand(len(view), -1).masked_fill(~may, -torch.inf)
        return torch.cat([logit, torch.full((len(view), 1), self.stop)], dim=-1)


def context_of(places: int, gists=HIDDEN, *, tail: int = 0, tokens: int = BLOCKS * K):
    context = WorkingContext(places, gists, tail)
    for partition in (0, 1):
        context.set_partition(partition, tokens)
    return context


def field_of(found, blocks: int = BLOCKS) -> ScoreField:
    field = ScoreField()
    for partition in (0, 1):
        scores = np.full(blocks, -0.5, np.float32)
        mine = found.partitions == partition
        scores[found.blocks[mine]] = found.scores[mine]
        field.set(partition, scores)
    return field


def at(found, numbers):
    return {(int(found.partitions[n]), int(found.blocks[n])) for n in numbers}


@pytest.mark.parametrize("gists", [HIDDEN, SHOWN])
@pytest.mark.parametrize("places", [96, 160, 340, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_a_plan_is_applied_whole_and_never_exceeds_the_budget(gists, places, seed):
    found = candidates(20, seed)
    context = context_of(places, gists)
    allocator = PolicyAllocator(PolicyNet(seed=seed), gists, stop_above=1.0)
    for again in range(3):  # a changed question collapses what the one before had brought
        more = candidates(20, seed + 10 * again)
        assert allocator.refocus(context, field_of(more), more) is None
        context.check()
        assert context.places <= places
        shown = set(raw_blocks(context))
        assert shown <= at(more, range(20))
        tilings = Tilings(context, gists)
        free = places - context.places
        assert all(tilings.cost(*each) > free for each in at(more, range(20)) - shown)
    assert allocator.plans == 3
    assert not allocator.fallbacks
    assert len(found) == 20


@pytest.mark.parametrize("gists", [HIDDEN, SHOWN])
def test_the_tilings_of_a_context_know_its_places_and_what_a_descent_costs(gists):
    context = context_of(400, gists, tail=32, tokens=2_100 * K + 7)
    allocator = Allocator(AllocatorConfig(cooldown_steps=0))
    field, rng = ScoreField(), np.random.default_rng(0)
    for partition in (0, 1):
        field.set(partition, rng.random(2_100).astype(np.float32) - 0.5)
    context.apply(allocator.plan(context, field))
    for partition, block in ((0, 5), (1, 2_000), (0, 2_100)):
        tilings = Tilings(context, gists)
        cost, steps = tilings.cost(partition, block), tilings.descent(partition, block)
        before = context.places
        tilings.apply(steps)
        assert tilings.places == before + cost
        if before + cost <= context.budget_places and steps:
            context.apply(
                FocusPlan(np.array([(*s, 0.0) for s in steps], FocusPlan().actions.dtype))
            )
            assert context.places == before + cost
            assert Tilings(context, gists).expanded == tilings.expanded


def test_the_net_decides_and_stops():
    found = candidates(12)
    ranks = np.zeros(12)
    ranks[[7, 3]] = 5.0, 4.0
    context = context_of(320)
    # As likely as 20 candidates of rank 0 together.
    allocator = PolicyAllocator(Says(ranks, stop=3.0), HIDDEN, stop_above=0.5)
    assert allocator.refocus(context, field_of(found), found) is None
    assert set(raw_blocks(context)) == at(found, (7, 3))
    filled = context_of(320)
    PolicyAllocator(Says(ranks, stop=3.0), HIDDEN, stop_above=1.0).refocus(
        filled, field_of(found), found
    )
    assert len(raw_blocks(filled)) == 10


def greedy_blocks(found, places: int = 320):
    context = context_of(places)
    context.apply(Allocator(AllocatorConfig(cooldown_steps=0)).plan(context, field_of(found)))
    return raw_blocks(context)


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (Says(np.zeros(12), stop=9.0), STOPPED),
        (Says(np.full(12, np.nan)), NOT_FINITE),
        (Says(np.zeros(12), stop=np.nan), NOT_FINITE),
        (Says(np.full(12, np.inf)), NOT_FINITE),
    ],
)
def test_a_net_that_is_not_sure_leaves_it_to_the_greedy_allocator(net, reason):
    found = candidates(12)
    context, allocator = context_of(320), PolicyAllocator(net, HIDDEN)
    assert allocator.refocus(context, field_of(found), found) == reason
    assert allocator.fallbacks == {reason: 1}
    assert raw_blocks(context) == greedy_blocks(found) != []


def test_no_candidates_leave_it_to_the_greedy_allocator():
    found, nothing = candidates(12), candidates(0)
    context, allocator = context_of(320), PolicyAllocator(PolicyNet(), HIDDEN)
    assert allocator.refocus(context, field_of(found), nothing) == EMPTY
    assert raw_blocks(context) == greedy_blocks(found)


def test_a_plan_that_the_context_refuses_changes_nothing_and_the_greedy_one_is_used():
    found = candidates(12)
    first = at(found, [0]).pop()
    context = context_of(320)
    # What the context knows and the policy does not: this block may never be raw.
    context.exclude(first[0], first[1] * K, first[1] * K + K)
    allocator = PolicyAllocator(Says(-np.arange(12.0)), HIDDEN)
    assert allocator.refocus(context, field_of(found), found) == REFUSED
    context.check()
    assert first not in raw_blocks(context)
    assert set(raw_blocks(context)) == set(greedy_blocks(found)) - {first}


def test_what_must_be_raw_stays_and_takes_its_places():
    found = candidates(12)
    context = context_of(320, tail=64)
    context.pin(0, 0, K)
    allocator = PolicyAllocator(PolicyNet(), HIDDEN, stop_above=1.0)
    assert allocator.refocus(context, field_of(found), found) is None
    context.check()
    must = {(0, 0), (0, BLOCKS - 1), (0, BLOCKS - 2), (1, BLOCKS - 1), (1, BLOCKS - 2)}
    assert must <= set(raw_blocks(context))
    assert len(raw_blocks(context)) == 10
