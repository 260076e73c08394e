"""Ask over histories of growing length: the time and memory of an answer must not grow with it.

Ours: seconds to the first token of `memory.ask` over a history; ingestion without gists. Peer: the
plain model's prefill of the same budget of places, and our own answer over the short history.
Memory: resident bytes of the process above those with the model alone.

Full size: 200,000 and 1,000,000 tokens of real text (the demo's documents, repeated as sources of
other names). The smoke size asks over a few thousand tokens.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil

from benchmarks.harness import Bench, Case
from megacontext import memory as memories
from megacontext.config import GenerationConfig, RuntimeConfig
from megacontext.demo.corpus import Document, load_corpus
from megacontext.demo.facts import plant
from megacontext.demo.methods import Baselines
from megacontext.memory import Memory
from megacontext.models import load

TESTS = ["tests/python/test_memory.py"]

HISTORIES_FULL = (200_000, 1_000_000)
HISTORIES_SMOKE = (1_000, 2_000)
BUDGET_FULL, BUDGET_SMOKE = 2048, 256
CHARS_PER_TOKEN = 4.5
ONE_TOKEN = GenerationConfig(max_new_tokens=1)


def run(bench: Bench) -> None:
    base = load("smollm2")
    bare = resident_bytes()
    histories = HISTORIES_SMOKE if bench.smoke else HISTORIES_FULL
    rounds = 1 if bench.smoke else 3
    budget = BUDGET_SMOKE if bench.smoke else BUDGET_FULL
    config = RuntimeConfig(budget_places=budget)
    first: dict[int, list[float]] = {}
    plain: list[float] = []
    for token_count in histories:
        with (
            tempfile.TemporaryDirectory() as folder,
            memories.open(Path(folder) / "m", base, config=config) as memory,
        ):
            questions = fill(bench, memory, token_count)
            for _ in range(rounds):
                first.setdefault(token_count, []).extend(
                    first_token(memory, question) for question in questions
                )
                plain.append(Baselines(memory, ONE_TOKEN).prefill_seconds(1))
            above = resident_bytes() - bare
            case = Case("first token", {"history": memory.token_count, "budget": budget})
            bench.record(case, "megacontext", first[token_count])
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(f"    {above / 1e6:,.0f} MB above the model's {bare / 1e6:,.0f} MB; "
                  f"peak of the process {peak / 1e6:,.0f} MB")  # fmt: skip
            bench.record_ratio(f"1 GB over memory, {token_count} tokens", 1e9 / max(above, 1), 1.0)
    short, long = histories
    bench.record(Case("prefill of the budget", {"budget": budget}), "plain model", plain)
    for token_count in histories:
        ratio = median(plain) / median(first[token_count])
        bench.record_ratio(f"first token vs plain prefill, {token_count} tokens", ratio, 1 / 1.2)
    growth = median(first[short]) / median(first[long])
    bench.record_ratio(f"first token, {short} vs {long} tokens", growth, 1 / 1.3)


def fill(bench: Bench, memory: Memory, token_count: int) -> list[str]:
    """Ingest real text until there are `token_count` tokens; returns questions about planted
    facts."""
    documents = load_corpus().documents
    planted = plant(documents, 1 if bench.smoke else 2, seed=1)
    began, copy = time.perf_counter(), 0
    if bench.smoke:
        documents = [Document("start", [question.span for question in planted]), *documents]
    while memory.token_count < token_count:
        for document in documents:
            wanted = int((token_count - memory.token_count) * CHARS_PER_TOKEN)
            if wanted > 0:
                memory.ingest(document.text[:wanted], source=f"{document.name}-{copy}")
        copy += 1
    seconds = time.perf_counter() - began
    case = Case("ingest", {"tokens": memory.token_count})
    bench.record(case, "megacontext", [seconds])
    rate = memory.token_count / seconds
    bench.record_ratio(f"ingest vs 50,000 tokens/s, {token_count} tokens", rate / 50_000, 1.0)
    return [question.question for question in planted]


def first_token(memory: Memory, question: str) -> float:
    answer = memory.ask(question, ONE_TOKEN)
    _ = answer.text
    return answer.stats.first_token_seconds


def resident_bytes() -> int:
    return psutil.Process().memory_info().rss
