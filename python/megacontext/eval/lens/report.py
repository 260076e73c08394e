"""Rows of `eval lens` as figures with intervals, one table, one picture.

Intervals resample documents, not questions: questions about one document are not independent.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000
_AGAINST = ("untrained", "bm25")
_RETRIEVAL = ("needle", "twin")


def resampled(documents: Sequence[str], seed: int = 0) -> list[NDArray[np.int64]]:
    """Row numbers of each bootstrap sample of documents."""
    rows: dict[str, list[int]] = defaultdict(list)
    for number, document in enumerate(documents):
        rows[document].append(number)
    held = [np.array(numbers) for numbers in rows.values()]
    rng = np.random.default_rng(seed)
    return [
        np.concatenate([held[i] for i in rng.integers(0, len(held), len(held))])
        for _ in range(_RESAMPLES)
    ]


def ratio(
    part: NDArray[np.float64], whole: NDArray[np.float64], samples: list[NDArray[np.int64]]
) -> dict[str, float]:
    """sum(part) / sum(whole) with its 95% interval."""
    values = [part[s].sum() / max(whole[s].sum(), 1e-9) for s in samples]
    low, high = np.quantile(values, [0.025, 0.975])
    return {
        "value": float(part.sum() / max(whole.sum(), 1e-9)), "low": float(low),
        "high": float(high), "count": len(part),
    }  # fmt: skip


def summarise(result: dict[str, Any]) -> dict[str, Any]:
    """Figures by kind of question: recall, gain, and the lead of each lens over its rivals."""
    summary: dict[str, Any] = {
        "history_blocks": result["history_blocks"],
        "reader": result.get("reader", False),
        "recall": {},
        "gain": {},
    }
    for kind, rows in _by_kind(result["recall"]).items():
        samples = resampled([row["document"] for row in rows])
        one = np.ones(len(rows))
        table: dict[str, Any] = {}
        for k in rows[0]["recall"]["untrained"]:
            found = {
                name: np.array([row["recall"][name][k] for row in rows])
                for name in rows[0]["recall"]
            }
            table[k] = {
                "methods": {name: ratio(value, one, samples) for name, value in found.items()},
                "lead": _leads(found, one, samples),
            }
        summary["recall"][kind] = table
    summary["shown"] = {kind: _shown(rows) for kind, rows in _by_kind(result["recall"]).items()}
    for kind, rows in _by_kind(result["gain"]).items():
        samples = resampled([row["document"] for row in rows])
        found = {
            name: np.array([row["gain"].get(name, 0.0) for row in rows]) for name in rows[0]["gain"]
        }
        oracle = found.pop("oracle")
        summary["gain"][kind] = {
            "oracle_nats": float(oracle.mean()),
            "methods": {name: ratio(value, oracle, samples) for name, value in found.items()},
            "lead": _leads(found, oracle, samples),
        }
    return summary


def _shown(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    samples, one = resampled([row["document"] for row in rows]), np.ones(len(rows))
    names = list(rows[0]["shown"])
    found = {name: np.array([row["shown"][name] for row in rows]) for name in names}
    return {
        "blocks": {n: float(np.mean([row["blocks"][n] for row in rows])) for n in names},
        "methods": {name: ratio(value, one, samples) for name, value in found.items()},
        "lead": _leads(found, one, samples),
    }


def _by_kind(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    kinds: dict[str, list[dict[str, Any]]] = {"all": list(rows)} if rows else {}
    for row in rows:
        kinds.setdefault(row["kind"], []).append(row)
    if streams := [row for row in rows if row["kind"] in _RETRIEVAL]:
        kinds["retrieval streams"] = streams
    return kinds


def _leads(
    found: dict[str, NDArray[np.float64]],
    whole: NDArray[np.float64],
    samples: list[NDArray[np.int64]],
) -> dict[str, dict[str, float]]:
    """Each trained lens minus each of its rivals."""
    known = {"random", "most recent", "embedding", "bm25", "untrained"}
    learned = [name for name in found if name not in known]
    rivals = [name for name in _AGAINST if name in found]
    return {
        f"{name} - {other}": ratio(found[name] - found[other], whole, samples)
        for name in learned
        for other in [*rivals, *(each for each in learned if each != name)]
    }


def _cell(figure: dict[str, float]) -> str:
    return f"{100 * figure['value']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def write_report(out: Path, summary: dict[str, Any]) -> None:
    """summary.json, report.md and report.png below `out`."""
    (out / "summary.json").write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")
    lines = [
        "# Lenses on held-out documents",
        "",
        f"{summary['history_blocks']:,} blocks of history; a window is 5 blocks. Percent, with 95% "
        "intervals over documents.",
    ]
    for kind, table in summary["recall"].items():
        count = next(iter(next(iter(table.values()))["methods"].values()))["count"]
        lines += ["", f"## Gold blocks shown: {kind} ({count} questions)", ""]
        lines += ["| | " + " | ".join(f"{k} windows" for k in table) + " |"]
        lines += ["|---|" + "---|" * len(table)]
        for part in ("methods", "lead"):
            for name in next(iter(table.values()))[part]:
                cells = [_cell(column[part][name]) for column in table.values()]
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
    reader = "with" if summary["reader"] else "without"
    lines += ["", f"## What is shown at run time, {reader} the reader", ""]
    lines += ["| | gold blocks shown | blocks shown |", "|---|---|---|"]
    for kind, figures in summary["shown"].items():
        for name, figure in figures["methods"].items():
            blocks = figures["blocks"][name]
            lines.append(f"| {kind}: {name} | {_cell(figure)} | {blocks:.1f} |")
        for name, figure in figures["lead"].items():
            lines.append(f"| {kind}: {name} | {_cell(figure)} | |")
    for kind, figures in summary["gain"].items():
        count = next(iter(figures["methods"].values()))["count"]
        lines += [
            "", f"## Share of the oracle's gain, one window: {kind} ({count} questions)", "",
            f"The oracle takes {figures['oracle_nats']:.2f} nats off an answer.", "",
            "| | share |", "|---|---|",
        ]  # fmt: skip
        for part in ("methods", "lead"):
            lines += [f"| {name} | {_cell(f)} |" for name, f in figures[part].items()]
    (out / "report.md").write_text("\n".join(lines) + "\n")
    _picture(out / "report.png", summary)


def _picture(path: Path, summary: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = list(summary["recall"])
    figure, panels = pyplot.subplots(1, len(kinds), figsize=(3.3 * len(kinds), 3.2), squeeze=False)
    for panel, kind in zip(panels[0], kinds, strict=True):
        table = summary["recall"][kind]
        for name in next(iter(table.values()))["methods"]:
            points = [column["methods"][name] for column in table.values()]
            values = [p["value"] for p in points]
            below = [p["value"] - p["low"] for p in points]
            above = [p["high"] - p["value"] for p in points]
            panel.errorbar([int(k) for k in table], values, [below, above], label=name, marker="o")
        panel.set(title=kind, xlabel="windows of 5 blocks", ylim=(0, 1.02))
    panels[0][0].set_ylabel("gold blocks shown")
    panels[0][-1].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
