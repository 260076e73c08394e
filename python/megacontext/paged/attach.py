"""Attaching a paged memory to an unmodified `transformers` model, and taking it off again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from megacontext.config import K
from megacontext.gists.adapter import GistAdapter
from megacontext.models.kv_cache import CACHE_ARGUMENT
from megacontext.paged.attention import IMPLEMENTATION, memory_of
from megacontext.paged.cache import PagedCache
from megacontext.paged.gists import gist_writer
from megacontext.paged.pool import PagePool
from megacontext.paged.rotary import RotaryTakeover
from megacontext.paged.step import Step, make_step
from megacontext.paged.stream import FocusLimits, Stream
from megacontext_ext.errors import InvalidArgument, Unsupported
from megacontext_ext.ops.focused_attention import AttentionRules, focused_attention

HEAD_WIDTHS = (64, 128, 256)


@dataclass(frozen=True)
class PagedConfig:
    """What a paged memory may use."""

    limits: FocusLimits = field(default_factory=FocusLimits)
    # Most pages held in memory, over all streams; 0 for no limit.
    pages_max: int = 0
    # Tokens a step of `read`; longer steps are faster and need more of the budget.
    read_tokens: int = 512
    # Gist rows for blocks out of focus: "auto" where the package has an adapter that was measured
    # to help this base, "off", or an adapter.
    gists: Literal["auto", "off"] | GistAdapter = "auto"
    gist_rows: Literal[1, 2, 4] = 1


class PagedMemory:
    """Memories of one attached model: one stream for each sequence of the batch.

    Not thread-safe: it belongs to the thread that runs the model.
    """

    def __init__(self, model: PreTrainedModel, config: PagedConfig) -> None:
        text = model.config.get_text_config()
        self.layer_count: int = text.num_hidden_layers
        self.config = config
        self.cache = PagedCache(self.layer_count)
        self.streams: list[Stream] = []
        self._model = model
        self._trained_tokens: int = text.max_position_embeddings
        self._page_shape = _page_shape(text)
        self._pool: PagePool | None = None
        self._step: Step | None = None
        self._new_tokens: list[int] = []
        self._real: Tensor | None = None
        self._ids: Tensor | None = None
        self._gists = gist_writer(model, config.gists, config.gist_rows, self._trained_tokens)
        self._watch = model.get_input_embeddings().register_forward_pre_hook(self._note_ids)
        kinds = getattr(text, "layer_types", None) or ["full_attention"] * self.layer_count
        self._rotary = RotaryTakeover(model, kinds)

    @property
    def token_count(self) -> int:
        """Tokens of the first stream."""
        return self.streams[0].token_count if self.streams else 0

    @property
    def resident_bytes(self) -> int:
        """Bytes of the pages in use."""
        return 0 if self._pool is None else self._pool.page_count * self._pool.page_bytes

    @torch.inference_mode()
    def read(self, tokens: Tensor) -> None:
        """Reads tokens [B, T] or [T] into the memory, in steps; computes no logits.

        Cost: one pass of the model over T tokens; each attends to at most the budget.
        """
        tokens = tokens.reshape(1, -1) if tokens.dim() == 1 else tokens
        for start in range(0, tokens.shape[1], self.config.read_tokens):
            self.cache.begin_call()
            self._model(
                tokens[:, start : start + self.config.read_tokens],
                **{CACHE_ARGUMENT: self.cache},
                use_cache=True,
                logits_to_keep=1,
            )
        self.cache.begin_call()

    def focus(self, blocks: list[int], stream: int = 0) -> None:
        """Sets which blocks are wanted, best first. Costs no model step: only plans change.

        Raises:
            InvalidArgument: a block that the stream does not have.
        """
        self._check_blocks(blocks, stream)
        self.streams[stream].wanted = list(blocks)

    def pin(self, blocks: list[int], stream: int = 0) -> None:
        """Keeps blocks in focus whatever else is wanted."""
        self._check_blocks(blocks, stream)
        self.streams[stream].pinned |= set(blocks)

    def exclude(self, blocks: list[int], stream: int = 0) -> None:
        """Keeps blocks out of focus. They stay in memory."""
        self._check_blocks(blocks, stream)
        self.streams[stream].excluded |= set(blocks)

    def in_focus(self, stream: int = 0) -> list[int]:
        """Blocks that the next single token will read."""
        return self.streams[stream].in_focus(self.config.limits, 1)

    def begin_step(self, real: Tensor | None, shape: tuple[int, int]) -> None:
        """Called by the first layer: pages and a plan for the step's tokens."""
        counts = [shape[1]] * shape[0] if real is None else real.sum(1).tolist()
        if not self.streams:
            self.streams = [Stream() for _ in counts]
        if len(counts) != len(self.streams):
            raise InvalidArgument(
                f"[paged] the memory has {len(self.streams)} streams, the batch has {len(counts)}"
            )
        pool = self._the_pool()
        for stream, count in zip(self.streams, counts, strict=True):
            stream.in_focus(self.config.limits, count)  # refuses before anything is taken
            stream.pages += pool.allocate(stream.blocks_for(count))
            if self._gists is not None:
                self._gists.catch_up(stream, pool)
        self._new_tokens, self._real = counts, real
        self._step = make_step(
            self.streams, counts, self.config.limits, self._trained_tokens, pool.keys[0].device
        )

    def attend(
        self, layer: int, qkv: tuple[Tensor, Tensor, Tensor], rules: dict[str, Any]
    ) -> Tensor:
        """Attention of one layer; q [T, Hq, E], k, v [T, Hkv, E] un-rotated. Returns [T, Hq, E]."""
        step, pool = self._step, self._the_pool()
        assert step is not None, "begin_step runs in layer 0"
        q, k, v = qkv
        pool.write(layer, step.rows, k.transpose(0, 1), v.transpose(0, 1))
        out, _ = focused_attention(
            q,
            pool.keys[layer],
            pool.values[layer],
            step.table,
            step.plan(rules["window"]),
            AttentionRules(
                scale=rules["scale"],
                softcap=rules["softcap"],
                sink=None if rules["sink"] is None else rules["sink"].float(),
                rope=step.rope(self._rotary.layers[layer]),
            ),
        )
        return out

    def end_step(self) -> None:
        """Called by the last layer: from here on the tokens are part of the memory."""
        for stream, count in zip(self.streams, self._new_tokens, strict=True):
            stream.token_count += count
        self._keep_tokens()
        self._step = None

    def _note_ids(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._ids = inputs[0].detach() if inputs else None

    def _keep_tokens(self) -> None:
        """Remembers which tokens were read: gists need them. Rows given as embeddings end that."""
        if self._gists is None:
            return
        if self._ids is None:
            self._gists = None
            return
        for number, stream in enumerate(self.streams):
            ids = self._ids[number]
            stream.tokens += (ids if self._real is None else ids[self._real[number]]).tolist()
        self._ids = None

    def detach(self) -> None:
        """Gives the model its own rotary positions back. Called by `attach`."""
        self._watch.remove()
        self._rotary.restore()

    def _the_pool(self) -> PagePool:
        if self._pool is None:
            parameter = next(self._model.parameters())
            self._pool = PagePool(
                self.layer_count, self._page_shape, parameter.detach(), self.config.pages_max
            )
        return self._pool

    def _check_blocks(self, blocks: list[int], stream: int) -> None:
        if not 0 <= stream < len(self.streams):
            raise InvalidArgument(f"[paged] stream must be below {len(self.streams)}, got {stream}")
        count = -(-self.streams[stream].token_count // K)
        wrong = [b for b in blocks if not 0 <= b < count]
        if wrong:
            raise InvalidArgument(f"[paged] blocks must be in [0, {count}), got {wrong[0]}")


@contextmanager
def attach(model: PreTrainedModel, config: PagedConfig | None = None) -> Iterator[PagedMemory]:
    """A paged memory for `model` while the block runs; afterwards the model is as before.

    Inside, `model.generate(...)` continues the memory: it gets only the new tokens, and attends to
    the new tokens, the first block, the recent past and what `memory.focus` chose, never more than
    the budget.

    Raises:
        Unsupported: the model has no rotary positions, or heads of another width than 64, 128, 256.
        InvalidArgument: a memory is attached to this model already.
    """
    before = model.config._attn_implementation
    if before == IMPLEMENTATION:
        raise InvalidArgument("[paged] a memory is attached to this model already")
    memory = PagedMemory(model, config or PagedConfig())
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
        yield memory
    finally:
        for module in attentions:
            memory_of.pop(module, None)
        model.__dict__.pop("_prepare_cache_for_generation", None)
        memory.detach()
        model.set_attn_implementation(before)


def _page_shape(text: Any) -> tuple[int, int]:
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    if width not in HEAD_WIDTHS:
        raise Unsupported(f"[paged] head width must be one of {HEAD_WIDTHS}, got {width}")
    return getattr(text, "num_key_value_heads", None) or heads, width
