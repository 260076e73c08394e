"""The paged method: with room for everything the plain model; within the budget otherwise."""

from __future__ import annotations

from dataclasses import replace

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
    assert 0 < first.places <= BUDGET
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


def test_the_whole_question_stays_in_view_while_it_is_answered(
    roomy_base, example, tmp_path, monkeypatch
):
    seen = []
    go_on = Reader.go_on
    in_focus = {}

    def watched(reader, cache, tokens, at, *rest):
        told = go_on(reader, cache, tokens, at, *rest)
        memory = in_focus["memory"]
        seen.append((at, memory.token_count, set(memory.in_focus())))
        return told

    def remembering(memory, question):
        in_focus["memory"] = memory
        return focus_on(memory, question)

    focus_on = PagedMemory.focus_on
    monkeypatch.setattr(PagedMemory, "focus_on", remembering)
    monkeypatch.setattr(Reader, "go_on", watched)
    reader = Reader(roomy_base, BUDGET)
    asked = replace(example, question=" ".join(["Who kept the log of the lost island?"] * 10))
    method("paged", reader, tmp_path).answer(asked)
    ((at, end, blocks),) = seen
    question = at + 1 - len(reader.around(asked)[1])
    assert end - question > 160
    assert set(range(question // 32, end // 32)) <= blocks
    assert 0 in blocks
    assert len([block for block in blocks if block < question // 32]) >= 6


def test_a_small_budget_is_read_in_short_steps(roomy_base, example, tmp_path):
    reply = method("paged", Reader(roomy_base, 448), tmp_path).answer(example)
    assert 0 < reply.places <= 448


def test_a_budget_that_the_question_alone_fills_is_not_applicable(roomy_base, example, tmp_path):
    asked = replace(example, question=" ".join(["Who kept the log of the lost island?"] * 20))
    with pytest.raises(NotApplicable, match="the budget is 448"):
        method("paged", Reader(roomy_base, 448), tmp_path).answer(asked)


def test_a_base_whose_heads_pages_cannot_have_is_not_applicable(tiny_base, example, tmp_path):
    with pytest.raises(NotApplicable, match="head width"):
        method("paged", Reader(tiny_base, BUDGET), tmp_path).answer(example)


def test_a_history_that_takes_too_long_to_read_is_not_applicable(roomy_base, example, tmp_path):
    method = PagedMethod(Reader(roomy_base, BUDGET), tmp_path, max_tokens=64)
    with pytest.raises(NotApplicable, match="at most 64"):
        method.answer(example)
