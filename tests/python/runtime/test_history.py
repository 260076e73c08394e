"""The store as the lens sees it: full blocks by the engine, unfinished ones by their words."""

from __future__ import annotations

from megacontext.config import K
from megacontext.runtime import text_source

NEEDLE = "The captain of the ship Astrid is Henrik Dahl. "
QUESTION = "Who is the captain of the ship Astrid?"


def test_a_block_with_all_the_words_beats_unfinished_blocks_with_one(bench):
    for number in range(30):
        bench.ingestor.ingest(text_source(f"log-{number}", f"The log of the day {number}. " * 30))
    report = bench.ingestor.ingest(text_source("letter", NEEDLE * 8 + "Nothing else is said. " * 8))
    hits = bench.history().search(QUESTION, 100)
    assert int(hits.partitions[0]) == report.partition
    assert list(hits.scores) == sorted(hits.scores, reverse=True)


def test_an_unfinished_block_with_all_the_words_comes_first(bench):
    bench.ingestor.ingest(text_source("log", "The log of the ship. " * 200))
    report = bench.ingestor.ingest(text_source("note", "Captain Henrik Dahl, ship Astrid."))
    assert report.total_tokens < K
    hits = bench.history().search(QUESTION, 3)
    assert (int(hits.partitions[0]), int(hits.blocks[0])) == (report.partition, 0)
    assert len(hits.scores) == 3


def test_a_word_that_only_an_unfinished_block_holds_is_found(bench):
    bench.ingestor.ingest(text_source("log", "The log of the ship. " * 200))
    report = bench.ingestor.ingest(text_source("note", "A quokka."))
    hits = bench.history().search("quokka", 10)
    assert [int(p) for p in hits.partitions] == [report.partition]
