"""Rows change only what they should, and training reaches every parameter."""

from __future__ import annotations

import pytest
import torch

from megacontext.gists.adapter import AdapterRanks, GistAdapter
from megacontext.gists.base import BaseShape, FrozenBase, KeyValues, random_base
from megacontext.gists.layout import Node, SpanLayout, plan_rows
from megacontext.gists.rows import assemble, compute_rows
from megacontext.train.kv_gists import read_suffix

SHAPE = BaseShape(3, 32, 4, 2, 8, 48, 101, 1e4, 1e-5)


@pytest.fixture
def base() -> FrozenBase:
    return random_base(SHAPE, seed=1)


@pytest.fixture
def adapter(base: FrozenBase) -> GistAdapter:
    adapter = GistAdapter(SHAPE, AdapterRanks(2, 2, 2, 2, 2, 2, 2))
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if name.startswith(("out_", "mean_")):
                parameter.normal_(std=0.1)
    return adapter


def same(a: KeyValues, b: KeyValues) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.keys + a.values, b.keys + b.values, strict=True))


@torch.no_grad()
def test_a_row_depends_on_its_block_and_the_past_only(
    base: FrozenBase, adapter: GistAdapter
) -> None:
    ids = torch.randint(0, 101, (1, 128))
    plan = plan_rows([Node(32, 64)], 2, 128)
    rows = compute_rows(base, adapter, plan, ids, base.read(ids)[1])

    def changed_at(place: int) -> bool:
        other = ids.clone()
        other[0, place] = (other[0, place] + 1) % 101
        again = compute_rows(base, adapter, plan, other, base.read(other)[1])
        return not torch.equal(again.values[-1], rows.values[-1])

    assert changed_at(63)
    assert changed_at(32)
    assert changed_at(5)
    assert not changed_at(64)
    assert not changed_at(127)


@torch.no_grad()
def test_rows_of_one_block_do_not_depend_on_other_blocks_rows(
    base: FrozenBase, adapter: GistAdapter
) -> None:
    ids = torch.randint(0, 101, (2, 128))
    cache = base.read(ids)[1]
    both = compute_rows(base, adapter, plan_rows([Node(32, 64), Node(64, 96)], 4, 128), ids, cache)
    alone = compute_rows(base, adapter, plan_rows([Node(64, 96)], 4, 128), ids, cache)
    torch.testing.assert_close(both.keys[-1][:, :, 4:], alone.keys[-1])


@torch.no_grad()
def test_an_untrained_row_reads_its_shares_last_token_again(base: FrozenBase) -> None:
    ids = torch.randint(0, 101, (1, 64))
    cache = base.read(ids)[1]
    plan = plan_rows([Node(32, 64)], 1, 64)
    rows = compute_rows(base, GistAdapter(SHAPE, AdapterRanks()), plan, ids, cache)
    again = base.read(ids[:, 63:], 64, cache)[1]
    torch.testing.assert_close(rows.values[0], again.values[0])


@torch.no_grad()
def test_all_raw_is_the_plain_model(base: FrozenBase, adapter: GistAdapter) -> None:
    ids = torch.randint(0, 101, (2, 161))
    layout = SpanLayout(32, 96, 32, 1, raw_blocks=(0, 1))
    cache = base.read(ids[:, :128])[1]
    pieces = [("tokens", 0, 128)]
    past = assemble(cache, None, pieces)
    plain = base.read(ids[:, :160])[0][:, 128:]
    torch.testing.assert_close(base.read(ids[:, 128:160], 128, past)[0], plain)
    through = read_suffix(base, adapter, layout, ids, cache)
    assert (through - plain).abs().max() > 1e-4  # One block is a row: not the plain model.


@torch.no_grad()
def test_placed_rows_keep_values_and_rotate_keys(base: FrozenBase, adapter: GistAdapter) -> None:
    ids = torch.randint(0, 101, (1, 64))
    cache = base.read(ids)[1]
    rows = compute_rows(base, adapter, plan_rows([Node(32, 64)], 1, 64), ids, cache)
    placed = rows.placed(base)
    assert placed.values[0] is rows.values[0]
    norm = placed.keys[0].norm(dim=-1)
    torch.testing.assert_close(norm, rows.keys[0].norm(dim=-1))
    assert not torch.allclose(placed.keys[0], rows.keys[0])


@pytest.mark.parametrize("lod", [1, 2])
def test_gradient_reaches_every_parameter(base: FrozenBase, adapter: GistAdapter, lod: int) -> None:
    layout = SpanLayout(32, 1024, 16, 2, lod=lod)
    ids = torch.randint(0, 101, (1, layout.tokens))
    with torch.no_grad():
        cache = base.read(ids)[1]
    read_suffix(base, adapter, layout, ids, cache).square().sum().backward()
    last = SHAPE.layers - 1
    for name, parameter in adapter.named_parameters():
        if not name.startswith(("into_", "out_")):
            assert parameter.grad.abs().sum() > 0
            continue
        moved = parameter.grad.flatten(1).abs().sum(1) > 0
        # A row leaves only its key and value in the last layer.
        unused = name.split("_")[1] in ("q", "o", "gate", "up", "down")
        assert moved[:last].all(), name
        assert bool(moved[last]) != unused, name


def test_the_base_never_asks_for_a_gradient(base: FrozenBase) -> None:
    tensors = [base.embed, base.norm, *(t for layer in base.layers for t in layer)]
    assert not any(t.requires_grad for t in tensors)
