"""The command lines as the CLI mounts them."""

from __future__ import annotations

import shutil

import pytest
from typer.testing import CliRunner

from megacontext.cli.main import app
from megacontext.eval.long.tasks import TASKS


def _told(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == status, result.output
    return result.output


def test_eval_long_lists_every_task():
    told = _told("eval", "long", "list")
    assert all(name in told for name in TASKS)


def test_eval_long_explains_its_own_options():
    assert "--budget" in _told("eval", "long", "run", "--help")


@pytest.mark.parametrize(
    ("changed", "message"),
    [(("--lengths", "4q"), "got '4q'"), (("--tasks", "none"), "niah_single_1")],
)
def test_wrong_option_ends_with_what_would_be_right(changed, message, tmp_path):
    told = _told("eval", "long", "run", "--out", str(tmp_path), *changed, status=2)
    assert message in told


@pytest.mark.slow  # loads two bases
def test_one_command_runs_several_models_for_some_minutes_and_goes_on(tiny_folder, tmp_path):
    other = tmp_path / "other-llama"
    shutil.copytree(tiny_folder, other)
    arguments = (
        "eval", "long", "run", "--out", str(tmp_path / "out"), "--tasks", "facts_person",
        "--methods", "truncation,no_context", "--lengths", "512,1024", "--examples", "1",
        "--budget", "400", "--model", f"{tiny_folder},{other}", "--dtype", "float32",
    )  # fmt: skip
    told = _told(*arguments, "--minutes", "0")
    assert told.count("0 of 4 answers are there; the same command goes on") == 2
    told = _told(*arguments, "--minutes", "10")
    assert told.count("4 of 4 answers are there\n") == 2
    for folder in ("tiny-llama", "other-llama"):
        assert "| truncation |" in (tmp_path / "out" / folder / "report.md").read_text()


def test_port_says_why_it_refuses(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mine", "auto_map": {"x": "y.Z"}}')
    told = _told("port", str(tmp_path), "--out", str(tmp_path / "out"), status=1)
    assert "refused: config.json asks for code of its own" in told


def test_port_without_a_model_explains_itself():
    assert "hub id" in _told("port")
