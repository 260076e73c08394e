"""What a paged memory keeps at equal places: NLL of a continuation after a long history.

Contestants, all with `places` places a step of 32 tokens: the newest tokens read again as a window
of their own (truncation), a paged memory with its first block and the newest blocks, the same with
gist pages (learned; kept rows, one a block and four, with coarse pages and without); and the full
context as the bound, where the base was trained for as much. The history is read once with
everything in view, or half of the trained range where there is more of it, so that the paged
contestants differ only in what they show.

    python -m benchmarks.runtime.bench_paged_quality --shard test.u16.xz --texts 12 --out FILE
    ... --model gemma3                    the same texts in its own tokens; no learned gists
    ... --places 256,512 --gists "kept rows, 4 a block" --history 7680
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
from megacontext.models.tokenizer import TextTokenizer
from megacontext.paged import PagedConfig, attach
from megacontext.paged.memory import PagedMemory
from megacontext.paged.stream import FocusLimits

TESTS = ["tests/python/paged/test_gists.py"]
STEP = 32
ROOT = Path(__file__).resolve().parents[2]
LOD_1 = ", LOD 1"
LODS = {"": FocusLimits.gist_lod_max, LOD_1: 1}  # the coarsest page that is shown
GISTS = {  # kind, rows a block, and how they are shown
    "learned gists": ("learned", 1, [""]),
    "kept rows": ("kept", 1, list(LODS)),
    "kept rows, 4 a block": ("kept", 4, list(LODS)),
}
OURS = "kept rows"
TRUNCATED, BOUND, PLAIN = "truncation", "full context", "paged, first and newest"
LEARNED_FOR = "smollm2"  # whose shards these are, too


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
    total = 0.0
    with memory.aside():
        for start in range(history, len(ids) - 1, STEP):
            end = min(start + STEP, len(ids) - 1)
            memory.cache.begin_call()
            logits = model(ids[None, start:end], **{CACHE_ARGUMENT: memory.cache}).logits[0]
            total += sum_nll(logits, ids[start + 1 : end + 1])
    return total / (len(ids) - 1 - history)


def gists_for(model_name: str, wanted: str = "") -> dict[str, tuple[str, int, list[str]]]:
    """The kinds of gists that a base has; `wanted` names one of them."""
    there = {n: g for n, g in GISTS.items() if g[0] == "kept" or model_name == LEARNED_FOR}
    return {wanted: there[wanted]} if wanted else there


def gist_names(gists: dict[str, tuple[str, int, list[str]]]) -> list[str]:
    return [name + how for name, (_, _, shown) in gists.items() for how in shown]


def measure(
    model: torch.nn.Module,
    ids: Tensor,
    history: int,
    budgets: list[int],
    gists: dict[str, tuple[str, int, list[str]]],
) -> dict[int, dict[str, float]]:
    """NLL by places and contestant for one text [T]; the first `history` tokens are not scored."""
    trained: int = model.config.max_position_embeddings  # type: ignore[union-attr, assignment]
    whole = len(ids) <= trained
    read_places = 2 * len(ids) if whole else trained // 2
    wide = FocusLimits(budget_places=read_places, recent_tokens=read_places)
    found = {n: {TRUNCATED: truncated(model, ids, history, n)} for n in budgets}
    bound = None
    for number, (label, (kind, rows, shown)) in enumerate(gists.items()):
        settings = PagedConfig(
            limits=wide,
            read_tokens=1024,
            gists=kind,  # type: ignore[arg-type]
            gist_rows=rows,  # type: ignore[arg-type]
        )
        with attach(model, settings) as memory:
            memory.read(ids[:history])
            assert memory.streams[0].gist_pages, f"{label}: no gist page was made"
            if whole and bound is None:
                bound = through(memory, model, ids, history)
            for places in budgets:
                narrow = FocusLimits(budget_places=places)
                asked = {PLAIN: replace(narrow, gist_pages_max=0)} if number == 0 else {}
                asked |= {label + how: replace(narrow, gist_lod_max=LODS[how]) for how in shown}
                for contestant, limits in asked.items():
                    memory.config = replace(settings, limits=limits)
                    found[places][contestant] = through(memory, model, ids, history)
    if bound is not None:
        for each in found.values():
            each[BOUND] = bound
    return found


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
    found = measure(base.model, ids, history, [places], GISTS)[places]
    case = Case("one text", {"history": history, "places": places})
    bench.record(case, "megacontext", [time.perf_counter() - began])
    for name, value in found.items():
        print(f"    NLL {value:.4f}  {name}")
        if name != OURS:
            bench.record_ratio(f"NLL of {name} over {OURS}", value / found[OURS])


def in_own_tokens(
    span: HeldOutSpan, spoken: TextTokenizer, own: TextTokenizer, width: int
) -> Tensor:
    """[<= width] the span's text in a base's own tokens."""
    ids = span.ids if spoken.hash == own.hash else own.encode(spoken.decode(span.ids))
    return torch.from_numpy(ids[:width].astype(np.int64))


def summary(rows: list[dict[str, float]], gists: list[str]) -> dict[str, object]:
    """Means with intervals over texts; the paired gain of each kind of gists over the first and
    newest, over truncation and, of several LODs, over LOD 1 (nats, above 0 is better); and its
    share of what the full context gains over the first and newest."""
    columns = {name: [row[name] for row in rows]
               for name in (TRUNCATED, PLAIN, *gists, BOUND) if name in rows[0]}  # fmt: skip
    gains = {
        f"{name} over {other}": paired_comparison(columns[other], columns[name])
        for name in gists
        for other in (TRUNCATED, PLAIN, name + LOD_1)
        if other in columns
    }
    shares = {}
    if BOUND in columns:
        gap = np.mean(columns[PLAIN]) - np.mean(columns[BOUND])
        shares = {n: float((np.mean(columns[PLAIN]) - np.mean(columns[n])) / gap) for n in gists}
    return {
        "share of the gap": shares,
        "nll": {name: str(bootstrap_interval(column)) for name, column in columns.items()},
        "gain of gists": {
            name: f"{gain.difference} p={gain.p_value:.4f} wins {gain.wins}/{len(rows)}"
            for name, gain in gains.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shard", type=Path, required=True)
    parser.add_argument("--model", default=LEARNED_FOR)
    parser.add_argument("--texts", type=int, default=12)
    parser.add_argument("--history", type=int, default=4096)
    parser.add_argument("--scored", type=int, default=256)
    parser.add_argument("--places", default="512", help="one or several, with commas")
    parser.add_argument("--gists", default="", choices=("", *GISTS), help="one kind only")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after the text then read")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    base = load(options.model, dtype=options.dtype)
    spoken = (base if options.model == LEARNED_FOR else load(LEARNED_FOR)).tokenizer
    began = time.monotonic()
    budgets = [int(n) for n in options.places.split(",")]
    gists = gists_for(options.model, options.gists)
    texts: dict[int, list[dict[str, float]]] = {n: [] for n in budgets}
    width = options.history + options.scored + 1
    # Another base may need fewer tokens for the same text.
    spare = 0 if spoken.hash == base.tokenizer.hash else width // 2
    for span in texts_in_turns(options.shard, width + spare, options.texts):
        ids = in_own_tokens(span, spoken, base.tokenizer, width)
        about = {"source": span.source, "domain": span.domain, "title": span.title}
        for places, found in measure(base.model, ids, options.history, budgets, gists).items():
            texts[places].append({**about, **found})
            shown = "  ".join(f"{value:.4f}" for value in found.values())
            print(
                f"{time.monotonic() - began:5.0f} s  {span.source:20} {places} {shown}", flush=True
            )
        result = {
            "model": options.model,
            "history": options.history,
            "scored": options.scored,
            "by_places": {
                places: {"texts": rows, "summary": summary(rows, gist_names(gists))}
                for places, rows in texts.items()
                if len(rows) > 1
            },
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        if time.monotonic() - began > 60 * options.minutes:
            break
    print(json.dumps({n: r["summary"] for n, r in result["by_places"].items()}, indent=1))


if __name__ == "__main__":
    main()
