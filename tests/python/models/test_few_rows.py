"""Products of few rows are the same products, and the switch is put back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from megacontext.models.few_rows import MOST_ROWS, fast_few_rows, multiply_flat

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 9), (3, 9), (9,)])
@torch.inference_mode()
def test_a_flat_head_gives_what_the_head_gives(dtype, shape):
    generator = torch.Generator().manual_seed(3)
    head = nn.Linear(64, 96, bias=len(shape) == 1, dtype=dtype).requires_grad_(False)
    rows = torch.randn(*shape, 64, generator=generator).to(dtype)
    last = rows[..., -4:, :]
    wanted = head(last)
    multiply_flat(head)
    multiply_flat(head)  # once or twice
    got = head(last)
    assert got.shape == (*shape[:-1], 4, 96)
    torch.testing.assert_close(got, wanted, rtol=2**-7, atol=1e-2)


def test_a_copy_of_a_flat_head_has_weights_of_its_own():
    head = nn.Linear(8, 5, bias=False)
    multiply_flat(head)
    other = copy.deepcopy(head)
    with torch.no_grad():
        other.weight.zero_()
    assert not other(torch.ones(2, 3, 8)).any()
    assert head(torch.ones(2, 3, 8)).any()
    head(torch.ones(2, 8)).sum().backward()  # gradients as before, if they are asked for
    assert head.weight.grad is not None
