"""Small hand-made files in the schema of each public benchmark."""

from __future__ import annotations

import json

import pytest

from megacontext.eval.long.example import ExampleRequest
from megacontext.eval.long.loaders import is_local, local_task
from megacontext.eval.long.scorers import score
from megacontext_ext.errors import Corruption, NotFound


def _written(tmp_path, name: str, rows) -> str:
    path = tmp_path / name
    lines = path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return str(path)


def _first(name: str):
    return local_task(name).make(ExampleRequest(256))


def test_longbench_scores_each_data_set_its_way(tmp_path):
    row = {
        "input": "Who wrote it?", "context": "Ada wrote it.", "answers": ["Ada", "Ada L."],
        "length": 3, "dataset": "qasper_e", "language": "en", "all_classes": None, "_id": "x1",
    }  # fmt: skip
    code = row | {"dataset": "lcc", "answers": ["return x"]}
    name = "longbench:" + _written(tmp_path, "qasper.jsonl", [row, code])
    assert [e.scorer for e in local_task(name).examples] == ["f1", "edit_similarity"]
    assert score(_first(name), "Ada") == 1.0
    assert _first(name).history == "Ada wrote it."


def test_infinitebench_turns_options_into_letters(tmp_path):
    rows = [
        {"id": 0, "context": "c", "input": "Which?", "answer": ["two"],
         "options": ["one", "two", "three", "four"]},
        {"id": 1, "context": "c 71432", "input": "Key?", "answer": "71432", "options": []},
    ]  # fmt: skip
    choice, key = local_task("infinitebench:" + _written(tmp_path, "x.jsonl", rows)).examples
    assert (choice.scorer, choice.answers) == ("choice", ("B",))
    assert "B. two" in choice.question
    assert score(key, "It is 71432.") == 1.0


def test_babilong_splits_several_targets(tmp_path):
    rows = [{"input": "noise", "question": "Where?", "target": "garden"},
            {"input": "noise", "question": "What?", "target": "milk, apple"}]  # fmt: skip
    one, two = local_task("babilong:" + _written(tmp_path, "qa8.json", rows)).examples
    assert score(one, "in the garden") == 1.0
    assert score(two, "milk") == 0.5


def test_longmemeval_keeps_sessions_apart_and_marks_the_evidence(tmp_path):
    row = {
        "question_id": "q1", "question_type": "knowledge-update", "question": "Where do I live?",
        "answer": "Porto", "question_date": "2023/05/30", "answer_session_ids": ["s2"],
        "haystack_session_ids": ["s1", "s2"], "haystack_dates": ["2023/01/01", "2023/02/01"],
        "haystack_sessions": [
            [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}],
            [{"role": "user", "content": "I live in Porto", "has_answer": True}],
        ],
    }  # fmt: skip
    example = _first("longmemeval:" + _written(tmp_path, "s.json", [row]))
    assert [source.name for source in example.sources] == ["s1 2023/01/01", "s2 2023/02/01"]
    assert example.gold_texts == ["User: I live in Porto"]
    assert "2023/05/30" in example.question


def test_locomo_asks_every_question_that_has_an_answer(tmp_path):
    row = {
        "sample_id": "c1",
        "conversation": {
            "speaker_a": "Ann", "speaker_b": "Bo",
            "session_1_date_time": "1 May 2023",
            "session_1": [{"speaker": "Ann", "dia_id": "D1:1", "text": "I adopted a cat."}],
            "session_10_date_time": "9 June 2023",
            "session_10": [{"speaker": "Bo", "dia_id": "D10:1", "text": "I paint."}],
            "session_2_date_time": "3 May 2023",
            "session_2": [{"speaker": "Bo", "dia_id": "D2:1", "text": "Nice."}],
        },
        "qa": [
            {"question": "What did Ann adopt?", "answer": "a cat", "evidence": ["D1:1"],
             "category": 4},
            {"question": "What did Bo adopt?", "adversarial_answer": "a cat",
             "evidence": ["D1:1"], "category": 5},
            {"question": "Who paints?", "answer": "Bo", "evidence": ["D10:1"], "category": 4},
        ],
    }  # fmt: skip
    cat, paints = local_task("locomo:" + _written(tmp_path, "locomo.json", [row])).examples
    assert cat.gold_texts == ["Ann: I adopted a cat."]
    assert paints.gold_texts == ["Bo: I paint."]
    assert [s.name for s in cat.sources] == [
        "session 1 1 May 2023", "session 2 3 May 2023", "session 10 9 June 2023",
    ]  # fmt: skip
    assert (cat.index, paints.index) == (0, 1)


def test_row_out_of_schema_is_named(tmp_path):
    path = _written(tmp_path, "x.jsonl", [{"input": "a", "question": "b"}])
    with pytest.raises(Corruption, match=r"x\.jsonl:0: expected a row of babilong, got KeyError"):
        local_task(f"babilong:{path}")


def test_broken_json_is_named_with_its_place(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"a": 1},')
    with pytest.raises(Corruption, match=r"x\.json:10: expected JSON"):
        local_task(f"locomo:{path}")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(NotFound, match="is missing"):
        local_task(f"locomo:{tmp_path / 'none.json'}")


def test_only_known_benchmarks_are_local_names():
    assert is_local("locomo:x.json")
    assert not is_local("niah_single_1")
    assert not is_local("other:x.json")
