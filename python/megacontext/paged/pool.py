"""Pages of keys and values: 32 tokens a page, keys un-rotated, one page number for all layers.

Knows tensors and page numbers; nothing of timelines or models.
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

from megacontext.config import K
from megacontext_ext.errors import InvalidArgument

MAPPED_PAGES = 256


class PagePool:
    """Keys and values [P, Hkv, 32, E] of every layer; page p of all layers is one block of tokens.

    Memory: layers * 2 * P * Hkv * 32 * E elements. It grows by doubling up to `pages_max`; on a CPU
    the room for the first 256 pages is there at once, and occupies what was written.
    """

    def __init__(
        self, layers: int, page_shape: tuple[int, int], like: Tensor, pages_max: int = 0
    ) -> None:
        """An empty pool.

        Args:
            layers: number of layers.
            page_shape: (KV heads, head width).
            like: dtype and device of the pages.
            pages_max: most pages, 0 for no limit but memory.
        """
        self.pages_max = pages_max
        self._shape = page_shape
        self._free: list[int] = []
        self._page_count = 0
        heads, width = page_shape
        self.keys = [like.new_zeros(0, heads, K, width) for _ in range(layers)]
        self.values = [like.new_zeros(0, heads, K, width) for _ in range(layers)]

    @property
    def page_count(self) -> int:
        """Pages in use."""
        return self._page_count - len(self._free)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers, keys and values."""
        heads, width = self._shape
        return len(self.keys) * 2 * heads * K * width * self.keys[0].element_size()

    def allocate(self, count: int) -> list[int]:
        """Numbers of `count` pages; their rows are undefined but finite.

        Raises:
            InvalidArgument: the limit on pages would be passed.
        """
        if self.pages_max and self.page_count + count > self.pages_max:
            raise InvalidArgument(
                f"[paged] the pool may hold {self.pages_max} pages "
                f"({self.pages_max * self.page_bytes >> 20} MiB), {self.page_count + count} needed"
            )
        taken = [self._free.pop() for _ in range(min(count, len(self._free)))]
        while len(taken) < count:
            taken.append(self._page_count)
            self._page_count += 1
        self._reserve(self._page_count)
        return taken

    def release(self, pages: list[int]) -> None:
        """Gives pages back; their numbers are used again."""
        self._free.extend(pages)

    def write(self, layer: int, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Puts rows of one layer.

        Args:
            rows: [T] page number * 32 + slot.
            keys, values: [Hkv, T, E], keys un-rotated.
        """
        page, slot = rows // K, rows % K
        self.keys[layer][page, :, slot] = keys.transpose(0, 1)
        self.values[layer][page, :, slot] = values.transpose(0, 1)

    def read_pages(self, pages: list[int]) -> Tensor:
        """A copy of whole pages, [N, L, 2, Hkv, 32, E]. Cost: one read and one write of each."""
        index = torch.tensor(pages, device=self.keys[0].device)
        layers = [
            torch.stack((keys[index], values[index]), 1)
            for keys, values in zip(self.keys, self.values, strict=True)
        ]
        return torch.stack(layers, 1)

    def write_pages(self, pages: list[int], content: Tensor) -> None:
        """Puts whole pages, content [N, L, 2, Hkv, 32, E] of any device and dtype."""
        index = torch.tensor(pages, device=self.keys[0].device)
        content = content.to(self.keys[0])
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            keys[index] = content[:, layer, 0]
            values[index] = content[:, layer, 1]

    def _reserve(self, pages: int) -> None:
        held = self.keys[0].shape[0]
        if pages <= held:
            return
        first = MAPPED_PAGES if self.keys[0].device.type == "cpu" else 16
        room = max(pages, 2 * held, first)
        if self.pages_max:
            room = max(pages, min(room, self.pages_max))
        for pools in (self.keys, self.values):
            for layer, grown in enumerate(_zeros(len(pools), room, pools[0])):
                grown[:held] = pools[layer]
                pools[layer] = grown


def _zeros(count: int, pages: int, like: Tensor) -> list[Tensor]:
    """`count` pools [pages, Hkv, 32, E] as `like`. Zeros, not undefined memory: an unwritten row
    may be multiplied by a weight of zero.

    On a CPU they are mapped, so that a page occupies memory once it is written, and a pool that has
    grown leaves no holes in the heap that nothing else fits in.
    """
    shape = (pages, *like.shape[1:])
    if like.device.type != "cpu":
        return [like.new_zeros(shape) for _ in range(count)]
    numbers = math.prod(shape)
    size = count * numbers * like.element_size()
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    storage = torch.frombuffer(room, dtype=like.dtype).untyped_storage()
    # Not views of one another, which may not be written to in every mode of autograd.
    strides = torch.empty(shape, device="meta").stride()
    return [like.new_empty(0).set_(storage, n * numbers, shape, strides) for n in range(count)]
