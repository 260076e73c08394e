"""Kept rows and attention matching in the measurement: exact where everything is kept."""

from __future__ import annotations

import pytest
import torch

from megacontext.eval import gist_selection as selection
from megacontext.eval.gist_methods import Window, drop
from megacontext.gists.base import BaseShape, random_base
from megacontext.gists.layout import SpanLayout

SHAPE = BaseShape(3, 32, 4, 2, 8, 48, 61, 10000.0, 1e-5)
LAYOUT = SpanLayout(16, 64, 32, 1)


@pytest.fixture(scope="module")
def window() -> Window:
    ids = torch.randint(0, 61, (2, LAYOUT.tokens + 1), generator=torch.Generator().manual_seed(3))
    return Window(random_base(SHAPE, seed=2), ids, LAYOUT)


@pytest.mark.parametrize("name", list(selection.METHODS))
@torch.no_grad()
def test_all_entries_kept_is_the_full_context(window: Window, name: str) -> None:
    got = selection.METHODS[name](window, LAYOUT.span)
    # Fitted values move from the raw ones only by what the ridge and float32 leave.
    torch.testing.assert_close(got, window.full, rtol=2e-2, atol=2e-2)


@torch.no_grad()
def test_more_entries_come_nearer(window: Window) -> None:
    left_out = (drop(window, 0) - window.full).norm()
    for name, method in selection.METHODS.items():
        near = (method(window, 48) - window.full).norm()
        assert near < left_out, name


@torch.no_grad()
def test_a_bias_a_layer_and_head_hides_what_it_is_minus_infinity_for(window: Window) -> None:
    past = window.cache.narrow(0, window.known)
    bias = torch.zeros(2, SHAPE.kv_heads, window.known)
    bias[..., LAYOUT.prefix :] = float("-inf")
    hidden = window.suffix_after(past, [bias] * SHAPE.layers)
    torch.testing.assert_close(hidden, drop(window, 0))


@torch.no_grad()
def test_the_suffix_asked_is_the_suffix_read(window: Window) -> None:
    """The oracle's queries with the true keys give the use that the suffix made of each row."""
    use = selection.uses(window, selection.asked_by(window, "suffix"))
    assert use.shape == (SHAPE.layers, 2, SHAPE.kv_heads, LAYOUT.span)
    assert (use > 0).all()
    # Without the values' norms it is at most the attention there is: one a query.
    norms = torch.stack([values.float().square().sum(-1) for values in window.span.values])
    group = SHAPE.heads // SHAPE.kv_heads
    assert ((use / norms).sum(-1) <= group * LAYOUT.suffix).all()


def test_non_negative_least_squares_against_a_search() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(40, 3, generator=generator)
    wanted = a @ torch.tensor([0.5, 0.0, 2.0]) - 0.3 * a[:, 1]
    got = selection._non_negative((a.T @ a)[None], (a.T @ wanted)[None], steps=500)[0]
    assert got[1] < 0.01
    assert torch.allclose(got[[0, 2]], torch.tensor([0.5, 2.0]), atol=0.1)
