"""Editing and forgetting as a user has them: nothing of the old text is found, shown or on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import megacontext
from megacontext.config import GenerationConfig, RuntimeConfig
from megacontext.remote import Cache, ErasureIncomplete, Reader, Writer, open_remote
from megacontext_ext.errors import InvalidArgument, NotFound

SMALL = RuntimeConfig(budget_places=512)
SHORT = GenerationConfig(max_new_tokens=2)
FILLER = "Every record has a checksum, so a torn write is seen and cut away. " * 30
SECRET = "The word of the vault is zanzibar-quokka-417. "


@pytest.fixture
def memory(tmp_path, tiny_base):
    with megacontext.open(tmp_path / "m", tiny_base, config=SMALL) as opened:
        opened.ingest(FILLER, source="log.txt")
        opened.ingest(FILLER + SECRET + FILLER, source="vault.txt", metadata={"tags": ["zeta-tag"]})
        opened.ingest(FILLER + "A lighthouse stands here. ", source="shore.txt")
        yield opened


def shown(memory, question: str) -> str:
    return "".join(span.text for span in memory.ask(question, SHORT).sources)


def test_a_replaced_text_is_shown_and_the_old_one_is_not(memory):
    question = "Which word has the vault?"
    assert "zanzibar" in shown(memory, question)
    memory.replace("vault.txt", FILLER + "The word of the vault is heron. " + FILLER)
    assert "heron" in shown(memory, question)
    assert "zanzibar" not in shown(memory, question)
    assert "lighthouse" in shown(memory, "lighthouse")


def test_a_chat_goes_on_over_an_edit_and_an_erasure(memory):
    talk = memory.chat()
    _ = talk.ask("zanzibar", SHORT).text
    memory.replace("vault.txt", FILLER)
    _ = talk.ask("heron", SHORT).text
    memory.forget("vault.txt")
    answer = talk.ask("zanzibar", SHORT)
    _ = answer.text
    assert all(span.source != "vault.txt" for span in answer.sources)


def test_of_a_forgotten_source_no_byte_is_left(memory):
    store = memory.store
    known = store.find_partition("vault.txt")
    tokens = store.read_tokens(known.id, 0, known.token_count)
    at = len(FILLER) * known.token_count // len(FILLER + SECRET + FILLER)
    sketches = store.read_rows("sketch-v1", known.id, 0, store.row_count("sketch-v1", known.id))
    secret = tokens[at : at + 8]
    traces = [
        secret.astype("<u4").tobytes(),
        sketches[at // 32].tobytes(),
        b"vault.txt",
        b"zeta-tag",
    ]

    def found() -> list[int]:
        files = [file.read_bytes() for file in Path(store.path).iterdir()]
        return [n for n, trace in enumerate(traces) if any(trace in file for file in files)]

    store.commit()
    assert found() == [0, 1, 2, 3]
    memory.forget("vault.txt", purge=False)
    assert "vault.txt" not in memory.sources()
    assert "zanzibar" not in shown(memory, "zanzibar vault")
    memory.purge()
    assert found() == []
    assert "lighthouse" in shown(memory, "lighthouse")
    store.check()
    memory.ingest("New under the old name.", source="vault.txt")
    assert memory.sources() == ["log.txt", "shore.txt", "vault.txt"]


def test_forgetting_everywhere_reaches_the_object_stores(memory, tmp_path):
    urls = [f"file://{tmp_path}/place", f"file://{tmp_path}/mirror"]

    def push() -> None:
        memory.store.checkpoint()
        Writer.resume(open_remote(urls), memory.store.path).push()

    def holding() -> set[str]:
        files = [file for name in ("m", "place", "mirror") for file in (tmp_path / name).rglob("*")]
        return {file.parts[len(tmp_path.parts)] for file in files
                if file.is_file() and b"vault.txt" in file.read_bytes()}  # fmt: skip

    assert memory.purge(everywhere=True).stores == ()  # never pushed
    push()
    memory.ingest("Something later.", source="late.txt")
    push()
    assert holding() == {"m", "place", "mirror"}
    memory.forget("vault.txt", everywhere=True)
    assert holding() == set()
    with Reader(open_remote(urls[1]), Cache(tmp_path / "cache")) as reader:
        names = {partition.source for partition in reader.store().partitions()}
    assert names == {"log.txt", "shore.txt", "late.txt"}
    shutil.rmtree(tmp_path / "mirror")
    with pytest.raises(ErasureIncomplete, match="name the places that count"):
        memory.purge(everywhere=True)


def test_what_cannot_be_done_is_said(memory, tiny_base):
    with pytest.raises(NotFound, match="got 'none'"):
        memory.forget("none")
    with pytest.raises(NotFound, match="got 'none'"):
        memory.replace("none", "text")
    with megacontext.open(memory.store.path, tiny_base, read_only=True) as reader:
        for call in (lambda: reader.forget("log.txt"), lambda: reader.replace("log.txt", "")):
            with pytest.raises(InvalidArgument, match="read-only"):
                call()
