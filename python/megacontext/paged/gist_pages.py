"""The gist pages of a memory: who makes them, when, and where they are kept and read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from megacontext.config import K
from megacontext.gists.adapter import GistAdapter
from megacontext.paged.config import PagedConfig
from megacontext.paged.gists import gist_writer
from megacontext.paged.kept import ABSENT, KeptWriter, encode_kept
from megacontext.paged.kept_view import KeptView
from megacontext.paged.page_store import PageLayout, PageStore
from megacontext.paged.pool import PagePool
from megacontext.paged.residents import LostPages, PageKey, Residents, log
from megacontext.paged.rotary import LayerRotary
from megacontext.paged.step import Focus, Step
from megacontext.paged.stream import Stream
from megacontext.paged.tiling import LODS, GistPage
from megacontext_ext.ops.focused_attention import (
    AttentionRules,
    focused_attention,
)

MOST_PAGES_BEHIND = 4
# Coarse pages made in one step: more are due only over a stream of an earlier version.
CONDENSED_AT_ONCE = 8


class GistWriter(Protocol):
    """Makes gist pages of complete blocks."""

    @property
    def rows(self) -> int:
        """Rows a block."""

    @property
    def name(self) -> str:
        """Names what makes the rows: others' rows are not its rows."""

    def next_blocks(self, number: int, stream: Stream, pages_max: int) -> range:
        """Blocks to make rows of now; empty when there are none, or no room for what it reads."""

    def reads(self, blocks: range) -> list[int]:
        """Blocks whose pages must be resident for it."""

    def pages_for(self, blocks: range) -> list[GistPage]:
        """The gist pages that get the rows."""

    def write(self, number: int, stream: Stream, pool: PagePool, blocks: range) -> Tensor:
        """Puts the rows into their resident pages; returns them, [N, L, 2, Hkv, R, E]."""


