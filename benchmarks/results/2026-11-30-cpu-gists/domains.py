"""`gists.json` by domain, and paired: python benchmarks/results/2026-11-30-cpu-gists/domains.py"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
OURS = "gist rows @ 16"
OTHERS = ("mean-pool head @ 16", "most recent tokens @ 16", "gist rows, untrained @ 16")


def interval(gains: np.ndarray, gaps: np.ndarray, passages: np.ndarray) -> str:
    """Sum of gains over sum of gaps in %, bootstrapped over passages."""
    rng, names = np.random.default_rng(0), np.unique(passages)
    of = [np.flatnonzero(passages == name) for name in names]
    drawn = []
    for _ in range(4000):
        rows = np.concatenate([of[i] for i in rng.integers(len(of), size=len(of))])
        drawn.append(gains[rows].sum() / gaps[rows].sum())
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"{100 * gains.sum() / gaps.sum():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def main() -> None:
    suite = json.loads((HERE / "gists.json").read_text())["suites"]["lod1"]
    nll = {name: np.array(values) for name, values in suite["nll"].items()}
    domains = np.array([span[1] for span in suite["spans"]])
    passages = np.array(["/".join(map(str, span)) for span in suite["spans"]])
    gaps = nll["drop"] - nll["full"]
    for domain in (*np.unique(domains), "all"):
        rows = (domains == domain) | (domain == "all")
        there = interval((nll["drop"] - nll[OURS])[rows], gaps[rows], passages[rows])
        print(f"{domain}: {there} % of the gap, {int(rows.sum())} spans")
    for other in OTHERS:
        print(f"over {other}: {interval(nll[other] - nll[OURS], gaps, passages)} points")


if __name__ == "__main__":
    main()
