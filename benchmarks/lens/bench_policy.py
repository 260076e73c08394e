"""A plan of the learned policy beside the greedy allocator's, on one core.

Both bring 15 blocks into an empty working context over the same history; the greedy one is the
peer, and what the ratio falls short of 1 by is what seeing the state costs.
"""

from __future__ import annotations

import numpy as np

from benchmarks.harness import Bench, Case
from megacontext.config import K
from megacontext.lens.candidates import STATIC, Candidates
from megacontext.lens.policy_net import PolicyNet
from megacontext.runtime.policy import PolicyAllocator, raw_blocks
from megacontext_ext import Allocator, AllocatorConfig, ScoreField, WorkingContext
from megacontext_ext.focus import MAX_LOD

TESTS = "tests/python/runtime/test_policy.py"
GISTS = (0,) * MAX_LOD
SHOWN_BLOCKS = 15


def _candidates(count: int, blocks: int) -> Candidates:
    rng = np.random.default_rng(0)
    scores = np.sort(rng.random(count).astype(np.float32))[::-1].copy()
    static = rng.random((count, len(STATIC))).astype(np.float32)
    pairs = [rng.random((count, count)).astype(np.float32) for _ in range(4)]
    return Candidates(
        partitions=np.zeros(count, np.uint32),
        blocks=rng.choice(blocks, count, replace=False),
        scores=scores,
        static=static,
        terms=rng.random((count, 12)).astype(np.float32),
        weights=np.full(12, 1 / 12, np.float32),
        words=pairs[0],
        close=pairs[1],
        names=pairs[2],
        beside=pairs[3],
    )


def _context(blocks: int) -> WorkingContext:
    context = WorkingContext(SHOWN_BLOCKS * K, GISTS, 0)
    context.set_partition(0, blocks * K)
    return context


def run(bench: Bench) -> None:
    blocks = 1_000 if bench.smoke else 30_000
    net = PolicyNet()
    for count in (16,) if bench.smoke else (16, 64):
        found = _candidates(count, blocks)
        scores = np.full(blocks, -0.5, np.float32)
        scores[found.blocks] = found.scores
        field = ScoreField()
        field.set(0, scores)
        policy = PolicyAllocator(net, GISTS, stop_above=1.0)
        greedy = Allocator(AllocatorConfig(cooldown_steps=0, expand_threshold=0.0))

        def by_policy(policy=policy, field=field, found=found):
            context = _context(blocks)
            policy.refocus(context, field, found)
            return raw_blocks(context)

        def by_greedy(greedy=greedy, field=field):
            context = _context(blocks)
            context.apply(greedy.plan(context, field))
            return raw_blocks(context)

        case = Case("plan", {"candidates": count, "shown": SHOWN_BLOCKS, "blocks": blocks})
        bench.compare(case, by_policy, {"greedy allocator": by_greedy})
