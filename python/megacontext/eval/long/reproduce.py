"""Does a committed figure come out again? Runs its examples anew and compares with what was kept.

Answers are the same bit for bit on one machine and torch build; elsewhere some differ, and the
question is whether the new mean lies within the interval that was stated.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacontext.eval.long.figures import length_name
from megacontext.eval.long.manifest import read_manifest
from megacontext.eval.long.runner import Place, RunConfig, read_rows, run
from megacontext.eval.long.summary import cell_weights
from megacontext.eval.statistics import Interval, bootstrap_interval
from megacontext_ext.errors import NotFound, Unsupported

Row = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """The answers behind a number of a report: those that fit what is given; empty: all."""

    tasks: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    methods: tuple[str, ...] = ()
    # Of each task, length and method, the first so many; 0: all.
    examples: int = 0
    # At most so many answers, drawn from all of them, always the same; 0: all.
    sample: int = 0

    def of(self, rows: list[Row]) -> list[Row]:
        """The rows of this figure, in the order of their places."""
        cells: dict[Place, list[Row]] = defaultdict(list)
        for row in sorted(rows, key=place_of):
            if (
                row["status"] == "answered"
                and (not self.tasks or row["task"] in self.tasks)
                and (not self.lengths or row["length"] in self.lengths)
                and (not self.methods or row["method"] in self.methods)
            ):
                cells[row["task"], row["length"], 0, row["method"]].append(row)
        found = [row for cell in cells.values() for row in cell[: self.examples or None]]
        if 0 < self.sample < len(found):
            found = random.Random("reproduce").sample(found, self.sample)
        return sorted(found, key=place_of)

    def __str__(self) -> str:
        lengths = tuple(map(length_name, self.lengths))
        parts = (self.methods or ("all methods",), self.tasks or ("all tasks",), lengths)
        return " on ".join(", ".join(part) for part in parts[:2]) + (
            f" at {', '.join(lengths)} tokens" if lengths else ""
        )


@dataclass(frozen=True)
class Reproduction:
    figure: Figure
    stated: Interval
    got: Interval
    # Of the answers, how many are the same text.
    same_answers: int

    @property
    def within(self) -> bool:
        """The new mean lies in the stated interval; a stated interval without width asks for the
        same mean."""
        return self.stated.low - 1e-9 <= self.got.mean <= self.stated.high + 1e-9

    def __str__(self) -> str:
        verdict = "lies within" if self.within else "lies OUTSIDE"
        return (
            f"{self.figure}: stated {self.stated}; got {self.got.mean:.3f}, which {verdict} the "
            f"stated interval; {self.same_answers} of {self.got.count} answers are the same text"
        )


def place_of(row: Row) -> Place:
    return row["task"], row["length"], row["index"], row["method"]


def reproduce(
    folder: Path,
    figure: Figure,
    out: Path,
    say: Callable[[str], None] | None = None,
    dtype: str | None = None,
) -> Reproduction:
    """Answer the examples of `figure` in `folder` again, in `out`; `dtype` instead of the run's.

    Raises: NotFound for a figure that the folder does not hold, Unsupported when one of its methods
    cannot run here, with the reason.
    """
    newest = {place_of(row): row for row in read_rows(folder).values()}
    kept = figure.of(list(newest.values()))
    if not kept:
        raise NotFound(f"[reproduce] {folder} holds no answers of {figure}")
    manifest = read_manifest(folder)
    settings = manifest["settings"]
    config = RunConfig(
        tasks=tuple(dict.fromkeys(row["task"] for row in kept)),
        methods=tuple(dict.fromkeys(row["method"] for row in kept)),
        lengths=tuple(sorted({row["length"] for row in kept} - {0})),
        out=out,
        examples=max(row["index"] for row in kept) + 1,
        seed=settings["seed"],
        budget_places=settings["budget_places"],
        model=settings["model"],
        # The identity ends with it; the settings of older runs may say "auto".
        dtype=dtype or manifest["model_identity"].rpartition("-")[2],
    )
    again = {place_of(row): row for row in run(config, say, only={*map(place_of, kept)})}
    pairs = [(row, again[place_of(row)]) for row in kept]
    for _, new in pairs:
        if new["status"] != "answered":
            raise Unsupported(f"[reproduce] {new['method']} cannot run here: {new['reason']}")
    weights = cell_weights(kept)
    return Reproduction(
        figure,
        stated=bootstrap_interval([old["score"] for old, _ in pairs], weights=weights),
        got=bootstrap_interval([new["score"] for _, new in pairs], weights=weights),
        same_answers=sum(old["text"] == new["text"] for old, new in pairs),
    )
