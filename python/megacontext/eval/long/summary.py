"""Numbers of a report out of the rows of a run: means with intervals, comparisons, costs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from megacontext.eval.statistics import (
    Interval,
    PairedComparison,
    bootstrap_interval,
    calibration_error,
    holm,
    paired_comparison,
)

Row = dict[str, Any]
# Not held to the budget, or not a memory: shown, but never counted as a rival at equal budget.
OUT_OF_COMPETITION = ("full", "ceiling", "no_context")


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

    def median(self, field: str, **wanted: Any) -> float | None:
        values = [row[field] for row in self.answered(**wanted) if row[field] is not None]
        return statistics.median(values) if values else None


@dataclass(frozen=True)
class Versus:
    """The subject against one rival at one length, over the examples that both answered."""

    rival: str
    length: int
    comparison: PairedComparison
    # Adjusted over all comparisons of the report (Holm).
    adjusted_p: float


def comparisons(results: Results, subject: str) -> list[Versus]:
    """The subject against every rival at equal budget, at every length."""
    found: list[tuple[str, int, PairedComparison]] = []
    for length in results.lengths:
        ours = _by_example(results.answered(method=subject, length=length))
        for rival in results.methods:
            if rival == subject or rival in OUT_OF_COMPETITION:
                continue
            theirs = _by_example(results.answered(method=rival, length=length))
            both = [key for key in ours if key in theirs]
            if both:
                compared = paired_comparison([ours[k] for k in both], [theirs[k] for k in both])
                found.append((rival, length, compared))
    adjusted = holm([compared.p_value for _, _, compared in found])
    return [Versus(*entry, p) for entry, p in zip(found, adjusted, strict=True)]


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
            rivals = [m for m in results.methods if m != subject and m not in OUT_OF_COMPETITION]
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


def _by_example(rows: Sequence[Row]) -> dict[str, float]:
    return {row["example"]: row["score"] for row in rows}


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
