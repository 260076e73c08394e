"""Whatever interrupts an ingestion, the end result is that of an uninterrupted one."""

from __future__ import annotations

import json

import pytest

from megacontext.config import K
from megacontext.runtime import SKETCH_ROWS, Ingestor, iterator_source, text_source
from megacontext.runtime import ingest as ingest_module
from megacontext_ext import Store
from megacontext_ext.errors import InvalidArgument

from .conftest import STORY

LONG = "".join(f"{STORY}Page {page} tells of harbour {page * 7}. " for page in range(600))


def contents(store: Store, partition: int) -> tuple:
    count = store.token_count(partition)
    blocks = count // K
    hits = [array.tolist() for array in store.search("harbour 413 checksum", 50)]
    return (
        store.read_tokens(partition, 0, count).tolist(),
        store.block_char_starts(partition, 0, blocks).tolist(),
        store.read_rows(SKETCH_ROWS, partition, 0, blocks).tobytes(),
        store.indexed_blocks(partition),
        hits,
    )


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(ingest_module, "PIECES_PER_BATCH", 2)


def test_tokens_are_those_of_the_whole_text(bench):
    report = bench.ingestor.ingest(text_source("story", LONG))
    tokens = bench.store.read_tokens(report.partition, 0, report.total_tokens)
    assert tokens.tolist() == bench.base.tokenizer.encode(LONG).tolist()
    assert report.added_tokens == report.total_tokens == len(tokens)
    assert report.characters == len(LONG)


def test_char_starts_point_into_the_text(bench):
    report = bench.ingestor.ingest(text_source("story", LONG))
    starts = bench.store.block_char_starts(report.partition, 0, report.total_tokens // K)
    for block in (0, 1, 50, len(starts) - 1):
        tokens = bench.store.read_tokens(report.partition, block * K, block * K + 4)
        shown = bench.base.tokenizer.decode(tokens).strip()
        assert LONG[int(starts[block]) :].strip().startswith(shown)


@pytest.mark.parametrize("stop", ["append_tokens", "put_rows", "index_text", "set_metadata"])
@pytest.mark.parametrize("at", [1, 3])
def test_interrupted_anywhere_it_goes_on_to_the_same_result(
    bench, tmp_path, monkeypatch, small_batches, stop, at
):
    with Store.create(str(tmp_path / "whole"), {"model": "tiny"}) as whole:
        other = Ingestor(whole, bench.base.tokenizer, bench.sketcher)
        expected = contents(whole, other.ingest(text_source("story", LONG)).partition)
    path = bench.store.path
    calls = 0
    real = getattr(Store, stop)

    def interrupted(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == at + 1:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(Store, stop, interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.ingestor.ingest(text_source("story", LONG))
    monkeypatch.setattr(Store, stop, real)
    bench.store.close()
    with Store.open(path) as store:
        again = Ingestor(store, bench.base.tokenizer, bench.sketcher)
        report = again.ingest(text_source("story", LONG))
        assert report.resumed_at_tokens > 0
        assert contents(store, report.partition) == expected


def test_the_same_text_again_adds_nothing(bench):
    bench.ingestor.ingest(text_source("story", LONG))
    written = bench.store.stats()["wal_bytes_written"]
    report = bench.ingestor.ingest(text_source("story", LONG))
    assert report.added_tokens == 0
    assert bench.store.stats()["wal_bytes_written"] == written


def test_a_text_that_grew_goes_on_at_its_end(bench):
    first = bench.ingestor.ingest(text_source("log", STORY * 20))
    second = bench.ingestor.ingest(text_source("log", STORY * 20 + "And then the Astrid came."))
    assert second.partition == first.partition
    assert second.added_tokens > 0
    tokens = bench.store.read_tokens(second.partition, 0, second.total_tokens)
    assert bench.base.tokenizer.decode(tokens) == STORY * 20 + "And then the Astrid came."


@pytest.mark.parametrize("changed", ["X" + LONG[1:], LONG[:100], ""])
def test_a_text_that_changed_is_refused_and_nothing_is_lost(bench, changed):
    report = bench.ingestor.ingest(text_source("story", LONG))
    with pytest.raises(InvalidArgument, match="it has changed; ingest it under another name"):
        bench.ingestor.ingest(text_source("story", changed))
    assert bench.store.token_count(report.partition) == report.total_tokens


@pytest.mark.parametrize("text", ["", "a"])
def test_an_empty_and_a_tiny_document(bench, text):
    report = bench.ingestor.ingest(text_source("tiny", text))
    assert report.total_tokens == len(text)  # one character is one token
    state = json.loads(bench.store.partition(report.partition).metadata_json)
    assert state["complete"] is True


def test_progress_is_told_after_every_batch(bench, small_batches):
    told = []
    report = bench.ingestor.ingest(text_source("story", LONG), progress=told.append)
    assert len(told) > 2
    assert [each.tokens for each in told] == sorted({each.tokens for each in told})
    assert told[-1].tokens == report.total_tokens
    assert told[-1].characters == len(LONG)


def test_user_metadata_is_kept(bench):
    report = bench.ingestor.ingest(text_source("story", STORY), {"author": "Dahl"})
    state = json.loads(bench.store.partition(report.partition).metadata_json)
    assert state["user"] == {"author": "Dahl"}


def test_a_line_without_white_space_is_ingested_whole(bench):
    """2 MB in one line (100 MB: benchmarks/runtime/bench_long_line.py)."""
    line = "abcdefgh" * 4096
    report = bench.ingestor.ingest(iterator_source("line", (line for _ in range(64))))
    assert report.characters == 64 * len(line)
    last = bench.store.read_tokens(report.partition, report.total_tokens - 8, report.total_tokens)
    assert (line * 2).find(bench.base.tokenizer.decode(last)) > 0
