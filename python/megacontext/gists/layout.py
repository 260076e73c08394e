"""Which gist rows exist, where they sit, and what they may see. Pure arithmetic, no weights.

A block is K = 32 tokens. A node of LOD 1 covers a block, one of LOD 2 covers 32 blocks. A node
is shown as a *row set* of `rows` rows, one for each equal share of the node's tokens. A row is
read behind its share: it asks at the position after it and is kept as a key at its centre.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

K = 32
SINK_TOKENS = 4  # Always visible to a row: a base parks attention on its first tokens.
ROW_SETS: tuple[tuple[int, int], ...] = ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 4))


def set_start(lod: int, rows: int) -> int:
    """Index of the set's first row among all learned rows."""
    if (lod, rows) not in ROW_SETS:
        raise ValueError(f"[set_start] (lod, rows) must be one of {ROW_SETS}, got {(lod, rows)}")
    return sum(r for _, r in ROW_SETS[: ROW_SETS.index((lod, rows))])


LEARNED_ROWS = sum(rows for _, rows in ROW_SETS)


@dataclass(frozen=True)
class Node:
    """One node of the tree, by the positions of the tokens it covers: [start, end)."""

    start: int
    end: int
    lod: int = 1


@dataclass(frozen=True)
class RowPlan:
    """Rows to compute over T known tokens: G rows of some nodes.

    learned: [G] which learned row each is; asks, stays: [G] positions of its query and key;
    last: [G] offset of its share's last token among the T; share: [G, T] weights of the mean over
    its share; visible: [G, T + G] what it may attend to, tokens first.
    """

    learned: Tensor
    asks: Tensor
    stays: Tensor
    last: Tensor
    share: Tensor
    visible: Tensor

    def to(self, device: torch.device) -> RowPlan:
        return RowPlan(*(getattr(self, n).to(device) for n in self.__dataclass_fields__))


def row_positions(node: Node, rows: int) -> list[int]:
    """Key positions of a node's rows: each in the centre of its equal share."""
    width = node.end - node.start
    return [node.start + (2 * i + 1) * width // (2 * rows) for i in range(rows)]


def plan_rows(
    nodes: list[Node], rows: int, tokens: int, first: int = 0, lookback: int | None = None
) -> RowPlan:
    """Rows of `nodes` over the tokens at positions [first, first + tokens).

    A LOD-1 row sees the tokens before its share's end and the earlier rows of its own node; a
    LOD-2 row sees the tokens before its node, the single rows of the blocks of its node up to its
    share's end (which must come earlier in `nodes` and then have one row each) and the earlier
    rows of its own node.

    Args:
        nodes: in the order of their rows; LOD-1 nodes first.
        rows: rows of each node of the highest LOD present; lower ones have 1.
        tokens: how many tokens' keys are there.
        first: position of the first of them.
        lookback: tokens before the node that its rows see; None is all, the sink always.
    """
    top = max(node.lod for node in nodes)
    counts = [rows if node.lod == top else 1 for node in nodes]
    total = sum(counts)
    learned, asks, stays, last = [], [], [], []
    share = torch.zeros(total, tokens)
    visible = torch.zeros(total, tokens + total, dtype=torch.bool)
    lower = [(n, at) for at, n in enumerate(nodes) if n.lod < top]
    at = 0
    for node, count in zip(nodes, counts, strict=True):
        low = 0 if lookback is None else max(0, node.start - first - lookback)
        stays.extend(row_positions(node, count))
        for row in range(count):
            begin, end = (node.start + (row + i) * (node.end - node.start) // count for i in (0, 1))
            learned.append(set_start(node.lod, count) + row)
            asks.append(end)
            last.append(end - first - 1)
            share[at, begin - first : end - first] = 1.0 / (end - begin)
            seen = (end if node.lod == 1 else node.start) - first
            visible[at, : min(SINK_TOKENS, seen)] = True
            visible[at, low:seen] = True
            if node.lod == 2:
                for other, place in lower:
                    inside = node.start <= other.start and other.end <= end
                    visible[at, tokens + place] = inside
            visible[at, tokens + at - row : tokens + at + 1] = True
            at += 1
    return RowPlan(
        learned=torch.tensor(learned),
        asks=torch.tensor(asks),
        stays=torch.tensor(stays),
        last=torch.tensor(last),
        share=share,
        visible=visible,
    )


@dataclass(frozen=True)
class SpanLayout:
    """prefix | span | suffix, in tokens; the suffix sees the span as rows (and raw_blocks raw).

    `raw_blocks` are block numbers inside the span that stay expanded, `lookback` as in
    `plan_rows`.
    """

    prefix: int
    span: int
    suffix: int
    rows: int
    lod: int = 1
    raw_blocks: tuple[int, ...] = ()
    lookback: int | None = None

    def __post_init__(self) -> None:
        unit = K**self.lod
        if self.span % unit or self.span == 0:
            raise ValueError(f"[SpanLayout] span must be a multiple of {unit}, got {self.span}")
        if self.raw_blocks and self.lod != 1:
            raise ValueError("[SpanLayout] raw_blocks need lod == 1")

    @property
    def tokens(self) -> int:
        return self.prefix + self.span + self.suffix

    def nodes(self) -> list[Node]:
        """Nodes whose rows are computed, in row order."""
        blocks = [
            Node(start, start + K)
            for number, start in enumerate(range(self.prefix, self.prefix + self.span, K))
            if number not in self.raw_blocks
        ]
        if self.lod == 1:
            return blocks
        unit = K * K
        tops = range(self.prefix, self.prefix + self.span, unit)
        return blocks + [Node(start, start + unit, 2) for start in tops]

    def row_plan(self) -> RowPlan:
        known = self.prefix + self.span
        return plan_rows(self.nodes(), self.rows, known, lookback=self.lookback)

    def pieces(self) -> list[tuple[str, int, int]]:
        """What the suffix sees, in timeline order: ("tokens" | "rows", start, end)."""
        if self.lod == 2:
            lower = self.span // K
            top = lower + self.span // (K * K) * self.rows
            return [("tokens", 0, self.prefix), ("rows", lower, top)]
        found = [("tokens", 0, self.prefix)] if self.prefix else []
        row = 0
        for number in range(self.span // K):
            start = self.prefix + number * K
            if number in self.raw_blocks:
                piece = ("tokens", start, start + K)
            else:
                piece = ("rows", row, row + self.rows)
                row += self.rows
            if found and found[-1][0] == piece[0] and found[-1][2] == piece[1]:
                piece = (piece[0], found.pop()[1], piece[2])
            found.append(piece)
        return found
