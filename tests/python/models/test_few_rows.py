"""Products of few rows are the same products, and the switch is put back."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from megacontext.models.few_rows import MOST_ROWS, fast_few_rows

CPU = torch.device("cpu")


def onednn_is_on() -> bool:
    return bool(torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled())


@pytest.mark.parametrize(
    ("rows", "dtype", "on"),
    [(1, torch.bfloat16, False), (MOST_ROWS, torch.bfloat16, False),
     (MOST_ROWS + 1, torch.bfloat16, True), (1, torch.float32, True)],
)  # fmt: skip
def test_only_few_bfloat16_rows_go_without_onednn(rows, dtype, on):
    before = onednn_is_on()
    with fast_few_rows(rows, dtype, CPU):
        assert onednn_is_on() == (on and before)
    assert onednn_is_on() == before


def test_the_switch_is_put_back_after_an_error_and_left_where_it_was_off():
    before = onednn_is_on()
    with pytest.raises(ValueError, match="wrong"), fast_few_rows(1, torch.bfloat16, CPU):
        raise ValueError("wrong")
    assert onednn_is_on() == before
    with torch.backends.mkldnn.flags(enabled=False):
        with fast_few_rows(1, torch.bfloat16, CPU):
            pass
        assert not onednn_is_on()


@pytest.mark.parametrize("rows", [1, MOST_ROWS])
def test_products_are_those_of_float64_to_one_rounding(rows):
    generator = torch.Generator().manual_seed(rows)
    given = torch.randn(rows, 576, generator=generator).bfloat16()
    weight = torch.randn(192, 576, generator=generator).bfloat16()
    with fast_few_rows(rows, given.dtype, CPU):
        got = linear(given, weight)
    wanted = given.double() @ weight.double().T
    torch.testing.assert_close(got.double(), wanted, rtol=2**-7, atol=2e-2)
