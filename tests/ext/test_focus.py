"""The focus wrappers: dtypes, errors as Python classes, and one question from start to end."""

from __future__ import annotations

import numpy as np
import pytest

import megacontext_ext as mx
from megacontext_ext import errors
from megacontext_ext.focus import ACTION_DTYPE, COLLAPSE, ENTRY_DTYPE, EXPAND


def test_a_question_brings_its_blocks_into_focus():
    context = mx.WorkingContext(budget_places=2048, gist_places=(0,) * 8)
    context.set_partition(0, 1_000_000, protected_tail_tokens=0)
    context.set_partition(1, 300)
    field = mx.ScoreField()
    scores = np.zeros(31_250, np.float32)
    scores[[7, 20_000]] = 0.9, 0.8
    field.set(0, scores)
    plan = mx.Allocator().plan(context, field)
    context.apply(plan)
    context.check()
    entries = context.entries()
    raw = entries[(entries["lod"] == 0) & (entries["partition"] == 0)]
    assert raw["index"].tolist() == [7, 20_000]
    assert raw["start"].tolist() == [224, 640_000]
    assert (
        field.entry_scores(context)[entries["lod"] == 0][:2].tolist()
        == scores[[7, 20_000]].tolist()
    )
    assert context.places == int(entries["places"].sum()) == 64 + 140
    assert context.token_counts == {0: 1_000_000, 1: 300}
    assert context.step == 1


def test_arrays_have_the_documented_dtypes():
    context = mx.WorkingContext(64)
    assert context.entries().dtype == ENTRY_DTYPE
    assert ENTRY_DTYPE.names == ("partition", "lod", "index", "start", "end", "places")
    assert len(context.entries()) == 0
    plan = mx.Allocator().plan(context, mx.ScoreField())
    assert plan.actions.dtype == ACTION_DTYPE
    assert ACTION_DTYPE.names == ("action", "partition", "lod", "index", "score")
    assert len(plan) == 0


def test_a_plan_may_be_made_by_hand():
    context = mx.WorkingContext(256, protected_tail_tokens=0)
    context.set_partition(0, 2048)
    context.apply(mx.FocusPlan([(EXPAND, 0, 2, 1, 0.5), (EXPAND, 0, 1, 33, 0.5)]))
    assert [e["index"] for e in context.entries() if e["lod"] == 0] == [33]
    context.apply(mx.FocusPlan([(COLLAPSE, 0, 1, 33, 0.0), (COLLAPSE, 0, 2, 1, 0.0)]))
    assert context.entries()["lod"].tolist() == [2, 2]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c: c.set_partition(0, 99), errors.InvalidArgument, "at least 100 .* got 99"),
        (lambda c: c.set_partition(1, 900, 900), errors.OverBudget, "budget_places 256"),
        (lambda c: c.remove_partition(9), errors.NotFound, "got 9"),
        (lambda c: c.pin(0, 50, 50), errors.InvalidArgument, r"within \[0, 100\)"),
        (lambda c: c.pin(0, 0, 101), errors.InvalidArgument, r"got \[0, 101\)"),
        (lambda c: c.exclude(3, 0, 1), errors.NotFound, "got 3"),
        (
            lambda c: c.apply(mx.FocusPlan([(COLLAPSE, 0, 1, 3, 0.0)])),
            errors.InvalidArgument,
            "action 0 must be a whole-block swap",
        ),
        (lambda c: mx.ScoreField().set(0, [0.0, np.nan]), errors.InvalidArgument, "at block 1"),
        (lambda c: mx.WorkingContext(1, (33,)), errors.InvalidArgument, "at most 32 each, got 33"),
        (
            lambda c: mx.Allocator(mx.AllocatorConfig(hysteresis=-1)),
            errors.InvalidArgument,
            "hysteresis must be at least 0",
        ),
    ],
)
def test_bad_calls_are_refused_with_the_numbers(call, error, message):
    context = mx.WorkingContext(256)
    context.set_partition(0, 100)
    before = context.entries()
    with pytest.raises(error, match=message):
        call(context)
    assert (context.entries() == before).all()
    context.check()


def test_scores_for_blocks_that_are_not_there_are_refused():
    context = mx.WorkingContext(256)
    context.set_partition(0, 100)
    field = mx.ScoreField()
    field.set(0, np.zeros(5))
    with pytest.raises(errors.InvalidArgument, match="at most 4, one a block, got 5"):
        mx.Allocator().plan(context, field)
    field.remove(0)
    assert len(mx.Allocator().plan(context, field)) == 0
