"""The command lines as the CLI mounts them."""

from __future__ import annotations

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


def test_port_says_why_it_refuses(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mine", "auto_map": {"x": "y.Z"}}')
    told = _told("port", str(tmp_path), "--out", str(tmp_path / "out"), status=1)
    assert "refused: config.json asks for code of its own" in told


def test_port_without_a_model_explains_itself():
    assert "hub id" in _told("port")
