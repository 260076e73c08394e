"""Intervals and tests against cases that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext.eval.statistics import (
    bootstrap_interval,
    calibration_error,
    holm,
    paired_comparison,
    ratio_interval,
    sign_flip_p,
)
from megacontext_ext.errors import InvalidArgument


def test_interval_of_equal_scores_is_a_point():
    interval = bootstrap_interval([0.5] * 9)
    assert (interval.mean, interval.low, interval.high, interval.count) == (0.5, 0.5, 0.5, 9)


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        interval = bootstrap_interval(rng.normal(3.0, 1.0, 40), resamples=400, seed=trial)
        covered += interval.low <= 3.0 <= interval.high
    assert 180 <= covered <= 199


def test_interval_is_the_same_twice_and_whatever_the_slices():
    scores = np.random.default_rng(2).random(50)
    assert bootstrap_interval(scores, seed=3) == bootstrap_interval(scores, seed=3)
    assert bootstrap_interval(scores, seed=3) != bootstrap_interval(scores, seed=4)


def test_sign_flip_is_exact_for_few_pairs():
    # All three differences point one way: of 8 sign patterns, 2 are as extreme.
    assert sign_flip_p([1.0, 1.0, 1.0]) == pytest.approx(2 / 8)
    assert sign_flip_p([0.0, 0.0]) == 1.0
    assert sign_flip_p([1.0, -1.0]) == 1.0


def test_sign_flip_of_many_pairs_agrees_with_the_exact_value():
    few = [1.0, 1.0, 1.0, -1.0] * 3
    many = [*few, 1.0, 1.0, -1.0]
    assert abs(sign_flip_p(few) - 0.146) < 0.001  # two-sided binomial tail, 3 or fewer of 12
    assert abs(sign_flip_p(many, resamples=20_000) - 0.118) < 0.01  # 4 or fewer of 15


def test_paired_comparison_counts_and_points_the_right_way():
    comparison = paired_comparison([1, 1, 1, 0, 1, 1], [0, 0, 0, 0, 1, 0])
    assert (comparison.wins, comparison.ties, comparison.losses) == (4, 2, 0)
    assert comparison.difference.mean == pytest.approx(4 / 6)
    assert comparison.is_ahead
    assert comparison.p_value == pytest.approx(2 / 16)


def test_weights_make_each_group_count_the_same():
    # Two scores of one task, six of another: the mean of the tasks' means is a half.
    scores, weights = [1.0, 1.0, *[0.0] * 6], [1 / 2] * 2 + [1 / 6] * 6
    weighted = bootstrap_interval(scores, weights=weights)
    assert weighted.mean == pytest.approx(0.5)
    assert weighted.low < 0.5 < weighted.high
    assert weighted.count == 8
    compared = paired_comparison(scores, [0.0] * 8, weights=weights)
    assert compared.difference.mean == pytest.approx(0.5)
    assert ratio_interval(scores, scores, weights=(weights, weights)).mean == pytest.approx(1.0)


def test_equal_weights_change_nothing():
    scores = np.random.default_rng(5).random(30)
    plain, weighted = bootstrap_interval(scores), bootstrap_interval(scores, weights=[1.0] * 30)
    assert (plain.low, plain.high) == pytest.approx((weighted.low, weighted.high))


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, np.nan]])
def test_weights_that_mean_nothing_are_refused(weights):
    with pytest.raises(InvalidArgument, match="weights must be"):
        bootstrap_interval([0.0, 1.0], weights=weights)


def test_a_clear_difference_is_clear_among_many_comparisons():
    # Forty pairs that all point one way: far below what two hundred comparisons ask for.
    assert sign_flip_p([1.0] * 40) < 0.05 / 200


def test_holm_matches_a_worked_example():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_calibration_error_of_sure_and_wrong_is_one():
    assert calibration_error([1.0, 1.0], [0.0, 0.0]) == pytest.approx(1.0)
    assert calibration_error([0.75] * 4, [1, 1, 1, 0]) == pytest.approx(0.0)


@pytest.mark.parametrize("bad", [[], [np.nan], [np.inf, 1.0]])
def test_scores_that_mean_nothing_are_refused(bad):
    with pytest.raises(InvalidArgument, match="non-empty and finite"):
        bootstrap_interval(bad)


def test_unpaired_scores_are_refused():
    with pytest.raises(InvalidArgument, match="got 2 and 1 scores"):
        paired_comparison([1, 2], [1])


def test_ratio_interval_holds_the_ratio_and_narrows_with_n():
    rng = np.random.default_rng(3)
    few, many = (
        ratio_interval(rng.random(n) < 0.6, rng.random(n) < 0.8, resamples=500) for n in (40, 4000)
    )
    assert few.low < 0.75 < few.high
    assert many.low < 0.75 < many.high
    assert many.high - many.low < 0.2 * (few.high - few.low)


def test_ratio_to_nothing_is_refused():
    with pytest.raises(InvalidArgument, match="must have a mean that is not 0"):
        ratio_interval([1.0], [0.0, 0.0])
