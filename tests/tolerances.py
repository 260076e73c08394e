"""How far a result may be from the float64 reference on the same inputs: the only such table.

An element passes when ``|ours - reference| <= relative * |reference| + absolute * scale``, where
scale is the largest |reference| of the tensor: sums that cancel are judged by what was summed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["TOLERANCES", "Tolerance", "assert_close"]


@dataclass(frozen=True)
class Tolerance:
    relative: float
    absolute: float
    reason: str


TOLERANCES: dict[str, dict[torch.dtype, Tolerance]] = {
    # Inputs are read exactly, sums are kept in float32, the result is rounded once.
    "sum": {
        torch.float64: Tolerance(1e-12, 1e-13, "the reference itself in another order"),
        torch.float32: Tolerance(2e-6, 2e-6, "a few hundred additions at 2^-24 each"),
        torch.bfloat16: Tolerance(2**-8, 1e-5, "one rounding to 8 bits is 2^-9; sums add little"),
        torch.float16: Tolerance(2**-11, 1e-5, "one rounding to 11 bits is 2^-12; sums add little"),
    },
    # Values in between (probabilities, hidden rows) are rounded to the dtype between two products.
    "product": {
        torch.float64: Tolerance(1e-11, 1e-12, "the reference itself in another order"),
        torch.float32: Tolerance(1e-5, 1e-5, "exp and long sums in float32"),
        torch.bfloat16: Tolerance(2**-7, 2**-7, "2^-9 for each of a few rounded factors"),
        torch.float16: Tolerance(2**-10, 2**-10, "2^-12 for each of a few rounded factors"),
    },
    # Several products in a row, forward and backward: errors of the first grow in the later ones.
    "deep": {
        torch.float32: Tolerance(1e-4, 3e-5, "a dozen products, each 1e-5 at most"),
    },
}


def assert_close(
    ours: torch.Tensor,
    reference: torch.Tensor,
    *,
    kind: str = "sum",
    dtype: torch.dtype | None = None,
    what: str = "result",
) -> None:
    """Raises AssertionError with the worst element, unless `ours` is near `reference`.

    Args:
        ours: any dtype and device; its dtype chooses the tolerance.
        reference: same shape, float64 as a rule.
        kind: "sum", "product" or "deep", see TOLERANCES.
        dtype: chooses the tolerance instead, where a float32 result was made from bf16 parts.
        what: named in the message.
    """
    assert ours.shape == reference.shape, f"{what}: shape {ours.shape}, expected {reference.shape}"
    limit = TOLERANCES[kind][dtype or ours.dtype]
    got, want = ours.detach().cpu().double(), reference.detach().cpu().double()
    if want.numel() == 0:
        return
    assert torch.equal(got.isfinite(), want.isfinite()), (
        f"{what}: {(~got.isfinite()).sum()} values are not finite, "
        f"expected {(~want.isfinite()).sum()}"
    )
    finite = want.isfinite()
    got, want = got[finite], want[finite]
    if want.numel() == 0:
        return
    allowed = limit.relative * want.abs() + limit.absolute * want.abs().max()
    excess = (got - want).abs() - allowed
    worst = int(excess.argmax())
    assert excess[worst] <= 0, (
        f"{what}: {int((excess > 0).sum())} of {want.numel()} elements are too far off; worst: got "
        f"{got[worst]:.9g}, expected {want[worst]:.9g}, allowed difference {allowed[worst]:.3g} "
        f"({limit.reason})"
    )
