"""Decode latency of a paged memory against the length of its history, and what a refocus costs.

The history repeats the pages of real text that was read once (`--read` tokens), written to the
store as they are: good for latency, meaningless for quality, which is measured elsewhere. Pages lie
in the store as int8; focus is chosen by the step's queries. Contestants alternate, so that all meet
the same machine. The first call makes the stores, a second one measures.

    python -m benchmarks.runtime.bench_paged_decode --stores FOLDER --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.harness import Bench, Case
from megacontext.models import load
from megacontext.models.kv_cache import CACHE_ARGUMENT, GrowingCache
from megacontext.paged import PagedConfig, attach
from megacontext.paged.memory import PagedMemory
from megacontext.paged.page_store import QUERY_ROWS
from megacontext.paged.stream import FocusLimits
from megacontext_ext import Store

TESTS = ["tests/python/paged/test_store.py", "tests/python/paged/test_focus.py"]
ROOT = Path(__file__).resolve().parents[2]
BATCH = 64  # rows copied at once


def repeat_store(source: Path, target: Path, tokens: int) -> None:
    """A store with the blocks of `source` over and over, to `tokens` tokens."""
    with Store.open(source, read_only=True) as held:
        families = [f for f in held.row_families() if f.lod == 1 and f.name != QUERY_ROWS]
        blocks = min(held.row_count(f.name, 0) for f in families)
        with Store.create(target, held.identity) as store:
            store.add_partition("stream-0")
            for family in families:
                store.define_rows(family.name, family.lod, family.dtype, family.width)
            for first in range(0, tokens // 32, BATCH):
                start = first % blocks
                count = min(BATCH, blocks - start, tokens // 32 - first)
                ids = held.read_tokens(0, start * 32, (start + count) * 32)
                store.append_tokens(0, ids)
                for family in families:
                    rows = held.read_rows(family.name, 0, start, start + count)
                    store.put_rows(family.name, 0, first, rows)
            store.checkpoint()


def decode(model: PreTrainedModel, cache: Any, first: Tensor, count: int) -> list[float]:
    """Seconds of each of `count` greedy tokens after `first` [1, 1].

    Processor time of the calling thread: what a token costs on a core of its own, also where the
    machine is shared. With one thread it lacks only waiting for the disk.
    """
    token, seconds = first, []
    for _ in range(count):
        began = time.thread_time()
        logits = model(token, **{CACHE_ARGUMENT: cache}, use_cache=True).logits
        token = logits[:, -1:].argmax(-1)
        seconds.append(time.thread_time() - began)
    return seconds


def own_kib() -> int:
    """Resident memory of this process that no file backs: mapped segments of a store, which a merge
    reads whole, are the system's to drop."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])


@torch.inference_mode()
def one_round(
    model: PreTrainedModel, config: PagedConfig, store: Path, question: Tensor, count: int
) -> dict[str, Any]:
    """A question [1, T], then `count` tokens, over a store; what it cost."""
    with attach(model, config, store=store) as memory:
        memory.cache.begin_call()
        began = time.thread_time()
        model(question, **{CACHE_ARGUMENT: memory.cache})
        asked = time.thread_time() - began
        wall = time.perf_counter()
        seconds = decode(model, memory.cache, question[:, -1:], count)
        wall = time.perf_counter() - wall
        return {
            "tokens": memory.token_count,
            "question_s": asked,
            "decode_s": seconds,
            "decode_wall_s": wall,
            "refocus_s": refocus_seconds(memory),
            "resident_pages_mib": memory.resident_bytes / 2**20,
            "brought_in": memory.traffic.brought_in,
            "read_ahead": memory.traffic.ahead,
            "own_mib": own_kib() / 1024,
        }


def refocus_seconds(memory: PagedMemory, rounds: int = 9) -> float:
    """Median time to choose again from queries that are there: scores, order, log, no pages."""
    chooser, stream = memory._chooser, memory.streams[0]
    assert chooser is not None
    layers, _, width = chooser._shape
    heads = memory._model.config.num_attention_heads
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(rounds):
        queries = [torch.randn(1, heads, width, generator=generator) for _ in range(layers)]
        chooser._heard[0] = queries
        began = time.thread_time()
        scores = chooser.choose(0, stream)
        found.append(time.thread_time() - began)
        assert scores
    return statistics.median(found)


