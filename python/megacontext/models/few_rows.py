"""Products with few rows: a decoded token is one, and so is what is left of a prompt at its end."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# oneDNN brings a bfloat16 weight into its own layout at each call, which costs as much as some rows
# of arithmetic. `python -m benchmarks run models/few_rows --full` says for how many it pays.
MOST_ROWS = 2


@contextmanager
def fast_few_rows(row_count: int, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Takes PyTorch's own matrix-vector product where it is the quicker one.

    The switch is the process's: another thread's large products are slow while this one decodes,
    and as right as ever.
    """
    before = torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()
    wanted = row_count <= MOST_ROWS and dtype == torch.bfloat16 and device.type == "cpu"
    if not (before and wanted):
        yield
        return
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(True)


def multiply_flat(head: nn.Module) -> None:
    """Lets a base's output layer multiply its rows as one matrix [rows, D].

    torch takes the last rows of a prompt [B, rows, D], a slice of them all, for B products, and
    copies a weight that needs no gradient for each: 60 MB and 80 ms a sequence for SmolLM2-135M in
    bfloat16, where the product takes 4 (`python -m benchmarks run models/few_rows --full`).
    """
    if isinstance(head, nn.Linear):
        head.forward = types.MethodType(_forward_flat, head)  # type: ignore[method-assign]


def _forward_flat(head: nn.Linear, rows: Tensor) -> Tensor:
    flat = type(head).forward(head, rows.reshape(-1, rows.shape[-1]))
    return flat.view(*rows.shape[:-1], -1)
