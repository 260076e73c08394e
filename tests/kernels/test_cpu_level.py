"""The CPU level: named by MC_CPU_LEVEL, and harmless to who else uses the registers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from megacontext_ext import ops
from megacontext_ext.entry_table import EntryTable

LEVELS = ["portable", "avx2", "avx512", "amx"]


def has(level: str) -> bool:
    before = ops.cpu_level()
    found = ops.set_cpu_level(level)
    ops.set_cpu_level(before)
    return found


def level_in_a_process(wanted: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", "from megacontext_ext import ops; print(ops.cpu_level())"],
        env={**os.environ, "MC_CPU_LEVEL": wanted},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize("level", LEVELS)
def test_the_environment_lowers_the_level(level: str) -> None:
    best = [name for name in LEVELS if has(name)][-1]
    got, said = level_in_a_process(level)
    if has(level):
        assert got == level
        assert "MC_CPU_LEVEL" not in said
    else:
        assert got == best
        assert f"MC_CPU_LEVEL={level} is unknown or not available, using {best}" in said


def test_a_level_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"level must be one of .*'amx'.*, got 'sse'"):
        ops.set_cpu_level("sse")


def test_tiles_are_given_back_to_torch() -> None:
    """torch's bf16 products use the same tiles in other shapes: neither disturbs the other."""
    if not has("amx"):
        pytest.skip("this CPU has no amx")
    before = ops.cpu_level()
    ops.set_cpu_level("amx")
    left, right = torch.randn(2, 67, 67).bfloat16()
    q = torch.randn(32, 2, 64).bfloat16()
    keys, values = torch.randn(2, 4, 2, 32, 64).bfloat16()
    table = EntryTable.from_pages(torch.arange(4))
    plan = ops.make_read_plan(table, ops.dense_query_starts([32], 32), query_tile=32)
    product, attended = left @ right, ops.focused_attention(q, keys, values, table, plan)[0]
    for _ in range(3):
        assert torch.equal(left @ right, product)
        assert torch.equal(ops.focused_attention(q, keys, values, table, plan)[0], attended)
    ops.set_cpu_level(before)
