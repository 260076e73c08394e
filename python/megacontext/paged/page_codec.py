"""Pages as bytes: how the keys and values of one block lie in one row of the store.

A page is [L, 2, Hkv, R, E]: layers, keys then values, KV heads, rows, head width. All layers of a
block share one row, since a step reads them all: one place on disk, one checksum, one copy.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megacontext_ext import Store
from megacontext_ext.errors import InvalidArgument
from megacontext_ext.ops.page_gather import page_gather, page_scatter

PageFormat = Literal["f32", "bf16", "f16", "int8"]
FORMATS: dict[str, torch.dtype] = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "int8": torch.int8,
}
_NUMPY: dict[str, type[np.generic]] = {
    "f32": np.float32,
    "bf16": np.uint16,
    "f16": np.float16,
    "u8": np.uint8,
}
_SCALE_BYTES = 4  # float32, one for each row of E codes

Rows = NDArray[np.uint8]


def format_of(dtype: torch.dtype) -> PageFormat:
    """The format that keeps `dtype` exactly."""
    for name, kept in FORMATS.items():
        if kept == dtype and dtype.is_floating_point:
            return name  # type: ignore[return-value]
    raise InvalidArgument(f"[paged] pages must be float32, bfloat16 or float16, got {dtype}")


class PageCodec:
    """Encodes pages of one shape in one format.

    int8 keeps, for each row of E numbers, codes in [-127, 127] and a float32 scale: the codes of
    the page come first, then the scales.
    """

    def __init__(self, page_format: PageFormat, shape: tuple[int, ...]) -> None:
        if page_format not in FORMATS:
            raise InvalidArgument(f"[paged] pages must be {sorted(FORMATS)}, got {page_format!r}")
        self.format: PageFormat = page_format
        self.shape = shape
        self._width = shape[-1]
        self._numbers = int(np.prod(shape))

    def define_rows(self, store: Store, name: str, lod: int = 1) -> np.dtype[Any]:
        """Defines the family `name`, a row a node of `lod`; the dtype that the store takes and
        gives them in.

        Numbers are declared as such, so that the engine can keep cold ones in fewer bits
        (Store.reencode). int8 pages, and families of earlier versions, are bytes to it.
        """
        if all(family.name != name for family in store.row_families()):
            if self.format == "int8":
                store.define_rows(name, lod, "u8", self.row_bytes)
            else:
                store.define_rows(name, lod, self.format, self._numbers)
        (family,) = (family for family in store.row_families() if family.name == name)
        if family.row_bytes != self.row_bytes:
            raise InvalidArgument(f"[paged] rows of {name!r} must have {self.row_bytes} bytes, "
                                  f"{store.path} has {family.row_bytes}")  # fmt: skip
        return np.dtype(_NUMPY[family.dtype])

    @property
    def row_bytes(self) -> int:
        """Bytes of one page."""
        scales = self._numbers // self._width * _SCALE_BYTES if self.format == "int8" else 0
        return self._numbers * FORMATS[self.format].itemsize + scales

    def exact_for(self, dtype: torch.dtype) -> bool:
        """Whether decoding gives back every bit of pages of `dtype`."""
        return self.format == "f32" or FORMATS[self.format] == dtype

    def encode(self, pages: Tensor) -> Rows:
        """Rows uint8 [N, row_bytes] of pages [N, *shape] (any device; finite for int8)."""
        pages = pages.detach().cpu()
        count = len(pages)
        if self.format != "int8":
            return _bytes_of(pages.to(FORMATS[self.format])).reshape(count, self.row_bytes)
        rows = pages.reshape(count, self._numbers // self._width, self._width).contiguous()
        codes = torch.empty(rows.shape, dtype=torch.int8)
        scales = torch.empty(rows.shape[:2], dtype=torch.float32)
        page_scatter(rows, torch.arange(count), codes, scales=scales)
        parts = [_bytes_of(part.flatten(1)) for part in (codes, scales)]
        return np.concatenate(parts, axis=1)

    def decode(self, rows: Rows, dtype: torch.dtype) -> Tensor:
        """Pages [N, *shape] of `dtype` on the CPU, from rows uint8 [N, row_bytes]."""
        count = len(rows)
        if count == 0:  # rows of no bytes have no strides to view them by
            return torch.empty((0, *self.shape), dtype=dtype)
        if self.format != "int8":
            flat = torch.from_numpy(np.ascontiguousarray(rows)).view(FORMATS[self.format])
            return flat.reshape(count, *self.shape).to(dtype)
        codes = torch.from_numpy(np.ascontiguousarray(rows[:, : self._numbers])).view(torch.int8)
        scales = torch.from_numpy(np.ascontiguousarray(rows[:, self._numbers :]))
        scales = scales.view(torch.float32)
        codes = codes.reshape(count, self._numbers // self._width, self._width)
        pages = page_gather(codes, torch.arange(count), scales=scales, dtype=dtype)
        return pages.reshape(count, *self.shape)


def _bytes_of(tensor: Tensor) -> NDArray[Any]:
    return tensor.contiguous().view(torch.uint8).numpy()
