"""Prints what each row type costs in bits and in error, as csrc/format/README.md quotes it.

python tools/row_type_error.py        gaussian rows, and the embedding rows of SmolLM2-135M-Instruct
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from megacontext.models import load
from megacontext_ext import Store
from megacontext_ext.store import SCALED_DTYPES, RowDtype

# Type, and elements that share a scale; None: the whole row.
TYPES: tuple[tuple[RowDtype, int | None], ...] = (
    ("f16", None),
    ("bf16", None),
    ("q8", None),
    ("q8", 64),
    ("e4m3", None),
    ("e4m3", 64),
    ("q4", None),
    ("q4", 64),
    ("q4", 32),
)
GAUSSIAN_ROWS = 49_152


def main() -> None:
    base = load("smollm2", dtype="float32")
    embedding = base.embed(torch.arange(base.facts.vocabulary_tokens)).numpy()
    gaussian = np.random.default_rng(1).standard_normal((GAUSSIAN_ROWS, embedding.shape[1]))
    print("| type | elements a scale | bits an element | gaussian | embedding rows |")
    print("|---|--:|--:|--:|--:|")
    for dtype, group in TYPES:
        bits, first = measure(gaussian.astype(np.float32), dtype, group)
        _, second = measure(embedding, dtype, group)
        label = f"{group or 'row'}" if dtype in SCALED_DTYPES else ""
        print(f"| `{dtype}` | {label} | {bits:.2f} | {first:.3%} | {second:.3%} |")


def measure(rows: NDArray[np.float32], dtype: RowDtype, group: int | None) -> tuple[float, float]:
    """Bits an element, and the root mean squared error relative to the values'."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Store.create(Path(folder) / "rows", {}) as store,
    ):
        store.append_tokens(store.add_partition("rows"), np.zeros(len(rows), np.uint32))
        whole = rows.shape[1] if dtype in SCALED_DTYPES else None
        store.define_rows("rows", 0, dtype, rows.shape[1], group or whole)
        store.put_rows("rows", 0, 0, rows)
        back = store.read_rows("rows", 0, 0, len(rows), dtype="f32")
        bits = store.row_families()[0].row_bytes * 8 / rows.shape[1]
    error = ((back - rows).astype(np.float64) ** 2).mean() / (rows.astype(np.float64) ** 2).mean()
    return bits, float(np.sqrt(error))


if __name__ == "__main__":
    main()
