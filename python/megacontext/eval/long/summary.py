"""Numbers of a report out of the rows of a run: means with intervals, comparisons, costs."""

from __future__ import annotations

import operator
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megacontext.eval.statistics import (
    Interval,
    PairedComparison,
    bootstrap_interval,
    calibration_error,
    holm,
    paired_comparison,
    ratio_interval,
)

Row = dict[str, Any]
# Not held to the budget, or not a memory: shown, but never counted as a rival at equal budget.
OUT_OF_COMPETITION = ("full", "ceiling", "no_context")
# Methods of this package: no rivals of each other.
OURS = ("megacontext", "paged")


@dataclass(frozen=True)
class Results:
    """Rows of a run, in the order of its configuration."""

    rows: tuple[Row, ...]

    @property
    def methods(self) -> list[str]:
        return _distinct(row["method"] for row in self.rows)

    @property
    def tasks(self) -> list[str]:
        return _distinct(row["task"] for row in self.rows)

    @property
    def lengths(self) -> list[int]:
        return sorted({row["length"] for row in self.rows})

    @property
    def categories(self) -> list[str]:
        return _distinct(row["category"] for row in self.rows)

    def where(self, **wanted: Any) -> list[Row]:
        """Rows whose fields have the wanted values; those not applicable included."""
        return [row for row in self.rows if all(row[k] == v for k, v in wanted.items())]

    def answered(self, **wanted: Any) -> list[Row]:
        return [row for row in self.where(**wanted) if row["status"] == "answered"]

    def score(self, **wanted: Any) -> Interval | None:
        """Mean score with its interval; None when nothing was answered, or not everything."""
        rows = self.where(**wanted)
        scores = [row["score"] for row in rows if row["status"] == "answered"]
        if not scores or len(scores) < len(rows):
            return None
        return bootstrap_interval(scores)

    def tasks_asked(self, length: int, *methods: str) -> set[str]:
        """Tasks of which `methods` (none: any) were asked an example of `length`."""
        rows = self.where(length=length)
        return {row["task"] for row in rows if not methods or row["method"] in methods}

    def whole(self, method: str) -> Results:
        """The rows of `method` at lengths where it was asked of as many tasks as any other: a mean
        of some tasks says nothing beside one of all."""
        asked = (n for n in self.lengths if self.tasks_asked(n, method) == self.tasks_asked(n))
        lengths = set(asked)
        return Results(tuple(r for r in self.where(method=method) if r["length"] in lengths))

    def mean_of_answered(self, **wanted: Any) -> Interval | None:
        """Mean of the tasks' means over what was answered, with its interval; None for nothing."""
        rows = self.answered(**wanted)
        if not rows:
            return None
        return bootstrap_interval([row["score"] for row in rows], weights=cell_weights(rows))

    def gold_shown(self, **wanted: Any) -> float | None:
        """Mean over tasks of the share of the gold that was in view; None where nothing tells."""
        rows = [row for row in self.answered(**wanted) if row["gold_shown"] is not None]
        if not rows:
            return None
        shown, weights = [row["gold_shown"] for row in rows], cell_weights(rows)
        return sum(map(operator.mul, shown, weights)) / sum(weights)

    def median(self, field: str, **wanted: Any) -> float | None:
        values = [row[field] for row in self.answered(**wanted) if row[field] is not None]
        return statistics.median(values) if values else None


@dataclass(frozen=True)
class Versus:
    """The subject against one rival in one part, over the examples that both answered."""

    part: str
    rival: str
    comparison: PairedComparison
    # Adjusted over all comparisons of all parts (Holm).
    adjusted_p: float


def _rivals(results: Results, subject: str) -> list[str]:
    """The methods that `subject` is compared with."""
    apart = {subject, *OUT_OF_COMPETITION, *(OURS if subject in OURS else ())}
    return [method for method in results.methods if method not in apart]


