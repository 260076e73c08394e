"""Products with few rows: one decoded token is a matrix times one vector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
