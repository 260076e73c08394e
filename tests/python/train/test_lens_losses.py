"""Losses of a lens: signs, minima, and that a small net learns a planted rule through them."""

from __future__ import annotations

import torch

from megacontext.train import lens_losses as losses


def descent(loss, score: torch.Tensor) -> torch.Tensor:
    """The direction in which a step of gradient descent moves the scores."""
    score = score.clone().requires_grad_()
    loss(score).backward()
    return -score.grad


def test_what_gains_rises_and_what_costs_falls():
    gain = torch.tensor([2.0, 0.0, -1.0])
    move = descent(lambda s: losses.pairwise(s, gain), torch.zeros(3))
    assert move[0] > 0 > move[2]
    move = descent(lambda s: losses.listwise(s, gain.clamp(min=0)), torch.zeros(3))
    assert move[0] > 0 > move[1]
    move = descent(lambda s: losses.regression(s, gain), torch.zeros(3))
    assert move[0] > 0 > move[2]
    assert move[1] == 0
    move = descent(lambda s: losses.calibrated(s, torch.tensor([1.0, 0, 0])), torch.zeros(3))
    assert move[0] > 0 > move[2]


def test_pairs_closer_than_the_margin_are_left_alone():
    score = torch.randn(4, requires_grad=True)
    loss = losses.pairwise(score, torch.tensor([1.0, 1.05, 0.98, 1.01]))
    assert loss == 0
    loss.backward()
    assert not score.grad.any()


def test_the_needed_ones_weigh_as_much_as_all_others():
    needed = torch.zeros(101)
    needed[0] = 1.0
    move = descent(lambda s: losses.calibrated(s, needed), torch.zeros(101))
    torch.testing.assert_close(move[0], -move[1:].sum())


def test_the_budget_pulls_the_heavier_side_down():
    places = torch.full((4,), 31.0)
    score = torch.tensor([2.0, 1.0, 1.0, -0.5])
    move = descent(lambda s: losses.budget(s, places, places), score)
    assert (move[:3] < 0).all()
    assert losses.budget(torch.tensor([1.0, -1.0]), places[:2], places[:2]) < 1e-9


def test_only_a_direction_that_is_closed_costs():
    yes, no = torch.tensor([True]), torch.tensor([False])
    up, down = torch.tensor([1.0]), torch.tensor([-1.0])
    assert losses.legality(up, yes, no) == 0
    assert losses.legality(down, no, yes) == 0
    assert losses.legality(up, no, yes) > 0.5
    assert losses.legality(down, yes, no) > 0.5
    assert descent(lambda s: losses.legality(s, no, yes), up) < 0
    assert descent(lambda s: losses.legality(s, yes, no), down) > 0


def test_nothing_to_compare_is_zero_and_keeps_the_graph():
    for loss in (
        lambda s: losses.listwise(s, torch.zeros(3)),
        lambda s: losses.pairwise(s, torch.zeros(3)),
        lambda s: losses.regression(s[:0], torch.zeros(0)),
    ):
        score = torch.randn(3, requires_grad=True)
        value = loss(score)
        assert value == 0
        value.backward()
