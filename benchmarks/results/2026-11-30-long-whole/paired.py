"""Scores before names were followed (`before.json`, the lens of 2026-11-29) and after, on the same examples.

    python benchmarks/results/2026-11-30-long-whole/paired.py
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def main() -> None:
    before = {tuple(row[:3]): row[3:] for row in json.loads((HERE / "before.json").read_text())}
    pairs = defaultdict(list)
    for path in sorted(HERE.glob("smollm2/cells/*/megacontext.jsonl")):
        for row in map(json.loads, path.read_text().splitlines()):
            old = before.get((row["task"], row["length"], row["index"]))
            if old is not None:
                new = row["score"], row["gold_shown"] or 0.0, row["places"]
                pairs[row["category"]].append((old, new))
                pairs["all"].append((old, new))
    print("category | n | score before | after | difference | gold in view | median places")
    rng = np.random.default_rng(0)
    for category, found in sorted(pairs.items()):
        old, new = np.array(found, dtype=float).transpose(1, 0, 2)
        gains = new[:, 0] - old[:, 0]
        drawn = rng.choice(gains, (10_000, len(gains))).mean(axis=1)
        low, high = np.quantile(drawn, (0.025, 0.975))
        print(
            f"{category} | {len(gains)} | {old[:, 0].mean():.2f} | {new[:, 0].mean():.2f} | "
            f"{gains.mean():+.2f} [{low:+.2f}, {high:+.2f}] | "
            f"{old[:, 1].mean():.2f} -> {new[:, 1].mean():.2f} | "
            f"{np.median(old[:, 2]):.0f} -> {np.median(new[:, 2]):.0f}"
        )


if __name__ == "__main__":
    main()
