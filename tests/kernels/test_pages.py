"""The page of each operator and the example program, run as a reader would run them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(p for p in (ROOT / "csrc/kernels").glob("*/README.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_example_of_a_page_runs(page: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert examples, f"{page} shows no example"
    for example in examples:
        exec(example, {})


def test_focused_attention_keeps_most_of_the_attention_in_a_model_of_ones_own() -> None:
    program = ROOT / "examples/focused_attention_in_your_model.py"
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.search(
        r"16384 tokens of history, 2048 read: 12\.5% of the places, ([\d.]+)% of", done.stdout
    )
    assert found, done.stdout
    assert float(found[1]) > 80  # what the question repeats is in the pages that were chosen
