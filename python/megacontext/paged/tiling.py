"""Gist pages of several LODs, and which of them show a history within a number of places.

A page of LOD 2 has the places of one page of LOD 1 and covers four of them; one of LOD 3 covers
eight pages of LOD 2. Knows page numbers; nothing of rows, models or stores.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
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
    """

    made: tuple[int, ...]
    shows: Callable[[int], bool]
    lost: set[GistPage]
    chosen: set[GistPage] = field(default_factory=set)

    def choose(self, wanted: Iterable[int], most: int) -> None:
        """Sets `chosen` to at most `most` pages.

        Pages of LOD 1 where they all fit: `wanted` ones, by number, then the newest. Else the
        coarsest pages that cover all there is, made finer as places allow: wanted ones first, then
        where a page is wide for its distance. Where not even the coarsest fit, the newest of them,
        and wanted ones in at most half of the places.

        Cost: in proportion to `most`, and to the pages of LOD 1 that show nothing.
        """
        fine = dict.fromkeys(GistPage(1, number) for number in wanted)
        first = list(islice((page for page in fine if self._offers(page)), most))
        newest = (page for page in self._newest_first(1) if page not in fine)
        rest = (page for page in newest if self._offers(page))
        every = [*first, *islice(rest, most - len(first) + 1)]
        if len(every) <= most or not any(self.made[1:]):
            self.chosen = set(every[:most])
            return
        base = list(islice(self._coarsest(), most))
        self.chosen = set(base[: max(most - len(first), most - most // 2)])
        for page in first:
            self._refine(page, most)
        for page in base:
            self._refine(page, most)
        for page in self._nearest_first():
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
