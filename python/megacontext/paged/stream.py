"""One memory's timeline of pages, and what of it the next step attends to."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain

from megacontext.config import K
from megacontext.gists.selection import KeptRows
from megacontext.paged.tiling import LODS, GistPage, Tiling
from megacontext_ext.errors import InvalidArgument, OverBudget


@dataclass(frozen=True)
class FocusLimits:
    """How the places of a step are shared out, in tokens."""

    # Places that one step attends to, the new tokens included.
    budget_places: int = 2048
    # The first block: models park attention on their first tokens (Xiao et al. 2024).
    sink_blocks: int = 1
    # Newest tokens always attended to.
    recent_tokens: int = 512
    # Most gist pages a step reads; None: as many as places are left for.
    gist_pages_max: int | None = None
    # Gist pages that wanted blocks leave room for, where there are so many. None: as PagedConfig
    # shares places out.
    gist_pages_min: int | None = None
    # Coarsest LOD of gist pages that a step reads, 1 to 3.
    gist_lod_max: int = LODS[-1]

    def __post_init__(self) -> None:
        least = (self.sink_blocks + 2) * K
        if self.budget_places < least:
            raise InvalidArgument(
                f"[paged] budget_places must be >= {least} (sinks, the tail and one block), "
                f"got {self.budget_places}"
            )
        if self.gist_lod_max not in LODS:
            raise InvalidArgument(f"[paged] gist_lod_max must be 1 to 3, got {self.gist_lod_max}")
        for name in ("recent_tokens", "sink_blocks", "gist_pages_min"):
            if (getattr(self, name) or 0) < 0:
                raise InvalidArgument(f"[paged] {name} must be >= 0, got {getattr(self, name)}")


@dataclass
class Stream:
    """The timeline of one memory: how many tokens, where their pages are, what is in focus.

    `pages[b]` is the page of block b where it is resident. `wanted` are blocks in order of
    preference, set by a focus strategy or the caller; `pinned` come before everything, `excluded`
    never come; `lost` are those of the excluded that the store could not give back.
    `gist_pages` are those that are resident; one of LOD 1 has `gist_rows` rows for each of its
    blocks. The first `gisted_blocks` blocks have rows of LOD 1, and there are `coarse_pages[0]`
    pages of LOD 2, `coarse_pages[1]` of LOD 3. `kept` says whose rows a resident page of kept rows
    has. The first `stored_blocks` blocks are in the store.
    """

    token_count: int = 0
    pages: dict[int, int] = field(default_factory=dict)
    wanted: list[int] = field(default_factory=list)
    pinned: set[int] = field(default_factory=set)
    excluded: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    gist_pages: dict[GistPage, int] = field(default_factory=dict)
    gist_rows: int = 1
    gisted_blocks: int = 0
    coarse_pages: list[int] = field(default_factory=lambda: [0] * (len(LODS) - 1))
    lost_gists: set[GistPage] = field(default_factory=set)
    kept: dict[GistPage, KeptRows] = field(default_factory=dict)
    stored_blocks: int = 0
    tokens: array[int] = field(default_factory=lambda: array("I"))

    def own_blocks(self, new_tokens: int) -> range:
        """Blocks that `new_tokens` more tokens are written to."""
        end = self.token_count + new_tokens
        return range(self.token_count // K, (end + K - 1) // K)

    def in_focus(self, limits: FocusLimits, new_tokens: int) -> list[int]:
        """Blocks that a step over `new_tokens` more tokens reads, ascending; its own included."""
        return self.focus(limits, new_tokens)[0]

    def required(self, limits: FocusLimits, new_tokens: int) -> set[int]:
        """Blocks that a step over `new_tokens` more tokens cannot do without.

        Raises:
            OverBudget: they are more than the budget.
        """
        chosen = set(self.own_blocks(new_tokens)) | self.pinned
        if len(chosen) > limits.budget_places // K:
            raise OverBudget(
                f"[paged] {new_tokens} new tokens and {len(self.pinned)} pinned blocks need "
                f"{len(chosen) * K} places, the budget is {limits.budget_places}; read in shorter "
                "steps or pin less"
            )
        return chosen

    def focus(self, limits: FocusLimits, new_tokens: int) -> tuple[list[int], list[GistPage]]:
        """Blocks and gist pages that a step over `new_tokens` more tokens reads, in order.

        Order of rights: the new tokens, pins, sinks, half of what is left for the newest, what is
        wanted (but for `gist_pages_min`), gist pages of what is left out (`Tiling`), the recent
        past. Blocks and gist pages together never pass the budget; no gist page is read while all
        blocks fit.

        Raises:
            OverBudget: the new tokens and pins alone are more than the budget.
        """
        end = self.token_count + new_tokens
        own = self.own_blocks(new_tokens)
        room = limits.budget_places // K
        chosen = self.required(limits, new_tokens)
        recent_start = max(0, self.token_count - limits.recent_tokens) // K
        recent = range(own[0] - 1, recent_start - 1, -1) if own else range(0)
        kept_recent = list(recent)[: max(1, (room - len(chosen)) // 2)]
        rest = range(recent_start - 1, -1, -1)

        def fill(blocks: Iterable[int], places: int) -> None:
            for block in blocks:
                if len(chosen) >= places:
                    break
                if own and block < own[0] and block not in self.excluded:
                    chosen.add(block)

        fill(chain(range(limits.sink_blocks), kept_recent), room)
        beyond = (end + K - 1) // K > room
        most = room if limits.gist_pages_max is None else limits.gist_pages_max
        spared = min(limits.gist_pages_min or 0, most, self.gist_page_count) if beyond else 0
        fill(self.wanted, room - spared)
        tiling = self._tiling(chosen, limits.gist_lod_max)
        if beyond:
            size = K // self.gist_rows
            left_out = (block // size for block in self.wanted if block not in chosen)
            tiling.choose(left_out, min(most, room - len(chosen)))
        # Gist pages may be fewer than they were spared: then more of what is wanted.
        fill(chain(self.wanted, recent, rest), room - len(tiling.chosen))
        return sorted(chosen), sorted(page for page in tiling.chosen if tiling.is_open(page))

    def gist_blocks(self, page: GistPage) -> range:
        """Blocks that have rows in a gist page."""
        size, span = K // self.gist_rows, page.span
        return range(span.start * size, min(span.stop * size, self.gisted_blocks))

    @property
    def gist_page_count(self) -> int:
        """Gist pages of LOD 1."""
        return -(-self.gisted_blocks * self.gist_rows // K)

    def _tiling(self, blocks: set[int], lod_max: int) -> Tiling:
        """Gist pages that show what is not in `blocks`, which may still grow."""

        size, excluded = K // self.gist_rows, self.excluded

        def shows(number: int) -> bool:
            end = min((number + 1) * size, self.gisted_blocks)
            for block in range(number * size, end):  # asked often, answered by the first
                if block not in blocks and block not in excluded:
                    return True
            return False

        coarse = [n if lod <= lod_max else 0 for lod, n in enumerate(self.coarse_pages, 2)]
        return Tiling((self.gist_page_count, *coarse), shows, self.lost_gists)
