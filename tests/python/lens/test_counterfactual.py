"""Labels by what showing a span does to an answer: their sign, and that sharing changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megacontext.lens.counterfactual import AnswerCost, AskedTokens, attention_mass, worth
from megacontext.models import StepInput
from megacontext_ext.errors import InvalidArgument


def tokens(base, text: str) -> np.ndarray:
    return base.tokenizer.encode(text)


def plain_nats(base, prompt: np.ndarray, answer: np.ndarray) -> float:
    """One unpadded read of everything: the meaning of `AnswerCost.nats`."""
    whole = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))[None]
    logits = base.step(
        StepInput(torch.arange(whole.shape[1])[None], tokens=whole), base.new_cache(), 0
    )
    ahead = torch.log_softmax(logits[0].double(), dim=-1)[len(prompt) - 1 : -1]
    return -float(ahead.gather(-1, whole[0, len(prompt) :, None]).sum())


def test_a_shared_read_gives_what_reading_each_prompt_alone_gives(tiny_base):
    before, shown = tokens(tiny_base, "Text: "), tokens(tiny_base, "The keeper wrote 48213.")
    asked = [
        AskedTokens(tokens(tiny_base, " Who wrote?"), tokens(tiny_base, "The keeper of Skagen")),
        AskedTokens(tokens(tiny_base, " Which number was it then?"), tokens(tiny_base, "48213")),
    ]
    found = AnswerCost(tiny_base, before).nats(shown, asked)
    wanted = [
        plain_nats(tiny_base, np.concatenate([before, shown, each.after]), each.answer)
        for each in asked
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_more_questions_than_one_batch_holds_are_answered_alike(tiny_base):
    before, shown = tokens(tiny_base, "Text: "), tokens(tiny_base, "harbour master")
    asked = [
        AskedTokens(tokens(tiny_base, f" {n} crew" * (n + 1)), tokens(tiny_base, f"number {n}"))
        for n in range(11)
    ]
    cost = AnswerCost(tiny_base, before)
    alone = [cost.nats(shown, [each])[0] for each in asked]
    np.testing.assert_allclose(cost.nats(shown, asked), alone, rtol=1e-4)


@pytest.mark.smollm2
def test_the_span_that_holds_the_answer_gains_and_an_unrelated_one_does_not(smollm2):
    base = smollm2("float32")
    gold = tokens(base, "The captain of the ship Menaki is Wanda Hollander.")
    twin = tokens(base, "The captain of the ship Mamore is Keiko Zielinski.")
    other = tokens(base, "Bread rises because yeast makes carbon dioxide in the dough.")
    asked = AskedTokens(
        tokens(base, "\n\nQuestion: Who commands the ship Menaki?\nAnswer:"),
        tokens(base, " Wanda Hollander"),
    )
    cost = AnswerCost(base, tokens(base, "Text: "))
    gains = cost.gains([gold, twin, other], [asked])[:, 0]
    assert gains[0] > 3.0
    assert gains[0] > gains[1] + 1.0
    assert gains[0] > gains[2] + 3.0
    # The same gain from fewer places is worth more of a budget.
    per_place = worth(gains[[0, 0]], np.array([len(gold), 2 * len(gold)]))
    assert per_place[0] == pytest.approx(2 * per_place[1])


@pytest.mark.smollm2
def test_hiding_what_costs_nothing_is_better_than_hiding_what_costs_nats(smollm2):
    """The label of a collapse is minus its gain: collapsing `idle` costs about 0 nats, collapsing
    `key` costs nats, so `idle` must be the more willing to collapse."""
    base = smollm2("float32")
    key = tokens(base, "The secret number of brisk-otter is 7291846.")
    idle = tokens(base, "The weather stayed the same for the whole week.")
    asked = AskedTokens(
        tokens(base, "\n\nQuestion: What is the secret number of brisk-otter?\nAnswer:"),
        tokens(base, " 7291846"),
    )
    cost = AnswerCost(base, tokens(base, "Text: "))
    both = cost.nats(np.concatenate([key, idle]), [asked])
    without_key = cost.nats(idle, [asked]) - both
    without_idle = cost.nats(key, [asked]) - both
    assert without_key[0] > 2.0 > abs(without_idle[0])


def test_attention_mass_is_a_share_of_each_span_and_leaves_the_base_as_it_was(tiny_base):
    before = tokens(tiny_base, "Text: ")
    spans = [tokens(tiny_base, "The keeper wrote"), tokens(tiny_base, "the number 48213 in it")]
    asked = AskedTokens(tokens(tiny_base, " Who wrote?"), tokens(tiny_base, "keeper"))
    used = tiny_base.model.config._attn_implementation
    mass = attention_mass(tiny_base, before, spans, asked)
    assert mass.shape == (2,)
    assert mass.sum() == pytest.approx(1.0)
    assert (mass > 0).all()
    assert tiny_base.model.config._attn_implementation == used


def test_attention_looks_at_a_span_that_repeats_the_question(tiny_base):
    """Equal spans get nearly equal shares; only their places differ."""
    before = tokens(tiny_base, "Text: ")
    span = tokens(tiny_base, "harbour master read it")
    asked = AskedTokens(tokens(tiny_base, " Who?"), tokens(tiny_base, "crew"))
    mass = attention_mass(tiny_base, before, [span, span, span], asked)
    assert mass.max() < 3.0 * mass.min()


def test_an_empty_question_or_answer_is_refused():
    some, none = np.ones(2, np.uint32), np.zeros(0, np.uint32)
    with pytest.raises(InvalidArgument, match="at least one token, got 2 and 0"):
        AskedTokens(some, none)
