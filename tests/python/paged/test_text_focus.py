"""A question over a stream's text, without a model: names that stand side by side lead."""

from __future__ import annotations

import random

import pytest

from megacontext.config import K
from megacontext.lens import phrases
from megacontext.lens.phrases import phrase_hits
from megacontext.paged.text_focus import TextFocus
from megacontext_ext import Store

SOME = "They say that the weather is fair and that the road goes on between fields of barley."


def decoys(rng: random.Random, count: int) -> list[str]:
    """Lines with each word of the name, never side by side."""
    return [
        f"The number of serene-{rng.choice('abc')}{n} and {rng.choice('hij')}{n}-hollow is {n}."
        for n in range(count)
    ]


def text_of(lines: list[str], every: int = 12) -> str:
    """The lines in order, each with much else around it."""
    return "\n".join([part for line in lines for part in [SOME] * every + [line]] + [SOME] * 2)


@pytest.fixture
def asked(tmp_path, text_tokenizer):
    """(blocks, their scores, the text of the first ones) of a question over a text."""

    def ask(text: str, question: str, count: int = 16):
        tokens = text_tokenizer.encode(text)
        tokens = tokens[: len(tokens) // K * K]
        with Store.create(tmp_path / f"s{random.random()}", {}) as store:
            store.add_partition("stream-0")
            store.append_tokens(0, tokens)
            focus = TextFocus(store, text_tokenizer)
            scores = focus.score(question, 0, count)
            hits = phrase_hits(focus._history, text_tokenizer, question)
            shown = [text_tokenizer.decode(tokens[b * K : (b + 1) * K]) for b in scores]
        return hits, scores, shown

    return ask


def test_a_name_comes_before_any_number_of_its_words_apart(asked):
    rng = random.Random(1)
    lines = decoys(rng, 40)
    lines.insert(7, "The number of serene-hollow is 7308856.")
    hits, scores, shown = asked(text_of(lines), "What is the number of serene-hollow?")
    assert [hit.sentence.text for hit in hits] == [lines[7]]
    first = [block for block, score in scores.items() if score > 1.0]
    assert first == list(range(hits[0].sentence.start_block, hits[0].sentence.end_block))
    assert "7308856" in "".join(shown[: len(first)])


@pytest.mark.parametrize("shift", range(0, 40, 3))
def test_a_name_across_blocks_is_whole(asked, shift):
    lines = [" ".join(["so"] * shift) + ".", "The number of serene-hollow is 7308856.", SOME]
    hits, _, shown = asked(text_of(lines), "serene-hollow?")
    held = hits[0].sentence.end_block - hits[0].sentence.start_block
    assert "serene-hollow is 7308856." in "".join(shown[:held])


def test_a_common_word_beside_a_rare_one_is_part_of_a_name(asked):
    lines = [f"The barley meadow{'s' * (n % 2)} number {n} is fair." for n in range(6)]
    hits, _, _ = asked(
        text_of([*lines[:3], "The fields meadow is 77.", *lines[3:]]), "fields meadow?"
    )
    assert [hit.sentence.text for hit in hits] == ["The fields meadow is 77."]


def test_each_name_has_its_sentence_and_of_one_the_newest_is_first(asked):
    lines = ["Mira Holt lives in Ribe.", "Bo Tang lives in Oslo.", "Mira Holt lives in Bern."]
    hits, _, _ = asked(text_of(lines), "Where do Mira Holt and Bo Tang live?")
    told = [hit.sentence.text for hit in hits]
    assert sorted(told) == sorted(lines)
    assert told.index(lines[2]) < told.index(lines[0])


def test_a_name_in_many_sentences_and_common_words_lead_nowhere(asked):
    lines = ["Mira Holt came by."] * 30
    assert asked(text_of(lines), "What of Mira Holt?")[0] == []
    assert asked(text_of(["One thing."]), "Is the weather fair between fields?")[0] == []


def test_names_take_at_most_half_of_the_places(asked):
    lines = [f"Mira Holt saw {n} ships, more than anybody had seen before." for n in range(14)]
    hits, scores, _ = asked(text_of(lines), "How many ships did Mira Holt see?", 8)
    assert len(hits) == 14
    assert 0 < sum(score > 1.0 for score in scores.values()) <= 4
    assert len(scores) == 8


def test_a_long_question_looks_at_no_more_than_its_most_telling_pairs(asked, monkeypatch):
    looked = []
    through = phrases._side_by_side

    def counted(*args):
        looked.append(args[3])
        return through(*args)

    monkeypatch.setattr(phrases, "_side_by_side", counted)
    lines = [f"Person{n} Holt{n} came by." for n in range(200)]
    monkeypatch.setattr(phrases, "_RARE", 1)
    asked(text_of(lines, 1), " and ".join(lines))
    assert len(set(looked)) == 64
    assert all(first[6:] == second[4:] for first, second in set(looked)), "names, no common words"


def test_an_empty_stream_and_a_question_without_words(asked):
    assert asked("", "Mira Holt?")[0] == []
    assert asked(text_of(["Mira Holt lives in Ribe."]), "?!")[0] == []
