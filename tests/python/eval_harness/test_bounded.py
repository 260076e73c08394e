"""A base behind plain texts: the plain model within the budget, a memory above it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext.eval.harness import BoundedBase, split_text
from megacontext.eval.long.example import ExampleRequest
from megacontext.eval.long.tasks import task
from megacontext_ext.errors import InvalidArgument

BUDGET = 192


@pytest.fixture(scope="module")
def bounded(tiny_base):
    with_budget = BoundedBase(tiny_base, BUDGET)
    yield with_budget
    with_budget.close()


def plain_likelihood(base, head: list[int], wanted: list[int]) -> tuple[float, bool]:
    """By transformers alone, every token of one sequence at once."""
    with torch.inference_mode():
        logits = base.model(torch.tensor([head + wanted]), use_cache=False).logits[0].float()
    logs = torch.log_softmax(logits, dim=-1)
    at = [len(head) - 1 + i for i in range(len(wanted))]
    total = sum(float(logs[place, token]) for place, token in zip(at, wanted, strict=True))
    return total, [int(logits[place].argmax()) for place in at] == wanted


@pytest.mark.parametrize(
    ("text", "continuation"),
    [
        ("The lighthouse keeper", " wrote the"),
        ("numbers and ", "dates"),
        ("", "A store"),
        ("x", ""),
    ],
)
def test_likelihood_within_the_budget_is_the_plain_models(bounded, tiny_base, text, continuation):
    found = bounded.likelihood(text, continuation)
    ids = tiny_base.tokenizer.encode(text + continuation).tolist()
    kept = len(tiny_base.tokenizer.encode(text.rstrip(" ") if continuation else text))
    head = ids[:kept] or [tiny_base.tokenizer.start_token]
    log_probability, is_greedy = plain_likelihood(tiny_base, head, ids[kept:])
    assert not bounded.used_memory
    assert found.log_probability == pytest.approx(log_probability, abs=1e-3)
    assert found.is_greedy == is_greedy


def test_the_token_that_greedy_decoding_writes_is_greedy(bounded, tiny_base):
    tokenizer, checked = tiny_base.tokenizer, 0
    for text in ("Every record", "A torn write", "the crew of", "It is", "names and"):
        ids = tokenizer.encode(text).tolist()
        logits = tiny_base.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        piece = tokenizer.decode(np.array([int(logits.argmax())], dtype=np.uint32))
        # Only where the token survives being written as text.
        if piece and tokenizer.encode(text + piece).tolist() == [*ids, int(logits.argmax())]:
            assert bounded.generate(text, 1) == piece
            assert bounded.likelihood(text, piece).is_greedy
            checked += 1
    assert checked > 0


def test_rolling_gives_every_token_once(bounded, tiny_base):
    text = "A torn write is seen and cut away. " * 40
    ids = tiny_base.tokenizer.encode(text).tolist()
    assert len(ids) > 2 * BUDGET
    whole = [tiny_base.tokenizer.start_token, *ids]
    expected, done = 0.0, 1
    while done < len(whole):
        end = min(len(whole), max(done + BUDGET // 2, BUDGET))
        window = whole[max(0, end - BUDGET) : end]
        cut = len(window) - (end - done)
        expected += plain_likelihood(tiny_base, window[:cut], window[cut:])[0]
        done = end
    assert bounded.rolling(text) == pytest.approx(expected, rel=1e-4)


def test_a_long_text_goes_through_a_memory_within_the_budget(bounded):
    filler = "The harbour master read it aloud. " * 300
    history = f"{filler}The number of the Astrid is 48213. {filler}"
    text = f"{history}\n\nQuestion: What is the number of the Astrid?\nAnswer: It is"
    bounded.generate(text, 2)
    assert bounded.used_memory
    assert bounded.places <= BUDGET
    held = bounded._held
    likelihood = bounded.likelihood(text, " 48213")
    assert likelihood.log_probability < 0.0
    assert bounded._held is held, "the same history was ingested twice"
    prompt = bounded._prompt(text)
    shown = bounded.base.tokenizer.decode(prompt.tokens.astype(np.uint32))
    assert "The number of the Astrid is 48213" in shown
    assert shown.rstrip().endswith("It is")


def test_an_exported_question_is_asked_as_it_was_meant(bounded):
    from megacontext.eval.harness.bounded import ANSWER_MARK, QUESTION_MARK
    from megacontext.eval.harness.export import document

    line = document(task("key_value").make(ExampleRequest(1024)))
    text = f"{line['history']}{QUESTION_MARK}{line['question']}{ANSWER_MARK}{line['answer_prefix']}"
    split = split_text(text)
    assert split.history == line["history"]
    assert split.question == line["question"]
    assert split.prefix == line["answer_prefix"]


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_splitting_loses_no_word(text):
    split = split_text(text)
    shown = f"{split.history} {split.question} {split.prefix}"
    if not split.asked:
        assert "".join(shown.split()) == "".join(text.split())


def test_a_budget_above_the_trained_length_is_refused(tiny_base):
    with pytest.raises(InvalidArgument, match="128 to the base's 512, got 4096"):
        BoundedBase(tiny_base, 4096)
