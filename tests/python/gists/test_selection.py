"""Kept rows against a plain loop, and what the shares of layers and heads promise."""

from __future__ import annotations

import math

import pytest
import torch

from megacontext.gists.selection import SPREAD, choose_rows, expected_use


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_use(queries, keys, values, earlier, recent):
    """The definition, one query at a time, in float64."""
    batch, heads, count, width = keys.shape
    group = queries.shape[1] // heads
    found = torch.zeros(batch, heads, count, dtype=torch.float64)
    for b in range(batch):
        for q_head in range(queries.shape[1]):
            head = q_head // group
            for t in range(count):
                seen = torch.cat((keys[b, head], earlier[b, head], recent[b, head, : t + 1]))
                share = (seen.double() @ queries[b, q_head, t].double() / math.sqrt(width)).softmax(
                    0
                )
                found[b, head] += share[:count] ** 1.5
    return found * (values.double() ** 2).sum(-1)


@pytest.mark.parametrize(("count", "before", "width"), [(1, 0, 16), (7, 3, 8), (32, 5, 16)])
def test_use_is_that_of_every_later_query(count, before, width):
    queries, keys = draw(2, 6, count, width), draw(2, 3, count, width, seed=1)
    earlier, recent = draw(2, 3, before, width, seed=2), draw(2, 3, count, width, seed=3)
    values = draw(2, 3, count, width, seed=4)
    got = expected_use(queries, keys, values, earlier, recent)
    assert got.dtype == torch.float32
    torch.testing.assert_close(
        got.double(), plain_use(queries, keys, values, earlier, recent), rtol=1e-5, atol=1e-6
    )


def test_a_key_that_every_query_looks_for_is_kept():
    queries, keys = draw(1, 4, 64, 16), 0.1 * draw(1, 2, 64, 16, seed=1)
    keys[:, 0, 41] = 8 * queries[:, :2].mean((1, 2))
    use = expected_use(queries, keys, torch.ones_like(keys), keys[:, :, :0], keys)
    kept = choose_rows(use, 2 * 4)
    assert 41 in kept.token[kept.owner == 0]


def test_a_sink_without_a_value_is_not_kept():
    queries, keys = draw(1, 4, 64, 16), 0.1 * draw(1, 2, 64, 16, seed=1)
    keys[:, 0, 41] = 8 * queries[:, :2].mean((1, 2))
    values = torch.ones_like(keys)
    values[:, 0, 41] = 0.001
    kept = choose_rows(expected_use(queries, keys, values, keys[:, :, :0], keys), 2 * 4)
    assert 41 not in kept.token[kept.owner == 0]


@pytest.mark.parametrize("total", [12, 96, 97, 6 * 64])
def test_rows_are_as_many_as_asked_and_in_order(total):
    use = draw(3, 2, 64).exp()
    kept = choose_rows(use, total)
    assert len(kept.owner) == len(kept.token) == total
    code = kept.owner * 64 + kept.token
    assert (code.diff() > 0).all()


def test_shares_follow_the_use_within_bounds():
    use = draw(8, 2, 256).exp()
    use[0, 1] *= 1000
    counts = torch.bincount(choose_rows(use, 16 * 16).owner, minlength=16)
    assert counts[1] == 16 * SPREAD
    assert counts.min() >= 16 // SPREAD
    assert counts.sum() == 16 * 16


def test_silent_layers_keep_nothing():
    use = draw(4, 2, 64).exp()
    use[2] = 0
    kept = choose_rows(use, 8 * 8)
    assert len(kept.owner) == 64
    assert not torch.isin(kept.owner, torch.tensor([4, 5])).any()
