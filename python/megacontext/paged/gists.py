"""Learned gists for a paged memory: rows that stand for blocks, kept in pages of the same pool.

A gist page holds 32 rows, those of 32 / rows blocks. Rows of a block are computed once, when the
block is complete, from the keys and values that are in the pool already; they depend on no other
block's rows, so reading in other steps gives the same rows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PreTrainedModel

from megacontext.gists.adapter import GistAdapter
from megacontext.gists.base import FrozenBase, KeyValues, base_from_model, rotate
from megacontext.gists.catalog import find_adapter
from megacontext.gists.layout import SINK_TOKENS, K, Node, plan_rows
from megacontext.gists.rows import compute_rows
from megacontext.paged.pool import PagePool
from megacontext.paged.stream import Stream
from megacontext.paged.tiling import GistPage

LOOKBACK_BLOCKS = 8  # 256 tokens before a block: the most that training offered besides "all"
BATCH_BLOCKS = 32  # blocks whose rows are computed in one pass


@dataclass(frozen=True)
class LearnedWriter:
    """Computes the rows of a stream's blocks and puts them into pages.

    Attributes:
        rows: rows a block: 1, 2 or 4.
        trained_tokens: beyond it rows are computed at positions that begin at 0.
    """

    base: FrozenBase
    adapter: GistAdapter
    rows: int
    trained_tokens: int

    @cached_property
    def name(self) -> str:
        """Names the adapter by its content: rows of another one are not its rows."""
        digest = hashlib.sha256()
        for _, parameter in sorted(self.adapter.named_parameters()):
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()[:12]

    def next_blocks(self, number: int, stream: Stream, pages_max: int) -> range:
        """Complete blocks that have no rows yet: at most a batch, and no more than fit in
        `pages_max` pages with what they are computed from (0: no limit)."""
        room = pages_max - LOOKBACK_BLOCKS - 3  # the first block, two pages of rows
        batch = max(1, min(BATCH_BLOCKS, room)) if pages_max else BATCH_BLOCKS
        start = stream.gisted_blocks
        return range(start, min(stream.token_count // K, start + batch))

    def reads(self, blocks: range) -> list[int]:
        """Blocks whose pages the rows of `blocks` are computed from."""
        low = max(0, blocks.start - LOOKBACK_BLOCKS)
        return [*([0] if low else []), *range(low, blocks.stop)]

    def pages_for(self, blocks: range) -> list[GistPage]:
        """The gist pages that hold the rows of `blocks`."""
        size = K // self.rows
        numbers = range(blocks.start // size, -(-blocks.stop // size))
        return [GistPage(1, number) for number in numbers]

    @torch.inference_mode()
    def write(self, number: int, stream: Stream, pool: PagePool, blocks: range) -> torch.Tensor:
        """Computes the rows of `blocks` and puts them into their pages, all resident.

        Returns:
            The rows, [N, L, 2, Hkv, R, E].

        Cost: a pass of the base over `rows` inputs a block, that is rows / 32 of reading it.
        """
        start, end = blocks.start, blocks.stop
        low = max(0, start - LOOKBACK_BLOCKS)
        sink = SINK_TOKENS if low else 0
        origin = 0 if end * K <= self.trained_tokens else low * K - sink
        window = torch.arange(low * K, end * K)
        tokens = torch.cat((torch.arange(sink), window))
        positions = torch.cat((torch.arange(sink), window - origin))
        nodes = [Node(b * K - origin, (b + 1) * K - origin) for b in range(start, end)]
        plan = plan_rows(nodes, self.rows, len(tokens), first=low * K - origin - sink)
        ids = torch.tensor([*stream.tokens[:sink], *stream.tokens[low * K : end * K]])
        known = self._known(stream, pool, tokens, positions)
        made = compute_rows(self.base, self.adapter, plan, ids[None].to(self.base.device), known)
        slots = torch.arange(start * self.rows, end * self.rows)
        page = torch.tensor([stream.gist_pages[GistPage(1, n)] for n in (slots // K).tolist()])
        rows = (page * K + slots % K).to(made.keys[0].device)
        for layer, (keys, values) in enumerate(zip(made.keys, made.values, strict=True)):
            pool.write(layer, rows, keys[0], values[0])
        pairs = [torch.stack((k[0], v[0])) for k, v in zip(made.keys, made.values, strict=True)]
        flat = torch.stack(pairs).unflatten(-2, (len(blocks), self.rows))
        return flat.movedim(-3, 0)  # [L, 2, Hkv, N, R, E] -> [N, L, 2, Hkv, R, E]

    def _known(
        self, stream: Stream, pool: PagePool, tokens: torch.Tensor, positions: torch.Tensor
    ) -> KeyValues:
        """Keys rotated to `positions`, and values, of the tokens with these numbers, batch of 1."""
        cos, sin = self.base.rotary(positions)
        page = torch.tensor([stream.pages[b] for b in (tokens // K).tolist()])
        page = page.to(self.base.device)
        slot = (tokens % K).to(self.base.device)
        # Advanced indices around a slice: the gathered dimension comes first, [T, Hkv, E].
        keys = [rotate(k[page, :, slot].transpose(0, 1)[None], cos, sin) for k in pool.keys]
        values = [v[page, :, slot].transpose(0, 1)[None] for v in pool.values]
        return KeyValues(keys, values)


def gist_writer(
    model: PreTrainedModel, wanted: str | GistAdapter, rows: int, trained_tokens: int
) -> LearnedWriter | None:
    """The writer for a model, or None where no adapter was measured to help it.

    Args:
        wanted: an adapter, or "learned" for the one that ships for this base.
    """
    if model.config.model_type != "llama":
        return None
    try:
        base = base_from_model(model)
    except ValueError:  # a rope type that gists do not know
        return None
    if isinstance(wanted, GistAdapter):
        adapter = wanted
    else:
        shipped = find_adapter(base)
        if shipped is None or not (shipped.recovery(rows) or 0) > 0:
            return None
        adapter = shipped.load()
    adapter = adapter.requires_grad_(False).to(base.device)
    return LearnedWriter(base, adapter, rows, trained_tokens)
