"""Gist pages of several LODs, and which of them show a history within a number of places.

A page of LOD 2 has the places of one page of LOD 1 and covers four of them; one of LOD 3 covers
eight pages of LOD 2. Knows page numbers; nothing of rows, models or stores.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import NamedTuple

# Pages of the LOD below that a page of each LOD covers, LOD 1 first (which covers blocks).
FAN_OUT = (1, 4, 8)
LODS = range(1, len(FAN_OUT) + 1)


class GistPage(NamedTuple):
    """A gist page by its LOD and its number among those."""

    lod: int
    number: int

    @property
    def width(self) -> int:
        """Pages of LOD 1 that it covers."""
        width = 1
        for lod in range(1, self.lod):
            width *= FAN_OUT[lod]
        return width

    @property
    def span(self) -> range:
        """Numbers of the pages of LOD 1 that it covers."""
        return range(self.number * self.width, (self.number + 1) * self.width)

    @property
    def children(self) -> list[GistPage]:
        """The pages it is made of; none at LOD 1."""
        if self.lod == 1:
            return []
        fan_out = FAN_OUT[self.lod - 1]
        first = self.number * fan_out
        return [GistPage(self.lod - 1, n) for n in range(first, first + fan_out)]

    @property
    def parent(self) -> GistPage:
        """The page it is part of, whether or not there is such a LOD."""
        fan_out = FAN_OUT[self.lod] if self.lod < len(FAN_OUT) else 1
        return GistPage(self.lod + 1, self.number // fan_out)


@dataclass
class Tiling:
    """Chooses gist pages for the blocks that are not in focus.

    Where pages of several LODs cover a token, the finest that is chosen shows it and the others
    hide it, so nothing is shown twice.

    Attributes:
        made: pages there are, LOD 1 first.
        shows: whether a page of LOD 1 has a row of a block that is neither in focus nor excluded.
        lost: pages that the store could not give back.
        coarse_share: of the places, that coarse pages have before fine ones.
    """

    made: tuple[int, ...]
    shows: Callable[[int], bool]
    lost: set[GistPage]
    coarse_share: float = 1.0
    chosen: set[GistPage] = field(default_factory=set)

    def choose(self, wanted: Iterable[int], most: int) -> None:
        """Sets `chosen` to at most `most` pages.

        Pages of LOD 1 where they all fit: `wanted` ones, by number, then the newest. Else those in
        all but `coarse_share` of the places; in what is left, the coarsest pages that cover the
        rest, newest first. Where places are left still they make it finer: wanted ones first, then
        where a page is wide for its distance.

        Cost: in proportion to `most`, and to the pages of LOD 1 that show nothing.
        """
        named = dict.fromkeys(GistPage(1, number) for number in wanted)
        newest = (page for page in self._newest_first(1) if page not in named)
        offered = (page for page in chain(named, newest) if self._offers(page))
        fine = list(islice(offered, most + 1))
        if len(fine) <= most or not any(self.made[1:]):
            self.chosen = set(fine[:most])
            return
        near = most - math.ceil(most * self.coarse_share)
        named_left = (page for page in fine[near:] if page in named)
        order = chain(fine[:near], self._coarsest(), named_left, self._nearest_first())
        for page in order:
            if not self._refine(page, most):
                break

    def is_open(self, page: GistPage) -> bool:
        """Whether a token that `page` covers is shown by neither the focus nor a finer page."""
        if page.lod == 1:
            return self.shows(page.number)
        return any(c not in self.chosen and self.is_open(c) for c in page.children)

    def _offers(self, page: GistPage) -> bool:
        made = page.number < self.made[page.lod - 1]
        return made and page not in self.lost and self.is_open(page)

    def _newest_first(self, lod: int) -> Iterator[GistPage]:
        return (GistPage(lod, number) for number in range(self.made[lod - 1] - 1, -1, -1))

    def _coarsest(self) -> Iterator[GistPage]:
        """The fewest pages that cover all there is, newest first."""
        for lod in LODS:
            covered = GistPage(lod + 1, self.made[lod]).span.start if lod < len(self.made) else 0
            for page in self._newest_first(lod):
                if page.span.start < covered:
                    break
                yield from self._whole(page)

    def _whole(self, page: GistPage) -> Iterator[GistPage]:
        """A page, or in place of a lost one those it was made of."""
        if page not in self.lost:
            if self.is_open(page):
                yield page
            return
        for child in reversed(page.children):
            yield from self._whole(child)

    def _nearest_first(self) -> Iterator[GistPage]:
        """Pages that others could be made finer by: first those whose parent is widest for its
        distance from the end."""
        end = self.made[0]

        def share(page: GistPage) -> float:
            return (end - page.span.start) / page.parent.width

        finer = (self._newest_first(lod) for lod in LODS[:-1])
        return heapq.merge(*finer, key=share)

    def _refine(self, page: GistPage, most: int) -> bool:
        """Chooses `page` too, in place of coarser pages that then show nothing; False when it does
        not fit."""
        if page in self.chosen or not self._offers(page):
            return True
        self.chosen.add(page)
        closed = []
        above = page.parent
        while above.lod <= len(FAN_OUT):
            if above in self.chosen and not self.is_open(above):
                self.chosen.discard(above)
                closed.append(above)
            above = above.parent
        if len(self.chosen) <= most:
            return True
        self.chosen.discard(page)
        self.chosen.update(closed)
        return False
