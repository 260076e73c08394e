"""Scores worked out by hand."""

from __future__ import annotations

import pytest

from megacontext.eval.long.example import Example, GoldSpan, Source
from megacontext.eval.long.scorers import (
    choice,
    contains,
    edit_similarity,
    exact_match,
    f1,
    first_named,
    recall,
    rouge_l,
    score,
)
from megacontext_ext.errors import InvalidArgument, NotFound


@pytest.mark.parametrize(
    ("scorer", "prediction", "answers", "expected"),
    [
        (exact_match, "The  Cat.\nand more", ["cat"], 1.0),
        (exact_match, "a cat sat", ["cat"], 0.0),
        (exact_match, "", ["cat"], 0.0),
        (contains, "It is 12, I think", ["12"], 1.0),
        (contains, "It is 1234", ["12"], 0.0),
        (contains, "1,234,567", ["1234567"], 1.0),
        (contains, "New York City", ["york city"], 1.0),
        (contains, "York and City", ["york city"], 0.0),
        (contains, "id 4E1f-9a.", ["4e1f-9a"], 1.0),
        (contains, "it is ***", ["***"], 1.0),
        (recall, "one and three", ["one", "two", "three", "four"], 0.5),
        (f1, "the big cat", ["big dog", "big cat"], 1.0),
        (f1, "cat", ["big cat"], 2 / 3),
        (f1, "dog", ["cat"], 0.0),
        (rouge_l, "b c d", ["b d c"], 2 / 3),
        (choice, "The answer is (B), not C", ["B"], 1.0),
        (choice, "A cat", ["B"], 0.0),
        (edit_similarity, "```python\nreturn x\n", ["return x"], 1.0),
    ],
)
def test_score_matches_the_worked_case(scorer, prediction, answers, expected):
    assert scorer(prediction, answers) == pytest.approx(expected)


def test_first_named_option_counts_and_later_ones_do_not():
    rooms = ["garden", "cellar", "living room"]
    assert first_named("In the cellar. Before it was the garden.", ["cellar"], rooms) == 1.0
    assert first_named("In the garden, then the cellar", ["cellar"], rooms) == 0.0
    assert first_named("the living room", ["living room"], rooms) == 1.0
    assert first_named("nowhere", ["cellar"], rooms) == 0.0


def _example(**changes) -> Example:
    fields = {
        "task": "t", "index": 0, "length_tokens": 300, "sources": (Source("s", "x is y"),),
        "question": "?", "answers": ("y",), "scorer": "contains",
    }  # fmt: skip
    return Example(**{**fields, **changes})


def test_score_uses_the_scorer_of_the_example():
    assert score(_example(), "it is y") == 1.0
    options = _example(scorer="first_named", options=("z", "y"))
    assert score(options, "z then y") == 0.0


def test_unknown_scorer_names_the_known_ones():
    with pytest.raises(NotFound, match="exact_match"):
        score(_example(scorer="judge"), "y")


@pytest.mark.parametrize("span", [(0, 0, 9), (0, 3, 3), (1, 0, 1)])
def test_gold_outside_its_source_is_refused(span):
    with pytest.raises(InvalidArgument, match="gold span"):
        _example(gold=(GoldSpan(*span),))


def test_depth_counts_the_sources_before():
    sources = (Source("a", "x" * 98), Source("b", "y" * 100))
    example = _example(sources=sources, gold=(GoldSpan(1, 0, 100),))
    assert example.depth == pytest.approx(150 / 200)
