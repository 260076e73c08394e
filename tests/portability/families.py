"""Tiny models of the true architectures, randomly initialised, and tokenizers of their kinds.

Sizes are the smallest that keep what makes a family special: grouped heads, windows shorter than
the test, scaled rotary positions, soft caps, experts, tied heads, layers without positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from megacontext.models import TextTokenizer, TransformersBase
from megacontext.models.port.checks import TEXTS

TokenizerKind = Literal["byte_level", "byte_fallback"]

VOCABULARY = 512
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


# Paged attention has kernels for heads of 64 and up; everything else is quicker with small ones.
_WIDE: dict[str, Any] = {
    **_SIZES, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64,
}  # fmt: skip
Sizes = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """One architecture with a tokenizer of its kind."""

    name: str
    make: Callable[[Sizes], PreTrainedModel]
    tokenizer: TokenizerKind = "byte_level"

    def base(self, *, wide: bool = False) -> TransformersBase:
        """The tiny model; `wide` gives it heads of 64."""
        torch.manual_seed(5)
        model = self.make(_WIDE if wide else _SIZES).float()
        model.generation_config.eos_token_id = 2
        wrapped = TextTokenizer(tokenizer(self.tokenizer))
        return TransformersBase(model, wrapped, f"tiny-{self.name}")


def _of(name: str, config_name: str = "", **changes: Any) -> Callable[[Sizes], PreTrainedModel]:
    def make(sizes: Sizes) -> PreTrainedModel:
        changed = {k: sizes[v[1:]] if str(v)[:1] == "=" else v for k, v in changes.items()}
        config = getattr(hf, f"{config_name or name}Config")(**{**sizes, **changed})
        made = getattr(hf, f"{name}ForCausalLM")
        config._attn_implementation = "sdpa" if made._supports_sdpa else "eager"
        return made(config)

    return make


def _gpt2(sizes: Sizes) -> PreTrainedModel:
    config = hf.GPT2Config(
        vocab_size=VOCABULARY, n_positions=512, n_embd=sizes["hidden_size"], n_layer=4,
        n_head=sizes["num_attention_heads"],
        initializer_range=0.2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    return hf.GPT2LMHeadModel(config)


def _qwen2_vl(sizes: Sizes) -> PreTrainedModel:
    part = sizes["head_dim"] // 8
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [part, part, 2 * part]}
    config = hf.Qwen2VLConfig(
        text_config={**sizes, "rope_parameters": rope},
        vision_config={
            "depth": 1, "embed_dim": 16, "hidden_size": sizes["hidden_size"], "num_heads": 2,
            "patch_size": 14,
            "temporal_patch_size": 2, "spatial_merge_size": 2, "mlp_ratio": 2,
        },
        image_token_id=3, video_token_id=4, vision_start_token_id=5, vision_end_token_id=6,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    return hf.Qwen2VLForConditionalGeneration(config)


_LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
FAMILIES = (
    Family("llama2", _of("Llama", num_key_value_heads="=num_attention_heads"), "byte_fallback"),
    Family("llama3", _of("Llama", rope_parameters=_LLAMA3_ROPE)),
    Family("smollm2", _of("Llama", tie_word_embeddings=True)),
    Family("smollm3", _of("SmolLM3", no_rope_layer_interval=4, tie_word_embeddings=True)),
    Family("qwen2", _of("Qwen2", tie_word_embeddings=True)),
    Family("qwen3", _of("Qwen3")),
    Family("mistral", _of("Mistral", sliding_window=16), "byte_fallback"),
    Family("mixtral", _of("Mixtral", num_local_experts=4, num_experts_per_tok=2), "byte_fallback"),
    Family("gemma2", _of("Gemma2", sliding_window=16, query_pre_attn_scalar=8,
                         attn_logit_softcapping=5.0, final_logit_softcapping=30.0),
           "byte_fallback"),
    Family("gemma3", _of("Gemma3", "Gemma3Text", sliding_window=16, query_pre_attn_scalar=8),
           "byte_fallback"),
    Family("phi3", _of("Phi3"), "byte_fallback"),
    Family("gpt2", _gpt2),
    Family("qwen2_vl_text", _qwen2_vl),
)  # fmt: skip


@lru_cache
def tokenizer(kind: TokenizerKind) -> PreTrainedTokenizerFast:
    """A small trained tokenizer: GPT-2's byte-level kind, or SentencePiece's with byte fallback."""
    special = ["<pad>", "<s>", "</s>"]
    if kind == "byte_level":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        made.normalizer = normalizers.Replace(" ", "▁")
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        special.append("<unk>")
        alphabet = []
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator([TEXTS[0], TEXTS[1]] * 20, trainer)
    if kind == "byte_fallback":
        made = _without_special_bytes(made)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def _without_special_bytes(trained: Tokenizer) -> Tokenizer:
    """Byte tokens are ordinary tokens in SentencePiece models, not control tokens."""
    import json

    state = json.loads(trained.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(state))
