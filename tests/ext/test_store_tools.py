"""mc_check and mc_dump, the store's tools that need no Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import megacontext_ext as mx

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> str:
    for folder in (ROOT / "build" / "dev", Path(sys.executable).parent):
        if (folder / name).exists():
            return str(folder / name)
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not built")
    return found


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [tool(name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def path(tmp_path):
    with mx.Store.create(tmp_path / "memory", {"model": "a"}) as store:
        p = store.add_partition("notes.txt")
        store.append_tokens(p, np.arange(100))
        store.checkpoint()
        store.append_tokens(p, np.arange(50))
    return tmp_path / "memory"


def test_mc_check_tells_sound_from_damaged(path):
    sound = run("mc_check", path)
    assert sound.returncode == 0
    assert "sound, 1 partitions, 150 tokens" in sound.stdout
    segment = next(path.glob("seg-*1.mcs"))
    raw = bytearray(segment.read_bytes())
    raw[4096] ^= 1
    segment.write_bytes(raw)
    damaged = run("mc_check", path)
    assert damaged.returncode == 1
    assert f"{segment}:4096: expected page crc32c" in damaged.stderr
    assert run("mc_check").returncode == 2
    assert "NotFound" in run("mc_check", path / "nowhere").stderr


def test_mc_dump_prints_every_file(path):
    text = run("mc_dump", path).stdout
    assert "identity model = a" in text
    assert "define family 1 'tokens' lod 0 u32 width 1" in text
    assert "add partition 0 'notes.txt' {}" in text
    assert "partition 0, rows [0, 100)" in text
    assert "put rows of family 1, partition 0, [100, 150), 200 bytes" in text
    assert "close" in text
    (path / "MANIFEST").write_bytes(b"not a manifest")
    damaged = run("mc_dump", path)
    assert damaged.returncode == 1
    assert "partition 0, rows [0, 100)" in damaged.stdout