@torch.inference_mode()
def overhead(model: PreTrainedModel, ids: Tensor, count: int, rounds: int) -> dict[str, float]:
    """Median decode time over a history within the budget: paged, and the model's own caches."""
    limits = FocusLimits(budget_places=ids.shape[1] + 256, recent_tokens=ids.shape[1] + 256)
    before = model.config._attn_implementation
    found: dict[str, list[float]] = {"paged": [], "eager": [], "sdpa": []}
    caches = {}
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        caches[name] = GrowingCache()
        model(ids, **{CACHE_ARGUMENT: caches[name]}, use_cache=True, logits_to_keep=1)
    for _ in range(rounds):
        for name, cache in caches.items():
            model.set_attn_implementation(name)
            found[name] += decode(model, cache, ids[:, -1:], count)
            cache.crop_to(ids.shape[1])
    model.set_attn_implementation(before)
    with attach(model, PagedConfig(limits=limits, gists="off")) as memory:
        memory.read(ids)
        for _ in range(rounds):
            memory.cache.begin_call()
            found["paged"] += decode(model, memory.cache, ids[:, -1:], count)
            stream = memory.streams[0]
            stream.token_count, stream.tokens = ids.shape[1], stream.tokens[: ids.shape[1]]
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def summary(rows: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """By length: median and 90th percentile of a token, ratios to the shortest history."""
    found: dict[str, Any] = {}
    base = 0.0
    for length, rounds in rows.items():
        seconds = sorted(s for r in rounds for s in r["decode_s"])
        median = statistics.median(seconds)
        mean = statistics.fmean(seconds)
        base = base or median
        found[str(length)] = {
            "token_ms_median": 1e3 * median,
            "token_ms_mean": 1e3 * mean,
            "token_ms_p90": 1e3 * seconds[int(0.9 * len(seconds))],
            "over_shortest": median / base,
            "refocus_ms": 1e3 * statistics.median(r["refocus_s"] for r in rounds),
            "resident_pages_mib": max(r["resident_pages_mib"] for r in rounds),
            "brought_in": statistics.fmean(r["brought_in"] for r in rounds),
            "own_mib": max(r["own_mib"] for r in rounds),
        }
    return found


def prepare(
    model: PreTrainedModel, config: PagedConfig, ids: Tensor, folder: Path, lengths: list[int]
) -> dict[int, Path]:
    """A store a length, each repeating the pages of `ids` [1, T], read by the model once."""
    with attach(model, config, store=folder / "read.kv") as memory:
        memory.read(ids)
    stores = {length: folder / f"{length}.kv" for length in lengths}
    for length, path in stores.items():
        repeat_store(folder / "read.kv", path, length)
        with attach(model, config, store=path) as memory:
            settle(memory)
    return stores


def settle(memory: PagedMemory) -> None:
    """Makes the gist pages of higher LODs, which a repeated store has none of; a commit makes a
    few."""
    made: list[int] = []
    while made != memory.streams[0].coarse_pages:
        made = list(memory.streams[0].coarse_pages)
        memory.commit()


def own_text(tokenizer: Any, width: int) -> Tensor:
    """[1, width] tokens of the project's own sources."""
    parts = [p.read_text() for p in sorted((ROOT / "python/megacontext").rglob("*.py"))]
    ids = tokenizer.encode("\n".join(parts))[:width]
    return torch.from_numpy(ids.astype(np.int64))[None]


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
    )
    return LlamaForCausalLM(config).eval()


def run(bench: Bench) -> None:
    """The smoke size: a tiny model, so that the path runs in every test run."""
    model = tiny()
    ids = torch.randint(3, 256, (1, 512), generator=torch.Generator().manual_seed(2))
    config = PagedConfig(
        limits=FocusLimits(budget_places=256, recent_tokens=64),
        focus="step", gists="off", pages="int8", read_tokens=64,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        stores = prepare(model, config, ids, Path(folder), [512, 2048])
        rows = {n: [one_round(model, config, s, ids[:, :8], 4)] for n, s in stores.items()}
    for length, rounds in rows.items():
        case = Case("decode", {"history": length, "budget": 256})
        bench.record(case, "megacontext", rounds[0]["decode_s"])
    bench.record_ratio("history of 512 over 2,048", 1 / summary(rows)["2048"]["over_shortest"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="8192,65536,262144")
    parser.add_argument("--read", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=33, help="decoded in a round: one refocus")
    parser.add_argument("--gists", default="off", choices=("off", "kept", "learned"))
    parser.add_argument("--stores", type=Path, required=True, help="kept, and used again")
    parser.add_argument("--out", type=Path, required=True)
    torch.set_num_threads(1)
    options = parser.parse_args()
    lengths = [int(n) for n in options.lengths.split(",")]
    base = load("smollm2")
    ids = own_text(base.tokenizer, options.read)
    config = PagedConfig(focus="step", gists=options.gists, pages="int8")
    stores = {n: options.stores / f"{n}.kv" for n in lengths}
    if not all(path.exists() for path in stores.values()):
        options.stores.mkdir(parents=True, exist_ok=True)
        prepare(base.model, config, ids, options.stores, lengths)
        print("stores are ready; run again to measure")
        return
    rows: dict[int, list[dict[str, Any]]] = {n: [] for n in lengths}
    for _ in range(options.rounds):
        for length, store in stores.items():
            row = one_round(base.model, config, store, ids[:, -32:], options.tokens)
            rows[length].append(row)
            print(length, {k: v for k, v in row.items() if k != "decode_s"}, flush=True)
    within = overhead(base.model, ids[:, :768], 12, options.rounds)
    result = {
        "budget_places": config.limits.budget_places,
        "gists": config.gists,
        "by_length": summary(rows),
        "within_the_budget_s": within,
        "overhead_over_eager": within["paged"] / within["eager"] - 1,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "decode.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
