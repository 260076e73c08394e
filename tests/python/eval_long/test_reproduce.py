"""A committed figure comes out again, and a wrong one is told."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from megacontext.eval.long.command import main
from megacontext.eval.long.methods import NotApplicable
from megacontext.eval.long.methods.window import Ceiling
from megacontext.eval.long.reproduce import Figure, reproduce
from megacontext.eval.long.runner import RunConfig, read_rows, run
from megacontext_ext.errors import NotFound, Unsupported


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    config = RunConfig(
        tasks=("facts_person",), methods=("truncation", "ceiling"), lengths=(512,),
        out=tmp_path_factory.mktemp("kept"), examples=3, budget_places=400, model=tiny_folder,
        dtype="float32",
    )  # fmt: skip
    run(config)
    return config.out


def test_the_same_machine_gives_the_same_answers(folder, tmp_path):
    figure = Figure(("facts_person",), (512,), ("truncation",))
    found = reproduce(folder, figure, tmp_path)
    assert (found.same_answers, found.got.count) == (3, 3)
    assert found.got == found.stated
    assert found.within
    assert "lies within the stated interval" in str(found)
    first = reproduce(folder, replace(figure, examples=1), tmp_path / "first")
    assert first.got.count == 1


def test_what_is_left_out_means_all_and_a_sample_is_always_the_same(folder, tmp_path):
    found = reproduce(folder, Figure(), tmp_path / "all")
    assert (found.got.count, found.same_answers) == (6, 6)
    assert str(found).startswith("all methods on all tasks: stated")
    rows = list(read_rows(folder).values())
    some = Figure(sample=4).of(rows)
    assert len(some) == 4
    assert some == Figure(sample=4).of(rows[::-1])
    computed = []
    again = reproduce(folder, Figure(sample=2), tmp_path / "sample", computed.append)
    assert (again.got.count, len(computed)) == (2, 2)


def test_a_method_that_cannot_run_here_is_told(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Ceiling, "answer", _refuse)
    with pytest.raises(Unsupported, match="ceiling cannot run here: no such package"):
        reproduce(folder, Figure(methods=("ceiling",)), tmp_path)


def _refuse(*_):
    raise NotApplicable("no such package")


def test_a_figure_that_does_not_come_out_again_ends_with_1(folder, tmp_path, capsys):
    copy = tmp_path / "copy"
    (copy / "cells" / "facts_person-512").mkdir(parents=True)
    (copy / "manifest.json").write_text((folder / "manifest.json").read_text())
    rows = (folder / "cells/facts_person-512/ceiling.jsonl").read_text().splitlines()
    edited = [json.loads(row) | {"score": 1.0, "text": "edited"} for row in rows]
    (copy / "cells/facts_person-512/ceiling.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in edited)
    )
    assert {json.loads(row)["score"] for row in rows} == {0.0}, "the tiny base guessed right"
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", str(copy), "--task", "facts_person", "--length", "512",
              "--method", "ceiling"])  # fmt: skip
    assert ended.value.code == 1
    told = capsys.readouterr().out
    assert "which lies OUTSIDE the stated interval; 0 of 3 answers" in told


def test_a_figure_that_is_not_there_is_not_found(folder, tmp_path):
    figure = Figure(("facts_person",), (512,), ("summary",))
    with pytest.raises(NotFound, match="holds no answers of summary on facts_person at 512"):
        reproduce(folder, figure, tmp_path)
