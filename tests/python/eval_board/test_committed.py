"""The committed leaderboard is what the committed answers say."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacontext.eval.board import read_entries, validate, write_page

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
ENTRIES = sorted((BENCHMARKS / "results").glob("**/board.json"))


def test_there_are_entries():
    assert ENTRIES


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: path.parent.name)
def test_a_committed_entry_follows_from_its_answers(path):
    assert validate(path) == []


def test_the_committed_page_is_made_from_the_committed_entries(tmp_path):
    for made in write_page(read_entries([BENCHMARKS / "results"]), tmp_path):
        assert made.read_text() == (BENCHMARKS / "leaderboard" / made.name).read_text()
