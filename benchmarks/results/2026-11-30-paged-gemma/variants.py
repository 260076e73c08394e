"""How layers of Gemma 3 should share the kept rows of a page: five ways, on validation texts.

    python benchmarks/results/2026-11-30-paged-gemma/variants.py val.u16.xz TEXTS ROWS OUT.jsonl

4,096 tokens of history, 256 scored, 512 places, ROWS a block. Values weigh by their norm squared;
`WAYS` says whether that is taken beside the mean of the layer, `share` to which power a layer's
total is taken out (1: all layers have the same).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.runtime.bench_paged_quality import in_own_tokens, texts_in_turns, through
from megacontext.gists.selection import expected_use
from megacontext.models import load
from megacontext.paged import PagedConfig, attach, kept
from megacontext.paged.stream import FocusLimits

HISTORY, SCORED, PLACES = 4096, 256, 512
# name: power of the value's norm, beside the layer's mean or not, power of the layer's total.
WAYS = {
    "use": (2, False, 0.0),  # as it was
    "norms within a layer": (2, True, 0.0),
    "no norms": (0, False, 0.0),
    "half of a layer's total": (2, True, 0.5),
    "even": (2, True, 1.0),
}


def way(power: int, within: bool, share: float):
    def use_of(queries: Tensor, keys: Tensor, values: Tensor, *others: Tensor) -> Tensor:
        norm = values.float().square().sum(-1)
        found = expected_use(queries, keys, values, *others) / norm.clamp_min(1e-20)
        found = found * ((norm / norm.mean() if within else norm) ** (power / 2))
        return found / found.sum().clamp_min(1e-20) ** share

    return use_of


def main(shard: Path, texts: int, rows: int, out: Path) -> None:
    base, spoken = load("gemma3"), load("smollm2").tokenizer
    config = PagedConfig(read_tokens=1024, gists="kept", gist_rows=rows)
    for span in texts_in_turns(shard, (HISTORY + SCORED + 1) * 3 // 2, texts):
        ids = in_own_tokens(span, spoken, base.tokenizer, HISTORY + SCORED + 1)
        if len(ids) < HISTORY + SCORED + 1:  # too short in these tokens
            continue
        wide = FocusLimits(2 * len(ids), recent_tokens=2 * len(ids))
        row: dict[str, object] = {"source": span.source}
        for name, settings in WAYS.items():
            kept.expected_use = way(*settings)
            with attach(base.model, replace(config, limits=wide)) as memory:
                memory._gists._writer._normed = False  # type: ignore[union-attr]
                memory.read(ids[:HISTORY])
                if "full context" not in row:
                    row["full context"] = through(memory, base.model, ids, HISTORY)
                    none = FocusLimits(PLACES, gist_pages_max=0)
                    memory.config = replace(config, limits=none)
                    row["first and newest"] = through(memory, base.model, ids, HISTORY)
                memory.config = replace(config, limits=FocusLimits(PLACES))
                row[name] = through(memory, base.model, ids, HISTORY)
                owners = Counter(int(o) for k in memory.streams[0].kept.values() for o in k.owner)
                row[f"rows by layer, {name}"] = sorted(owners.items())
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
