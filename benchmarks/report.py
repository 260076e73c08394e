"""Keeps what was measured: raw.jsonl, summary.md and a roofline picture in one folder a machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.machine import Ceilings

__all__ = ["write_results"]


def write_results(
    folder: Path,
    benches: list[dict[str, Any]],
    lines: list[dict[str, Any]],
    ceilings: Ceilings,
    command: str,
) -> None:
    """Adds to `raw.jsonl` and replaces `summary.md` by a summary of all that it holds.

    Args:
        folder: made when missing.
        benches: the JSON objects of this run, one a benchmark.
        lines: every contestant of every case of this run.
        ceilings: of this run.
        command: what to type to get the figures again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = [{"kind": "line", **line} for line in lines]
    limits = {"copy_bytes_per_s": ceilings.copy_bytes_per_s, "gemm": ceilings.gemm_flops_per_s}
    records += [{"kind": "bench", "ceilings": limits, "command": command, **b} for b in benches]
    with (folder / "raw.jsonl").open("a", encoding="utf-8") as raw:
        for record in records:
            raw.write(json.dumps(record) + "\n")
    known = [json.loads(line) for line in (folder / "raw.jsonl").read_text().splitlines()]
    (folder / "summary.md").write_text(_summary(known), encoding="utf-8")
    _draw_roofline(folder / "roofline.png", known)


def _latest(records: list[dict[str, Any]], key: Any) -> list[dict[str, Any]]:
    return list({key(record): record for record in records}.values())


def _summary(records: list[dict[str, Any]]) -> str:
    benches = _latest([r for r in records if r["kind"] == "bench"], lambda r: r["bench"])
    lines = _latest(
        [r for r in records if r["kind"] == "line"],
        lambda r: (r["bench"], r["case"], r["contestant"], json.dumps(r["params"])),
    )
    text = []
    for bench in benches:
        limits, card = bench["ceilings"], bench["machine"]
        where = card["gpu"] or f"{card['cpu']}, {card['threads']} thread(s)"
        text += [
            f"## {bench['bench']}",
            "",
            f"{where}; torch {card['torch']}; commit {bench['commit']}"
            f"{' with changes' if bench['dirty'] else ''}; copy "
            f"{limits['copy_bytes_per_s'] / 1e9:.0f} GB/s, GEMM "
            + ", ".join(f"{k} {v / 1e9:.0f} GFLOP/s" for k, v in limits["gemm"].items()),
            "",
            f"    {bench['command']}",
            "",
            "| case | contestant | parameters | median | of copy | of GEMM |",
            "|---|---|---|---|---|---|",
        ]
        for line in lines:
            if line["bench"] != bench["bench"]:
                continue
            params = " ".join(f"{k}={v}" for k, v in line["params"].items())
            shares = [line.get("share_of_copy"), line.get("share_of_gemm")]
            shown = " | ".join("" if s is None else f"{100 * s:.0f}%" for s in shares)
            text.append(
                f"| {line['case']} | {line['contestant']} | {params} | "
                f"{line['median_s'] * 1e6:,.1f} us | {shown} |"
            )
        text += ["", "| ratio, bigger is better | |", "|---|---|"]
        text += [f"| {name} | {ratio:.2f} |" for name, ratio in bench["ratios"].items()] + [""]
    return "# Measured\n\n" + "\n".join(text)


def _draw_roofline(path: Path, records: list[dict[str, Any]]) -> None:
    """FLOP/s over FLOPs a byte of our own lines, under the ceilings; nothing without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print("roofline.png needs matplotlib: skipped")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [
        r
        for r in records
        if r["kind"] == "line" and r["contestant"] == "megacontext" and r.get("flops_per_byte")
    ]
    benches = [r for r in records if r["kind"] == "bench"]
    if not lines or not benches:
        return
    limits = benches[-1]["ceilings"]
    figure, axes = plt.subplots(figsize=(8, 5))
    intensities = [2.0**i for i in range(-4, 13)]
    for dtype, peak in limits["gemm"].items():
        roof = [min(peak, i * limits["copy_bytes_per_s"]) / 1e9 for i in intensities]
        axes.plot(intensities, roof, label=f"ceiling, {dtype}")
    for name in sorted({r["bench"] for r in lines}):
        mine = [r for r in lines if r["bench"] == name]
        x, y = [r["flops_per_byte"] for r in mine], [r["flops_per_s"] / 1e9 for r in mine]
        axes.scatter(x, y, label=name)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs a byte", ylabel="GFLOP/s")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
