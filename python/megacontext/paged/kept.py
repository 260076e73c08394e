"""Gists without training: rows of blocks out of focus that later queries would look at.

A gist page of LOD 1 keeps 32 rows a layer and KV head on average, from 32 / `rows` blocks together.
A row is the key and value of one token; each layer and head has its own tokens and its own share
of the page (`gists.selection`). Its numbers lie in the page in one line, layer by layer as they
come, and `KeptRows` says whose they are; `kept_view.py` gives every layer its rows. A page of a
higher LOD keeps as many of the rows of the pages below it (`tiling.py`), by the same measure: they
are chosen from what is kept already, with no queries and no pass of the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megacontext.config import K
from megacontext.gists.selection import KeptRows, choose_rows, expected_use
from megacontext.paged.heard import HeardQueries
from megacontext.paged.page_store import PageLayout
from megacontext.paged.pool import PagePool
from megacontext.paged.rotary import LayerRotary, rotated
from megacontext.paged.stream import Stream
from megacontext.paged.tiling import GistPage

# Blocks before a page's own whose keys compete for attention with it, besides the first block.
LOOKBACK_BLOCKS = 8
# The use of a token that is not there to be chosen, and of a row of which none was kept.
ABSENT = -1.0
GOLDEN = 0.6180339887498949  # whose multiples, whole parts dropped, fill [0, 1) evenly


class KeptWriter:
    """Chooses the rows of gist pages and puts them into the pool.

    Args of its constructor: the pages' layout; each layer's rotary positions and attention type
    (layers with a sliding window keep nothing, as they look at nothing far); rows a block; whether
    the model norms what attention gives (Gemma, OLMo 2). Then the size of a layer's values says
    nothing beside another's, and layers share a page evenly
    (benchmarks/results/2026-11-30-paged-gemma).
    """

    # Of what a page is, and not of how its rows are chosen: pages say whose their rows are, and a
    # stream on disk goes on with those it has.
    name = "kept1"

    def __init__(
        self,
        layout: PageLayout,
        rotary: Sequence[LayerRotary],
        kinds: Sequence[str],
        rows: int,
        normed: bool = False,
    ) -> None:
        self.rows = rows
        self._normed = normed
        self.size = K // rows
        self.layers = tuple(n for n, kind in enumerate(kinds) if kind != "sliding_attention")
        self._layout = layout
        self._rotary = rotary
        self._heard: dict[int, HeardQueries] = {}

    @property
    def pages_at_once(self) -> int:
        """Most pages that must be resident to make one: its blocks, what precedes them, itself."""
        return self.size + LOOKBACK_BLOCKS + 2

    def heard(self, number: int) -> HeardQueries:
        """What stream `number` asked since its last gist page."""
        return self._heard.setdefault(number, HeardQueries(self.layers))

    def hear(
        self, layer: int, queries: Tensor, streams: Sequence[Stream], counts: Sequence[int]
    ) -> None:
        """Takes a layer's queries [T, Hq, E] of a step of `counts` new tokens a stream."""
        if layer not in self.layers:
            return
        start = 0
        for number, (stream, count) in enumerate(zip(streams, counts, strict=True)):
            if count:
                asked = queries[start : start + count]
                self.heard(number).hear(layer, asked, stream.token_count)
            start += count

    def forget(self, number: int, token: int) -> None:
        """Stream `number` was heard of from `token` on, and that is lost: it is read again."""
        self._heard[number] = HeardQueries(self.layers)
        self._heard[number].drop_before(token)

    def next_blocks(self, number: int, stream: Stream, pages_max: int) -> range:
        """The blocks of the next gist page, once all of them are complete; else none."""
        start = stream.gisted_blocks
        end = start + self.size
        ready = end * K <= stream.token_count and self.heard(number).has(start * K, end * K)
        fits = not pages_max or self.pages_at_once <= pages_max
        return range(start, end if ready and fits else start)

    def pages_for(self, blocks: range) -> list[GistPage]:
        """The gist pages that hold the rows of `blocks`."""
        return [GistPage(1, blocks.start // self.size)]

    def reads(self, blocks: range) -> list[int]:
        """Blocks whose pages the rows of `blocks` are computed from."""
        low = max(0, blocks.start - LOOKBACK_BLOCKS)
        return [*([0] if low else []), *range(low, blocks.stop)]

    @torch.inference_mode()
    def write(self, number: int, stream: Stream, pool: PagePool, blocks: range) -> Tensor:
        """Chooses the rows of `blocks`, which become the next gist page, resident already.

        Returns:
            The page in equal parts, one a block: [N, L, 2, Hkv, R, E].

        Cost: for T tokens, Hq * T * (1.5 T + 288) exponentials a layer, and E times as many
        multiplications.
        """
        layout = self._layout
        heads, width = layout.kv_heads, layout.head_width
        use = torch.zeros(layout.layers, heads, len(blocks) * K)
        for layer in self.layers:
            use[layer] = self._use(layer, number, stream, pool, blocks).cpu()
        chosen = choose_rows(use, layout.layers * heads * K)
        page = pool.keys[0].new_zeros(2, layout.layers * heads * K, width)
        own = torch.tensor([stream.pages[block] for block in blocks])
        layers, head = chosen.owner // heads, chosen.owner % heads
        at = 0
        for layer, count in enumerate(torch.bincount(layers, minlength=layout.layers).tolist()):
            part = slice(at, at + count)
            where = own[chosen.token[part] // K], head[part], chosen.token[part] % K
            page[0, part] = pool.keys[layer][where]
            page[1, part] = pool.values[layer][where]
            at += count
        content = page.view(2, layout.layers, heads, K, width).transpose(0, 1).contiguous()
        (gist,) = self.pages_for(blocks)
        pool.write_pages([stream.gist_pages[gist]], content[None])
        stream.kept[gist] = compact(chosen)
        self.heard(number).drop_before(blocks.stop * K)
        return content.unflatten(3, (len(blocks), self.rows)).movedim(3, 0)

    @torch.inference_mode()
    def condense(self, stream: Stream, pool: PagePool, page: GistPage) -> Tensor:
        """Makes `page` of its children, all resident; those that were lost are left out.

        Returns:
            The page, [L, 2, Hkv, 32, E].

        Cost: reads its children, and a top-k over the tokens that it covers.
        """
        layout = self._layout
        heads = layout.layers * layout.kv_heads
        width = page.children[0].width * self.size * K
        there = [(n, c) for n, c in enumerate(page.children) if c not in stream.lost_gists]
        uses = comparable_uses([stream.kept[child].use for _, child in there])
        use = torch.full((heads, len(page.children) * width), ABSENT)
        slot = torch.zeros(use.shape, dtype=torch.long)
        lines, rows = [], 0
        for (at, child), theirs in zip(there, uses, strict=True):
            kept = stream.kept[child]
            (content,) = pool.read_pages([stream.gist_pages[child]])
            lines.append(content.transpose(0, 1).flatten(1, 3)[:, : len(kept.owner)])
            where = kept.owner, kept.token + at * width
            use[where] = theirs
            slot[where] = torch.arange(rows, rows + len(kept.owner))
            rows += len(kept.owner)
        chosen = choose_rows(use.view(layout.layers, layout.kv_heads, -1), heads * K)
        real = chosen.use > ABSENT  # a head may have fewer rows than its least share
        chosen = KeptRows(*(part[real] for part in chosen))
        if all(is_unknown(stream.kept[child].use) for _, child in there):
            chosen = chosen._replace(use=torch.full_like(chosen.use, ABSENT))
        line = pool.keys[0].new_zeros(2, heads * K, layout.head_width)
        if lines:
            picked = slot[chosen.owner, chosen.token].to(line.device)
            line[:, : len(picked)] = torch.cat(lines, 1)[:, picked]
        made = line.view(2, layout.layers, layout.kv_heads, K, -1).transpose(0, 1).contiguous()
        pool.write_pages([stream.gist_pages[page]], made[None])
        stream.kept[page] = compact(chosen)
        return made

    def _use(
        self, layer: int, number: int, stream: Stream, pool: PagePool, blocks: range
    ) -> Tensor:
        """[Hkv, T] what later queries are expected to make of a layer's rows of `blocks`."""
        start, count = blocks.start * K, len(blocks) * K
        before = [block for block in self.reads(blocks) if block < blocks.start]
        # Distances matter, positions do not: what is first read stands at 0.
        origin = (before[1] if len(before) > 1 else blocks.start) * K
        own = torch.arange(start, start + count) - origin
        earlier = torch.tensor(before, dtype=torch.long)[:, None] * K + torch.arange(K) - origin
        frequencies = self._rotary[layer].frequencies
        keys = self._rows(pool.keys[layer], stream, list(blocks))
        values = self._rows(pool.values[layer], stream, list(blocks))
        competing = self._rows(pool.keys[layer], stream, before)
        queries = self.heard(number).take(layer, start, start + count).transpose(0, 1)
        use = expected_use(
            rotated(queries, frequencies, own + count)[None],
            rotated(keys, frequencies, own)[None],
            values[None],
            rotated(competing, frequencies, earlier.flatten())[None],
            rotated(keys, frequencies, own + count)[None],
        )[0]
        return use / use.sum().clamp_min(torch.finfo(torch.float32).tiny) if self._normed else use

    def _rows(self, rows: Tensor, stream: Stream, blocks: list[int]) -> Tensor:
        """[Hkv, T, E]: the rows of whole blocks in one layer's pool, keys un-rotated."""
        pages = torch.tensor([stream.pages[block] for block in blocks], dtype=torch.long)
        return rows[pages].transpose(0, 1).flatten(1, 2)


def is_unknown(use: Tensor) -> bool:
    """Whether rows were kept by a version that did not keep their use."""
    return bool((use == ABSENT).any())


def comparable_uses(uses: list[Tensor]) -> list[Tensor]:
    """The uses [M] of several pages' rows, to choose among all of them. They are as they were
    measured: a page whose queries asked less of it gets less. A page of unknown use has as much as
    the others have on average, in a way that spreads any number of its rows evenly."""
    totals = [float(use.sum()) for use in uses if not is_unknown(use)]
    mean = sum(totals) / len(totals) if totals else 1.0
    return [_spread(len(use), mean) if is_unknown(use) else use for use in uses]


def _spread(count: int, total: float) -> Tensor:
    use = (torch.arange(count).double() * GOLDEN % 1.0).float()
    return use * (total / float(use.sum().clamp_min(1.0)))


def compact(kept: KeptRows) -> KeptRows:
    """The same in 12 bytes a row: it is kept while the page is resident."""
    return KeptRows(kept.owner.int(), kept.token.int(), kept.use)


def encode_kept(kept: KeptRows, layout: PageLayout) -> tuple[Tensor, Tensor]:
    """Owners and tokens [2, L, Hkv, 32] float32, exact for whole numbers, and use [L, Hkv, 32]; -1
    where a page is not full."""
    full = torch.full((3, layout.layers * layout.kv_heads * K), ABSENT)
    for line, part in zip(full, kept, strict=True):
        line[: len(part)] = part.float()
    full = full.view(3, layout.layers, layout.kv_heads, K)
    return full[:2], full[2]


def decode_kept(owners: Tensor, use: Tensor) -> KeptRows:
    """The reverse of `encode_kept`, compact."""
    owner, token = owners.flatten(1)
    there = owner >= 0
    return KeptRows(owner[there].int(), token[there].int(), use.flatten()[there])
