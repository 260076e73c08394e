"""`megacontext remote ...` and asking by URL, as a user and as a program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megacontext.cli.main import app
from megacontext_ext import Store

ROOT = Path(__file__).resolve().parents[3]
FILLER = "Every record has a checksum, so a torn write is seen and cut away. " * 60
FACT = "The captain of the ship Astrid is Henrik Dahl. "


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("MEGACONTEXT_REMOTE_CACHE", str(tmp_path / "cache"))

    def call(*arguments: object):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return call


@pytest.fixture
def memory(run, tmp_path, tiny_folder) -> Path:
    (tmp_path / "log.txt").write_text(FILLER + FACT + FILLER)
    result = run("ingest", tmp_path / "m", tmp_path / "log.txt", "--model", tiny_folder)
    assert result.exit_code == 0, result.output
    return tmp_path / "m"


def test_a_memory_is_pushed_asked_by_url_and_taken_over(run, memory, tmp_path, tiny_folder):
    url = f"file://{tmp_path}/place"
    pushed = json.loads(run("remote", "push", memory, url, "--json").stdout)
    assert (pushed["published"], pushed["epoch"]) == (True, 1)
    asked = run("ask", url, "Who is captain of the ship Astrid?", "--max-tokens", 4, "--json",
                "--model", tiny_folder)  # fmt: skip
    assert "Henrik Dahl" in json.loads(asked.stdout)["sources"][0]["text"]

    taken = json.loads(run("remote", "promote", url, tmp_path / "two", "--json").stdout)
    assert taken["epoch"] == 2
    fenced = run("remote", "push", memory, url, "--json")
    assert fenced.exit_code == 4
    assert json.loads(fenced.stdout)["error"] == "Fenced"
    status = json.loads(run("remote", "status", url, "--probe", "--json").stdout)
    assert (status["epoch"], status["stores"][0]["can"]["commit_path"]) == (2, "numbered")
    pulled = json.loads(run("remote", "pull", url, tmp_path / "copy", "--json").stdout)
    assert pulled["bytes"] == status["bytes"]
    assert (
        "1 sources" in run("inspect", tmp_path / "copy").output
        or (tmp_path / "copy" / "MANIFEST").exists()
    )


def said(result) -> str:
    """What was printed, without the line breaks of the terminal."""
    return " ".join(result.output.split())


def test_every_verb_speaks_to_people_too(run, memory, tmp_path):
    url, mirror = f"file://{tmp_path}/one", f"file://{tmp_path}/two"
    both = (url, "--mirror", mirror)
    assert "published generation 2" in said(run("remote", "push", memory, *both))
    assert "0 new objects" in said(run("remote", "push", memory, *both))
    assert "bytes fetched" in said(run("remote", "pull", url))
    assert said(run("remote", "status", *both)).count("newest") == 2
    victim = next((tmp_path / "two" / "segments").iterdir())
    victim.unlink()
    broken = run("remote", "scrub", *both)
    assert broken.exit_code == 5
    assert victim.name in "".join(broken.output.split())
    assert run("remote", "scrub", *both, "--repair").exit_code == 0
    assert victim.exists()
    assert "0 objects" in said(run("remote", "gc", *both, "--dry-run"))
    gone = run("remote", "gc", *both, "--grace-hours", 0, "--memory", memory)
    assert gone.exit_code == 0, gone.output


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("status", "file:///nothing/here/at/all"), 3),
        (("push", "/no/memory", "memory:///x"), 3),
        (("status", "not-a-url"), 2),
    ],
)
def test_failures_have_their_codes(run, words, code):
    result = run("remote", *words, "--json")
    assert result.exit_code == code, result.output
    assert "message" in json.loads(result.stdout.splitlines()[0])


def test_looking_leaves_nothing_behind(run, tmp_path):
    assert run("remote", "status", f"file://{tmp_path}/none").exit_code == 3
    assert not (tmp_path / "none").exists()


def test_a_url_is_read_only(tmp_path, tiny_base):
    import megacontext
    from megacontext_ext.errors import InvalidArgument

    with pytest.raises(InvalidArgument, match="promote it into a directory"):
        megacontext.open(f"file://{tmp_path}/x", tiny_base)


@pytest.mark.slow
def test_two_machines_share_one_memory_and_one_dies(tiny_folder):
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "mckey", "AWS_SECRET_ACCESS_KEY": "mcsecret"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "two_machines.py"), "--model", tiny_folder],
        capture_output=True, text=True, timeout=280, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout
    for fact in (
        "machine two  answer:",
        "machine one was killed",
        "the writer of epoch 2 now",
        "Henrik Dahl",
        "Ingrid Voss",
        "machine one  Fenced:",
        "pushed to a prefix of its own",
        "nothing lost",
    ):
        assert fact in told


def test_what_was_erased_here_is_erased_everywhere(run, memory, tmp_path):
    url, mirror = f"file://{tmp_path}/place", f"file://{tmp_path}/mirror"

    def push() -> None:
        assert run("remote", "push", memory, url, "--mirror", mirror).exit_code == 0

    def holding(word: bytes) -> set[str]:
        files = [file for name in ("place", "mirror") for file in (tmp_path / name).rglob("*")]
        return {str(file) for file in files if file.is_file() and word in file.read_bytes()}

    push()
    with Store.open(memory) as store:
        gone = store.add_partition("secret-name.txt")
        store.append_tokens(gone, [7] * 40)
    push()
    assert len(holding(b"secret-name")) == 2
    with Store.open(memory) as store:
        store.erase_partition(gone)
    moved = tmp_path / "mirror-away"
    (tmp_path / "mirror").rename(moved)  # as a disk that is not mounted
    failed = run("remote", "purge", memory, "--json")
    assert failed.exit_code == 1
    told = json.loads(failed.stdout)
    assert told["error"] == "ErasureIncomplete"
    assert told["remaining"]
    assert all(name.startswith(mirror) for name in told["remaining"])
    assert not (tmp_path / "mirror").exists()
    moved.rename(tmp_path / "mirror")
    assert len(holding(b"secret-name")) == 2
    report = json.loads(run("remote", "purge", memory, "--json").stdout)
    assert report["stores"] == [url, mirror]
    assert holding(b"secret-name") == set()
    shown = run("remote", "purge", memory, url, "--mirror", mirror)
    assert "removed from 2 stores" in shown.stdout  # the manifest before, once more
