"""A prompt of plain tokens must give the plain model's logits, whatever path computes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from megacontext.models import (
    GrowingCache,
    Prompt,
    PromptRunner,
    StepInput,
    TransformersBase,
    attention,
    left_pad,
    load,
)
from megacontext.models.attention import attend_cache
from megacontext_ext.errors import InvalidArgument

# float32 sums in another order; logits here are of size 1 to 30.
ABSOLUTE = 2e-4


def plain_logits(base: TransformersBase, tokens: np.ndarray, positions: np.ndarray) -> torch.Tensor:
    """transformers alone, eager attention, no cache of ours, explicit mask."""
    model = base.model
    kept = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            return (
                model(
                    input_ids=torch.from_numpy(tokens)[None],
                    position_ids=torch.from_numpy(positions)[None],
                    attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
                    use_cache=False,
                )
                .logits[0]
                .float()
            )
    finally:
        model.set_attn_implementation(kept)


def random_prompt(base: TransformersBase, count: int, seed: int, gap: int = 0) -> Prompt:
    generator = np.random.default_rng(seed)
    tokens = generator.integers(3, base.facts.vocabulary_tokens, count)
    positions = np.arange(count)
    positions[count // 2 :] += gap
    return Prompt(tokens.astype(np.int64), positions.astype(np.int64))


def families(vocabulary: int, width: int = 16) -> dict[str, torch.nn.Module]:
    common = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": width,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
    }
    torch.manual_seed(3)
    windowed = Gemma3TextConfig(
        **common,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    return {
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**common)),
        "mistral-window": MistralForCausalLM(MistralConfig(**common, sliding_window=24)),
        "gemma3-window": Gemma3ForCausalLM(windowed),
    }


@pytest.mark.parametrize("gap", [0, 96])
def test_prompt_gives_the_plain_models_logits(tiny_base, gap):
    prompt = random_prompt(tiny_base, 90, seed=1, gap=gap)
    expected = plain_logits(tiny_base, prompt.tokens, prompt.positions)
    got = PromptRunner(tiny_base).read(prompt)
    assert torch.allclose(got, expected[-1], atol=ABSOLUTE, rtol=0)


def test_a_gap_in_positions_changes_the_logits_but_hides_nothing(tiny_base):
    prompt, gapped = (random_prompt(tiny_base, 60, seed=2, gap=gap) for gap in (0, 64))
    plain, moved = (PromptRunner(tiny_base).read(p) for p in (prompt, gapped))
    later = Prompt(gapped.tokens[30:], gapped.positions[30:])
    alone = PromptRunner(tiny_base).read(later)
    assert not torch.allclose(plain, moved, atol=1e-2)
    # Were the gap read as the border of a packed sequence, the first half would be invisible.
    assert not torch.allclose(moved, alone, atol=1e-2)


# Heads of 64 are read by the kernel, narrow ones by torch.
@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("family", ["qwen3", "mistral-window", "gemma3-window"])
def test_every_family_gives_the_plain_models_logits(text_tokenizer, family, width, monkeypatch):
    read = []

    def counted(*arguments):
        read.append(attend_cache(*arguments))
        return read[-1]

    monkeypatch.setattr(attention, "attend_cache", counted)
    model = families(text_tokenizer.vocabulary_tokens, width)[family]
    base = TransformersBase(model, text_tokenizer, family)
    prompt = random_prompt(base, 70, seed=4)
    expected = plain_logits(base, prompt.tokens, prompt.positions)
    runner = PromptRunner(base)
    for end in (40, 41, 42, 70):
        got = runner.read(Prompt(prompt.tokens[:end], prompt.positions[:end]))
        assert torch.allclose(got, expected[end - 1], atol=ABSOLUTE, rtol=0), end
    assert len(read) == 4 * base.facts.layer_count
    assert all((out is not None) == (width == 64) for out in read)


def test_left_padded_batch_gives_the_plain_models_logits(tiny_base):
    prompts = [
        random_prompt(tiny_base, count, seed=count, gap=gap)
        for count, gap in ((5, 0), (33, 40), (80, 0))
    ]
    with torch.inference_mode():
        got = tiny_base.step(left_pad(tiny_base, prompts), tiny_base.new_cache())
    for line, prompt in enumerate(prompts):
        expected = plain_logits(tiny_base, prompt.tokens, prompt.positions)
        assert torch.allclose(got[line, -1], expected[-1], atol=ABSOLUTE, rtol=0), line


def test_left_padded_batch_decodes_like_single_prompts(tiny_base):
    prompts = [random_prompt(tiny_base, count, seed=count) for count in (4, 31)]
    cache = tiny_base.new_cache()
    padded = left_pad(tiny_base, prompts)
    with torch.inference_mode():
        tiny_base.step(padded, cache)
        attend = torch.cat([padded.attend, torch.ones(2, 1, dtype=torch.bool)], dim=1)
        step = StepInput(torch.tensor([[4], [31]]), tokens=torch.tensor([[9], [9]]), attend=attend)
        got = tiny_base.step(step, cache)
    for line, prompt in enumerate(prompts):
        longer = prompt.then(9)
        expected = plain_logits(tiny_base, longer.tokens, longer.positions)
        assert torch.allclose(got[line, -1], expected[-1], atol=ABSOLUTE, rtol=0), line


def test_rows_of_tokens_give_the_logits_of_tokens(tiny_base):
    prompt = random_prompt(tiny_base, 40, seed=5)
    ids, positions = torch.from_numpy(prompt.tokens)[None], torch.from_numpy(prompt.positions)[None]
    with torch.inference_mode():
        by_tokens = tiny_base.step(StepInput(positions, tokens=ids), GrowingCache(), keep_logits=0)
        rows = StepInput(positions, rows=tiny_base.embed(ids))
        by_rows = tiny_base.step(rows, GrowingCache(), keep_logits=0)
    assert torch.equal(by_tokens, by_rows)


def test_step_wants_tokens_or_rows(tiny_base):
    with pytest.raises(InvalidArgument, match="exactly one of tokens and rows"):
        tiny_base.step(StepInput(torch.zeros(1, 1, dtype=torch.long)), GrowingCache())


def test_weights_are_frozen(tiny_base):
    assert not any(parameter.requires_grad for parameter in tiny_base.model.parameters())
    assert not tiny_base.model.training


def test_a_folder_loads_and_its_fingerprint_does_not_depend_on_the_dtype(tiny_folder):
    single, half = load(tiny_folder, dtype="float32"), load(tiny_folder, dtype="bfloat16")
    assert single.facts.fingerprint == half.facts.fingerprint
    assert single.facts.dtype == torch.float32
    assert half.facts.dtype == torch.bfloat16
    assert single.facts.trained_tokens == 512


def test_a_changed_weight_changes_the_fingerprint(tiny_folder):
    base = load(tiny_folder, dtype="float32")
    with torch.no_grad():
        base.model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    changed = TransformersBase(base.model, base.tokenizer, "changed")
    assert changed.facts.fingerprint != base.facts.fingerprint


def test_unknown_dtype_is_refused(tiny_folder):
    with pytest.raises(InvalidArgument, match="dtype must be auto or one of float32"):
        load(tiny_folder, dtype="int4")  # type: ignore[arg-type]


@pytest.mark.smollm2
@pytest.mark.parametrize("gap", [0, 512])
def test_smollm2_prompt_gives_the_plain_models_logits(smollm2, gap):
    base = smollm2("float32")
    tokens = base.tokenizer.encode("The harbour of Skagen was built in 1907. " * 12).astype(
        np.int64
    )
    positions = np.arange(len(tokens), dtype=np.int64)
    positions[len(tokens) // 2 :] += gap
    expected = plain_logits(base, tokens, positions)
    runner = PromptRunner(base)
    for end in (len(tokens) - 3, len(tokens) - 2, len(tokens)):
        got = runner.read(Prompt(tokens[:end], positions[:end]))
        assert torch.allclose(got, expected[end - 1], atol=2e-3, rtol=0), end
