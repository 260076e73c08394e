"""Products of one, two and four bfloat16 rows: with oneDNN, and as a base decodes them; and of the
last rows of a few prompts with the output layer."""

from __future__ import annotations

from itertools import cycle

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.harness import Bench, Case
from megacontext.models.few_rows import MOST_ROWS, fast_few_rows, multiply_flat

TESTS = "tests/python/models/test_few_rows.py"
SHAPES = ((576, 576), (1536, 576), (576, 1536))  # of SmolLM2-135M
WEIGHTS = 20  # taken in turn, so that they come from memory as a model's do


@torch.inference_mode()
def run(bench: Bench) -> None:
    for rows in (1, 2, 4):
        for wide, narrow in SHAPES[:1] if bench.smoke else SHAPES:
            _run_shape(bench, rows, wide, narrow)
    for prompts, rows in ((1, 1), (4, 1), (4, 30)):
        _run_head(bench, prompts, rows)


def _run_shape(bench: Bench, rows: int, out_width: int, in_width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.randn(out_width, in_width, generator=generator).bfloat16() for _ in range(WEIGHTS)
    ]
    ours, theirs = cycle(weights), cycle(weights)
    given = torch.randn(rows, in_width, generator=generator).bfloat16()

    def few() -> Tensor:
        with fast_few_rows(rows, given.dtype, given.device):
            return linear(given, next(ours))

    params = {"rows": rows, "in": in_width, "out": out_width}
    case = Case(f"{rows} rows", params, moved_bytes=2.0 * in_width * out_width, dtype="bfloat16")
    goal = {"oneDNN": 1.0} if rows <= MOST_ROWS else {}
    bench.compare(case, few, {"oneDNN": lambda: linear(given, next(theirs))}, goal)


def _run_head(bench: Bench, prompts: int, rows: int) -> None:
    """The last `rows` of `prompts` prompts of 200 tokens with the head of SmolLM2-135M."""
    words, width = (512 if bench.smoke else 49152), 576
    generator = torch.Generator().manual_seed(1)
    plain, flat = (nn.Linear(width, words, bias=False, dtype=torch.bfloat16) for _ in range(2))
    flat.load_state_dict(plain.state_dict())
    multiply_flat(flat)
    for head in (plain, flat):
        head.requires_grad_(False)
    last = torch.randn(prompts, 200, width, generator=generator).bfloat16()[:, -rows:]
    moved, work = 2.0 * words * width, 2.0 * prompts * rows * words * width
    case = Case(
        f"head, {prompts} x {rows} rows",
        {"prompts": prompts, "rows": rows},
        moved_bytes=moved,
        flops=work,
        dtype="bfloat16",
    )
    bench.compare(case, lambda: flat(last), {"torch": lambda: plain(last)}, {"torch": 1.0})
