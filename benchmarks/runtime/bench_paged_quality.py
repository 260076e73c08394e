"""What a paged memory keeps at equal places: NLL of a continuation after a long history.

Contestants, all with `places` places a step of 32 tokens: the newest tokens read again as a window
of their own (truncation), a paged memory with its first block and the newest blocks, the same with
gist pages (learned; kept rows, one a block and four); and the full context as the bound. The
history is read once with everything in view, so that the paged contestants differ only in what they
show.

    python -m benchmarks.runtime.bench_paged_quality --shard test.u16.xz --texts 12 --out FILE
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Bench, Case
from megacontext.eval.held_out import HeldOutSpan, held_out_spans
from megacontext.eval.statistics import bootstrap_interval, paired_comparison
from megacontext.models import load
from megacontext.models.kv_cache import CACHE_ARGUMENT
from megacontext.paged import PagedConfig, attach
from megacontext.paged.memory import PagedMemory
from megacontext.paged.stream import FocusLimits

TESTS = ["tests/python/paged/test_gists.py"]
STEP = 32
ROOT = Path(__file__).resolve().parents[2]
GISTS = {
    "learned gists": ("learned", 1),
    "kept rows": ("kept", 1),
    "kept rows, 4 a block": ("kept", 4),
}
OURS = "kept rows"
BOUND, PLAIN = "full context", "paged, first and newest"
NAMES = ("truncation", PLAIN, *GISTS, BOUND)


def sum_nll(logits: Tensor, wanted: Tensor) -> float:
    return float(F.cross_entropy(logits.float(), wanted, reduction="sum"))


@torch.inference_mode()
def truncated(model: torch.nn.Module, ids: Tensor, history: int, places: int) -> float:
    """Mean NLL of ids [T] beyond `history`, each step seeing the `places` newest, its own too."""
    total = 0.0
    for start in range(history, len(ids) - 1, STEP):
        end = min(start + STEP, len(ids) - 1)
        window = ids[max(0, end - places) : end][None]
        logits = model(window, logits_to_keep=end - start, use_cache=False).logits[0]
        total += sum_nll(logits, ids[start + 1 : end + 1])
    return total / (len(ids) - 1 - history)


@torch.inference_mode()
def through(memory: PagedMemory, model: torch.nn.Module, ids: Tensor, history: int) -> float:
    """The same through the memory, which is afterwards as it was."""
    stream, total = memory.streams[0], 0.0
    for start in range(history, len(ids) - 1, STEP):
        end = min(start + STEP, len(ids) - 1)
        memory.cache.begin_call()
        logits = model(ids[None, start:end], **{CACHE_ARGUMENT: memory.cache}).logits[0]
        total += sum_nll(logits, ids[start + 1 : end + 1])
    stream.token_count, stream.tokens = history, stream.tokens[:history]
    stream.gisted_blocks = min(stream.gisted_blocks, history // 32)
    return total / (len(ids) - 1 - history)


def measure(model: torch.nn.Module, ids: Tensor, history: int, places: int) -> dict[str, float]:
    """NLL by contestant for one text [T]; the first `history` tokens are not scored."""
    wide = FocusLimits(budget_places=2 * len(ids), recent_tokens=2 * len(ids))
    narrow = FocusLimits(budget_places=places)
    found = {NAMES[0]: truncated(model, ids, history, places)}
    without = replace(narrow, gist_pages_max=0)
    for name, (kind, rows) in GISTS.items():
        settings = PagedConfig(
            limits=wide,
            read_tokens=1024,
            gists=kind,  # type: ignore[arg-type]
            gist_rows=rows,  # type: ignore[arg-type]
        )
        asked = (
            [(name, narrow)]
            if BOUND in found
            else [(PLAIN, without), (BOUND, wide), (name, narrow)]
        )
        with attach(model, settings) as memory:
            memory.read(ids[:history])
            assert memory.streams[0].gist_pages, f"{name}: no gist page was made"
            for shown, limits in asked:
                memory.config = replace(settings, limits=limits)
                found[shown] = through(memory, model, ids, history)
    return {name: found[name] for name in NAMES}


def texts_in_turns(shard: Path, tokens: int, count: int) -> list[HeldOutSpan]:
    """`count` held-out spans of so many tokens. Domains take turns, so that a run cut short is
    still spread over them."""
    spans = held_out_spans(shard, tokens, count)
    queues = {d: [s for s in spans if s.domain == d] for d in sorted({s.domain for s in spans})}
    return [q[i] for i in range(count) for q in queues.values() if i < len(q)][:count]


def own_text(tokenizer: object, width: int) -> Tensor:
    """Text that is always there: the project's own sources."""
    parts = [p.read_text() for p in sorted((ROOT / "python/megacontext").rglob("*.py"))[:40]]
    ids = tokenizer.encode("\n".join(parts))[:width]  # type: ignore[attr-defined]
    return torch.from_numpy(ids.astype(np.int64))


def run(bench: Bench) -> None:
    base = load("smollm2")
    history, places = (1056, 256) if bench.smoke else (4096, 512)
    ids = own_text(base.tokenizer, history + (32 if bench.smoke else 256) + 1)
    began = time.perf_counter()
    found = measure(base.model, ids, history, places)
    case = Case("one text", {"history": history, "places": places})
    bench.record(case, "megacontext", [time.perf_counter() - began])
    for name, value in found.items():
        print(f"    NLL {value:.4f}  {name}")
        if name != OURS:
            bench.record_ratio(f"NLL of {name} over {OURS}", value / found[OURS])


def summary(rows: list[dict[str, float]]) -> dict[str, object]:
    """Means with intervals over texts, and the paired gain of each kind of gists over the first and
    newest and over truncation (nats, above 0 is better)."""
    columns = {name: [row[name] for row in rows] for name in NAMES}
    gains = {
        f"{name} over {other}": paired_comparison(columns[other], columns[name])
        for name in GISTS
        for other in (NAMES[0], PLAIN)
    }
    return {
        "nll": {name: str(bootstrap_interval(column)) for name, column in columns.items()},
        "gain of gists": {
            name: f"{gain.difference} p={gain.p_value:.4f} wins {gain.wins}/{len(rows)}"
            for name, gain in gains.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shard", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=12)
    parser.add_argument("--history", type=int, default=4096)
    parser.add_argument("--scored", type=int, default=256)
    parser.add_argument("--places", type=int, default=512)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after the text then read")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model = load("smollm2", dtype=options.dtype).model
    began, rows = time.monotonic(), []
    for span in texts_in_turns(options.shard, options.history + options.scored + 1, options.texts):
        ids = torch.from_numpy(span.ids.astype(np.int64))
        found = measure(model, ids, options.history, options.places)
        rows.append({"source": span.source, "domain": span.domain, "title": span.title, **found})
        shown = "  ".join(f"{found[name]:.4f}" for name in NAMES)
        print(f"{time.monotonic() - began:5.0f} s  {span.source:20} {shown}", flush=True)
        result = {
            "history": options.history,
            "scored": options.scored,
            "places": options.places,
            "texts": rows,
            "summary": summary(rows) if len(rows) > 1 else {},
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        if time.monotonic() - began > 60 * options.minutes:
            break
    print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    main()
