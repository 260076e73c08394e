"""Certifies an architecture before its weights are at hand: a small twin of a configuration.

The twin keeps what makes an architecture special (kinds of layers and their order, grouped heads,
head width, rotary scaling, windows, soft caps, experts, tied heads) and shrinks everything else;
its weights are random, its tokenizer is made on the spot. So a configuration of a model that does
not fit here still meets every check. What only the real weights can show stays open: the card says
so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from megacontext.models.frozen import TransformersBase
from megacontext.models.port.arithmetic import MILLION, BaseShape, parameter_count
from megacontext.models.port.checks import CHECKS, TEXTS, Check, Subject, Verdict, examine
from megacontext.models.port.jobs import write_jobs
from megacontext.models.port.porting import verdict_table
from megacontext.models.tokenizer import TextTokenizer
from megacontext_ext.errors import InvalidArgument

# Sizes of the twin; layers enough for every kind in a pattern of six.
_VOCABULARY = 512
_LAYERS = 6
_KV_HEADS = 2
_WIDTH = 64
_GROUP_MAX = 4
_EXPERTS = 4
_WINDOW = 16


def rehearse(
    config_file: Path,
    out: Path,
    *,
    checks: Mapping[str, Check] = CHECKS,
    say: Callable[[str], None] | None = None,
) -> tuple[list[Verdict], Path | None]:
    """Check a twin of the model that `config_file` describes, and write its card into `out`.

    Returns the verdicts, and the card or None when a check failed. Raises: InvalidArgument for a
    file without a `config`. Cost: seconds, and no memory for the real size (meta device).
    """
    described = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    if not isinstance(described, dict) or "config" not in described:
        raise InvalidArgument(f"[port] {config_file} must hold `config`, it does not")
    if say is not None:
        say(f"checking a small twin of {described['model']}")
    verdicts = examine(twin(described["config"]), checks)
    if any(verdict.status == "fail" for verdict in verdicts):
        return verdicts, None
    real = AutoConfig.for_model(**described["config"])
    out.mkdir(parents=True, exist_ok=True)
    card = out / f"{config_file.stem}.md"
    jobs = write_jobs(out, config_file.stem, real)
    text = _card(described["model"], real, verdicts)
    card.write_text("\n".join([text, "Training jobs:", "", *jobs.lines(), ""]), encoding="utf-8")
    return verdicts, card


def twin(stored: Mapping[str, Any]) -> Subject:
    """A small base of the architecture that `stored` (a configuration as written) describes."""
    config = shrunk(stored)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).float()
    model.generation_config.eos_token_id = 2
    return Subject(TransformersBase(model, TextTokenizer(_tokenizer()), "twin"), trained=False)


def shrunk(stored: Mapping[str, Any]) -> Any:
    """The configuration of the twin."""
    real: Any = AutoConfig.for_model(**stored)
    shape = BaseShape.of(real)
    kv_heads = min(_KV_HEADS, shape.kv_head_count)
    # Where heads and width are tied to each other, two heads a KV head keep the twin small.
    free = bool(getattr(real, "head_dim", None))
    group = min(_GROUP_MAX if free else 2, shape.head_count // shape.kv_head_count)
    heads = kv_heads * group
    layers = min(_LAYERS, shape.layer_count)
    config = type(real)(**stored)
    config.num_hidden_layers = layers
    config.num_attention_heads = heads
    if free:
        # Some configurations insist that heads divide the width, whatever the heads' own width is.
        config.head_dim, config.hidden_size = shape.head_width, -(-_WIDTH // heads) * heads
    else:
        config.hidden_size = heads * shape.head_width
    config.vocab_size = _VOCABULARY
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    # Large enough that logits differ clearly between places, small enough for float32 sums.
    config.initializer_range = 0.8 / config.hidden_size**0.5
    _set(config, "num_key_value_heads", kv_heads)
    _set(config, "intermediate_size", 96)
    _set(config, "num_local_experts", _EXPERTS)
    _set(config, "num_experts", _EXPERTS)
    for name in ("layer_types", "no_rope_layers"):
        kinds = getattr(config, name, None)
        if kinds:
            setattr(config, name, list(kinds)[:layers])
    if getattr(config, "sliding_window", None):
        config.sliding_window = _WINDOW
    config._attn_implementation = "sdpa" if _has_sdpa(config) else "eager"
    return config


def _set(config: Any, name: str, value: int) -> None:
    if getattr(config, name, None) is not None:
        setattr(config, name, value)


def _has_sdpa(config: Any) -> bool:
    made: Any = AutoModelForCausalLM._model_mapping[type(config)]
    return bool(made._supports_sdpa)


def _tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 512 tokens, trained on the texts of the checks."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(list(TEXTS) * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def _card(model: str, real: Any, verdicts: list[Verdict]) -> str:
    shape = BaseShape.of(real)
    costs = [
        f"| {row.replace('_', ' ')} | {count / MILLION:,.1f} |"
        for row, count in shape.bytes_per_million_tokens().items()
    ]
    return "\n".join(
        [
            f"# {model}, rehearsed",
            "",
            f"{parameter_count(real) / 1e6:,.1f} M parameters, {shape.layer_count} layers, width "
            f"{shape.width}, {shape.head_count} heads ({shape.kv_head_count} of keys and values).",
            "",
            "The verdicts are of a small twin of the architecture with random weights and another "
            "tokenizer. Not certified: the real weights and tokenizer; `megacontext port FOLDER` "
            "does that.",
            "",
            verdict_table(verdicts),
            "",
            "| a million tokens as | MB |",
            "| :-- | --: |",
            *costs,
            "",
        ]
    )
