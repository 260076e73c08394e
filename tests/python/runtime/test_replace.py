"""Editing a source gives what ingesting the edited text would have given, and touches no other."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext.config import K
from megacontext.lens import Sketcher
from megacontext.runtime import SKETCH_ROWS, Ingestor, SourceState, text_source
from megacontext_ext import Store
from megacontext_ext.errors import NotFound

from .conftest import STORY

PAGES = [f"{STORY}Page {page} tells of harbour {page * 7}. " for page in range(120)]
TEXT = "".join(PAGES)


def changed(page: int, text: str) -> str:
    return "".join([*PAGES[:page], text, *PAGES[page + 1 :]])


EDITS = {
    "middle": changed(60, "A quokka sat here instead. "),
    "first word": "Quokka " + TEXT,
    "last word": TEXT[:-3] + "!",
    "shorter": TEXT[: len(TEXT) // 3],
    "longer": TEXT + "And a quokka at the end.",
    "empty": "",
    "same": TEXT,
    "all new": "Nothing of the old, a quokka apart. " * 40,
}


def contents(store: Store, partition: int) -> tuple:
    count = store.token_count(partition)
    blocks = count // K
    queries = ("harbour 413 checksum", "quokka", "lighthouse keeper", "instead")
    hits = [[array.tolist() for array in store.search(query, 500)] for query in queries]
    return (
        store.read_tokens(partition, 0, count).tolist(),
        store.block_char_starts(partition, 0, -(-count // K)).tolist(),
        store.read_rows(SKETCH_ROWS, partition, 0, blocks).tobytes(),
        store.indexed_blocks(partition),
        SourceState.from_json(store.partition(partition).metadata_json),
        hits,
    )


def fresh(path, base, sketcher: Sketcher, texts: dict[str, str]) -> Store:
    store = Store.create(path, {"model": "tiny"})
    ingestor = Ingestor(store, base.tokenizer, sketcher)
    for name, text in texts.items():
        ingestor.ingest(text_source(name, text))
    return store


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_equals_a_rebuild(bench, tmp_path, edit):
    bench.ingestor.ingest(text_source("before", PAGES[3] * 20))
    bench.ingestor.ingest(text_source("story", TEXT))
    bench.ingestor.ingest(text_source("after", PAGES[5] * 20))
    if len(edit) % 2:
        bench.store.checkpoint()  # the old rows are sealed
    texts = {"before": PAGES[3] * 20, "story": EDITS[edit], "after": PAGES[5] * 20}
    with fresh(tmp_path / "fresh", bench.base, bench.sketcher, texts) as rebuilt:
        bench.ingestor.replace(text_source("story", EDITS[edit]))
        path = bench.store.path
        for step in ("at once", "checkpoint", "purge"):
            if step != "at once":
                getattr(bench.store, step)()
            for partition in range(3):
                assert contents(bench.store, partition) == contents(rebuilt, partition), step
        bench.store.close()
        with Store.open(path) as reopened:
            for partition in range(3):
                assert contents(reopened, partition) == contents(rebuilt, partition)
            reopened.check()


def test_what_an_edit_leaves_is_not_written_again(bench):
    first = bench.ingestor.ingest(text_source("story", TEXT))
    nodes = first.total_tokens // K
    bench.store.define_rows("gist", 1, "f32", 2)
    bench.store.put_rows("gist", 0, 0, np.ones((nodes, 2), np.float32))
    bench.store.define_rows("high", 2, "f32", 2)
    bench.store.put_rows("high", 0, 0, np.ones((nodes // K, 2), np.float32))
    report = bench.ingestor.replace(text_source("story", EDITS["middle"]))
    assert report.kept_tokens % K == 0
    assert 0.4 < report.kept_tokens / first.total_tokens < 0.51
    assert report.added_tokens == report.total_tokens - report.kept_tokens
    # Gists before the change stay; those of the changed nodes and their ancestors are gone.
    assert bench.store.row_count("gist", 0) == report.kept_tokens // K
    assert bench.store.row_count("high", 0) == report.kept_tokens // K**2


def test_edits_one_after_the_other_equal_a_rebuild(bench, tmp_path):
    random = np.random.default_rng(5)
    pages = list(PAGES[:40])
    bench.ingestor.ingest(text_source("story", "".join(pages)))
    for step in range(12):
        page = int(random.integers(len(pages)))
        pages[page] = f"Edit {step} of page {page}. " * int(random.integers(1, 6))
        bench.ingestor.replace(text_source("story", "".join(pages)))
        if step % 3 == 0:
            bench.store.checkpoint()
    texts = {"story": "".join(pages)}
    with fresh(tmp_path / "fresh", bench.base, bench.sketcher, texts) as rebuilt:
        assert contents(bench.store, 0) == contents(rebuilt, 0)
    bench.store.check()


def test_an_unknown_source_cannot_be_replaced(bench):
    with pytest.raises(NotFound, match="must be ingested already, got 'none'"):
        bench.ingestor.replace(text_source("none", "text"))
