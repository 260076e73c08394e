"""The demo's parts: real text, facts that are where they should be, one fair scoring."""

from __future__ import annotations

import time

import pytest

from megacontext.demo.corpus import Document, load_corpus, sample_questions
from megacontext.demo.facts import plant
from megacontext.demo.run import (
    METHODS,
    PLANTED_OF_EACH,
    READING_QUESTIONS,
    SEED,
    Outcome,
    _ask_at_full_budget,
)
from megacontext.demo.scoring import is_right, normalised


@pytest.fixture(scope="module")
def corpus():
    return load_corpus()


def test_the_history_is_real_and_long_enough(corpus):
    characters = sum(len(document.text) for document in corpus.documents)
    # About 4.5 characters a token.
    assert characters > 200_000 * 4.6
    assert len(corpus.questions) > 3000


def test_answers_stand_in_the_spans_of_their_questions(corpus):
    for question in corpus.questions[::37]:
        assert any(answer in question.span for answer in question.answers)
        assert question.span in corpus.documents[0].text


def test_questions_are_the_same_for_a_seed_and_of_different_paragraphs(corpus):
    first, again, other = (sample_questions(corpus, 30, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len({question.span for question in first}) == 30


def test_planted_facts_stand_in_the_text_once_and_twins_beside_them():
    documents = [Document("a", [f"paragraph {n} " * 20 for n in range(50)]),
                 Document("b", [f"other {n} " * 20 for n in range(50)])]  # fmt: skip
    questions = plant(documents, 3, seed=5)
    whole = "\n".join(document.text for document in documents)
    assert len(questions) == 9
    assert whole.count("The captain of the ship") == 6
    for question in questions:
        assert question.answers[0] in question.span
        assert question.span in whole


def test_planting_is_seeded():
    made = [plant([Document("a", ["text " * 50] * 30)], 3, seed) for seed in (5, 5, 6)]
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize(
    ("answer", "right"),
    [("It was the Eiffel Tower.", True), ("eiffel-tower", True), ("Eiffel", False),
     ("Eiffel Towers", False), ("", False)],
)  # fmt: skip
def test_scoring_wants_the_words_in_a_row(answer, right):
    assert is_right(answer, ("the Eiffel Tower",)) is right


def test_an_accepted_answer_of_articles_alone_never_counts():
    assert normalised("The") == ""
    assert not is_right("anything", ("the",))


def test_shares_of_the_ceiling(corpus):
    questions = sample_questions(corpus, 4, 1)
    right = [question.answers[0] for question in questions]
    outcome = Outcome(questions, {"ceiling": [*right[:2], "no", "no"],
                                  "megacontext": [right[0], "no", "no", "no"]})  # fmt: skip
    assert outcome.over_ceiling("megacontext") == 0.5
    assert outcome.cell("megacontext") == "1 of 4"
    assert set(METHODS) >= {"megacontext", "ceiling", "plain", "rag"}
    assert READING_QUESTIONS >= 30
    assert PLANTED_OF_EACH >= 3
    assert SEED


def test_a_method_that_was_not_asked_everything_meets_the_ceiling_of_what_it_was_asked(corpus):
    questions = sample_questions(corpus, 4, 1)
    right = [question.answers[0] for question in questions]
    outcome = Outcome(questions, {"ceiling": [*right[:2], "no", "no"],
                                  "rag": [right[0], None, "no", None]})  # fmt: skip
    assert outcome.asked("rag") == [0, 2]
    assert outcome.cell("rag") == "1 of 2"
    assert outcome.over_ceiling("rag") == 1.0


class _SlowBaselines:
    """Answers each question, and says how many it was asked."""

    def __init__(self):
        self.asked = 0

    def plain(self, questions):
        for _ in questions:
            self.asked += 1
            yield "plain"

    def retrieval(self, questions):
        for _ in questions:
            yield "rag"


@pytest.mark.parametrize(("seconds_left", "asked"), [(-1.0, 10), (1000.0, 20)])
def test_a_slow_machine_asks_a_sample_at_full_budget(corpus, seconds_left, asked):
    outcome = Outcome(sample_questions(corpus, 20, 1))
    baselines = _SlowBaselines()
    _ask_at_full_budget(baselines, outcome, time.monotonic() + seconds_left, lambda: None)
    assert baselines.asked == len(outcome.asked("rag")) == len(outcome.asked("plain")) == asked
