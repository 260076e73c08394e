"""Metadata, use and refresh of a memory, as a user has them."""

from __future__ import annotations

import pytest

import megacontext
from megacontext.config import GenerationConfig, RuntimeConfig
from megacontext.curate import Rule, Rules, apply_plan, make_plan, report, restore
from megacontext.runtime import read_counts
from megacontext_ext.errors import InvalidArgument, NotFound

SMALL = RuntimeConfig(budget_places=512)
SHORT = GenerationConfig(max_new_tokens=2)
FILLER = "Every record has a checksum, so a torn write is seen and cut away. " * 30


@pytest.fixture
def memory(tmp_path, tiny_base):
    with megacontext.open(tmp_path / "m", tiny_base, config=SMALL) as opened:
        opened.ingest(FILLER + "The quokka sleeps. ", source="log.txt", metadata={"tags": ["log"]})
        opened.ingest("A lighthouse stands here. " * 30, source="notes/shore.txt")
        yield opened


def test_sources_are_asked_for_by_what_is_known_of_them(memory, tmp_path):
    path = tmp_path / "file.md"
    path.write_text("From a file.")
    memory.ingest(path, source="file")
    memory.describe_source("notes/shore.txt", tags=["sea"], time="2026-03-01", trust=0.75)
    assert memory.sources() == ["log.txt", "notes/shore.txt", "file"]
    assert memory.sources(tag="log") == ["log.txt"]
    assert memory.sources(path="*.md") == ["file"]
    assert memory.sources(path="notes/*") == ["notes/shore.txt"]
    assert memory.sources(trust_at_least=0.7) == ["notes/shore.txt"]
    assert memory.sources(since="2026-01-01") == ["notes/shore.txt"]
    assert memory.sources(since="2026-04-01") == []
    assert memory.sources(tag="sea", path="log*") == []
    info = memory.describe_source("notes/shore.txt", trust=None)
    assert (info.trust, info.tags, info.kind) == (None, ("sea",), "text")
    with pytest.raises(InvalidArgument, match="trust must lie in"):
        memory.describe_source("log.txt", trust=2)
    with pytest.raises(InvalidArgument, match="tags must be a list"):
        memory.describe_source("log.txt", tags="sea")
    with pytest.raises(NotFound):
        memory.describe_source("none", trust=1)


def test_notes_on_spans_stay_with_their_text(memory):
    memory.annotate("log.txt", 0, 20, ["start"], "how it begins")
    info = memory.annotate("log.txt", 500, 520, ["later"])
    assert [(s.start, s.end, s.tags, s.note) for s in info.spans] == [
        (0, 20, ("start",), "how it begins"),
        (500, 520, ("later",), ""),
    ]
    assert memory.sources(tag="later") == ["log.txt"]
    text = FILLER[:900] + "An edit. " + FILLER[900:]
    memory.replace("log.txt", text)
    assert memory.sources(tag="start") == ["log.txt"]
    assert memory.sources(tag="later") == []
    assert memory.sources(tag="log") == ["log.txt"]
    with pytest.raises(InvalidArgument, match=r"span must lie in \[0, "):
        memory.annotate("log.txt", 5, 10**9)


def test_what_was_shown_is_counted_and_kept(memory, tiny_base):
    for _ in range(2):
        answer = memory.ask("Where does the quokka sleep?", SHORT)
        _ = answer.text
    shown = [span for span in answer.sources if span.source == "log.txt"]
    assert shown
    memory.close()
    with megacontext.open(memory.store.path, tiny_base, config=SMALL) as again:
        counts = read_counts(again.store, 0)
        full = again.store.token_count(0) // 32
        for span in shown:
            for block in range(span.token_start // 32, min(-(-span.token_end // 32), full)):
                assert counts[block] == 2
        again.store.check()
        _ = again.ask("Where does the quokka sleep?", SHORT).text
    with megacontext.open(memory.store.path, tiny_base, read_only=True) as again:
        assert read_counts(again.store, 0).max() == 3


def test_an_archived_source_is_neither_found_nor_shown_until_it_is_restored(memory):
    def shown() -> set[str]:
        return {span.source for span in memory.ask("quokka lighthouse", SHORT).sources}

    assert "log.txt" in shown()
    plan = make_plan(report(memory.store), Rules((Rule("archive", tag="log"),)))
    (entry,) = apply_plan(memory.store, plan, "ann").done
    assert shown() == {"notes/shore.txt"}
    assert memory.sources() == ["notes/shore.txt"]
    assert memory.sources(hidden=True) == ["log.txt"]
    restore(memory.store, entry.number, "ann")
    assert "log.txt" in shown()
