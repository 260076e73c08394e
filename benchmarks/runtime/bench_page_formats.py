"""What fewer bits in the pages of a paged memory cost: NLL of a continuation, and bytes a token.

A text is read once into a store. Then the store is opened again with its pages as they are, and
with copies whose pages were rewritten in fewer bits (`Store.reencode`, which is what happens to
cold pages); a second reading keeps pages as int8 from the start. The whole history is in view.

    python -m benchmarks.runtime.bench_page_formats --shard test.u16.xz --texts 8 --out FILE
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.harness import Bench, Case
from benchmarks.runtime.bench_paged_quality import own_text, texts_in_turns, through
from megacontext.config import K
from megacontext.eval.statistics import bootstrap_interval
from megacontext.models import load
from megacontext.paged import PagedConfig, attach
from megacontext.paged.page_codec import format_of
from megacontext.paged.stream import FocusLimits
from megacontext_ext import Store

TESTS = ["tests/python/paged/test_store.py"]
# Row type, and how many numbers share a scale (csrc/format/row_format.h).
REWRITTEN = {
    "q8, 64": ("q8", 64),
    "e4m3, 64": ("e4m3", 64),
    "q4, 64": ("q4", 64),
    "q4, 32": ("q4", 32),
}
EXACT, OWN = "as computed", "int8 from the start"
NAMES = (EXACT, OWN, *REWRITTEN)
Found = dict[str, tuple[float, float]]


@torch.inference_mode()
def read(model: PreTrainedModel, store: Path, config: PagedConfig, ids: Tensor) -> None:
    with attach(model, config, store=store) as memory:
        memory.read(ids)


@torch.inference_mode()
def nll(model: PreTrainedModel, store: Path, config: PagedConfig, ids: Tensor, start: int) -> float:
    """Mean NLL of ids [T] from `start` on, over a store with the pages of what precedes."""
    with attach(model, config, store=store) as memory:
        assert memory.token_count == start, f"{memory.token_count} of {start} tokens have pages"
        return through(memory, model, ids, start)


def measure(model: PreTrainedModel, ids: Tensor, history: int) -> Found:
    """(NLL, bytes a token of the history's pages) by format, for one text [T]."""
    wide = FocusLimits(budget_places=2 * len(ids), recent_tokens=2 * len(ids))
    config = PagedConfig(limits=wide, read_tokens=1024, gists="off")
    family, found = f"kv-{format_of(model.dtype)}", {}
    with tempfile.TemporaryDirectory() as folder:
        exact, copy, own = (Path(folder) / name for name in ("exact", "copy", "own"))
        read(model, exact, config, ids[:history])
        for name, (row_type, group) in REWRITTEN.items():
            shutil.copytree(exact, copy)
            with Store.open(copy) as store:
                done = store.reencode(family, row_type, group)
            found[name] = nll(model, copy, config, ids, history), done.bytes_after / history
            shutil.rmtree(copy)
        found[EXACT] = nll(model, exact, config, ids, history), done.bytes_before / history
        config = replace(config, pages="int8")
        read(model, own, config, ids[:history])
        with Store.open(own, read_only=True) as store:
            (pages,) = (f for f in store.row_families() if f.name == "kv-int8")
        found[OWN] = nll(model, own, config, ids, history), pages.row_bytes / K
    return {name: found[name] for name in NAMES}


def run(bench: Bench) -> None:
    base = load("smollm2")
    history = 256 if bench.smoke else 4096
    ids = own_text(base.tokenizer, history + (32 if bench.smoke else 256) + 1)
    began = time.perf_counter()
    found = measure(base.model, ids, history)
    bench.record(Case("one text", {"history": history}), "all", [time.perf_counter() - began])
    for name, (loss, rate) in found.items():
        print(f"    NLL {loss:.4f}, {rate:6.0f} bytes a token  {name}")
        bench.record_ratio(f"bytes as computed over {name}", found[EXACT][1] / rate)


def table(rows: list[Found]) -> list[str]:
    """Markdown: what each format costs, in nats a token over the pages as computed."""
    lines = ["| pages | bytes a token | nats lost a token |", "|---|--:|--:|"]
    for name in NAMES:
        rate = statistics.fmean(row[name][1] for row in rows)
        lost = bootstrap_interval([row[name][0] - row[EXACT][0] for row in rows])
        lines.append(f"| {name} | {rate:,.0f} | {lost} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shard", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--history", type=int, default=4096)
    parser.add_argument("--scored", type=int, default=256)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model = load("smollm2").model
    width = options.history + options.scored + 1
    rows: list[Found] = []
    options.out.mkdir(parents=True, exist_ok=True)
    for span in texts_in_turns(options.shard, width, options.texts):
        ids = torch.from_numpy(span.ids.astype(np.int64))
        rows.append(measure(model, ids, options.history))
        print(
            span.source, {name: round(found[0], 4) for name, found in rows[-1].items()}, flush=True
        )
        result = {"history": options.history, "scored": options.scored, "texts": rows}
        (options.out / "page-formats.json").write_text(json.dumps(result, indent=1) + "\n")
        if len(rows) > 1:
            (options.out / "page-formats.md").write_text("\n".join(table(rows)) + "\n")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
