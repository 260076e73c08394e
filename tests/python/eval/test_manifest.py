"""A report's manifest names the command that made it."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from megacontext.eval.long.manifest import commit_of, read_manifest, write_manifest


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("megacontext.eval.long.__main__", "python -m megacontext.eval.long --out 'a b'"),
        ("megacontext.eval.lens.policy", "python -m megacontext.eval.lens.policy --out 'a b'"),
        (None, "megacontext --out 'a b'"),
    ],
)
def test_a_manifest_names_its_command(module, command, monkeypatch, tmp_path):
    main = ModuleType("__main__")
    main.__spec__ = ModuleSpec(module, None) if module else None
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["anything", "--out", "a b"])
    write_manifest(tmp_path, {}, "tiny")
    assert read_manifest(tmp_path)["command"] == command


def test_answers_that_are_added_to_are_no_uncommitted_change(tmp_path):
    code, answers = tmp_path / "python" / "a.py", tmp_path / "benchmarks" / "results" / "a.jsonl"
    for path in (code, answers):
        path.parent.mkdir(parents=True)
        path.write_text("one")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    commit, changed = commit_of(code.parent)
    assert len(commit) == 40
    assert not changed
    answers.write_text("two")
    assert commit_of(code.parent) == (commit, False)
    code.write_text("two")
    assert commit_of(code.parent) == (commit, True)
