"""The untrained lens over an in-memory history: what it scores high, and that it sees the
question."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from megacontext.config import K, LensConfig
from megacontext.lens import Question, Sketcher, UntrainedLens, similarity, sketch
from megacontext.lens.block_axis import BlockAxis
from megacontext.lens.untrained import _completed
from tests.python.lens.words import Words, history


def best_block(scores) -> tuple[int, int]:
    return max(
        ((p, int(s.argmax())) for p, s in scores.by_partition.items()),
        key=lambda place: scores.by_partition[place[0]][place[1]],
    )


def test_changing_the_question_changes_the_scores_of_earlier_spans():
    lens, words = UntrainedLens(), history()
    ship = lens.score(words, Question("Who is captain of the astrid?"))
    pump = lens.score(words, Question("What is the serial number of the pump?"))
    assert best_block(ship) == (0, 10)
    assert best_block(pump) == (3, 30)
    assert ship.by_partition[0][10] > 0 > pump.by_partition[0][10]


def test_neighbours_come_along_and_the_rest_may_be_collapsed():
    lens = UntrainedLens(LensConfig(spread_blocks=2, max_passages=1))
    scores = lens.score(history(), Question("captain astrid"))
    assert np.flatnonzero(scores.by_partition[0] > 0).tolist() == [8, 9, 10, 11, 12]
    assert (scores.by_partition[3] < 0).all()
    (passage,) = scores.passages
    assert (passage.partition, passage.start_block, passage.end_block) == (0, 8, 13)


def test_words_spread_over_neighbouring_blocks_count_together():
    words = history()
    words.texts[0][25] = "henrik henrik henrik"
    lens = UntrainedLens(LensConfig(max_passages=1))
    assert best_block(lens.score(words, Question("henrik sailed from skagen")))[1] in (10, 11)


def test_common_words_that_meet_in_one_block_are_found():
    """Each is in more blocks than are looked up; only one block has them all, and it comes last."""
    apart = ["cobalt vale", "feather vale", "hawk vale"] * 20
    words = Words({0: [text for word in apart for text in (word, *["filler"] * 7)]})
    words.texts[0].append("cobalt feather hawk")
    lens = UntrainedLens(LensConfig(hits_per_term=4, max_passages=1))
    assert best_block(lens.score(words, Question("cobalt feather hawk")))[1] >= 478


def test_a_spread_never_reaches_into_the_next_source():
    words = Words({0: ["filler"] * 5 + ["astrid"], 1: ["other"] * 6})
    scores = UntrainedLens().score(words, Question("astrid"))
    assert (scores.by_partition[0] > 0).tolist() == [False, False, False, True, True, True]
    assert (scores.by_partition[1] < 0).all()


def test_the_newest_text_is_chosen_when_nothing_matches():
    scores = UntrainedLens(LensConfig(max_passages=1)).score(history(), Question("zebra"))
    (passage,) = scores.passages
    assert (passage.partition, passage.end_block) == (3, 40)


def test_sketches_find_what_no_word_finds():
    words = history()
    rows = np.zeros((40, 4), np.int8)
    rows[:, 0] = 100
    rows[17] = (0, 120, 0, 0)
    words.rows = {0: rows}
    question = Question("zebra", np.array([0, 1, 0, 0], np.float32))
    assert best_block(UntrainedLens(LensConfig(max_passages=1)).score(words, question)) == (0, 17)


def test_passages_far_below_the_best_are_not_shown():
    words = history()
    words.texts[3][5] = "the captain was asleep"
    lens = UntrainedLens(LensConfig(keep_ratio=0.8))
    scores = lens.score(words, Question("captain astrid henrik"))
    assert [(p.partition, p.start_block) for p in scores.passages] == [(0, 8)]


def test_an_empty_history_has_no_scores():
    scores = UntrainedLens().score(Words({}), Question("anything"))
    assert scores.by_partition == {}
    assert scores.passages == ()


def test_the_same_history_and_question_give_the_same_scores():
    first, second = (UntrainedLens().score(history(), Question("captain pump")) for _ in range(2))
    for partition, scores in first.by_partition.items():
        assert np.array_equal(scores, second.by_partition[partition])


def test_axis_places_and_locations_are_inverse():
    axis = BlockAxis({4: 3, 1: 5}, room=2)
    partitions = np.array([4, 1, 1, 4, 2, 9], np.uint32)
    blocks = np.array([2, 0, 4, 3, 0, 0], np.uint64)
    places = axis.places(partitions, blocks)
    assert places[3:].tolist() == [-1, -1, -1]
    assert [axis.locate(int(place)) for place in places[:3]] == [(4, 2), (1, 0), (1, 4)]
    assert axis.block_mask().sum() == 8


@pytest.fixture(scope="module")
def sketcher(tiny_base):
    return Sketcher(tiny_base)


class TestSketcher:
    """Sketches of a real embedding table (the tiny base's)."""

    def test_a_block_resembles_a_question_of_its_own_tokens_most(self, sketcher):
        generator = np.random.default_rng(0)
        blocks = generator.integers(3, 460, (20, K)).astype(np.uint32)
        rows = sketcher.block_rows(blocks)
        for number in range(20):
            question = sketcher.question_row(blocks[number][:24])
            assert int(similarity(rows, question).argmax()) == number

    def test_rows_are_the_same_however_many_come_at_once(self, sketcher):
        generator = np.random.default_rng(1)
        blocks = generator.integers(3, 460, (9, K)).astype(np.uint32)
        one_by_one = np.concatenate([sketcher.block_rows(block[None]) for block in blocks])
        assert np.array_equal(sketcher.block_rows(blocks), one_by_one)

    def test_another_table_makes_the_same_rows(self, sketcher, tiny_base, monkeypatch):
        blocks = np.arange(3, 3 + 2 * K, dtype=np.uint32).reshape(2, K)
        before = sketcher.block_rows(blocks)
        monkeypatch.setattr(sketch, "_TABLES", {})
        assert np.array_equal(before, Sketcher(tiny_base).block_rows(blocks))

    def test_a_base_has_one_table_and_another_base_its_own(self, tiny_base, monkeypatch):
        monkeypatch.setattr(sketch, "_TABLES", {})
        first = Sketcher(tiny_base).token_rows(np.arange(3, dtype=np.uint32))
        kept = next(iter(sketch._TABLES.values()))
        assert Sketcher(tiny_base)._table is kept
        other = copy.copy(tiny_base)
        for number in range(3):
            other._facts = replace(tiny_base.facts, fingerprint=str(number))
            again = Sketcher(other).token_rows(np.arange(3, dtype=np.uint32))
            assert torch.equal(first, again)
        assert len(sketch._TABLES) == 2

    def test_no_tokens_resemble_nothing(self, sketcher):
        row = sketcher.question_row(np.zeros(0, np.uint32))
        assert not row.any()
        assert not similarity(np.ones((2, len(row)), np.int8), row).any()


class Likelihoods:
    """A reader that gives each passage the likelihood that is written in it."""

    def log_likelihood(self, question, passages):
        return np.array([[int(tokens[0]) - 200] for tokens in passages], np.float32)


class Numbered(Words):
    """Blocks whose first token is their likelihood, above -200 nats."""

    def tokens(self, partition, start_block, end_block):
        block = next(b for b in self.texts[partition][start_block:end_block] if "pump" in b)
        return np.array([int(re.search(r"nats(\d+)", block)[1])], np.uint32)


@pytest.mark.parametrize(
    ("likelihoods", "shown"),
    [
        # Four that answer alike, far above the rest: all of them, in spite of the rule of three.
        ((138, 137, 140, 132, 90, 87), [138, 137, 140, 132]),
        # No gap, or one that is small beside the spread: the best three within 2 nats, and the
        # newest within 3.
        ((140, 139, 138, 136, 135, 134), [140, 139, 138]),
        ((140, 139, 138, 136, 134, 137), [140, 139, 138, 137]),
        ((140, 130, 120, 110, 90, 89), [140]),
        # Three or fewer: a pair of twins is not shown for being a pair.
        ((140, 133, 90, 89, 88, 87), [140]),
    ],
)
def test_several_passages_that_answer_alike_are_shown_together(likelihoods, shown):
    blocks = [f"filler number{n} here" for n in range(120)]
    for number, nats in enumerate(likelihoods):
        blocks[10 + 20 * number if number < 5 else 115] = f"the pump nats{nats}"
    lens = UntrainedLens(LensConfig(recency_weight=0.0), reader=Likelihoods())
    scores = lens.score(Numbered({0: blocks}), Question("pump"))
    found = [
        int(re.search(r"nats(\d+)", " ".join(blocks[p.start_block : p.end_block]))[1])
        for p in scores.passages
    ]
    assert sorted(found) == sorted(shown)


def test_a_rare_word_is_looked_at_however_many_others_are_elsewhere():
    blocks = [f"filler number{n} here" for n in range(300)]
    for at in range(0, 280, 40):
        blocks[at + 5] = "which variable holds the value directly or through another"
    blocks[295] = "pump of value 31915"
    asked = Question("which variable holds the value 31915 directly or through another")
    read: list[str] = []

    class Readings(Words):
        def tokens(self, partition, start_block, end_block):
            read.append(" ".join(self.texts[partition][start_block:end_block]))
            return np.array([100], np.uint32)

    for rare_terms, there in ((2, True), (0, False)):
        read.clear()
        UntrainedLens(LensConfig(rare_terms=rare_terms), Likelihoods()).score(
            Readings({0: blocks}), asked
        )
        assert any("31915" in text for text in read) == there


class TestSeveralSubjects:
    # One row a candidate: how far each of its four tokens of the question is from being expected.
    def test_each_passage_that_explains_words_of_its_own_is_shown(self):
        by_token = np.full((6, 4), -10.0, np.float32)
        for subject in range(4):
            by_token[subject + 1, subject] = -1.0
        assert sorted(_completed([3], by_token, 5.0)) == [1, 2, 3, 4]

    def test_the_best_twin_comes_and_the_other_does_not(self):
        by_token = np.array([[-1, -9], [-9, -1], [-9, -0.5]], np.float32)
        assert _completed([0], by_token, 5.0) == [0, 2]

    def test_many_small_gains_of_a_plain_question_bring_nothing(self):
        by_token = np.array([[-2.0] * 64, [-1.1] * 64], np.float32)
        assert _completed([0], by_token, 5.0) == [0]

    def test_what_is_shown_scores_near_the_best(self):
        # Else the allocator would leave out a subject that the question as a whole says little of.
        by_token = np.full((3, 40), -3.0, np.float32)
        by_token[0, :30] = by_token[1, 30:] = -0.1
        scores = UntrainedLens()._read_scores(by_token, np.ones(3, np.float32), [2, 1, 0])
        assert scores[0] == 1.0
        assert scores[1] == pytest.approx(np.exp(-LensConfig().keep_nats / 8.0))
        assert scores[2] == 0.0

    def test_a_base_that_cannot_tell_does_not_stop_the_question(self):
        by_token = np.full((3, 5), np.nan, np.float32)
        by_token[1] = -np.inf
        scores = UntrainedLens()._read_scores(by_token, np.ones(3, np.float32), [2, 1, 0])
        assert np.isfinite(scores).all()
        assert scores.any()

    def test_all_shown_stays(self):
        assert _completed([1, 0], np.zeros((2, 3), np.float32), 5.0) == [1, 0]
