"""The paged method: with room for everything the plain model; within the budget otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megacontext.eval.long.example import ExampleRequest
from megacontext.eval.long.methods import NotApplicable, Reader, method
from megacontext.eval.long.methods.paged import PagedMethod
from megacontext.eval.long.tasks import task
from megacontext.models import TransformersBase
from megacontext.paged import PagedMemory

BUDGET = 1024


@pytest.fixture(scope="module")
def roomy_base(text_tokenizer) -> TransformersBase:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=text_tokenizer.vocabulary_tokens, hidden_size=64, intermediate_size=96,
        num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=64,
        max_position_embeddings=2048, initializer_range=0.3,
    )  # fmt: skip
    return TransformersBase(LlamaForCausalLM(config), text_tokenizer, "roomy-llama")


@pytest.fixture(scope="module")
def example():
    return task("niah_multikey_1").make(ExampleRequest(700))


def test_with_room_for_everything_it_answers_as_the_plain_model(roomy_base, example, tmp_path):
    reader = Reader(roomy_base, 4 * 2048)  # a quarter is for the question
    told = method("paged", reader, tmp_path).answer(example)
    plain = method("full", reader, tmp_path).answer(example)
    assert told.text == plain.text
    assert told.confidence == pytest.approx(plain.confidence, rel=1e-3)


def test_it_stays_within_the_budget_and_answers_the_same_twice(roomy_base, example, tmp_path):
    reader = Reader(roomy_base, BUDGET)
    assert len(reader.history_tokens(example)) > BUDGET
    first, second = (method("paged", reader, tmp_path).answer(example) for _ in range(2))
    assert 0 < first.places <= BUDGET // 4
    assert (first.text, first.places) == (second.text, second.places)
    assert 0 < first.ttft_s <= first.total_s
    assert first.state_bytes > 0
    assert not list(tmp_path.iterdir())


def test_the_question_chooses_what_is_read(roomy_base, example, tmp_path, monkeypatch):
    seen = []
    focus_on = PagedMemory.focus_on

    def watched(memory, question):
        focus_on(memory, question)
        seen.append(memory.in_focus())

    reader = Reader(roomy_base, BUDGET)
    monkeypatch.setattr(PagedMemory, "focus_on", watched)
    method("paged", reader, tmp_path).answer(example)
    tokens = np.concatenate([reader.around(example)[0], reader.history_tokens(example)])
    shown = roomy_base.tokenizer.decode(
        np.concatenate([tokens[32 * b : 32 * b + 32] for b in seen[0]])
    )
    assert all(gold.strip() in shown for gold in example.gold_texts)


def test_a_base_whose_heads_pages_cannot_have_is_not_applicable(tiny_base, example, tmp_path):
    with pytest.raises(NotApplicable, match="head width"):
        method("paged", Reader(tiny_base, BUDGET), tmp_path).answer(example)


def test_a_history_that_takes_too_long_to_read_is_not_applicable(roomy_base, example, tmp_path):
    method = PagedMethod(Reader(roomy_base, BUDGET), tmp_path, max_tokens=64)
    with pytest.raises(NotApplicable, match="at most 64"):
        method.answer(example)
