"""Presses of kvpress: everything kept is the plain model; pressed, the budget holds."""

from __future__ import annotations

import importlib.util
import inspect
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from megacontext.eval.long.example import ExampleRequest
from megacontext.eval.long.methods import METHODS, NotApplicable, Reader, method
from megacontext.eval.long.methods.presses import Press
from megacontext.eval.long.tasks import task
from megacontext.models import TransformersBase
from megacontext.models.attention import attend
from megacontext.paged.attention import paged_attention

BUDGET = 256
PRESSES = [name for name in METHODS if name.startswith("press_")]


@dataclass
class KeepNewest:
    """A press of our own with kvpress's interface: the newest places stay."""

    compression_ratio: float

    def post_init_from_model(self, model):
        self.layers = model.config.num_hidden_layers

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        assert kwargs["position_embeddings"][0].shape[1] == keys.shape[2]
        cos, _ = module.rotary_emb(values, torch.arange(keys.shape[2])[None])
        torch.testing.assert_close(cos, kwargs["position_embeddings"][0])
        count = max(1, int(keys.shape[2] * (1 - self.compression_ratio)))
        return keys[:, :, -count:], values[:, :, -count:]


class KeepOldest(KeepNewest):
    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        count = max(1, int(keys.shape[2] * (1 - self.compression_ratio)))
        return keys[:, :, :count], values[:, :, :count]


@pytest.fixture(scope="module")
def roomy_base(text_tokenizer) -> TransformersBase:
    """Reads 1,024 tokens: a history of 256 by rule of thumb is 600 of its own."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=text_tokenizer.vocabulary_tokens, hidden_size=48, intermediate_size=96,
        num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
        max_position_embeddings=1024, initializer_range=0.3,
    )  # fmt: skip
    return TransformersBase(LlamaForCausalLM(config), text_tokenizer, "roomy-llama")


@pytest.fixture(scope="module")
def windowed_base(text_tokenizer) -> TransformersBase:
    """Its first layer sees 16 places back, and its rotary embedding asks for the layer's type."""
    torch.manual_seed(8)
    config = Gemma3TextConfig(
        vocab_size=text_tokenizer.vocabulary_tokens, hidden_size=48, intermediate_size=96,
        num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, head_dim=8,
        max_position_embeddings=1024, sliding_window=16, query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
    )  # fmt: skip
    return TransformersBase(Gemma3ForCausalLM(config), text_tokenizer, "windowed-gemma")


@pytest.fixture(scope="module")
def example():
    return task("niah_single_1").make(ExampleRequest(256))


def newest(reader: Reader, monkeypatch) -> Press:
    pressed = Press(reader, "KeepNewest", "press_newest")
    monkeypatch.setattr(Press, "_classes", lambda _: {"KeepNewest": KeepNewest})
    return pressed


def test_with_room_for_everything_the_answer_is_the_plain_models(roomy_base, example, monkeypatch):
    reader = Reader(roomy_base, 900)
    got = newest(reader, monkeypatch).answer(example)
    wanted = reader.read(reader.encode(example.history), example)
    assert (got.text, got.places) == (wanted.text, wanted.places)
    assert got.confidence == pytest.approx(wanted.confidence, rel=1e-4)


def test_pressed_layers_hold_the_budget_and_keep_what_the_press_chose(
    roomy_base, example, monkeypatch
):
    reader = Reader(roomy_base, BUDGET)
    pressed = newest(reader, monkeypatch)
    before, tail = reader.around(example)
    history = np.concatenate([before, reader.encode(example.history)])
    assert len(history) + len(tail) > BUDGET
    held = pressed._pressed(pressed._classes(), history, BUDGET - len(tail))["KeepNewest"]
    assert {keys.shape[2] for keys, _ in held} == {BUDGET - len(tail)}
    whole = roomy_base.new_cache()
    with torch.inference_mode():
        tokens = torch.from_numpy(history.astype(np.int64))[None]
        roomy_base.model(input_ids=tokens, cache=whole)
    kept = BUDGET - len(tail)
    torch.testing.assert_close(held[1][0], whole.layers[1].keys[:, :, -kept:])
    assert pressed.answer(example).places == BUDGET


