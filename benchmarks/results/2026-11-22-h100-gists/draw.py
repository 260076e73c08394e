"""Draws curves.png and recovery.png from the files of this folder: python draw.py"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

HERE = Path(__file__).parent
SLICES = (("slice1.jsonl", "slice 1, batch 32"), ("slice2.jsonl", "slice 2, batch 64, new optimizer"))
METHODS = (
    "most recent tokens",
    "top attention (repeat-prefill)",
    "last token's KV of a share",
    "mean KV, log-mass bias",
    "random tokens",
    "gist rows",
)


def draw_curves() -> None:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5))
    before = 0.0
    styles = {"lod1x1": "-", "lod1x2": "--", "lod1x4": ":", "lod2x1": "-."}
    colours = {1: "tab:blue", 2: "tab:orange", 4: "tab:green"}
    for number, (name, label) in enumerate(SLICES):
        records = [json.loads(line) for line in (HERE / name).read_text().splitlines()]
        steps = [r for r in records if "kl" in r]
        for student, style in styles.items():
            points = [((before + r["elapsed_s"]) / 60, r["kl"][student]) for r in steps if student in r["kl"]]
            left.plot(*zip(*points), style, color=f"C{number}", label=f"{student}, slice {number + 1}")
        checks = [r for r in records if "recovery" in r]
        for rows, colour in colours.items():
            points = [((before + r["elapsed_s"]) / 60, r["recovery"][f"rows{rows}"]) for r in checks]
            right.plot(*zip(*points), "o-", color=colour, label=f"{32 // rows}:1" if not number else None)
        before += max(r["elapsed_s"] for r in records)
        if number + 1 < len(SLICES):
            for axis in (left, right):
                axis.axvline(before / 60, color="grey", lw=0.8)
        print(label, f"{len(steps)} points, {len(checks)} validations")
    left.set(xlabel="minutes on the device", ylabel="KL to the full context, nats", title="training")
    right.set(xlabel="minutes on the device", ylabel="gap recovery, validation", title="validation, LOD 1")
    left.legend(fontsize=7, ncol=2)
    right.legend()
    figure.tight_layout()
    figure.savefig(HERE / "curves.png", dpi=110)


def draw_recovery() -> None:
    suites = json.loads((HERE / "gists.json").read_text())["suites"]
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 4.8), width_ratios=(3, 2))
    for axis, (name, entries) in zip(axes, (("lod1", (16, 32, 64)), ("lod2", (1, 2, 4)))):
        table = suites[name]["summary"]["methods"]
        methods = [m for m in METHODS if f"{m} @ {entries[0]}" in table]
        for place, method in enumerate(methods):
            for i, count in enumerate(entries):
                row = table[f"{method} @ {count}"]
                low, high = row["interval"]
                value = row["recovery"]
                axis.bar(
                    i + (place - len(methods) / 2 + 0.5) * 0.8 / len(methods),
                    value,
                    0.8 / len(methods),
                    yerr=[[value - low], [high - value]],
                    capsize=2,
                    color=f"C{METHODS.index(method)}",
                    label=method if i == 0 else None,
                )
        span = 512 if name == "lod1" else 1024
        axis.set_xticks(range(3), [f"{n} entries\n{span // n}:1" for n in entries])
        axis.axhline(0, color="black", lw=0.8)
        axis.set(ylabel="gap recovery", title=f"{name}: {span} tokens, 160 spans, 95 % intervals")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(HERE / "recovery.png", dpi=110)


draw_curves()
draw_recovery()
