"""The paged memory as one more check of a base: with everything in focus it is the plain model."""

from __future__ import annotations

import torch

from megacontext.models.port.checks import PLACES, Check, Degraded, Failed, Subject
from megacontext.paged.attach import PagedConfig, attach
from megacontext_ext.errors import Unsupported

# Largest difference of float32 logits as a share of their spread: rotation from float32 tables
# against the model's own, and another order of sums.
_SAME = 1e-4


def paged_memory(subject: Subject) -> str:
    """A paged memory with room for everything gives the plain model's logits, and then none of it
    is left on the model."""
    model, tokens = subject.base.model, subject.tokens
    before = model.config._attn_implementation
    try:
        with torch.inference_mode(), attach(model, PagedConfig(gists="off")):
            head = model(tokens[:, : PLACES // 2]).logits.float()
            tail = model(tokens[:, PLACES // 2 :]).logits.float()
    except Unsupported as reason:
        raise Degraded(f"no paged memory: {reason}") from None
    difference = subject.difference(torch.cat([head, tail], dim=1), subject.plain)
    if difference > _SAME:
        raise Failed(f"paged memory: logits differ by {difference:.1e} of their spread")
    if model.config._attn_implementation != before:
        raise Failed(f"attention is {model.config._attn_implementation} after detaching")
    return f"largest difference {difference:.0e} of the spread"


PAGED_CHECKS: dict[str, Check] = {"paged_memory": paged_memory}
