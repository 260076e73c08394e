"""The command line: results, --json, exit codes, interruption. The model is a tiny folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from megacontext.cli.main import app
from megacontext_ext import Store
from megacontext_ext.errors import NotFound

FILLER = "Every record has a checksum, so a torn write is seen and cut away. " * 60
FACT = "The captain of the ship Astrid is Henrik Dahl. "


@pytest.fixture
def run(tiny_folder):
    """Run a verb with the tiny model; returns the click result."""

    def call(*arguments: object, model: str | None = tiny_folder, **settings):
        words = [str(argument) for argument in arguments]
        words += ["--model", model] if model else []
        return CliRunner().invoke(app, words, **settings)

    return call


@pytest.fixture
def memory(run, tmp_path) -> Path:
    (tmp_path / "log.txt").write_text(FILLER + FACT + FILLER)
    result = run("ingest", tmp_path / "m", tmp_path / "log.txt")
    assert result.exit_code == 0, result.output
    return tmp_path / "m"


def test_ingest_reports_tokens_and_again_adds_nothing(run, memory, tmp_path):
    result = run("ingest", memory, tmp_path / "log.txt", "--json")
    (source,) = json.loads(result.stdout)["sources"]
    assert source["added_tokens"] == 0
    assert source["total_tokens"] > 1000


def test_ingest_reads_standard_input(run, tmp_path):
    result = run("ingest", tmp_path / "m", "-", "--json", input="piped text")
    assert json.loads(result.stdout)["sources"][0]["source"] == "stdin"


def test_ask_prints_the_answer_and_its_sources(run, memory):
    result = run("ask", memory, "Who is captain of the ship Astrid?", "--max-tokens", 4)
    assert result.exit_code == 0, result.output
    assert "log.txt" in result.stdout
    assert "places used" in result.stdout


def test_ask_json_is_one_object(run, memory, tmp_path):
    picture = tmp_path / "focus.png"
    result = run("ask", memory, "Who is captain of the ship Astrid?", "--max-tokens", 4,
                 "--json", "--picture", picture)  # fmt: skip
    answer = json.loads(result.stdout)
    assert "Henrik Dahl" in answer["sources"][0]["text"]
    assert answer["stats"]["prompt_places"] <= 2048
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_chat_goes_on_line_by_line_and_is_remembered(run, memory):
    result = run("chat", memory, "--max-tokens", 4, "--json", input="Hello.\nAnd Astrid?\n\n")
    assert result.exit_code == 0, result.output
    assert len([json.loads(line) for line in result.stdout.splitlines()]) == 2
    held = json.loads(run("inspect", memory, "--json").stdout)
    assert [source["source"] for source in held["sources"]][1] == "conversation/default"


def test_inspect_shows_what_is_held_and_what_would_be_in_focus(run, memory):
    assert "complete" in run("inspect", memory).stdout
    result = run("inspect", memory, "--question", "captain Astrid", "--json")
    view = json.loads(result.stdout)
    assert view["left_out_tokens"] > 0
    assert "raw tokens" in run("inspect", memory, "--question", "captain Astrid").stdout


def test_doctor_says_what_is_here_and_checks_a_memory(run, memory):
    result = run("doctor", memory, "--json", model=None)
    found = json.loads(result.stdout)
    assert result.exit_code == 0, found["problems"]
    assert found["memory"]["healthy"] is True
    assert found["cpu"]["cores"] == os.cpu_count()
    assert found["kernels"]["loaded"] is True


def test_doctor_finds_a_damaged_memory(run, memory):
    with Store.open(str(memory)) as store:
        store.checkpoint()  # from the log into segments
    largest = max(memory.glob("*.mcs"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    largest.write_bytes(bytes(data))
    result = run("doctor", memory, "--json", model=None)
    assert result.exit_code == 1
    assert json.loads(result.stdout)["memory"]["healthy"] is False


@pytest.mark.parametrize(
    ("arguments", "code", "name"),
    [
        (("ask", "none", "Who?"), 3, "NotFound"),
        (("inspect", "none"), 3, "NotFound"),
        (("ingest", "m", "none.txt"), 3, "NotFound"),
        (("doctor", "none"), 1, None),
    ],
)
def test_errors_have_codes_and_names(run, tmp_path, monkeypatch, arguments, code, name):
    monkeypatch.chdir(tmp_path)
    settings = {"model": None} if arguments[0] == "doctor" else {}
    result = run(*arguments, "--json", **settings)
    assert result.exit_code == code, result.output
    if name:
        assert json.loads(result.stdout)["error"] == name


def test_an_unknown_model_names_what_is_known(run, memory):
    result = run("ask", memory, "Who?", "--json", model="gpt-17")
    assert result.exit_code == 3
    assert "smollm2" in json.loads(result.stdout)["message"]


def test_a_question_longer_than_the_budget_is_a_usage_error(run, memory):
    result = run("ask", memory, "why " * 900, "--budget", 256, "--json")
    assert result.exit_code == 2
    assert "256 places" in json.loads(result.stdout)["message"]


def test_bench_without_a_checkout_says_so(run, tmp_path, monkeypatch):
    from megacontext.cli import checkout

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkout.importlib.util, "find_spec", lambda name: None)
    result = run("bench", "list", model=None)
    assert result.exit_code == 3
    assert "source checkout" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_ingest_stopped_from_outside_resumes_to_the_same_tokens(tmp_path, tiny_folder, run, how):
    """A real process, a real signal, in the middle of a 4 MB file."""
    text = "".join(f"Page {page} of the log. {FILLER[:400]}\n" for page in range(9_000))
    (tmp_path / "log.txt").write_text(text)
    command = [sys.executable, "-m", "megacontext", "ingest", str(tmp_path / "m"),
               str(tmp_path / "log.txt"), "--model", tiny_folder]  # fmt: skip
    # A test run in the background has SIGINT ignored, and a child would inherit that.
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and stored_tokens(tmp_path / "m") == 0:
        time.sleep(0.05)
    process.send_signal(how)
    code = process.wait(timeout=60)
    assert code == (130 if how == signal.SIGINT else -9)
    (stopped,) = json.loads(run("inspect", tmp_path / "m", "--json", model=None).stdout)["sources"]
    assert stopped["token_count"] > 0
    assert stopped["metadata"]["complete"] is False
    report = json.loads(run("ingest", tmp_path / "m", tmp_path / "log.txt", "--json").stdout)
    (source,) = report["sources"]
    assert source["resumed_at_tokens"] >= stopped["token_count"] > 0
    once = json.loads(run("ingest", tmp_path / "once", tmp_path / "log.txt", "--json").stdout)
    assert source["total_tokens"] == once["sources"][0]["total_tokens"]


def stored_tokens(folder: Path) -> int:
    try:
        with Store.open(str(folder), read_only=True) as store:
            return sum(partition.token_count for partition in store.partitions())
    except NotFound:  # not made yet
        return 0


def test_a_memory_is_looked_after_from_the_command_line(run, tmp_path):
    for name in ("old.txt", "new.txt"):
        (tmp_path / name).write_text(f"{FILLER}This is {name}. ")
        run("ingest", tmp_path / "m", tmp_path / name, "--source", name)
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps({"rules": [{"action": "delete", "path": "*old.txt"}]}))
    plan = tmp_path / "plan.json"

    def plain(*words) -> dict:
        result = run(*words, "--json", model=None)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    made = plain("curate", "plan", tmp_path / "m", "--rules", rules, "--output", plan)
    assert [(step["source"], step["action"]) for step in made["steps"]] == [("old.txt", "delete")]
    assert plain("curate", "apply", tmp_path / "m", plan)["steps"] == made["steps"]
    states = {one["source"]: one["state"] for one in plain("curate", "report", tmp_path / "m")}
    assert states == {"old.txt": "live", "new.txt": "live"}
    (entry,) = plain("curate", "apply", tmp_path / "m", plan, "--yes")["done"]
    plain("curate", "restore", tmp_path / "m", entry["number"])
    plain("curate", "apply", tmp_path / "m", plan, "--yes")
    assert plain("curate", "purge", tmp_path / "m")["steps"][0]["source"] == "old.txt"
    assert plain("curate", "purge", tmp_path / "m", "--yes")["erased"] == ["old.txt"]
    for words in ("curate report", "curate apply", "curate plan"):
        more = {"curate apply": [plan], "curate plan": ["--rules", rules]}.get(words, [])
        shown = run(*words.split(), tmp_path / "m", *more, model=None)
        assert shown.exit_code == 0, shown.output


def test_a_memory_is_copied_and_carried_from_the_command_line(run, tmp_path):
    (tmp_path / "a.txt").write_text(FILLER)
    run("ingest", tmp_path / "m", tmp_path / "a.txt", "--source", "a.txt")
    copied = run("backup", tmp_path / "m", tmp_path / "copy", "--json", model=None)
    assert json.loads(copied.stdout)["tokens"] > 0
    assert run("backup", tmp_path / "m", tmp_path / "copy", model=None).exit_code == 2
    assert run("export", tmp_path / "m", tmp_path / "m.jsonl", model=None).exit_code == 0
    came = run("import", tmp_path / "other", tmp_path / "m.jsonl", "--json")
    assert came.exit_code == 0, came.output
    assert json.loads(came.stdout)["sources"] == 1
    assert json.loads(came.stdout)["tokens"] == json.loads(copied.stdout)["tokens"]
    assert run("import", tmp_path / "other", tmp_path / "m.jsonl").exit_code == 0  # again
    (tmp_path / "a.txt").write_text(FILLER + FACT)
    run("ingest", tmp_path / "other", tmp_path / "a.txt", "--source", "a.txt")
    assert run("import", tmp_path / "other", tmp_path / "m.jsonl").exit_code == 2


def test_rows_are_kept_in_fewer_bits_from_the_command_line(run, tmp_path):
    rows = np.random.default_rng(1).standard_normal((50, 64), np.float32)
    with Store.create(tmp_path / "m", {}) as store:
        store.append_tokens(store.add_partition("a"), np.arange(50 * 32))
        store.define_rows("gist", 1, "f32", 64)
        store.put_rows("gist", 0, 0, rows)
    done = run("reencode", tmp_path / "m", "gist", "--dtype", "e4m3", "--json", model=None)
    told = json.loads(done.stdout)
    assert (told["rows"], told["saved_bytes"]) == (50, told["bytes_before"] - told["bytes_after"])
    assert 0.01 < told["relative_error"] < 0.05
    with Store.open(tmp_path / "m", read_only=True) as store:
        error = np.abs(store.read_rows("gist", 0, 0, 50) - rows).max()
    assert told["largest_error"] == pytest.approx(error, rel=1e-5)
    again = run("reencode", tmp_path / "m", "gist", "--dtype", "e4m3", model=None)
    assert "0 rows, 0 bytes back" in again.stdout
    assert run("reencode", tmp_path / "m", "none", model=None).exit_code == 3
    assert run("reencode", tmp_path / "m", "gist", "--dtype", "int8", model=None).exit_code == 2
