"""Sampling, stopping, streaming, batches."""

from __future__ import annotations

import pytest
import torch

from megacontext.config import GenerationConfig
from megacontext.models import Prompt, PromptRunner, Sampler, generate, generate_batch
from megacontext.models.generate import StopText
from megacontext_ext.errors import InvalidArgument


def answer(base, tokens, **settings) -> str:
    config = GenerationConfig(**{"max_new_tokens": 12, **settings})
    return "".join(generate(PromptRunner(base), base, Prompt.of_tokens(tokens), config))


def test_greedy_is_the_argmax_at_every_step(tiny_base):
    tokens = [7, 40, 41]
    expected = list(tokens)
    for _ in range(12):
        with torch.inference_mode():
            token = int(tiny_base.model(torch.tensor([expected])).logits[0, -1].argmax())
        if token in tiny_base.tokenizer.end_tokens:
            break
        expected.append(token)
    assert answer(tiny_base, tokens) == tiny_base.tokenizer.token_bytes.text(expected[3:])


def test_a_batch_answers_like_single_prompts(tiny_base):
    prompts = [[7, 40, 41], [9], [12, 13, 14, 15, 16, 17]]
    config = GenerationConfig(max_new_tokens=10)
    batch = generate_batch(tiny_base, [Prompt.of_tokens(p) for p in prompts], config)
    assert batch == [answer(tiny_base, p, max_new_tokens=10) for p in prompts]


def test_same_seed_same_answer_other_seed_another(tiny_base):
    first, again, other = (
        answer(tiny_base, [7, 8], temperature=1.5, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_top_k_of_one_is_greedy(tiny_base):
    assert answer(tiny_base, [7, 8], temperature=2.0, top_k=1) == answer(tiny_base, [7, 8])


def test_top_p_keeps_the_fewest_tokens_that_reach_the_mass():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    sampler = Sampler(GenerationConfig(temperature=1.0, top_p=0.7))
    seen = {int(sampler.pick(logits)[0]) for _ in range(200)}
    assert seen == {0, 1}


def test_stop_text_is_withheld_even_when_it_comes_in_pieces(text_tokenizer):
    text = "The answer is 42.\nQuestion: next"
    stopper = StopText(text_tokenizer.stream(), ["\nQuestion:"])
    shown = ""
    for token in text_tokenizer.encode(text):
        shown += stopper.push(int(token))
        assert "\nQ" not in shown
        if stopper.stopped:
            break
    assert shown + stopper.end() == "The answer is 42."


def test_text_that_only_looks_like_a_stop_is_shown(text_tokenizer):
    stopper = StopText(text_tokenizer.stream(), ["\nQuestion:"])
    text = "One\nQuiet day"
    shown = "".join(stopper.push(int(token)) for token in text_tokenizer.encode(text))
    assert shown + stopper.end() == text
    assert not stopper.stopped


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_new_tokens", 0), ("temperature", -1.0), ("top_p", 0.0), ("stop", ("",))],
)
def test_bad_settings_are_refused(name, value):
    with pytest.raises(InvalidArgument, match=name):
        GenerationConfig(**{name: value})
