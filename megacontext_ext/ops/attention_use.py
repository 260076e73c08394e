"""attention_use: how much a set of queries uses each key, to choose among keys."""

from __future__ import annotations

import torch
from torch import Tensor

from megacontext_ext.errors import InvalidArgument
from megacontext_ext.ops._errors import refused
from megacontext_ext.ops._load import load

__all__ = ["attention_use"]

load()
_OPS = torch.ops.megacontext


def attention_use(
    queries: Tensor, keys: Tensor, count: int, *, scale: float | None = None
) -> Tensor:
    """Attention to the power of 1.5, summed over queries: what each of the first keys is used for.

    The power counts what one query looks at with all its weight more than what many glance at.

    Args:
        queries: [B, Hq, Q, E] float32, bfloat16 or float16, contiguous; E is a multiple of 16, at
            most 512.
        keys: [B, Hkv, P, E] of the same dtype, contiguous; Hkv divides Hq. The last Q are the
            queries' own: query t sees the first P - Q + t + 1.
        count: T, 0 to P - Q: keys asked about, the first ones. Every query sees them.
        scale: multiplies the products before softmax; None is E ** -0.5.

    Returns:
        [B, Hkv, T] float32, the sum over the queries of a KV head's group of softmax ** 1.5. The
        same bits in every run, with any number of threads.

    Raises:
        InvalidArgument: a shape, dtype or device differs from the above, or a gradient is wanted:
            there is none.

    Cost: B * Hq * Q * (P - Q / 2) products of E and as many exponentials; on a CPU the keys once
        more in its memory, as float32 where they are not bfloat16 on AVX-512.
    Source: softmax with the largest score taken off; the power is ours (gists/selection.py).
    """
    if torch.is_grad_enabled() and (queries.requires_grad or keys.requires_grad):
        raise InvalidArgument(
            "[attention_use] queries and keys must not require a gradient, which this operator has "
            "not; call it under torch.no_grad()"
        )
    factor = queries.shape[-1] ** -0.5 if scale is None else scale
    try:
        return _OPS.attention_use(queries, keys, count, factor)
    except RuntimeError as error:
        raise refused(error) from None


@torch.library.register_fake("megacontext::attention_use")
def _fake(queries, keys, count, scale):
    shape = (queries.shape[0], keys.shape[1], count)
    return queries.new_empty(shape, dtype=torch.float32)
