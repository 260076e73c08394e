"""Intervals and tests for scores that were measured on the same examples.

Plain NumPy, seeded, so that the same scores give the same interval on every machine. Knows nothing
of tasks, gists or models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megacontext_ext.errors import InvalidArgument

Scores = NDArray[np.float64]

# Up to this many pairs, all 2^n sign patterns are enumerated and the p value is exact.
_EXACT_PAIRS = 14


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the bounds of its bootstrap interval."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] n={self.count}"


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """The mean of `left - right` over the same examples, its interval, and a two-sided p value."""

    difference: Interval
    p_value: float
    wins: int
    ties: int
    losses: int

    @property
    def is_ahead(self) -> bool:
        """The whole interval lies above zero."""
        return self.difference.low > 0.0


def bootstrap_interval(
    scores: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of the mean of `scores` [n], weighted by `weights` [n].

    Scores are drawn with their weights, each as likely as any other; without weights all have one.
    Raises: InvalidArgument when `scores` is empty or not finite, or a weight is not above 0. Cost:
    resamples * n.
    """
    values = _finite(scores, "scores")
    drawn, share = _weights(weights, len(values)), (1.0 - level) / 2.0
    means = _resampled_means(values, drawn, resamples, seed)
    low, high = np.quantile(means, [share, 1.0 - share])
    mean = float(np.average(values, weights=drawn))
    return Interval(mean, float(low), float(high), len(values))


def ratio_interval(
    above: ArrayLike,
    below: ArrayLike,
    *,
    weights: tuple[ArrayLike, ArrayLike] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """mean(above) / mean(below) of two independent samples, with its percentile bootstrap interval;
    `weights` are those of `above` and of `below`.

    `count` is the size of `above`. Raises: InvalidArgument when a mean of `below` is 0.
    """
    top, bottom = _finite(above, "above"), _finite(below, "below")
    given = (None, None) if weights is None else weights
    over, under = _weights(given[0], len(top)), _weights(given[1], len(bottom))
    whole = float(np.average(bottom, weights=under))
    if whole == 0.0:
        raise InvalidArgument("[ratio_interval] below must have a mean that is not 0, it has")
    tops = _resampled_means(top, over, resamples, seed)
    bottoms = _resampled_means(bottom, under, resamples, seed + 1)
    held = bottoms != 0.0  # a resample of zeros alone has no ratio
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(tops[held] / bottoms[held], [tail, 1.0 - tail])
    mean = float(np.average(top, weights=over)) / whole
    return Interval(mean, float(low), float(high), len(top))


def paired_comparison(
    left: ArrayLike,
    right: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> PairedComparison:
    """Compare two methods on the same examples: bootstrap of the differences, and a sign-flip test,
    both of the mean weighted by `weights` [n].

    The p value is exact for up to 14 pairs that differ, and comes from random sign patterns above.
    Source: Fisher's randomisation test; the bootstrap resamples pairs, never the two sides apart.
    """
    a, b = _finite(left, "left"), _finite(right, "right")
    if len(a) != len(b):
        raise InvalidArgument(f"[paired_comparison] must pair up, got {len(a)} and {len(b)} scores")
    difference, drawn = a - b, _weights(weights, len(a))
    return PairedComparison(
        bootstrap_interval(difference, weights=drawn, level=level, resamples=resamples, seed=seed),
        sign_flip_p(difference * drawn, seed=seed),
        int((difference > 0).sum()),
        int((difference == 0).sum()),
        int((difference < 0).sum()),
    )


def sign_flip_p(differences: ArrayLike, *, resamples: int = 50_000, seed: int = 0) -> float:
    """Two-sided p value of the mean of `differences` being zero, under exchangeable signs.

    It is no less than 1 / resamples: few patterns cannot tell anything among many comparisons.
    Cost: resamples * n.
    """
    values = _finite(differences, "differences")
    values = values[values != 0.0]
    if len(values) == 0:
        return 1.0
    observed = abs(values.sum()) - 1e-12
    if len(values) <= _EXACT_PAIRS:
        signs = np.array(list(product((-1.0, 1.0), repeat=len(values))))
        return float((np.abs(signs @ values) >= observed).mean())
    rng, hits = np.random.default_rng(seed), 0
    for count in _slices(resamples, len(values)):
        plus = rng.integers(0, 2, size=(count, len(values)), dtype=np.int8)
        # Signs 2 * plus - 1, summed.
        hits += int((np.abs(2.0 * (plus @ values) - values.sum()) >= observed).sum())
    # The observed pattern counts as one of the random ones, so that p is never 0.
    return (hits + 1) / (resamples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values for a family of comparisons (Holm 1979), in the given order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = running
    return adjusted


def calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error of `confidence` [n] in [0, 1] against `correct` [n] in [0, 1].

    Source: Naeini et al. 2015; bins of equal width, weighted by their counts.
    """
    p, hit = _finite(confidence, "confidence"), _finite(correct, "correct")
    if len(p) != len(hit):
        raise InvalidArgument(f"[calibration_error] must pair up, got {len(p)} and {len(hit)}")
    place = np.clip((p * bins).astype(int), 0, bins - 1)
    error = 0.0
    for b in range(bins):
        inside = place == b
        if inside.any():
            error += float(inside.mean()) * abs(float(p[inside].mean()) - float(hit[inside].mean()))
    return error


def _finite(values: ArrayLike, name: str) -> Scores:
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    if len(array) == 0 or not np.isfinite(array).all():
        raise InvalidArgument(
            f"[statistics] {name} must be non-empty and finite, got {len(array)} values of which "
            f"{int((~np.isfinite(array)).sum())} are not finite"
        )
    return array


def _weights(given: ArrayLike | None, count: int) -> Scores:
    weights = np.ones(count) if given is None else _finite(given, "weights")
    if len(weights) != count or weights.min() <= 0.0:
        raise InvalidArgument(
            f"[statistics] weights must be above 0, one for each of {count} scores, got "
            f"{len(weights)}, the least {weights.min():g}"
        )
    return weights


def _resampled_means(values: Scores, weights: Scores, resamples: int, seed: int) -> Scores:
    rng = np.random.default_rng(seed)
    means = []
    for count in _slices(resamples, len(values)):
        picked = rng.integers(0, len(values), size=(count, len(values)))
        drawn = weights[picked]
        means.append((values[picked] * drawn).sum(axis=1) / drawn.sum(axis=1))
    return np.concatenate(means)


def _slices(resamples: int, width: int) -> Iterator[int]:
    """Counts that add up to `resamples`, so that a million scores do not need a matrix of resamples
    times a million."""
    step = max(1, 4_000_000 // width)
    yield from (min(step, resamples - done) for done in range(0, resamples, step))
