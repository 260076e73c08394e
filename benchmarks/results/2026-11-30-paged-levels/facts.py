"""Facts far back, asked for with nothing in focus but what gist pages show: LOD 1 or all LODs.

    python benchmarks/results/2026-11-30-paged-levels/facts.py TEXTS MINUTES OUT.json
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.runtime.bench_paged_peers import Asides, Text, answers, bodies
from megacontext.eval.statistics import bootstrap_interval, paired_comparison
from megacontext.models import load
from megacontext.paged import PagedConfig, attach
from megacontext.paged.stream import FocusLimits

HISTORY, BUDGETS = 7680, (256, 512, 1024)
WIDE = FocusLimits(budget_places=2 * HISTORY, recent_tokens=2 * HISTORY)


@torch.inference_mode()
def measure(base, text: Text) -> dict[str, float]:
    """NLL of the digits by rows a block, places and coarsest LOD; and with everything in view."""
    found = {}
    for rows in (1, 4):
        config = PagedConfig(limits=WIDE, read_tokens=1024, gists="kept", gist_rows=rows)
        with attach(base.model, config) as memory:
            memory.read(text.history)
            with Asides(base.model, memory, {}) as reader:

                def asked(question, lead, reader=reader):
                    ask = reader.fresh(question)
                    ask(lead)
                    return ask

                for places in BUDGETS:
                    for lod in (0, 1, 3) if rows == 4 else (1,):  # 0: no gist pages
                        limits = FocusLimits(budget_places=places, gist_lod_max=max(1, lod))
                        limits = limits if lod else replace(limits, gist_pages_max=0)
                        memory.config = replace(config, limits=limits)
                        shown = f"LOD {lod}" if lod else "none"
                        name = f"{rows} a block, {places} places, {shown}"
                        found[name] = answers(text, asked)["digits"]
                memory.config = config
                found["everything"] = answers(text, asked)["digits"]
    return found


def main(texts: int, minutes: float, out: Path) -> None:
    base = load("smollm2")
    rows, began = [], time.monotonic()
    for seed, body in enumerate(bodies(texts)):
        text = Text(base.tokenizer, body, seed, HISTORY, 32)
        rows.append(measure(base, text))
        shown = {name: round(value, 2) for name, value in rows[-1].items()}
        print(f"{time.monotonic() - began:.0f} s {shown}", flush=True)
        if time.monotonic() - began > 60 * minutes:
            break
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    result = {
        "texts": rows,
        "digits": {name: str(bootstrap_interval(column)) for name, column in columns.items()},
        "gain of all LODs over LOD 1": {
            name: str(paired_comparison(columns[name.replace("LOD 3", "LOD 1")], column))
            for name, column in columns.items()
            if name.endswith("LOD 3")
        },
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "texts"}, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
