"""Does a committed figure come out again? Runs its examples anew and compares with what was kept.

Answers are the same bit for bit on one machine and torch build; elsewhere some differ, and the
question is whether the new mean lies within the interval that was stated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megacontext.eval.long.manifest import read_manifest
from megacontext.eval.long.runner import RunConfig, read_rows, run
from megacontext.eval.statistics import Interval, bootstrap_interval
from megacontext_ext.errors import NotFound


@dataclass(frozen=True)
class Figure:
    """One cell of a report: a task at a length by a method, over its first `examples` (0: all)."""

    task: str
    length: int
    method: str
    examples: int = 0


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
        f = self.figure
        verdict = "lies within" if self.within else "lies OUTSIDE"
        return (
            f"{f.method} on {f.task} at {f.length:,} tokens: stated {self.stated}; got "
            f"{self.got.mean:.3f}, which {verdict} the stated interval; "
            f"{self.same_answers} of {self.got.count} answers are the same text"
        )


def reproduce(
    folder: Path, figure: Figure, out: Path, say: Callable[[str], None] | None = None
) -> Reproduction:
    """Answer the examples of `figure` in `folder` again, in `out`.

    Raises: NotFound for a figure that the folder does not hold.
    """
    kept = [
        row
        for row in read_rows(folder).values()
        if (row["task"], row["length"], row["method"])
        == (figure.task, figure.length, figure.method)
        and row["status"] == "answered"
    ]
    kept.sort(key=lambda row: row["index"])
    kept = kept[: figure.examples or None]
    if not kept:
        raise NotFound(
            f"[reproduce] {folder} holds no answers of {figure.method} on {figure.task} at "
            f"{figure.length} tokens"
        )
    settings = read_manifest(folder)["settings"]
    config = RunConfig(
        tasks=(figure.task,),
        methods=(figure.method,),
        lengths=(figure.length,),
        out=out,
        examples=kept[-1]["index"] + 1,
        seed=settings["seed"],
        budget_places=settings["budget_places"],
        model=settings["model"],
        dtype=settings["dtype"],
    )
    again = {row["index"]: row for row in run(config, say)}
    pairs = [(row, again[row["index"]]) for row in kept]
    return Reproduction(
        figure,
        stated=bootstrap_interval([row["score"] for row in kept]),
        got=bootstrap_interval([row.get("score", 0.0) for _, row in pairs]),
        same_answers=sum(old["text"] == new.get("text") for old, new in pairs),
    )
