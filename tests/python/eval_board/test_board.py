"""Leaderboard entries follow from answers; whatever is edited is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megacontext.eval.board import make_entry, read_entries, validate, write_entry, write_page
from megacontext.eval.board.command import main
from megacontext.eval.board.page import _table
from megacontext.eval.long.runner import RunConfig, run
from megacontext.models import load
from megacontext_ext.errors import InvalidArgument, NotFound


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory) -> Path:
    config = RunConfig(
        tasks=("facts_person", "key_value"), methods=("rag_bm25", "no_context"), lengths=(512,),
        out=tmp_path_factory.mktemp("run"), examples=2, budget_places=400, model=tiny_folder,
        dtype="float32",
    )  # fmt: skip
    run(config)
    write_entry(config.out, make_entry(config.out, "tiny"))
    return config.out


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture(scope="module")
def count_tokens(tiny_folder) -> Callable[[str], int]:
    tokenizer = load(tiny_folder).tokenizer
    return lambda text: len(tokenizer.encode(text))


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    entry = json.loads((folder / "board.json").read_text())
    change(entry)
    (folder / "board.json").write_text(json.dumps(entry))


def edit_answer(folder: Path, **changes) -> None:
    """Change one kept answer and let the entry follow, as a cheat would."""
    path = folder / "cells" / "key_value-512" / "rag_bm25.jsonl"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | changes), *others]) + "\n")
    write_entry(folder, make_entry(folder, "tiny"))


def test_an_entry_made_from_answers_is_valid(folder, count_tokens):
    assert validate(folder) == []
    assert validate(folder / "board.json", count_tokens) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda e: e["cells"][0].update(score=0.99, high=1.0), "the answers give"),
        (lambda e: e["cells"].pop(), "no such cell, the answers give"),
        (lambda e: e["cells"].append(e["cells"][0]), "stands twice"),
        (lambda e: e["cells"][0].update(low=0.9, high=1.0), "lies outside [0.9, 1.0]"),
        (lambda e: e.update(budget_places=500), "budget_places: is 500, the run has 400"),
        (lambda e: e.pop("model"), "'model' is a required property"),
        (lambda e: e.update(format="x"), "format: 'megacontext-board/1' was expected"),
        (lambda e: e["cells"][0].update(score=1.5), "1.5 is greater than the maximum of 1"),
        (lambda e: e.update(name="No Spaces"), "does not match"),
    ],
)
def test_an_edited_entry_is_told(folder, change, fault):
    edit(folder, change)
    faults = validate(folder)
    assert any(fault in told for told in faults), faults


def test_more_places_than_the_budget_are_told_without_any_answers(folder, tmp_path):
    alone = tmp_path / "alone.json"
    shutil.copy(folder / "board.json", alone)
    entry = json.loads(alone.read_text())
    entry["cells"][0].update(places=401, in_competition=True, method="rag_bm25")
    alone.write_text(json.dumps(entry))
    assert any("401 places, the budget is 400" in told for told in validate(alone))


def test_a_missing_and_an_added_file_of_answers_are_told(folder):
    path = folder / "cells" / "key_value-512" / "rag_bm25.jsonl"
    path.rename(path.with_name("mine.jsonl"))
    faults = validate(folder)
    assert any("rag_bm25.jsonl: is named by the entry and missing" in told for told in faults)
    assert any("mine.jsonl: is there and not named" in told for told in faults)


def test_an_edited_score_shows_when_answers_are_scored_anew(folder, count_tokens):
    edit_answer(folder, score=1.0)
    assert validate(folder) == []
    assert any("score 1.0, the scorer gives 0.0" in t for t in validate(folder, count_tokens))


def test_another_example_shows_when_examples_are_made_anew(folder, count_tokens):
    edit_answer(folder, example="0" * 16)
    assert any("answered another example than the others" in told for told in validate(folder))
    assert any("the seed gives another" in told for told in validate(folder, count_tokens))


def test_no_json_and_no_file_are_told(folder, tmp_path):
    (folder / "board.json").write_text("{")
    assert "not JSON" in validate(folder)[0]
    with pytest.raises(NotFound, match=r"board\.json"):
        validate(tmp_path / "nothing")


def test_the_page_shows_every_entry_and_method(folder, tmp_path):
    markdown, html = write_page(read_entries([tmp_path]), tmp_path / "page")
    text = markdown.read_text()
    cells = json.loads((folder / "board.json").read_text())["cells"]
    mine = [cell["score"] for cell in cells if cell["method"] == "rag_bm25"]
    line = next(x for x in text.splitlines() if x.startswith("| rag_bm25 |"))
    assert f"{sum(mine) / len(mine):.3f} (2 tasks, n=4)" in line
    assert "| (no_context) |" in text
    assert "<table" in html.read_text()
    shutil.copytree(folder, tmp_path / "twice")
    with pytest.raises(InvalidArgument, match="'tiny' is of two"):
        read_entries([tmp_path])


def test_a_method_with_some_tasks_of_a_length_is_ranked_by_one_with_all(folder):
    entry = json.loads((folder / "board.json").read_text())
    first, *others = [cell for cell in entry["cells"] if cell["method"] == "rag_bm25"]
    lucky = {"length": 10 * first["length"], "score": 1.0}
    entry["cells"] = [
        *(cell | {"method": "some", "score": 0.0} for cell in (first, *others)),
        first | lucky | {"method": "some"},
        *(cell | {"method": "all", "score": 0.5} for cell in (first, *others)),
        *(cell | lucky | {"method": "all", "score": 0.1} for cell in (first, *others)),
    ]
    names = [row[0] for row in _table([entry]).rows]
    assert names == ["all", "some"]


def test_the_command_line_makes_checks_and_shows(folder, tmp_path, capsys):
    for arguments in (
        ["entry", str(folder), "--name", "again"],
        ["validate", str(folder)],
        ["page", str(folder), "--out", str(tmp_path / "out")],
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
    assert "valid" in capsys.readouterr().out
    edit(folder, lambda e: e["cells"].pop())
    with pytest.raises(SystemExit) as ended:
        main(["validate", str(folder)])
    assert ended.value.code == 1
