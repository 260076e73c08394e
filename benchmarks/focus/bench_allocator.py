"""The allocator on a fresh question each step, beside a flat top-k that knows no budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle
from statistics import median

import numpy as np

from benchmarks.harness import Bench, Case
from megacontext_ext.focus import Allocator, AllocatorConfig, ScoreField, WorkingContext

TESTS = ["tests/ext/test_focus.py", "tests/properties/test_focus.py"]
BUDGET_PLACES = 8192
GOAL_SECONDS = 0.5e-3  # of one plan at BUDGET_PLACES
QUESTIONS = 8
FOUND_BLOCKS = 400  # more than the 256 raw blocks that the budget could hold


def _fields(partitions: int, blocks: int) -> list[ScoreField]:
    """One field a question: few blocks score high, the others are noise below every threshold."""
    random = np.random.default_rng(0)
    fields = []
    for _ in range(QUESTIONS):
        field = ScoreField()
        scores = random.uniform(-0.15, 0.15, (partitions, blocks)).astype(np.float32)
        found = random.integers(0, partitions * blocks, FOUND_BLOCKS)
        scores.reshape(-1)[found] = random.uniform(0.3, 1.0, FOUND_BLOCKS)
        for partition in range(partitions):
            field.set(partition, scores[partition])
        fields.append(field)
    return fields


def _processor_seconds(call: Callable[[], object], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return seconds


def run(bench: Bench) -> None:
    scale = 20 if bench.smoke else 1
    for gist_places in (1, 0):
        _run_history(bench, 1, 1_000_000 // scale, gist_places)
        _run_history(bench, 1, 20_000_000 // scale, gist_places)
        _run_history(bench, 4_000 // scale, 1_000, gist_places)


def _run_history(bench: Bench, partitions: int, tokens: int, gist_places: int) -> None:
    context = WorkingContext(BUDGET_PLACES, (gist_places,) * 8, protected_tail_tokens=0)
    for partition in range(partitions):
        context.set_partition(partition, tokens)
    blocks = -(-tokens // 32)
    fields = _fields(partitions, blocks)
    allocator = Allocator(AllocatorConfig(cooldown_steps=0))
    for field in fields[:-1]:  # a context with a past
        context.apply(allocator.plan(context, field))
    context.check()
    params = {
        "budget_places": BUDGET_PLACES,
        "partitions": partitions,
        "tokens": tokens,
        "gist_places": gist_places,
        "entries": len(context.entries()),
        "places": context.places,
    }
    tag = f"{partitions}x{tokens} gist={gist_places}"
    scores = np.random.default_rng(1).random(partitions * blocks, np.float32)
    top = min(BUDGET_PLACES // 32, len(scores) - 1)
    bench.compare(
        Case(f"plan {tag}", params),
        lambda: len(allocator.plan(context, fields[-1])),
        {"numpy argpartition": lambda: int(np.sort(np.argpartition(-scores, top)[:top])[0])},
    )
    # Processor time, so that a busy machine does not count its neighbours.
    busy = _processor_seconds(lambda: allocator.plan(context, fields[-1]), 3 if bench.smoke else 60)
    bench.record(Case(f"plan {tag}, processor", params), "megacontext", busy)
    bench.record_ratio(f"plan {tag} vs 0.5 ms", GOAL_SECONDS / median(busy), goal=1.0)
    questions = cycle(fields)

    def refocus() -> None:
        context.apply(allocator.plan(context, next(questions)))

    bench.compare(Case(f"plan and apply {tag}", params), refocus)
    bench.compare(Case(f"entries {tag}", params), lambda: len(context.entries()))
    context.check()
