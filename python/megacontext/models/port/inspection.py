"""Looks at a checkpoint without running any of its code, and says whether it can be a base.

Reads config.json, tokenizer.json and the safetensors files. Nothing is imported from the folder,
and pickled weights are never opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PretrainedConfig,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from megacontext.models.port.arithmetic import BaseShape
from megacontext_ext.errors import NotFound

# Kinds of layer without a key and a value a token, for which a cache of places has no meaning.
_NO_ATTENTION = ("linear_attention", "mamba", "mamba2", "recurrent", "conv", "rwkv", "ssm")
_STATE_MODELS = ("mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma", "jamba", "zamba",
                 "zamba2", "bamba", "lfm2", "qwen3_next", "granitemoehybrid")  # fmt: skip
_ABSOLUTE = ("gpt2", "gpt_neo", "opt", "gpt_bigcode", "xglm", "biogpt", "openai-gpt")


@dataclass(frozen=True)
class Inspection:
    """What a folder holds. `refusals` is empty when it can be a base; `notes` do not prevent it."""

    folder: Path
    model_type: str
    shape: BaseShape | None
    refusals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.refusals


def inspect_checkpoint(folder: Path, *, weights: bool = True) -> Inspection:
    """Inspect the checkpoint in `folder`; with `weights`, read every weight for NaN and infinity.

    Raises: NotFound when there is no config.json. Cost: one pass over the weight files.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise NotFound(f"[port] model folder must hold config.json, {folder} does not")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        model_type = str(stored["model_type"])
    except (json.JSONDecodeError, KeyError) as error:
        reason = f"config.json has no readable model_type ({type(error).__name__})"
        return Inspection(folder, "unknown", None, (reason,))
    refusals = list(_remote_code(folder, stored))
    if refusals:
        return Inspection(folder, model_type, None, tuple(refusals))
    if model_type not in CONFIG_MAPPING_NAMES:
        reason = f"transformers knows no model_type {model_type!r}, and code of a folder is not run"
        return Inspection(folder, model_type, None, (reason,))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, TypeError, StrictDataclassError) as error:
        reason = f"config.json is not one of model_type {model_type!r}: {_last_line(error)}"
        return Inspection(folder, model_type, None, (reason,))
    refusals += _unsupported(config)
    if refusals:
        return Inspection(folder, model_type, None, tuple(refusals))
    shape = BaseShape.of(config)
    notes = list(_notes(config, shape))
    refusals += _tokenizer_faults(folder, shape)
    facts = _facts(config, shape)
    if weights:
        refusals += _weight_faults(folder)
    return Inspection(folder, model_type, shape, tuple(refusals), tuple(notes), facts)


def _last_line(error: Exception) -> str:
    """The last line of a message: validators put what is wrong there."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:200]


def _remote_code(folder: Path, stored: dict[str, Any]) -> Iterator[str]:
    if "auto_map" in stored:
        names = ", ".join(sorted(map(str, stored["auto_map"])))
        yield f"config.json asks for code of its own (auto_map: {names}); remote code is never run"
    scripts = sorted(path.name for path in folder.glob("*.py"))
    if scripts and "auto_map" not in stored:
        yield f"folder holds Python files ({', '.join(scripts)}); remote code is never run"
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file() and "auto_map" in json.loads(tokenizer.read_text(encoding="utf-8")):
        yield "tokenizer_config.json asks for code of its own (auto_map)"


def _unsupported(config: PretrainedConfig) -> Iterator[str]:
    text = config.get_text_config()
    if config.is_encoder_decoder:
        yield "unsupported attention: an encoder-decoder has no single window of places"
        return
    kinds = set(getattr(text, "layer_types", None) or ()) & set(_NO_ATTENTION)
    if kinds or text.model_type in _STATE_MODELS:
        named = ", ".join(sorted(kinds)) or text.model_type
        yield f"unsupported attention: layers without keys and values ({named}) cannot be paged"
        return
    if type(config) in AutoModelForMaskedLM._model_mapping and not config.is_decoder:
        yield "unsupported attention: every token of this model sees those after it"
        return
    if type(config) not in AutoModelForCausalLM._model_mapping:
        yield f"transformers has no causal language model for model_type {config.model_type!r}"


def _notes(config: PretrainedConfig, shape: BaseShape) -> Iterator[str]:
    text = config.get_text_config()
    if text.model_type in _ABSOLUTE:
        yield "absolute positions: contiguous positions only, and no key reuse at another place"
    if shape.sliding_window:
        yield f"sliding windows of {shape.sliding_window} tokens in some layers see only the newest"
    if shape.experts:
        yield f"mixture of {shape.experts} experts: all weights are held, some are used a token"
    if shape.trained_tokens < 2048:
        yield f"trained on {shape.trained_tokens} tokens: larger budgets read badly"


def _facts(config: PretrainedConfig, shape: BaseShape) -> dict[str, Any]:
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = {str(v.get("rope_type", "default")) for v in rope.values() if isinstance(v, dict)}
    return {
        "tied_embeddings": bool(config.tie_word_embeddings),
        "rope": ", ".join(sorted(kinds)) or str(rope.get("rope_type", "none")),
        "grouped_heads": shape.head_count // shape.kv_head_count,
        "sliding_window": shape.sliding_window,
        "experts": shape.experts,
    }


def _tokenizer_faults(folder: Path, shape: BaseShape) -> Iterator[str]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        yield "no tokenizer.json: a fast tokenizer is needed for exact character places"
        return
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = state["model"]["vocab"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        yield f"tokenizer.json cannot be read ({type(error).__name__})"
        return
    ids = (
        list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
    )
    ids += [token["id"] for token in state.get("added_tokens", ())]
    largest = max(ids, default=0)
    if largest >= shape.vocabulary_tokens:
        yield (
            f"wrong tokenizer: its largest token is {largest}, the base has "
            f"{shape.vocabulary_tokens} rows"
        )
    elif len(set(ids)) < 0.5 * shape.vocabulary_tokens:
        yield (
            f"wrong tokenizer: it has {len(set(ids))} tokens, the base has "
            f"{shape.vocabulary_tokens} rows"
        )


def _weight_faults(folder: Path) -> Iterator[str]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt")))
        held = f" (pickled weights {', '.join(pickled)} are not opened)" if pickled else ""
        yield f"no safetensors weights{held}"
        return
    for path in files:
        try:
            bad = list(_not_finite(path))
        except (OSError, SafetensorError) as error:
            yield f"{path.name} cannot be read ({type(error).__name__}: {error})"
            continue
        if bad:
            name, count = bad[0]
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            yield f"{path.name}: {count} values of {name}{more} are NaN or infinite"


def _not_finite(path: Path) -> Iterator[tuple[str, int]]:
    with safe_open(path, framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118 (not a mapping)
            weight = weights.get_tensor(name)
            if weight.is_floating_point():
                bad = int((~torch.isfinite(weight)).sum())
                if bad:
                    yield name, bad
