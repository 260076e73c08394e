"""Rows see what they may see and sit where they should."""

from __future__ import annotations

import pytest
import torch

from megacontext.gists.layout import (
    LEARNED_ROWS,
    ROW_SETS,
    Node,
    SpanLayout,
    plan_rows,
    row_positions,
    set_start,
)


def test_row_sets_do_not_overlap() -> None:
    taken = [set_start(lod, rows) + i for lod, rows in ROW_SETS for i in range(rows)]
    assert taken == list(range(LEARNED_ROWS))


@pytest.mark.parametrize(("rows", "expected"), [(1, [80]), (2, [72, 88]), (4, [68, 76, 84, 92])])
def test_row_positions_are_centres_of_shares(rows: int, expected: list[int]) -> None:
    assert row_positions(Node(64, 96), rows) == expected


def test_lod1_rows_see_tokens_up_to_their_end_and_own_earlier_rows() -> None:
    plan = plan_rows([Node(32, 64), Node(64, 96)], 2, 128)
    assert plan.visible.shape == (4, 132)
    for row, (end, own) in enumerate([(48, [0]), (64, [0, 1]), (80, [2]), (96, [2, 3])]):
        expected = torch.zeros(132, dtype=torch.bool)
        expected[:end] = True
        expected[[128 + i for i in own]] = True
        assert torch.equal(plan.visible[row], expected)
    assert plan.asks.tolist() == [48, 64, 80, 96]
    assert plan.last.tolist() == [47, 63, 79, 95]
    assert plan.share[1].nonzero().flatten().tolist() == list(range(48, 64))
    assert torch.allclose(plan.share.sum(1), torch.ones(4))


def test_lookback_hides_older_tokens_but_not_the_sink() -> None:
    plan = plan_rows([Node(96, 128)], 1, 128, lookback=32)
    assert plan.visible[0, :128].nonzero().flatten().tolist() == [*range(4), *range(64, 128)]


def test_first_position_shifts_the_tokens() -> None:
    plan = plan_rows([Node(1056, 1088)], 1, 64, first=1024)
    assert plan.visible[0].sum() == 65
    assert plan.stays.tolist() == [1072]


def test_lod2_rows_see_their_blocks_rows_and_no_token_of_their_node() -> None:
    layout = SpanLayout(32, 1024, 16, 2, lod=2)
    plan = layout.row_plan()
    tokens, lower = 32 + 1024, 32
    assert plan.visible.shape == (lower + 2, tokens + lower + 2)
    first = plan.visible[lower]
    assert first[:32].all()
    assert not first[32:tokens].any()
    assert first[tokens : tokens + 16].all()
    assert not first[tokens + 16 : tokens + lower].any()
    assert plan.visible[lower + 1, tokens : tokens + lower].all()
    assert first[-2]
    assert not first[-1]
    assert plan.visible[lower + 1, -2:].all()
    assert plan.learned[lower:].tolist() == [set_start(2, 2), set_start(2, 2) + 1]
    assert layout.pieces() == [("tokens", 0, 32), ("rows", 32, 34)]


def test_pieces_tile_the_timeline_with_raw_blocks_in_place() -> None:
    layout = SpanLayout(32, 128, 16, 4, raw_blocks=(1, 2))
    assert layout.pieces() == [
        ("tokens", 0, 32), ("rows", 0, 4), ("tokens", 64, 128), ("rows", 4, 8)
    ]  # fmt: skip
    assert [n.start for n in layout.nodes()] == [32, 128]


def test_a_span_off_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="span must be a multiple of 32, got 40"):
        SpanLayout(0, 40, 8, 1)
    with pytest.raises(ValueError, match="must be one of"):
        set_start(1, 3)
