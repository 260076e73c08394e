"""Paired differences in gap recovery, with intervals: python benchmarks/results/DATE/paired.py"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
LEARNED = HERE.parent / "2026-11-22-h100-gists" / "gists.json"
Suite = dict[str, Any]


def suite(path: Path) -> Suite:
    return json.loads(path.read_text())["suites"]["lod1"]


def names(measured: Suite) -> list[str]:
    """One a span: its passage, and which window of it."""
    seen: Counter[str] = Counter()
    found = []
    for span in measured["spans"]:
        name = "/".join(map(str, span))
        found.append(f"{name}#{seen[name]}")
        seen[name] += 1
    return found


def loss(measured: Suite, method: str) -> dict[str, float]:
    nll = measured["nll"]
    return dict(zip(names(measured), np.subtract(nll[method], nll["full"]), strict=True))


def compare(ours: dict[str, float], theirs: dict[str, float], gap: dict[str, float]) -> str:
    """Recovery of ours minus theirs, resampling passages."""
    spans = [name for name in ours if name in theirs]
    passages, index = np.unique([s.rpartition("#")[0] for s in spans], return_inverse=True)
    ahead = np.bincount(index, [theirs[s] - ours[s] for s in spans], len(passages))
    gaps = np.bincount(index, [gap[s] for s in spans], len(passages))
    picks = np.random.default_rng(0).integers(0, len(passages), (4000, len(passages)))
    low, high = np.quantile(ahead[picks].sum(1) / gaps[picks].sum(1), (0.025, 0.975))
    return f"{100 * ahead.sum() / gaps.sum():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def main() -> None:
    here, learned = suite(HERE / "gists.json"), suite(LEARNED)
    gap = loss(here, "drop")
    for count in (16, 64):
        kept = loss(here, f"kept rows @ {count}")
        for other in list(here["nll"]):
            method, _, entries = other.partition(" @ ")
            if entries == str(count) and method != "kept rows":
                print(f"{count}: kept rows - {method}: {compare(kept, loss(here, other), gap)}")
        even, fitted = (
            loss(here, f"{name} @ {count}")
            for name in ("kept rows, shared out evenly", "attention matching")
        )
        print(f"{count}: attention matching - even shares: {compare(fitted, even, gap)}")
        theirs = loss(learned, f"gist rows @ {count}")
        print(f"{count}: kept rows - learned gist rows: {compare(kept, theirs, gap)}")


if __name__ == "__main__":
    main()
