"""The gist measurement as a Markdown table and a picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def suite_table(summary: dict[str, Any]) -> list[str]:
    lines = [
        f"{summary['spans']} spans of {summary['passages']} passages; "
        f"NLL full {summary['nll_full']:.4f}, drop {summary['nll_drop']:.4f} "
        f"(gap {summary['nll_drop'] - summary['nll_full']:.4f} nats)",
        "",
    ]
    domains = sorted(next(iter(summary["methods"].values()))["by_domain"])
    lines.append(
        "| method @ entries | dNLL | gap recovery | 95 % interval | worse than drop | "
        + " | ".join(domains)
        + " |"
    )
    lines.append("|---|---|---|---|---|" + "---|" * len(domains))
    for name, row in summary["methods"].items():
        low, high = row["interval"]
        cells = [percent(row["by_domain"][d]["recovery"]) for d in domains]
        lines.append(
            f"| {name} | +{row['dnll']:.4f} | {percent(row['recovery'])} | "
            f"{percent(low)} to {percent(high)} | {percent(row['worse_than_drop'])} | "
            + " | ".join(cells)
            + " |"
        )
    return lines


def write_markdown(result: dict[str, Any], path: Path) -> None:
    """Writes one table a suite."""
    lines = ["# KV gists on held-out text", ""]
    for name, suite in result["suites"].items():
        lines.extend([f"## {name}", "", *suite_table(suite["summary"]), ""])
    path.write_text("\n".join(lines))


def write_picture(result: dict[str, Any], path: Path) -> None:
    """Draws recovery against entries, one line a method, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    suites = result["suites"]
    figure, axes = pyplot.subplots(1, len(suites), figsize=(7 * len(suites), 5), squeeze=False)
    for axis, (name, suite) in zip(axes[0], suites.items(), strict=True):
        lines: dict[str, list[tuple[int, float, float, float]]] = {}
        for label, row in suite["summary"]["methods"].items():
            method, _, entries = label.partition(" @ ")
            if entries and row["recovery"] > -0.2:
                low, high = row["interval"]
                lines.setdefault(method, []).append((int(entries), row["recovery"], low, high))
        for method, points in lines.items():
            counts, values, lows, highs = map(list, zip(*sorted(points), strict=True))
            below = [v - x for v, x in zip(values, lows, strict=True)]
            above = [x - v for v, x in zip(values, highs, strict=True)]
            width = 2.5 if method == "gist rows" else 1.2
            axis.errorbar(
                counts, values, [below, above], label=method, marker="o", lw=width, capsize=3
            )
        axis.axhline(0, color="grey", lw=0.8)
        axis.set(xscale="log", xlabel="entries for the span", ylabel="gap recovery", title=name)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path, help="gists.json")
    options = parser.parse_args()
    result = json.loads(options.result.read_text())
    write_markdown(result, options.result.with_suffix(".md"))
    write_picture(result, options.result.with_suffix(".png"))


if __name__ == "__main__":
    main()
