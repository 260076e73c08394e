"""What a step's queries would find in each block, from one key a block, layer and KV head.

The mean of a block's un-rotated keys stands for the block in a few layers. A query is turned once
to the distance at which blocks in focus typically stand, so that no key is rotated again. Each
head's scores become shares of attention over all blocks, and a block's score is its mean share over
heads and layers: heads that look everywhere weigh little, heads that look for one thing much.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megacontext.paged.rotary import LayerRotary

LAYER_COUNT = 4
_ROOM = 256


def scored_layers(layers: int) -> tuple[int, ...]:
    """Which layers speak for all: evenly spread, the first third left out, since early layers look
    at the newest tokens."""
    first = layers // 3
    count = min(LAYER_COUNT, layers - first)
    return tuple(first + (2 * i + 1) * (layers - first) // (2 * count) for i in range(count))


class PageKeys:
    """Mean keys of the complete blocks of one stream, for A layers.

    Memory: A * Hkv * E float32 numbers a block (many CPUs multiply bfloat16 slowly): 3.1 KB for
    SmolLM2-135M, 96 bytes a token.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        layers, heads, width = shape
        self._keys = torch.zeros(layers, heads, 0, width)
        self.block_count = 0

    @property
    def keys(self) -> Tensor:
        """[N, A, Hkv, E], a view."""
        return self._keys[:, :, : self.block_count].permute(2, 0, 1, 3)

    def add(self, keys: Tensor) -> None:
        """Appends the mean keys [N, A, Hkv, E] of the next blocks."""
        end, room = self.block_count + len(keys), self._keys.shape[2]
        if end > room:
            layers, heads, _, width = self._keys.shape
            # A quarter more: doubling would hold up to as much again for nothing.
            grown = self._keys.new_zeros(layers, heads, max(end, room + room // 4, _ROOM), width)
            grown[:, :, : self.block_count] = self._keys[:, :, : self.block_count]
            self._keys = grown
        self._keys[:, :, self.block_count : end] = keys.permute(1, 2, 0, 3)
        self.block_count = end

    def score(self, queries: Tensor, scale: float) -> Tensor:
        """Mean share of attention that each block would get, [N] float32.

        Args:
            queries: [A, T, Hq, E], turned to the blocks' distance; CPU.
            scale: of the scores.

        Cost: T * Hq * A * E multiplications a block, and one read of its keys.
        """
        if not self.block_count:
            return torch.zeros(0)
        keys = self._keys[:, :, : self.block_count]
        layers, _, _, width = queries.shape
        # Query heads of one KV head together: [A, Hkv, Hq / Hkv * T, E].
        asked = queries.float().transpose(1, 2).reshape(layers, keys.shape[1], -1, width) * scale
        total = torch.zeros(self.block_count)
        # A layer at a time: the shares of all would take more room than the keys, and one product
        # over all of them copies the keys.
        for query, key in zip(asked, keys, strict=True):
            total += torch.matmul(query, key.mT).softmax(-1).sum((0, 1))
        return total / asked[..., 0].numel()


def mean_keys(content: Tensor, layers: tuple[int, ...]) -> Tensor:
    """[N, A, Hkv, E] of whole pages [N, L, 2, Hkv, 32, E]."""
    return content[:, list(layers), 0].float().mean(-2).to("cpu", torch.bfloat16)


def turned(query: Tensor, rotary: LayerRotary, distance: float) -> Tensor:
    """Queries [T, H, E] as they meet keys that stand `distance` tokens before them, un-rotated."""
    angles = distance * rotary.frequencies
    half = len(angles)
    cos = (angles.cos() * rotary.scaling).float()
    sin = (angles.sin() * rotary.scaling).float()
    query = query.detach().float().cpu()
    first, second, rest = query[..., :half], query[..., half : 2 * half], query[..., 2 * half :]
    # scaling applies to queries and keys alike; keys are not touched here.
    cos, sin = cos * rotary.scaling, sin * rotary.scaling
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)
