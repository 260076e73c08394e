"""What a step's queries would find in each block, from one key a block, layer and KV head.

The mean of a block's un-rotated keys stands for the block in a few layers. A query is turned once
to the distance at which blocks in focus typically stand, so that no key is rotated again. Each
head's scores become shares of attention over all blocks, and a block's score is its mean share over
heads and layers: heads that look everywhere weigh little, heads that look for one thing much.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from megacontext.paged.rotary import LayerRotary
from megacontext_ext.errors import StoreFailed

LAYER_COUNT = 4
_CHUNK = 2048  # blocks


def scored_layers(layers: int) -> tuple[int, ...]:
    """Which layers speak for all: evenly spread, the first third left out, since early layers look
    at the newest tokens."""
    first = layers // 3
    count = min(LAYER_COUNT, layers - first)
    return tuple(first + (2 * i + 1) * (layers - first) // (2 * count) for i in range(count))


class PageKeys:
    """Mean keys of the complete blocks of one stream, for A layers.

    A * Hkv * E bfloat16 numbers a block, as the store has them: 1.5 KB for SmolLM2-135M, 48 bytes a
    token; in chunks, so that growing copies nothing. With a `folder` chunks are files there that
    have no name and end with the process: the system may drop their pages and read them again.
    """

    def __init__(self, shape: tuple[int, int, int], folder: Path | None = None) -> None:
        self._shape = shape
        self._folder = folder
        self._chunks: list[Tensor] = []  # [A, Hkv, _CHUNK, E]
        self.block_count = 0

    @property
    def keys(self) -> Tensor:
        """[N, A, Hkv, E], a copy."""
        layers, heads, width = self._shape
        nothing = torch.zeros(layers, heads, 0, width, dtype=torch.bfloat16)
        every = torch.cat([nothing, *self._chunks], 2)
        return every[:, :, : self.block_count].permute(2, 0, 1, 3)

    def add(self, keys: Tensor) -> None:
        """Appends the mean keys [N, A, Hkv, E] of the next blocks.

        Raises:
            StoreFailed: the folder has no room for the next chunk.
        """
        layers, heads, width = self._shape
        keys = keys.permute(1, 2, 0, 3)
        while keys.shape[2]:
            chunk, at = divmod(self.block_count, _CHUNK)
            if chunk == len(self._chunks):
                self._chunks.append(_zeros((layers, heads, _CHUNK, width), self._folder))
            count = min(_CHUNK - at, keys.shape[2])
            self._chunks[chunk][:, :, at : at + count] = keys[:, :, :count]
            keys = keys[:, :, count:]
            self.block_count += count

    def score(self, queries: Tensor, scale: float) -> Tensor:
        """Mean share of attention that each block would get, [N] float32.

        Args:
            queries: [A, T, Hq, E], turned to the blocks' distance; CPU.
            scale: of the scores.

        Cost: T * Hq * A * E multiplications a block, and one read of its keys; room for the shares
        of one KV head.
        """
        if not self.block_count:
            return torch.zeros(0)
        layers, heads, width = self._shape
        # Query heads of one KV head together: [A, Hkv, Hq / Hkv * T, E].
        asked = queries.float().transpose(1, 2).reshape(layers, heads, -1, width) * scale
        total = torch.zeros(self.block_count)
        chunks = self._chunks[: -(-self.block_count // _CHUNK)]
        shares = torch.empty(asked.shape[2], len(chunks) * _CHUNK)
        for layer in range(layers):
            for head in range(heads):
                for part, chunk in zip(shares.split(_CHUNK, 1), chunks, strict=True):
                    # In float32: many CPUs multiply bfloat16 slowly.
                    torch.mm(asked[layer, head], chunk[layer, head].float().mT, out=part)
                total += shares[:, : self.block_count].softmax(-1).sum(0)
        return total / asked[..., 0].numel()


def _zeros(shape: tuple[int, ...], folder: Path | None) -> Tensor:
    """bfloat16 zeros, mapped from a nameless file in `folder` if there is one."""
    if folder is None:
        return torch.zeros(shape, dtype=torch.bfloat16)
    size = 2 * math.prod(shape)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk says so here, not by SIGBUS
            return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.bfloat16).view(
                shape
            )
    except OSError as error:
        raise StoreFailed(f"[paged] {folder} has no {size} bytes for mean keys: {error}") from error


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
