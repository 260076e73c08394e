"""Every task: the same bytes twice, the length that was asked for, answers inside their gold."""

from __future__ import annotations

import re

import pytest

from megacontext.eval.long import scorers
from megacontext.eval.long.example import ExampleRequest, estimate_tokens
from megacontext.eval.long.filler import filler
from megacontext.eval.long.tasks import RULER, TASKS, task
from megacontext_ext.errors import InvalidArgument, NotFound

# The gold of these proves the answer without spelling it.
ANSWER_NOT_IN_GOLD = {"facts_count", "common_words", "frequent_words"}


@pytest.fixture(params=sorted(TASKS))
def any_task(request):
    return TASKS[request.param]


def test_example_is_the_same_in_any_order_of_making(any_task):
    requests = [ExampleRequest(2048, index=i, seed=5) for i in range(3)]
    forward = [any_task.make(r).digest for r in requests]
    backward = [any_task.make(r).digest for r in reversed(requests)]
    assert forward == backward[::-1]
    assert len(set(forward)) == 3
    assert any_task.make(ExampleRequest(2048, seed=6)).digest != forward[0]


@pytest.mark.parametrize("length", [2048, 4096, 40_000])
def test_history_has_the_length_that_was_asked_for(any_task, length):
    got = estimate_tokens(any_task.make(ExampleRequest(length)).history)
    assert 0.80 * length <= got <= 1.05 * length


def test_gold_holds_the_answers_and_the_gold_alone_scores_full(any_task):
    for index in range(3):
        example = any_task.make(ExampleRequest(3000, index=index))
        if example.task in ANSWER_NOT_IN_GOLD:
            continue
        gold = " ".join(example.gold_texts)
        assert scorers.recall(gold, example.answers[:1]) == 1.0
        assert all(text in example.history for text in example.gold_texts)


def test_depths_of_a_run_fill_the_history():
    depths = [task("niah_single_2").make(ExampleRequest(4096, index=i)).depth for i in range(8)]
    assert {int(depth * 4) for depth in depths} == {0, 1, 2, 3}


def test_multikey_haystack_answers_differ_from_the_asked_key():
    example = task("niah_multikey_2").make(ExampleRequest(4096))
    lines = example.history.splitlines()
    key = example.question.removesuffix("?").split()[-1]
    assert len(lines) > 100
    assert [line for line in lines if f" {key} " in line] == list(example.gold_texts)


def test_variable_chain_leads_to_its_value():
    example = task("variable_tracking_2").make(ExampleRequest(4096))
    value = re.search(r"value (\d+)", example.question)[1]
    held = {value}
    for left, right in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", example.history):
        if right in held:
            held.add(left)
    assert held - {value} == set(example.answers)


@pytest.mark.parametrize("name", ["common_words", "frequent_words"])
def test_counting_the_words_gives_the_answers(name):
    example = task(name).make(ExampleRequest(4096))
    found = re.findall(r"[a-z]{2,}", example.history)
    counts = {word: found.count(word) for word in set(found)}
    best = sorted(counts, key=counts.get, reverse=True)[: len(example.answers)]
    assert set(best) == set(example.answers)


def test_story_can_be_replayed_to_its_answer():
    moves = re.compile(r"(\w+) (?:went|walked|moved|travelled) to the (\w+)\.")
    for index in range(10):
        example = task("facts_person").make(ExampleRequest(1024, index=index))
        where = dict(moves.findall(example.history))
        person = re.search(r"room is (\w+) at", example.question)[1]
        assert where[person] == example.answers[0]


def test_carried_things_are_where_their_carrier_went_last():
    pattern = r"(\w+) (went to|walked to|moved to|travelled to|picked up|put down) the (\w+)\."
    event = re.compile(pattern)
    for index in range(10):
        example = task("facts_thing").make(ExampleRequest(1024, index=index))
        where, holder, lies = {}, {}, {}
        for person, act, what in event.findall(example.history):
            if act == "picked up":
                holder[what], lies[what] = person, where[person]
            elif act == "put down":
                del holder[what]
            else:
                where[person] = what
                lies.update({thing: what for thing, who in holder.items() if who == person})
        thing = re.search(r"is the (\w+) at", example.question)[1]
        assert lies[thing] == example.answers[0]


def test_update_keeps_the_old_value_in_the_history_and_before_the_new_one():
    example = task("dialogue_update").make(ExampleRequest(4096, index=2))
    user = [line for line in example.history.splitlines() if line.startswith("User: ")]
    told = [v for line in user for v in example.options if scorers.names(line, v)]
    assert told[-1] == example.answers[0]
    assert len(set(told)) == 2


def test_sessions_are_dated_in_order():
    example = task("dialogue_once").make(ExampleRequest(8192))
    dates = [source.name.split()[-1] for source in example.sources]
    assert dates == sorted(set(dates))


def test_code_question_names_one_function_only():
    example = task("code_file").make(ExampleRequest(6000, index=3))
    name = example.question.removesuffix("?").split()[-1]
    assert len(re.findall(rf"def {re.escape(name)}\(", example.history)) == 1


def test_same_public_questions_are_asked_at_every_length():
    short = [task("qa_squad").make(ExampleRequest(1024, index=i)).question for i in range(4)]
    long = [task("qa_squad").make(ExampleRequest(9000, index=i)).question for i in range(4)]
    assert short == long
    assert len(set(short)) == 4


def test_ruler_has_its_thirteen_questions():
    assert len(RULER) == 13
    assert set(RULER) <= set(TASKS)


def test_filler_wraps_around_and_stays_within_its_tokens():
    import random

    manual = filler("manual")
    taken = manual.take(random.Random(0), 200_000, estimate_tokens)
    assert 195_000 < sum(estimate_tokens(unit) for unit in taken) <= 200_000
    assert len(taken) > len(set(taken))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: task("nothing"), NotFound, "niah_single_1"),
        (lambda: filler("nothing"), NotFound, "manual"),
        (lambda: ExampleRequest(10), InvalidArgument, "at least 256, got 10"),
        (lambda: ExampleRequest(4096, index=-1), InvalidArgument, "got -1"),
    ],
)
def test_bad_calls_say_what_would_be_right(call, error, message):
    with pytest.raises(error, match=message):
        call()
