"""The base's own forward pass is the plain model's."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megacontext.gists.base import KeyValues, base_from_model, causal_attention, shape_from_config


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, rope_theta=1e4,
        tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def test_logits_equal_transformers(model: LlamaForCausalLM) -> None:
    base = base_from_model(model)
    ids = torch.randint(0, 257, (2, 70))
    torch.testing.assert_close(base.logits(base.read(ids)[0]), model(ids).logits)


@torch.no_grad()
def test_reading_in_parts_equals_reading_at_once(model: LlamaForCausalLM) -> None:
    base = base_from_model(model)
    ids = torch.randint(0, 257, (2, 70))
    whole, _ = base.read(ids)
    _, past = base.read(ids[:, :40])
    torch.testing.assert_close(base.read(ids[:, 40:], 40, past)[0], whole[:, 40:])


@torch.no_grad()
def test_positions_are_honoured(model: LlamaForCausalLM) -> None:
    base = base_from_model(model)
    ids = torch.randint(0, 257, (1, 40))
    _, past = base.read(ids[:, :20])
    near = base.read(ids[:, 20:], 20, past)[0]
    assert (base.read(ids[:, 20:], 200, past)[0] - near).abs().max() > 1e-3


@torch.no_grad()
def test_bias_of_minus_infinity_hides_and_zero_changes_nothing(model: LlamaForCausalLM) -> None:
    base = base_from_model(model)
    ids = torch.randint(0, 257, (1, 40))
    _, past = base.read(ids[:, :20])
    plain = base.read(ids[:, 20:], 20, past)[0]
    torch.testing.assert_close(base.read(ids[:, 20:], 20, past, bias=torch.zeros(20))[0], plain)
    hidden = torch.zeros(20)
    hidden[10:] = float("-inf")
    short = KeyValues([k[:, :, :10] for k in past.keys], [v[:, :, :10] for v in past.values])
    torch.testing.assert_close(
        base.read(ids[:, 20:], 20, past, bias=hidden)[0], base.read(ids[:, 20:], 20, short)[0]
    )


def test_causal_attention_hides_the_future_and_shows_the_past() -> None:
    q, k, v = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 10, 8), torch.randn(1, 2, 10, 8)
    out = causal_attention(q, k, v)
    changed_k, changed_v = k.clone(), v.clone()
    changed_k[:, :, 9], changed_v[:, :, 9] = 3.0, 3.0
    again = causal_attention(q, changed_k, changed_v)
    torch.testing.assert_close(again[:, :, :5], out[:, :, :5])
    assert not torch.allclose(again[:, :, 5], out[:, :, 5])


def test_fingerprint_is_the_same_in_bf16_and_differs_for_other_weights(
    model: LlamaForCausalLM,
) -> None:
    plain = base_from_model(model).fingerprint()
    assert base_from_model(model, torch.bfloat16).fingerprint() == plain
    changed = base_from_model(LlamaForCausalLM(model.config)).fingerprint()
    assert changed != plain


def test_other_families_are_refused() -> None:
    with pytest.raises(ValueError, match="model_type must be llama"):
        shape_from_config({"model_type": "gpt2"})
