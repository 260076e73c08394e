"""What measures the use of a row: powers of attention, norms of values, bounds of a head's share.

    python benchmarks/results/2026-11-29-kept-rows/measures.py BASE_FOLDER val.u16.xz OUT.json

18 spans of the validation sources, 16 entries a layer and KV head (32:1); the measure was chosen
here and tested on other sources (README.md).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megacontext.eval import gist_methods as methods
from megacontext.eval.gist_methods import Window
from megacontext.eval.gist_selection import Asked, _ragged, asked_by
from megacontext.eval.gists import LOD1, summarise
from megacontext.eval.held_out import held_out_spans
from megacontext.gists import selection
from megacontext.gists.base import base_from_folder, choose_attention

ENTRIES = 16
# Power of attention, power of the value's norm, SPREAD. First: how it was before; last: how it is.
MEASURES = (
    (1.0, 0, 4), (1.0, 1, 4), (1.5, 0, 4), (1.5, 1, 4), (1.5, 1, 8), (1.5, 2, 16), (2.0, 0, 4),
    (1.5, 2, 8),
)  # fmt: skip
QUERIES_AT_ONCE = 16


def powers_of_attention(asked: Asked, keys: Tensor, earlier: Tensor) -> dict[float, Tensor]:
    """[B, Hkv, T] a power: sums over the queries, as `expected_use` has them for 1.5."""
    heads, count = keys.shape[1:3]
    queries = asked.queries.unflatten(1, (heads, -1)) * keys.shape[-1] ** -0.5
    always = torch.cat((keys, earlier), 2)
    sums = {power: torch.zeros(keys.shape[:3]) for power in (1.0, 1.5, 2.0)}
    for start in range(0, queries.shape[3], QUERIES_AT_ONCE):
        end = min(start + QUERIES_AT_ONCE, queries.shape[3])
        seen = torch.cat((always, asked.recent[:, :, :end]), 2)
        scores = (queries[:, :, :, start:end].flatten(2, 3) @ seen.mT).float()
        hidden = torch.ones(end - start, end - start, dtype=torch.bool).triu(1)
        own = scores[..., -(end - start) :].unflatten(2, (-1, end - start))
        own.masked_fill_(hidden, float("-inf"))
        weights = scores.softmax(-1)[..., :count]
        root = weights.sqrt()
        sums[1.0] += weights.sum(2)
        sums[1.5] += root.mul_(weights).sum(2)
        sums[2.0] += weights.square_().sum(2)
    return sums


@torch.inference_mode()
def main() -> None:
    folder, shard, out = map(Path, sys.argv[1:])
    choose_attention(torch.device("cpu"))
    base = base_from_folder(folder, torch.bfloat16)
    spans = held_out_spans(shard, LOD1.layout.tokens + 1, 3)
    nll: dict[str, list[float]] = {}
    for start in range(0, len(spans), 2):
        ids = np.stack([s.ids for s in spans[start : start + 2]]).astype(np.int64)
        window = Window(base, torch.from_numpy(ids), LOD1.layout)
        found = {"full": window.full, "drop": methods.drop(window, 0)}
        asked, span, before = asked_by(window, "own"), window.span, window.prefix.keys
        sums = [powers_of_attention(*each) for each in zip(asked, span.keys, before, strict=True)]
        norms = [values.float().norm(dim=-1) for values in span.values]
        for power, norm, spread in MEASURES:
            use = torch.stack([s[power] * n**norm for s, n in zip(sums, norms, strict=True)])
            selection.SPREAD = spread
            rows = [
                selection.choose_rows(one, ENTRIES * one[..., 0].numel()) for one in use.unbind(1)
            ]
            found[f"attention^{power} value^{norm} spread {spread}"] = _ragged(window, rows)
        for name, hidden in found.items():
            nll.setdefault(name, []).extend(window.nll(hidden).tolist())
        print(f"{start + len(ids)} of {len(spans)}", flush=True)
    table = {
        name: [round(100 * value, 1) for value in (row["recovery"], *row["interval"])]
        for name, row in summarise(nll, spans)["methods"].items()
    }
    out.write_text(json.dumps(table, indent=1) + "\n")
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
