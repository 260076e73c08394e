"""A report's manifest names the command that made it."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from megacontext.eval.long.manifest import read_manifest, write_manifest


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
