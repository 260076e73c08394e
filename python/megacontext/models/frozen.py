"""A frozen base over a transformers causal model. The only file that calls the model."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils import logging

from megacontext.models import attention
from megacontext.models.base import BaseFacts, StepInput
from megacontext.models.catalog import locate
from megacontext.models.few_rows import fast_few_rows, multiply_flat
from megacontext.models.kv_cache import CACHE_ARGUMENT, GrowingCache
from megacontext.models.tokenizer import TextTokenizer
from megacontext_ext.errors import InvalidArgument

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Values sampled from every weight for the fingerprint.
_SAMPLES_PER_WEIGHT = 64


class TransformersBase:
    """A `FrozenBase` over any transformers causal model. One thread at a time."""

    def __init__(self, model: PreTrainedModel, tokenizer: TextTokenizer, name: str) -> None:
        attention.register()
        self.model = model.eval().requires_grad_(False)
        if model.config._attn_implementation == "sdpa":
            model.set_attn_implementation(attention.ATTENTION_NAME)
        multiply_flat(model.get_output_embeddings())
        self._tokenizer = tokenizer
        self._facts = facts_of(model, name)

    @property
    def facts(self) -> BaseFacts:
        return self._facts

    @property
    def tokenizer(self) -> TextTokenizer:
        return self._tokenizer

    @property
    def device(self) -> torch.device:
        return self.model.device

    def embed(self, tokens: Tensor) -> Tensor:
        """Rows [..., D] that the model reads for `tokens` [...], scaled as it scales them."""
        return self.model.get_input_embeddings()(tokens.to(self.device))

    def new_cache(self) -> GrowingCache:
        return GrowingCache()

    def step(self, step_input: StepInput, cache: Cache, keep_logits: int = 1) -> Tensor:
        """Logits [B, keep_logits, V] float32 of the last places; 0 keeps them all. Fills `cache`.

        A cache is always passed: without one, transformers reads gaps in `positions` as the borders
        of packed sequences and masks attention across them.
        """
        if (step_input.tokens is None) == (step_input.rows is None):
            raise InvalidArgument("[step] exactly one of tokens and rows must be given")
        with fast_few_rows(step_input.positions.numel(), self.facts.dtype, self.device):
            output = self.model(
                input_ids=_moved(step_input.tokens, self.device),
                inputs_embeds=_moved(step_input.rows, self.device, self.facts.dtype),
                position_ids=step_input.positions.to(self.device),
                attention_mask=_moved(step_input.attend, self.device),
                **{CACHE_ARGUMENT: cache},
                use_cache=True,
                logits_to_keep=keep_logits,
            )
        return output.logits.float()


def load(
    name: str,
    *,
    dtype: DtypeName = "auto",
    device: str | torch.device = "cpu",
    say: Callable[[str], None] | None = None,
) -> TransformersBase:
    """A frozen base by name: "smollm2" (from its package), a folder, or a hub id.

    Args:
        dtype: "auto" is bfloat16 on CUDA and on CPUs with AVX512-BF16 (2.5 times the speed of
            float32), else float32. "float32" is the choice for exactness.
        say: told about the one-time conversion of a packaged model.

    Raises: NotFound for an unknown name, with the names that are known.
    """
    source = locate(name, say)
    chosen = _chosen_dtype(dtype, torch.device(device))
    with quiet_loading():
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=chosen, attn_implementation=_attention_of(source)
        )
    wrapped = TextTokenizer(AutoTokenizer.from_pretrained(source), _end_tokens(model))
    return TransformersBase(model.to(torch.device(device)), wrapped, name)  # type: ignore[arg-type]


def _attention_of(source: str) -> str:
    """ "sdpa", or "eager" for models whose scores need more than it has (Gemma 2's soft cap)."""
    kind = type(AutoConfig.from_pretrained(source))
    if kind not in AutoModelForCausalLM._model_mapping:
        return "sdpa"
    model_class: Any = AutoModelForCausalLM._model_mapping[kind]
    return "sdpa" if model_class._supports_sdpa else "eager"


def _chosen_dtype(dtype: DtypeName, device: torch.device) -> torch.dtype:
    if dtype != "auto":
        if dtype not in _DTYPES:
            names = ", ".join(_DTYPES)
            raise InvalidArgument(f"[load] dtype must be auto or one of {names}, got {dtype!r}")
        return _DTYPES[dtype]
    if device.type == "cuda" or torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


def _end_tokens(model: PreTrainedModel) -> list[int]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    return [] if ends is None else ([ends] if isinstance(ends, int) else list(ends))


def facts_of(model: PreTrainedModel, name: str) -> BaseFacts:
    """The facts of a loaded model. Cost: reads 64 values of each weight for the fingerprint."""
    config: Any = model.config.get_text_config()
    heads = config.num_attention_heads
    return BaseFacts(
        name=name,
        family=config.model_type,
        fingerprint=_fingerprint(model),
        width=config.hidden_size,
        layer_count=config.num_hidden_layers,
        head_count=heads,
        kv_head_count=getattr(config, "num_key_value_heads", heads),
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocabulary_tokens=config.vocab_size,
        trained_tokens=config.max_position_embeddings,
        dtype=model.dtype,
    )


def _fingerprint(model: PreTrainedModel) -> str:
    """Digest of names, shapes and evenly spaced values of all weights, rounded to bfloat16 so that
    the load dtype does not change it. Reads 64 values of each weight."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().reshape(-1)
        last, count = max(flat.numel() - 1, 0), _SAMPLES_PER_WEIGHT
        places = torch.arange(count) * last // (count - 1)
        sample = flat[places.to(flat.device)].to(torch.bfloat16).float().cpu().numpy()
        digest.update(json.dumps([name, list(weight.shape)]).encode())
        digest.update(sample.tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' own progress bar: a second of loading needs none."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _moved(
    tensor: Tensor | None, device: torch.device, dtype: torch.dtype | None = None
) -> Tensor | None:
    return None if tensor is None else tensor.to(device=device, dtype=dtype or tensor.dtype)
