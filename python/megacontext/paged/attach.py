"""Attaching a paged memory to an unmodified `transformers` model, and taking it off again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from megacontext.config import K
from megacontext.models import TextTokenizer
from megacontext.models.frozen import facts_of
from megacontext.models.kv_cache import CACHE_ARGUMENT
from megacontext.paged.attention import IMPLEMENTATION, memory_of
from megacontext.paged.config import PagedConfig
from megacontext.paged.memory import PagedMemory
from megacontext.paged.page_store import PageLayout, PageStore, open_page_store
from megacontext.paged.text_focus import TextFocus
from megacontext_ext.errors import InvalidArgument, MegaContextError, Unsupported

HEAD_WIDTHS = (64, 128, 256)


@contextmanager
def attach(
    model: PreTrainedModel,
    config: PagedConfig | None = None,
    *,
    store: str | os.PathLike[str] | None = None,
    tokenizer: TextTokenizer | None = None,
) -> Iterator[PagedMemory]:
    """A paged memory for `model` while the block runs; afterwards the model is as before.

    Inside, `model.generate(...)` continues the memory: it gets only the new tokens, and attends to
    the new tokens, the first block, the recent past and what `memory.focus` chose, never more than
    the budget.

    Args:
        store: a folder that keeps the pages. A memory that is there already goes on where it
            ended; what is read is written behind, and committed at the end of the block.
        tokenizer: of the model; `focus_on` needs it. A store remembers it and refuses another.

    Raises:
        Unsupported: the model has no rotary positions, or heads of another width than 64, 128, 256.
        InvalidArgument: a memory is attached to this model already; the store is of another model,
            tokenizer or page format; `pages_max` cannot hold one step.
        StoreLocked: another memory has the store.
    """
    before = model.config._attn_implementation
    if before == IMPLEMENTATION:
        raise InvalidArgument("[paged] a memory is attached to this model already")
    config = config or PagedConfig()
    layout = _layout(model)
    held = None if store is None else _open(model, config, layout, store, tokenizer)
    try:
        text = None if held is None or tokenizer is None else TextFocus(held.store, tokenizer)
        memory = PagedMemory(model, config, layout, held, text)
    except MegaContextError:
        if held is not None:
            held.close()
        raise
    attentions = [m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "o_proj")]
    prepare: Any = model._prepare_cache_for_generation

    def prepare_cache(generation_config: Any, model_kwargs: dict[str, Any], *rest: Any) -> None:
        if model_kwargs.get(CACHE_ARGUMENT) is None:
            model_kwargs[CACHE_ARGUMENT] = memory.cache
        memory.cache.begin_call()
        prepare(generation_config, model_kwargs, *rest)

    try:
        model.set_attn_implementation(IMPLEMENTATION)
        for module in attentions:
            memory_of[module] = memory
        model._prepare_cache_for_generation = prepare_cache  # type: ignore[assignment]
        if held is not None:
            memory.load()
        yield memory
        if held is not None:
            memory.commit()
    finally:
        for module in attentions:
            memory_of.pop(module, None)
        model.__dict__.pop("_prepare_cache_for_generation", None)
        memory.detach()
        model.set_attn_implementation(before)
        if held is not None:
            held.close()


def _layout(model: PreTrainedModel) -> PageLayout:
    text = model.config.get_text_config()
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    if width not in HEAD_WIDTHS:
        raise Unsupported(f"[paged] head width must be one of {HEAD_WIDTHS}, got {width}")
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    return PageLayout(text.num_hidden_layers, kv_heads, width, model.dtype, heads)


def _open(
    model: PreTrainedModel,
    config: PagedConfig,
    layout: PageLayout,
    path: str | os.PathLike[str],
    tokenizer: TextTokenizer | None,
) -> PageStore:
    least = config.limits.budget_places // K
    if config.pages_max and config.pages_max < least:
        raise InvalidArgument(
            f"[paged] pages_max must be at least {least} (the budget of "
            f"{config.limits.budget_places} places), got {config.pages_max}"
        )
    identity = {"model": facts_of(model, "").identity}
    if tokenizer is not None:
        identity["tokenizer"] = tokenizer.hash
    return open_page_store(path, identity, layout, config.pages, config.commit_tokens)