def test_a_layer_with_a_sliding_window_keeps_its_window(windowed_base, example, monkeypatch):
    """Whatever a press would choose there: what lies further back is never looked at."""
    reader = Reader(windowed_base, BUDGET)
    classes = {"KeepNewest": KeepNewest, "KeepOldest": KeepOldest}
    monkeypatch.setattr(Press, "_classes", lambda _: classes)
    before, tail = reader.around(example)
    history, kept = np.concatenate([before, reader.encode(example.history)]), BUDGET - len(tail)
    held = Press(reader, "KeepNewest", "")._pressed(classes, history, kept)
    first, second = held["KeepOldest"][:2]
    assert first[0].shape[2] == second[0].shape[2] == kept
    assert torch.equal(first[0], held["KeepNewest"][0][0])
    assert not torch.equal(second[0], held["KeepNewest"][1][0])
    for name in classes:
        assert Press(reader, name, name).answer(example).places == BUDGET


def test_everything_kept_is_the_plain_model_with_windows_too(windowed_base, example, monkeypatch):
    reader = Reader(windowed_base, 900)
    got = newest(reader, monkeypatch).answer(example)
    wanted = reader.read(reader.encode(example.history), example)
    assert (got.text, got.places) == (wanted.text, wanted.places)
    assert got.confidence == pytest.approx(wanted.confidence, rel=1e-4)


def test_one_pass_over_the_history_serves_all_presses(roomy_base, example, monkeypatch):
    reader, passes = Reader(roomy_base, BUDGET), []
    classes = {"KeepNewest": KeepNewest, "KeepOldest": KeepOldest}
    monkeypatch.setattr(Press, "_classes", lambda _: classes)
    pressed = Press._pressed
    monkeypatch.setattr(Press, "_pressed", lambda *given: passes.append(1) or pressed(*given))
    told = {name: Press(reader, name, name).answer(example) for name in classes}
    assert len(passes) == 1
    for name, reply in told.items():
        alone = Press(Reader(roomy_base, BUDGET), name, name).answer(example)
        assert (reply.text, reply.places, reply.confidence) == (
            alone.text, alone.places, alone.confidence
        )  # fmt: skip
    assert told["KeepNewest"].confidence != told["KeepOldest"].confidence


@pytest.mark.skipif(importlib.util.find_spec("kvpress") is None, reason="kvpress is optional")
@pytest.mark.parametrize("base", ["roomy_base", "windowed_base"])
@pytest.mark.parametrize("name", PRESSES)
def test_press_of_kvpress_holds_the_budget_and_repeats_itself(
    name, base, example, tmp_path, request
):
    base = request.getfixturevalue(base)
    reader = Reader(base, BUDGET)
    first = method(name, reader, tmp_path).answer(example)
    second = method(name, reader, tmp_path).answer(example)
    assert first.places == BUDGET
    assert (first.text, first.confidence) == (second.text, second.confidence)
    facts = base.facts
    rows = 2 * facts.layer_count * facts.kv_head_count * facts.head_width
    tail = len(reader.around(example)[1])
    assert first.state_bytes >= (BUDGET - tail) * rows * 4
    assert not hasattr(base.model.model.layers[0].self_attn, "rotary_emb")


def test_a_history_above_the_trained_length_is_not_applicable(roomy_base, tmp_path):
    pytest.importorskip("kvpress", reason="kvpress is optional")
    long = task("niah_single_1").make(ExampleRequest(2048))
    with pytest.raises(NotApplicable, match="do not fit in 1024"):
        method("press_knorm", Reader(roomy_base, BUDGET), tmp_path).answer(long)


def test_without_the_package_it_says_how_to_install_it(roomy_base, example, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotApplicable, match="pip install --no-deps kvpress"):
        method("press_knorm", Reader(roomy_base, BUDGET), tmp_path).answer(example)


@pytest.mark.parametrize("function", [attend, paged_attention])
def test_wrapped_attention_passes_dropout_by_its_place(function):
    """Importing kvpress wraps every registered attention function and passes dropout sixth: what
    stands there must not be taken for a scale."""
    assert list(inspect.signature(function).parameters)[5] == "dropout"
