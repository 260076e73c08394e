"""Pictures show what is in focus, however small it is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from megacontext.view import SpanShown, save_png, terminal_bar

SPANS = [
    SpanShown(0, 0, 900_000, 0, 0),
    SpanShown(0, 900_000, 900_160, 0, 160, score=1.0),
    SpanShown(0, 900_160, 1_000_000, 2, 98),
    SpanShown(1, 0, 64, 0, 64),
]
NAMES = {0: "book.txt", 1: "note.txt"}


def shown(spans, columns=72) -> str:
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(terminal_bar(spans, NAMES, columns))
    return console.file.getvalue()


def test_the_bar_has_a_line_a_source_and_their_counts():
    lines = shown(SPANS).splitlines()
    assert lines[0].startswith("book.txt")
    assert "160 of 1,000,000 tokens" in lines[0]
    assert "64 of 64 tokens" in lines[1]
    assert lines[0].count("█") + lines[0].count("░") == 72


def test_a_tiny_span_does_not_vanish():
    assert shown(SPANS[:2]).splitlines()[0].count("█") == 1


def test_a_source_all_in_focus_is_all_painted():
    assert shown(SPANS[3:], 40).splitlines()[0].count("█") == 40


def test_a_png_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    path = save_png(tmp_path / "deep" / "focus.png", SPANS, NAMES, "in focus")
    assert path.read_bytes().startswith(b"\x89PNG")
