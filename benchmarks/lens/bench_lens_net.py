"""LensNet on one core: 256 candidates as the runtime asks, and 8,192 entries at once.

The goal at 8,192 entries is a GPU's (3 ms); the ratio says how far a CPU core is from it. Peer: the
features alone would be no peer, so the other design stands beside.
"""

from __future__ import annotations

import torch

from benchmarks.harness import Bench, Case
from megacontext.lens.features import FEATURES
from megacontext.lens.net import Entries, LensNet, LensNetConfig

TESTS = "tests/python/lens/test_net.py"
VOCABULARY = 49_152
QUESTION_TOKENS = 16
GOAL_SECONDS = 3e-3


def _entries(net: LensNet, count: int) -> Entries:
    """Entries that are all blocks of one long source."""
    draw = torch.Generator().manual_seed(0)
    near = torch.arange(count)[:, None] + torch.arange(-2, 3)
    rows = torch.randn(VOCABULARY, net.config.row_width, generator=draw)
    return Entries(
        features=torch.rand(count, len(FEATURES), generator=draw),
        index=torch.where((near < 0) | (near >= count), -1, near),
        tokens=torch.randint(0, VOCABULARY, (count, 32), generator=draw),
        there=torch.ones(count, 32, dtype=torch.bool),
        rows=net.token_table(rows),
        asked=torch.randn(QUESTION_TOKENS, net.config.row_width, generator=draw),
        projected=True,
    )


def run(bench: Bench) -> None:
    with torch.inference_mode():
        cross = LensNet(LensNetConfig(design="cross")).eval()
        transformer = LensNet(LensNetConfig(design="transformer")).eval()
        for count in (64, 256) if bench.smoke else (256, 2048, 8192):
            given = _entries(cross, count)
            measured = bench.compare(
                Case("score", {"entries": count, "question_tokens": QUESTION_TOKENS}),
                lambda given=given: cross(given) and None,
                {"transformer": lambda given=given: transformer(given) and None},
            )
        median = measured["megacontext"].median
        bench.record_ratio("3 ms over the time of all entries", GOAL_SECONDS / median, 1.0)
