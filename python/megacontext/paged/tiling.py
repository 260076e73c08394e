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
# Places for coarse pages where not all of the history can be shown. They cost what is near a little
# and find what is far (benchmarks/results/2026-11-30-paged-levels).
COARSE_SHARE = 1 / 2


class GistPage(NamedTuple):
    """A gist page by its LOD and its number among those."""

    lod: int
    number: int

    @property
    def width(self) -> int:
        """Pages of LOD 1 that it covers."""
        return math.prod(FAN_OUT[: self.lod])

    @property
    def span(self) -> range:
        """Numbers of the pages of LOD 1 that it covers."""
        width = self.width
        return range(self.number * width, (self.number + 1) * width)

    @property
    def children(self) -> list[GistPage]:
        """The pages it is made of; none at LOD 1."""
        if self.lod == 1:
            return []
        lod, fan_out = self.lod - 1, FAN_OUT[self.lod - 1]
        first = self.number * fan_out
        return [GistPage(lod, n) for n in range(first, first + fan_out)]

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
    """

    made: tuple[int, ...]
    shows: Callable[[int], bool]
    lost: set[GistPage]
    chosen: set[GistPage] = field(default_factory=set)

    def choose(self, wanted: Iterable[int], most: int) -> None:
        """Sets `chosen` to at most `most` pages.

        Pages of LOD 1 where they all fit: `wanted` ones, by number, then the newest. Else the
        coarsest pages that cover everything, made finer as places allow: `wanted` ones first, which
        have half of the places if need be, then where a page is wide for its distance. Where not
        even the coarsest fit: pages of LOD 1 in half of the places, and in the others the coarsest
        of what they leave out, newest first.

        Cost: in proportion to `most`, and to the pages of LOD 1 that show nothing.
        """
        named = dict.fromkeys(GistPage(1, number) for number in wanted)
        newest = (page for page in self._newest_first(1) if page not in named)
        offered = (page for page in chain(named, newest) if self._offers(page))
        fine = list(islice(offered, most + 1))
        if len(fine) <= most or not any(self.made[1:]):
            self.chosen = set(fine[:most])
            return
        named_fine = [page for page in fine if page in named]
        self.chosen = set(named_fine[: most // 2])
        room = most - len(self.chosen)
        base = list(islice(self._coarsest(), room + 1))
        if len(base) > room:
            self.chosen = set(fine[: most - math.ceil(most * COARSE_SHARE)])
        for page in chain(base, named_fine, self._nearest_first()):
            if not self._refine(page, most):
                break

    def is_open(self, page: GistPage) -> bool:
        """Whether a token that `page` covers is shown by neither the focus nor a finer page."""
        lod, number = page
        if lod == 1:
            return self.shows(number)
        first = number * FAN_OUT[lod - 1]
        for n in range(first, first + FAN_OUT[lod - 1]):
            child = GistPage(lod - 1, n)
            if child not in self.chosen and self.is_open(child):
                return True
        return False

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
