"""Rows of `eval.lens.policy` as figures with intervals, tables and a picture.

Intervals resample documents, and differences are paired by question.

    python -m megacontext.eval.lens.policy_report FOLDER    # again, of FOLDER/rows.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacontext.eval.lens.report import ratio, resampled

Row = dict[str, Any]
Figures = dict[str, dict[str, float]]

GROUPS = {
    "one block": ("reading", "needle", "twin"),
    "several blocks": ("two documents", "list", "echo", "chain"),
}
_RIVALS = ("greedy", "evidence", "trained lens", "learned scores")
# Methods that use fewer places than they have are held against the greedy allocator as it runs.
_STOPS = "may stop"
_STOPPING = ("greedy, may stop", "greedy")
_LABELS = {
    "unread": "scores of retrieval alone",
    "read": "the base has read the candidates, as at run time",
}


def by_kind(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """All rows, those of each group and of each kind; groups without rows are left out."""
    kinds = {"all": list(rows)}
    for name, of_group in GROUPS.items():
        kinds[name] = [row for row in rows if row["kind"] in of_group]
    for row in rows:
        kinds.setdefault(row["kind"], []).append(row)
    return {name: each for name, each in kinds.items() if each}


def figures(rows: Sequence[Row], read: Callable[[Row], dict[str, float]]) -> dict[str, Figures]:
    """Means of the methods that `read` gives for a row, and leads of the learned ones."""
    samples, one = resampled([row["document"] for row in rows]), np.ones(len(rows))
    read_rows = [read(row) for row in rows]
    found = {name: np.array([each[name] for each in read_rows]) for name in read_rows[0]}
    return {
        "methods": {name: ratio(values, one, samples) for name, values in found.items()},
        "lead": _leads(found, one, samples),
    }


def _leads(
    found: dict[str, NDArray[np.float64]],
    one: NDArray[np.float64],
    samples: list[NDArray[np.int64]],
) -> Figures:
    pairs = [
        (name, rival)
        for name in found
        if name.startswith(("policy", "learned"))
        for rival in (_STOPPING if name.endswith(_STOPS) else _RIVALS)
    ]
    return {
        f"{name} - {rival}": ratio(found[name] - found[rival], one, samples)
        for name, rival in pairs
        if rival in found and rival != name
    }


def summarise_policy(result: dict[str, Any]) -> dict[str, Any]:
    """Figures by readings, kind, blocks and measure: `whole` and `gold` are shares, `blocks` what
    was used, `nats` what came off the answer."""
    summary: dict[str, Any] = {"allocators": result["allocators"], "shown": {}, "nats": {}}
    for label in _LABELS:
        summary["shown"][label] = {
            kind: {
                blocks: {
                    "count": len(rows),
                    "whole": figures(rows, _reader(label, blocks, "whole")),
                    "gold": figures(rows, _reader(label, blocks, "gold")),
                    "blocks": _blocks_used(rows, label, blocks),
                }
                for blocks in rows[0][label]
                if blocks != "candidates"
            }
            | {"candidates": float(np.mean([row[label]["candidates"] for row in rows]))}
            for kind, rows in by_kind(result["recall"]).items()
        }
    for kind, rows in by_kind(result["nats"]).items():
        summary["nats"][kind] = _nats(rows)
    return summary


def _reader(label: str, blocks: str, measure: str) -> Callable[[Row], dict[str, float]]:
    return lambda row: {name: each[measure] for name, each in row[label][blocks].items()}


def _blocks_used(rows: Sequence[Row], label: str, blocks: str) -> dict[str, float]:
    return {
        name: float(np.mean([row[label][blocks][name]["used"] for row in rows]))
        for name in rows[0][label][blocks]
    }


def _nats(rows: Sequence[Row]) -> dict[str, Any]:
    sizes = [name for name in rows[0] if name.isdigit()]
    found: dict[str, Any] = {
        "count": len(rows),
        "nothing": float(np.mean([row["nothing"] for row in rows])),
        "tokens": float(np.mean([row["tokens"] for row in rows])),
    }
    for blocks in sizes:
        found[blocks] = figures(rows, _off(blocks, False))
    asked = [row for row in rows if "oracle" in row]
    if asked:
        found["oracle"] = {
            "count": len(asked),
            "blocks": float(np.mean([row["oracle_blocks"] for row in asked])),
            "whole": float(np.mean([row["oracle_whole"] for row in asked])),
            **figures(asked, _off(sizes[0], True)),
        }
    return found


def _off(blocks: str, oracle: bool) -> Callable[[Row], dict[str, float]]:
    """Nats that each method takes off the answer."""

    def read(row: Row) -> dict[str, float]:
        nats = {**row[blocks], **({"oracle": row["oracle"]} if oracle else {})}
        return {name: row["nothing"] - each for name, each in nats.items()}

    return read


def _share(figure: dict[str, float]) -> str:
    return f"{100 * figure['value']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def _plain(figure: dict[str, float]) -> str:
    return f"{figure['value']:+.2f} [{figure['low']:+.2f}, {figure['high']:+.2f}]"


def write_policy_report(out: Path, summary: dict[str, Any]) -> None:
    """summary.json, report.md and report.png below `out`."""
    (out / "summary.json").write_text(json.dumps(_rounded(summary), sort_keys=True) + "\n")
    lines = ["# A learned policy against the greedy allocator", ""]
    for label, says in _LABELS.items():
        for kind, table in summary["shown"][label].items():
            lines += _shown_table(f"Facts shown whole, %: {kind}; {says}", table)
    for kind, found in summary["nats"].items():
        lines += _nats_table(kind, found)
    lines += ["", "## Plans and fallbacks", "", "| | plans | greedy instead |", "|---|---|---|"]
    for name, counts in summary["allocators"].items():
        instead = ", ".join(f"{why} {n}" for why, n in counts["fallbacks"].items()) or "0"
        lines.append(f"| {name} | {counts['plans']} | {instead} |")
    (out / "report.md").write_text("\n".join(lines) + "\n")
    _picture(out / "report.png", summary)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return round(value, 5) if isinstance(value, float) else value


def _shown_table(title: str, table: dict[str, Any]) -> list[str]:
    sizes = [name for name in table if name != "candidates"]
    lines = ["", f"## {title} ({table[sizes[0]]['count']} questions)", ""]
    lines.append(f"Candidates hold {100 * table['candidates']:.1f}.")
    lines += ["", "| | " + " | ".join(f"{n} blocks" for n in sizes) + " |"]
    lines.append("|---|" + "---|" * len(sizes))
    for name in table[sizes[0]]["whole"]["methods"]:
        cells = []
        for n in sizes:
            used = table[n]["blocks"][name]
            note = f" ({used:.1f} used)" if used < int(n) - 0.05 else ""
            cells.append(_share(table[n]["whole"]["methods"][name]) + note)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name in table[sizes[0]]["whole"]["lead"]:
        cells = [_share(table[n]["whole"]["lead"][name]) for n in sizes]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _nats_table(kind: str, found: dict[str, Any]) -> list[str]:
    sizes = [name for name in found if name.isdigit()]
    lines = ["", f"## Nats off the answer: {kind} ({found['count']} questions)", ""]
    lines.append(
        f"With nothing shown an answer of {found['tokens']:.1f} tokens costs "
        f"{found['nothing']:.2f} nats."
    )
    heads = [f"{n} blocks" for n in sizes]
    if "oracle" in found:
        heads.append(f"{sizes[0]} blocks, those with an oracle ({found['oracle']['count']})")
    lines += ["", "| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    tables = [found[n] for n in sizes] + ([found["oracle"]] if "oracle" in found else [])
    for part in ("methods", "lead"):
        for name in tables[-1][part]:
            cells = [_plain(t[part][name]) if name in t[part] else "" for t in tables]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _picture(path: Path, summary: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = [kind for kind in summary["shown"]["read"] if kind not in GROUPS["one block"][1:]]
    figure, panels = pyplot.subplots(
        2, len(kinds), figsize=(2.6 * len(kinds), 5.2), squeeze=False, sharey=True
    )
    for row, label in zip(panels, _LABELS, strict=True):
        for panel, kind in zip(row, kinds, strict=True):
            table = summary["shown"][label][kind]
            sizes = [name for name in table if name != "candidates"]
            for name in table[sizes[0]]["whole"]["methods"]:
                used = [table[n]["blocks"][name] for n in sizes]
                values = [table[n]["whole"]["methods"][name]["value"] for n in sizes]
                panel.plot(used, values, label=name, marker=".", linewidth=1)
            panel.set(title=f"{kind}, {label}", xlabel="blocks shown", ylim=(0, 1.02))
            panel.title.set_fontsize(8)
            panel.grid(alpha=0.3)
        row[0].set_ylabel("facts shown whole")
    lines, names = panels[0][0].get_legend_handles_labels()
    figure.legend(lines, names, ncols=len(names), fontsize=8, loc="lower center")
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    out = Path(sys.argv[1])
    write_policy_report(out, summarise_policy(json.loads((out / "rows.json").read_text())))


if __name__ == "__main__":
    main()
