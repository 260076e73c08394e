"""Exported tasks: files that hold everything, the same from the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from megacontext.eval.harness import ExportPlan, export
from megacontext.eval.harness.scoring import process_results, score_of
from megacontext_ext.errors import InvalidArgument, NotFound

PLAN = ExportPlan(("niah_multikey_2", "key_value", "dialogue_once"), (512, 2048), examples=2)


def test_lm_eval_files_hold_every_example_and_nothing_to_download(tmp_path):
    files = export(PLAN, tmp_path, "lm-eval")
    group = yaml.safe_load((tmp_path / "_group.yaml").read_text())
    assert len(group["task"]) == 6
    assert all(path.is_file() for path in files)
    text = (tmp_path / "key_value_2k.yaml").read_text()
    assert "process_results: !function scoring.process_results" in text
    described = yaml.safe_load(text.replace("!function ", ""))
    assert described["dataset_path"] == "json"
    data = described["dataset_kwargs"]["data_files"]["test"]
    lines = [json.loads(line) for line in Path(data).read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 1]
    assert all(line["answers"][0] in line["history"] for line in lines)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    first = export(PLAN, tmp_path / "a", "longeval")
    second = export(PLAN, tmp_path / "b", "longeval")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    other = export(ExportPlan(PLAN.tasks, PLAN.lengths, 2, seed=1), tmp_path / "c", "longeval")
    assert first[0].read_bytes() != other[0].read_bytes()


def test_a_longeval_line_points_at_the_line_of_the_answer(tmp_path):
    (path,) = export(ExportPlan(("key_value",), (2048,), 1), tmp_path, "longeval")
    line = json.loads(path.read_text())
    gold, number = line["random_idx"]
    assert line["prompt"].splitlines()[number] == gold == line["correct_line"]
    assert line["expected_number"] in gold


def test_scores_are_those_of_the_task(tmp_path):
    export(ExportPlan(("niah_multivalue",), (512,), 1), tmp_path, "lm-eval")
    document = json.loads((tmp_path / "data" / "niah_multivalue_512.jsonl").read_text())
    answers = document["answers"]
    assert score_of(document, " and ".join(answers)) == 1.0
    assert process_results(document, [answers[0]]) == {"score": pytest.approx(1 / len(answers))}
    assert score_of(document, "no idea") == 0.0


def test_unknown_tasks_and_empty_plans_are_refused(tmp_path):
    with pytest.raises(NotFound, match="no_such_task"):
        export(ExportPlan(("no_such_task",), (512,)), tmp_path, "lm-eval")
    with pytest.raises(InvalidArgument, match="got 0, 1, 8"):
        ExportPlan((), (512,))
