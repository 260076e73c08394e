"""Lexical search over blocks beside tantivy and bm25s, on the text that ships with Python."""

from __future__ import annotations

import importlib.util
import sysconfig
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

from benchmarks.harness import Bench, Case
from megacontext_ext.search import TextIndex, analyze

TESTS = "tests/ext/test_search.py"
BLOCK_CHARACTERS = 150  # about 32 tokens
FULL_BLOCKS = 31_250  # 1M tokens
INGEST_BLOCKS = 6_250
QUERY_WORDS = 8
QUERIES = 20
K = 20


def _blocks(count: int) -> list[str]:
    """The language reference, then the sources of the standard library, cut into blocks."""
    parts = [topics[name] for name in sorted(topics)]
    size = sum(map(len, parts))
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        if size > count * BLOCK_CHARACTERS:
            break
        parts.append(path.read_text(encoding="utf-8", errors="replace"))
        size += len(parts[-1])
    text = "\n".join(parts)
    starts = range(0, min(len(text), count * BLOCK_CHARACTERS), BLOCK_CHARACTERS)
    return [text[start : start + BLOCK_CHARACTERS] for start in starts]


def _queries(blocks: list[str]) -> list[str]:
    """Eight words in a row from anywhere, common ones with the rare, as questions have them."""
    random = np.random.default_rng(0)
    words = " ".join(blocks).split()
    starts = random.integers(0, len(words) - QUERY_WORDS, QUERIES)
    queries = [" ".join(words[start : start + QUERY_WORDS]) for start in starts]
    return ["".join(c if c.isalnum() else " " for c in query) for query in queries]


def run(bench: Bench) -> None:
    blocks = _blocks(400 if bench.smoke else FULL_BLOCKS)
    queries = _queries(blocks)
    ingest = blocks[:INGEST_BLOCKS]
    text = "".join(blocks)
    params = {"blocks": len(blocks), "bytes": len(text.encode())}
    measured = bench.compare(Case("analyze", params), lambda: len(analyze(text)))
    rate = params["bytes"] / measured["megacontext"].median
    bench.record_ratio("analyze vs 50 MB/s", rate / 50e6, goal=1.0)
    builders: dict[str, Callable[[list[str]], Callable[[str], object]]] = {}
    for name, build in {"tantivy": _tantivy, "bm25s": _bm25s}.items():
        if importlib.util.find_spec(name) is None:
            print(f"    {name} is not installed: no comparison (pip install {name})")
        else:
            builders[name] = build
    bench.compare(
        Case("index", {"blocks": len(ingest)}),
        lambda: _ours(ingest) and None,
        {name: (lambda build=build: build(ingest) and None) for name, build in builders.items()},
        {"tantivy": 1.0, "bm25s": 1.0},
    )
    ask = _ours(blocks)
    asked = {name: build(blocks) for name, build in builders.items()}
    measured = bench.compare(
        Case("query", {**params, "queries": len(queries), "k": K}),
        lambda: [ask(query) for query in queries] and None,
        {
            name: (lambda call=call: [call(query) for query in queries] and None)
            for name, call in asked.items()
        },
        {"tantivy": 1.0, "bm25s": 1.0},
    )
    each = measured["megacontext"].median / len(queries)
    bench.record_ratio("query vs 2 ms", 2e-3 / each, goal=1.0)


def _ours(blocks: list[str]) -> Callable[[str], object]:
    index = TextIndex()
    index.add(0, 0, blocks)
    index.seal()
    return lambda query: index.search(query, K)


def _tantivy(blocks: list[str]) -> Callable[[str], object]:
    import tantivy

    schema = tantivy.SchemaBuilder()
    schema.add_unsigned_field("block", stored=True)
    schema.add_text_field("text", stored=False, tokenizer_name="en_stem")
    index = tantivy.Index(schema.build())
    writer = index.writer(heap_size=64_000_000, num_threads=1)
    for block, text in enumerate(blocks):
        writer.add_document(tantivy.Document(block=block, text=text))
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    searcher = index.searcher()

    def ask(query: str) -> object:
        hits = searcher.search(index.parse_query(query, ["text"]), K).hits
        return [searcher.doc(address)["block"] for _, address in hits]

    return ask


def _bm25s(blocks: list[str]) -> Callable[[str], object]:
    import bm25s

    index = bm25s.BM25(k1=0.9, b=0.4)
    index.index(bm25s.tokenize(blocks, stopwords=None, show_progress=False), show_progress=False)

    def ask(query: str) -> object:
        tokens = bm25s.tokenize(query, stopwords=None, show_progress=False)
        return index.retrieve(tokens, k=K, show_progress=False, n_threads=1)

    return ask