class GistPages:
    """Gist pages of all streams. Rows that every layer and head shares are read with the blocks;
    kept rows, which each head has its own of, in a second pass that is merged with the first."""

    def __init__(
        self,
        writer: GistWriter,
        layout: PageLayout,
        rotary: Sequence[LayerRotary],
        trained_tokens: int,
        store: PageStore | None,
    ) -> None:
        self._writer = writer
        self._layout = layout
        self._store = store
        self._kept = writer if isinstance(writer, KeptWriter) else None
        self._view: KeptView | None = None
        if self._kept is not None:
            self._view = KeptView(layout, rotary, self._kept.size, trained_tokens)
        if store is None:
            return
        if self._kept is None:
            store.use_gists(writer.name, writer.rows)
        else:
            store.use_kept(writer.name, writer.rows, len(self._kept.layers))

    @property
    def rows(self) -> int:
        return self._writer.rows

    def write(self, number: int, stream: Stream, residents: Residents, own: int) -> bool:
        """Makes the gist pages that can be made, while they and the step's `own` pages have room.

        Returns:
            False when a damaged page ends gists.
        """
        stream.gist_rows = self.rows
        limit = residents.pool.pages_max if self._store is not None else 0
        while len(blocks := self._writer.next_blocks(number, stream, limit)):
            pages = self._writer.pages_for(blocks)
            begun = [PageKey(number, p) for p in pages if p.number < stream.gist_page_count]
            fresh = [PageKey(number, p) for p in pages if p.number >= stream.gist_page_count]
            if not residents.has_room(len(fresh) + own):
                break
            needed = [PageKey(number, block) for block in self._writer.reads(blocks)]
            try:
                residents.bring(needed + begun, fresh)
            except LostPages as lost:
                log.warning("[paged] gists end at block %d: %s", blocks.start, lost)
                return False
            rows = self._writer.write(number, stream, residents.pool, blocks)
            stream.gisted_blocks = blocks.stop
            if self._store is not None:
                self._store.write_side(self._store.gists[1].rows, number, blocks.start, rows)
                self._keep_whose(number, stream, pages[-1])
        return True

    def condense(self, number: int, stream: Stream, residents: Residents, own: int) -> None:
        """Makes the pages of LOD 2 and 3 whose children are there, a few in a step.

        Raises:
            LostPages: children that cannot be read; a page is made without those of `lost_gists`.
        """
        if self._kept is None:
            return
        for page in self._condensable(stream):
            if not residents.has_room(1 + own):
                break
            children = [c for c in page.children if c not in stream.lost_gists]
            residents.bring([PageKey(number, c) for c in children], [PageKey(number, page)])
            content = self._kept.condense(stream, residents.pool, page)
            stream.coarse_pages[page.lod - 2] += 1
            if self._store is not None:
                kind = self._store.gists[page.lod]
                rows = in_parts(content, -2, kind.parts)
                self._store.write_side(kind.rows, number, page.number * kind.parts, rows)
                self._keep_whose(number, stream, page)

    def _condensable(self, stream: Stream) -> Iterator[GistPage]:
        """Pages that can be made now, finest first; `stream` is looked at again for each."""
        left = CONDENSED_AT_ONCE
        for lod in LODS[1:]:
            while left:
                page = GistPage(lod, stream.coarse_pages[lod - 2])
                below = stream.gist_page_count if lod == 2 else stream.coarse_pages[lod - 3]
                if page.children[-1].number >= below:
                    break
                yield page
                left -= 1

    def hear(
        self, layer: int, queries: Tensor, streams: Sequence[Stream], counts: Sequence[int]
    ) -> None:
        """Takes a layer's un-rotated queries [T, Hq, E] of a step."""
        if self._kept is not None:
            self._kept.hear(layer, queries, streams, counts)

    def with_blocks(self, focuses: list[Focus]) -> list[Focus]:
        """What is read in one pass with the blocks."""
        return focuses if self._view is None else [Focus(f.blocks, []) for f in focuses]

    def prepare(
        self,
        streams: list[Stream],
        counts: list[int],
        focuses: list[Focus],
        pool: PagePool,
        step: Step,
    ) -> None:
        """Makes ready what the step's second pass reads."""
        if self._view is not None:
            self._view.prepare(streams, counts, focuses, pool, step)

    def attend(
        self, layer: int, queries: Tensor, rules: dict[str, Any]
    ) -> tuple[Tensor, Tensor] | None:
        """The second pass: out [T, Hq, E] and lse [T, Hq]; None where it would read nothing."""
        read = None if self._view is None else self._view.read(layer)
        if read is None:
            return None
        keys, values, table, plan, rope = read
        settings = AttentionRules(scale=rules["scale"], softcap=rules["softcap"], rope=rope)
        return focused_attention(queries, keys, values, table, plan, settings)

    def save(self, number: int, stream: Stream) -> None:
        """Keeps in the store what the next gist page needs and pages do not have: the queries."""
        if self._store is None or self._kept is None:
            return
        heard = self._kept.heard(number)
        if not heard.has(stream.gisted_blocks * K, stream.token_count):
            return
        for block in range(stream.gisted_blocks, -(-stream.token_count // K)):
            end = min((block + 1) * K, stream.token_count)
            asked = [heard.take(layer, block * K, end) for layer in heard.layers]
            ring = block % self._kept.size
            self._store.write_queries(number, ring, torch.stack(asked), end)

    def continues(self, stream: Stream) -> bool:
        """Whether a stream that was opened again can get its next gist page soon: a crash takes a
        few pages' worth at most. One that was read without gists would have to be read again."""
        behind = stream.token_count // K - stream.gisted_blocks
        return self._kept is None or behind <= MOST_PAGES_BEHIND * self._kept.size

    def load(self, number: int, stream: Stream) -> bool:
        """Takes up a stream that was opened again.

        Returns:
            False when queries are missing that the next gist page needs: a crash took them. Tokens
            from `stream.gisted_blocks` on are then to be read again.
        """
        stream.gist_rows = self.rows
        kept, store = self._kept, self._store
        if kept is None or store is None:
            return True
        store.fill_use(number, ABSENT)
        stream.coarse_pages = store.coarse_pages(number)
        heard = kept.heard(number)
        heard.drop_before(stream.gisted_blocks * K)
        for block in range(stream.gisted_blocks, -(-stream.token_count // K)):
            end = min((block + 1) * K, stream.token_count)
            asked = store.read_queries(number, block % kept.size, end)
            if asked is None:
                kept.forget(number, stream.gisted_blocks * K)
                return False
            for at, layer in enumerate(heard.layers):
                heard.hear(layer, asked[at, : end - block * K], block * K)
        return True

    def _keep_whose(self, number: int, stream: Stream, page: GistPage) -> None:
        store = self._store
        if store is None or self._kept is None:
            return
        kind = store.gists[page.lod]
        first = page.number * kind.parts
        whose = encode_kept(stream.kept[page], self._layout)
        for held, side in zip((kind.owners, kind.use), whose, strict=True):
            assert held is not None
            store.write_side(held, number, first, in_parts(side, -1, kind.parts))


def in_parts(page: Tensor, axis: int, parts: int) -> Tensor:
    """[parts, ...]: a page cut evenly along one of its last axes."""
    return page.unflatten(axis, (parts, -1)).movedim(axis - 1, 0)


# Of models that norm what attention gives before it is added to the stream. Gemma and OLMo 2 are
# known by the norm behind their other half: Llama calls the one before that half by the same name.
_NORMS_BEHIND = ("post_feedforward_layernorm", "post_self_attn_layernorm")


def norms_attention(model: PreTrainedModel) -> bool:
    """Whether a layer norms what its attention gives before adding it to the stream."""
    return any(name.endswith(_NORMS_BEHIND) for name, _ in model.named_modules())


def gist_pages(
    model: PreTrainedModel,
    config: PagedConfig,
    layout: PageLayout,
    rotary: Sequence[LayerRotary],
    kinds: Sequence[str],
    store: PageStore | None,
) -> GistPages | None:
    """The gist pages of a memory as `config.gists` says; None: there are none."""
    trained: int = model.config.get_text_config().max_position_embeddings
    writer: GistWriter | None
    if config.gists == "off":
        return None
    if config.gists == "learned" or isinstance(config.gists, GistAdapter):
        writer = gist_writer(model, config.gists, config.gist_rows, trained)
    else:
        kept = KeptWriter(layout, rotary, kinds, config.gist_rows, norms_attention(model))
        # Queries are kept only for pages that can be made in the memory there is.
        limit = config.pages_max or (4 * config.limits.budget_places // K if store else 0)
        writer = kept if kept.layers and (not limit or kept.pages_at_once <= limit) else None
    return None if writer is None else GistPages(writer, layout, rotary, trained, store)
