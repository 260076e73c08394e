"""Runs of cycles side by side: what each turn changed, and what leaving a module out costs.

    python -m megacontext.train.cycles.report --run all=DIR --run without-lens=DIR --out FOLDER

The first run is the one that the others are compared with, window by window. Writes `cycles.json`,
`cycles.md`, `cycles.png`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megacontext.eval.statistics import paired_comparison
from megacontext.train.track import CURVE
from megacontext_ext.errors import InvalidArgument

Curve = list[dict[str, Any]]
WAYS = ("gists", "random", "recent", "lens", "oracle")


def read_run(folder: Path) -> Curve:
    """One record a turn, the first before any. Raises: InvalidArgument for a run without turns."""
    lines = (folder / CURVE).read_text().splitlines()
    if len(lines) < 2:
        raise InvalidArgument(f"[cycles] {folder / CURVE} must hold a turn, got {len(lines)} lines")
    return [json.loads(line) for line in lines]


def labels(curve: Curve) -> list[str]:
    """start, 1 gists, 1 lens, ..."""
    return [r["turn"] if r["turn"] == "start" else f"{r['cycle']} {r['turn']}" for r in curve]


def compare(curves: Mapping[str, Curve]) -> dict[str, Any]:
    """By run: recovery at start and end, what each turn did, and the end against the first run
    after as many turns, in nats a token of the same windows (above zero: worse than it)."""
    first = next(iter(curves.values()))
    found: dict[str, Any] = {}
    for name, curve in curves.items():
        end = curve[-1]["windows"]
        found[name] = {
            "start": curve[0]["recovery"],
            "end": curve[-1]["recovery"],
            "lora_costs_nats": float(np.mean(end["full, own"]) - np.mean(end["full"])),
            "turns": [
                {key: record.get(key) for key in ("cycle", "turn", "steps", "kept", "gate")}
                | {"lens": record["recovery"]["lens"], "gists": record["recovery"]["gists"]}
                for record in curve
            ],
        }
        if curve is not first:
            paired = paired_comparison(end["lens"], first[len(curve) - 1]["windows"]["lens"])
            interval = paired.difference
            found[name]["behind_nats"] = [interval.mean, interval.low, interval.high]
    return found


def table(found: Mapping[str, Any]) -> str:
    """The comparison as Markdown."""
    lines = [
        "| run | gists alone | random blocks | newest blocks | lens | oracle | behind the first |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        shares = [f"{100 * one['end'][way]:.1f} %" if way in one["end"] else "" for way in WAYS]
        behind = one.get("behind_nats")
        last = "" if behind is None else "{:+.4f} [{:+.4f}, {:+.4f}] nats".format(*behind)
        lines.append(" | ".join([f"| {name}", *shares, f"{last} |"]))
    return "\n".join(lines) + "\n"


def draw(curves: Mapping[str, Curve], path: Path) -> Path:
    """Left: every way of the first run by turn. Right: the lens of every run. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6))
    first = next(iter(curves.values()))
    for way in WAYS:
        points = [
            (i, 100 * r["recovery"][way]) for i, r in enumerate(first) if way in r["recovery"]
        ]
        left.plot(*zip(*points, strict=True), marker="o", markersize=3, label=way)
    left.set_title("share of the gap that comes back, %")
    for name, curve in curves.items():
        middle.plot(
            [100 * r["recovery"]["lens"] for r in curve], marker="o", markersize=3, label=name
        )
        right.plot([r["gate"] for r in curve], marker="o", markersize=3, label=name)
    middle.set_title("the same by the lens, by run, %")
    right.set_title("gate: NLL a token")
    for panel in (left, middle, right):
        panel.set_xticks(range(len(first)), labels(first), rotation=60, ha="right", fontsize=7)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def write(curves: Mapping[str, Curve], out: Path) -> dict[str, Any]:
    """All three files; returns the comparison."""
    out.mkdir(parents=True, exist_ok=True)
    found = compare(curves)
    (out / "cycles.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "cycles.md").write_text(table(found))
    draw(curves, out / "cycles.png")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="append", required=True, help="name=folder")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    if bad := [each for each in given.run if "=" not in each]:
        parser.error(f"--run must be name=folder, got {bad[0]!r}")
    runs = dict(each.split("=", 1) for each in given.run)
    found = write({name: read_run(Path(folder)) for name, folder in runs.items()}, given.out)
    print(table(found), end="")


if __name__ == "__main__":
    main()
