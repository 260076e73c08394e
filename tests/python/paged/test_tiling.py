"""Which gist pages a step reads: nothing twice, never too many, everything where it can be."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from megacontext.paged.stream import FocusLimits, Stream
from megacontext.paged.tiling import FAN_OUT, LODS, GistPage, Tiling
from megacontext_ext.errors import InvalidArgument

BUDGET = FocusLimits(budget_places=512, recent_tokens=128)


def stream_of(blocks: int, rows: int = 1, **given) -> Stream:
    """A stream of so many blocks with all the gist pages that there can be."""
    size = 32 // rows
    made = blocks // size
    coarse = [made // FAN_OUT[1], made // FAN_OUT[1] // FAN_OUT[2]]
    return Stream(token_count=32 * blocks + 5, gist_rows=rows, gisted_blocks=made * size,
                  coarse_pages=coarse, **given)  # fmt: skip


def drawn(seed: int) -> tuple[Stream, FocusLimits]:
    """Any stream: some of it excluded, wanted, lost, or without coarse pages as yet."""
    r = random.Random(seed)
    blocks = r.choice([40, 300, 1500, 6000])
    stream = stream_of(blocks, r.choice([1, 2, 4]))
    stream.wanted = r.sample(range(blocks), r.choice([0, 3, 60]) if blocks > 60 else 3)
    stream.excluded = set(r.sample(range(1, blocks), r.choice([0, blocks // 3])))
    stream.wanted = [block for block in stream.wanted if block not in stream.excluded]
    stream.coarse_pages = [r.randint(0, n) for n in stream.coarse_pages]
    stream.coarse_pages[1] = min(stream.coarse_pages[1], stream.coarse_pages[0] // FAN_OUT[2])
    if r.random() < 0.3:
        stream.lost_gists = {GistPage(lod, r.randint(0, 40)) for lod in LODS for _ in range(3)}
    least = r.choice([None, 0, 4, 16])
    limits = FocusLimits(r.choice([128, 256, 1024, 4096]), gist_pages_min=least,
                         gist_lod_max=r.choice([1, 2, 3, 3]))  # fmt: skip
    return stream, limits


def shown_by(stream: Stream, gists: list[GistPage], block: int) -> GistPage | None:
    """The finest chosen page of a block, which the others hide it from."""
    there = [page for page in gists if block in stream.gist_blocks(page)]
    return min(there) if there else None


@pytest.mark.parametrize("seed", range(120))
def test_any_choice_keeps_the_budget_and_every_page_shows_something(seed):
    stream, limits = drawn(seed)
    blocks, gists = stream.focus(limits, 1)
    assert len(blocks) + len(gists) <= limits.budget_places // 32
    assert len(set(gists)) == len(gists)
    assert gists == sorted(gists)
    assert not stream.lost_gists.intersection(gists)
    assert all(page.lod <= limits.gist_lod_max for page in gists)
    made = (stream.gist_page_count, *stream.coarse_pages)
    assert all(page.number < made[page.lod - 1] for page in gists)
    hidden = set(blocks) | stream.excluded
    shows = {shown_by(stream, gists, b) for b in range(stream.gisted_blocks) if b not in hidden}
    assert shows - {None} == set(gists)


@pytest.mark.parametrize("seed", range(60))
def test_where_lod_1_fits_nothing_else_is_read(seed):
    stream, limits = drawn(seed)
    blocks, gists = stream.focus(limits, 1)
    alone_blocks, alone = stream.focus(replace(limits, gist_lod_max=1), 1)
    hidden = set(alone_blocks) | stream.excluded
    every = [
        page
        for page in (GistPage(1, number) for number in range(stream.gist_page_count))
        if page not in stream.lost_gists and set(stream.gist_blocks(page)) - hidden
    ]
    if len(alone) == len(every):
        assert (blocks, gists) == (alone_blocks, alone)
    else:
        assert set(alone) <= set(every)


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("blocks", [65, 512, 1055, 5000])
def test_the_whole_past_is_shown_once_the_coarsest_pages_fit(rows, blocks):
    stream = stream_of(blocks, rows)
    chosen, gists = stream.focus(replace(BUDGET, budget_places=2048), 1)
    for block in range(stream.gisted_blocks):
        assert block in chosen or shown_by(stream, gists, block) is not None


def test_pages_are_fine_near_and_coarse_far():
    stream = stream_of(4096)  # 128 pages of LOD 1, 32 of LOD 2, 4 of LOD 3
    _, gists = stream.focus(BUDGET, 1)
    assert {page.lod for page in gists} == {1, 2, 3}
    finest = [shown_by(stream, gists, block).lod for block in range(1, 4080)]
    assert finest == sorted(finest, reverse=True)


def test_a_wanted_block_without_room_is_shown_finely_wherever_it_is():
    stream = stream_of(4096, wanted=[*range(2000, 2040), 70])
    _, gists = stream.focus(replace(BUDGET, gist_pages_min=8), 1)
    assert GistPage(1, 2030 // 32) in gists
    assert shown_by(stream, gists, 1500) is not None
    # Wanted pages have half of the places.
    stream.wanted = list(range(0, 4096, 32))
    _, gists = stream.focus(replace(BUDGET, gist_pages_min=9), 1)
    assert [page.lod for page in gists] == [1] * 5 + [3] * 4


def test_where_the_coarsest_do_not_fit_half_of_the_places_is_fine_and_half_coarse():
    stream = stream_of(32768 + 7 * 128 + 3 * 32)  # 32 pages of LOD 3, then 7 of LOD 2, 3 of LOD 1
    _, gists = stream.focus(replace(BUDGET, budget_places=1024), 1)
    coarse = [page for page in gists if page.lod > 1]
    assert len(gists) == 26
    assert coarse == [*(GistPage(2, n) for n in range(256, 261)),
                      *(GistPage(3, n) for n in range(24, 32))]  # fmt: skip
    _, whole = stream.focus(replace(BUDGET, budget_places=2048), 1)
    assert len(whole) > 42
    assert shown_by(stream, whole, 40) == GistPage(3, 0)


def test_in_place_of_a_lost_page_stand_those_it_was_made_of():
    stream = stream_of(4096)
    stream.lost_gists = {GistPage(3, 1), GistPage(2, 9)}
    _, gists = stream.focus(replace(BUDGET, budget_places=1024), 1)
    assert {GistPage(2, n) for n in range(8, 16) if n != 9} <= set(gists)
    assert {GistPage(1, n) for n in range(36, 40)} <= set(gists)


def test_a_page_covers_what_its_children_cover():
    for page in (GistPage(2, 3), GistPage(3, 2)):
        assert [n for child in page.children for n in child.span] == list(page.span)
        assert {child.parent for child in page.children} == {page}
    assert GistPage(3, 0).width == 32
    assert GistPage(1, 5).children == []


def test_no_places_no_pages():
    tiling = Tiling((40, 10, 1), lambda number: True, set())
    tiling.choose([3], 0)
    assert tiling.chosen == set()


def test_a_lod_that_there_is_none_of_is_refused():
    with pytest.raises(InvalidArgument, match="gist_lod_max must be 1 to 3, got 4"):
        FocusLimits(gist_lod_max=4)