def comparisons(parts: Mapping[str, Results], subject: str) -> list[Versus]:
    """The subject against every rival at equal budget, in every part."""
    found: list[tuple[str, str, PairedComparison]] = []
    for name, results in parts.items():
        ours = results.answered(method=subject)
        for rival in _rivals(results, subject):
            theirs = _by_example(results.answered(method=rival))
            both = [row for row in ours if row["example"] in theirs]
            if both:
                mine = [row["score"] for row in both]
                other = [theirs[row["example"]] for row in both]
                compared = paired_comparison(mine, other, weights=cell_weights(both))
                found.append((name, rival, compared))
    adjusted = holm([compared.p_value for *_, compared in found])
    return [Versus(*entry, p) for entry, p in zip(found, adjusted, strict=True)]


def kept_share(results: Results, subject: str, length: int, against: str) -> Interval | None:
    """The subject's mean at `length` as a share of the mean of `against` at the shortest length,
    over the tasks that both answered; None where there is nothing to divide by.

    With `against` "full" that is the share of the model's own in-window score that is kept.
    """
    ours = results.answered(method=subject, length=length)
    window = results.answered(method=against, length=min(results.lengths, default=0))
    tasks = {row["task"] for row in ours} & {row["task"] for row in window}
    above, below = ([row for row in rows if row["task"] in tasks] for rows in (ours, window))
    if not any(row["score"] for row in below):
        return None
    return ratio_interval(
        [row["score"] for row in above],
        [row["score"] for row in below],
        weights=(cell_weights(above), cell_weights(below)),
    )


@dataclass(frozen=True)
class Shortfall:
    """A task and length where some rival at equal budget scored more than the subject."""

    task: str
    length: int
    ours: float
    rival: str
    theirs: float
    # Mean share of the gold that the subject had in front of it; tells finding from reading.
    gold_shown: float | None


def shortfalls(results: Results, subject: str) -> list[Shortfall]:
    """Where the subject is not ahead, worst first."""
    found = []
    for task in results.tasks:
        for length in results.lengths:
            rows = results.answered(task=task, length=length, method=subject)
            ours = _by_example(rows)
            rivals = _rivals(results, subject)
            worst: tuple[float, float, str] | None = None
            for rival in rivals:
                theirs = _by_example(results.answered(task=task, length=length, method=rival))
                # Means over the same examples: rivals may have answered fewer.
                both = [key for key in ours if key in theirs]
                if both:
                    mine = statistics.fmean(ours[key] for key in both)
                    other = statistics.fmean(theirs[key] for key in both)
                    if other > mine and (worst is None or other - mine > worst[1] - worst[0]):
                        worst = (mine, other, rival)
            if worst is not None:
                seen = [row["gold_shown"] for row in rows if row["gold_shown"] is not None]
                share = statistics.fmean(seen) if seen else None
                found.append(Shortfall(task, length, worst[0], worst[2], worst[1], share))
    return sorted(found, key=lambda entry: entry.ours - entry.theirs)


def depth_grid(
    results: Results, method: str, bins: int = 5
) -> tuple[list[int], list[list[float | None]]]:
    """Lengths, and for each the mean score by depth of the gold (shallow first)."""
    grid = []
    for length in results.lengths:
        cells: list[list[float]] = [[] for _ in range(bins)]
        for row in results.answered(method=method, length=length):
            if row["depth"] is not None:
                cells[min(bins - 1, int(row["depth"] * bins))].append(row["score"])
        grid.append([statistics.fmean(cell) if cell else None for cell in cells])
    return results.lengths, grid


def calibration(results: Results, method: str) -> float | None:
    """Expected calibration error of the answers' probabilities; None without probabilities."""
    rows = [row for row in results.answered(method=method) if row["confidence"] is not None]
    if not rows:
        return None
    return calibration_error([r["confidence"] for r in rows], [r["score"] for r in rows])


def cell_weights(rows: Sequence[Row]) -> list[float]:
    """One over the number of `rows` of the same task, length and method: a mean weighted so is the
    mean of the tasks' means, whatever number of examples each has."""
    cells = [(row["task"], row["length"], row["method"]) for row in rows]
    counts = Counter(cells)
    return [1.0 / counts[cell] for cell in cells]


def _by_example(rows: Sequence[Row]) -> dict[str, float]:
    return {row["example"]: row["score"] for row in rows}


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
