"""One memory's timeline of pages, and what of it the next step attends to."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice

from megacontext.config import K
from megacontext.gists.selection import KeptRows
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

    def __post_init__(self) -> None:
        least = (self.sink_blocks + 2) * K
        if self.budget_places < least:
            raise InvalidArgument(
                f"[paged] budget_places must be >= {least} (sinks, the tail and one block), "
                f"got {self.budget_places}"
            )
        for name in ("recent_tokens", "sink_blocks", "gist_pages_min"):
            if (getattr(self, name) or 0) < 0:
                raise InvalidArgument(f"[paged] {name} must be >= 0, got {getattr(self, name)}")


@dataclass
class Stream:
    """The timeline of one memory: how many tokens, where their pages are, what is in focus.

    `pages[b]` is the page of block b where it is resident. `wanted` are blocks in order of
    preference, set by a focus strategy or the caller; `pinned` come before everything, `excluded`
    never come; `lost` are those of the excluded that the store could not give back.
    `gist_pages[g]` has `gist_rows` rows for each block from g * 32 / gist_rows on; the first
    `gisted_blocks` blocks have theirs; `kept` says whose rows a page of kept rows has. The first
    `stored_blocks` blocks are in the store.
    """

    token_count: int = 0
    pages: dict[int, int] = field(default_factory=dict)
    wanted: list[int] = field(default_factory=list)
    pinned: set[int] = field(default_factory=set)
    excluded: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    gist_pages: dict[int, int] = field(default_factory=dict)
    gist_rows: int = 1
    gisted_blocks: int = 0
    lost_gists: set[int] = field(default_factory=set)
    kept: dict[int, KeptRows] = field(default_factory=dict)
    stored_blocks: int = 0
    tokens: array[int] = field(default_factory=lambda: array("I"))

    def own_blocks(self, new_tokens: int) -> range:
        """Blocks that `new_tokens` more tokens are written to."""
        end = self.token_count + new_tokens
        return range(self.token_count // K, (end + K - 1) // K)

    def in_focus(self, limits: FocusLimits, new_tokens: int) -> list[int]:
        """Blocks that a step over `new_tokens` more tokens reads, ascending; its own included."""
        return self.focus(limits, new_tokens)[0]

    def focus(self, limits: FocusLimits, new_tokens: int) -> tuple[list[int], list[int]]:
        """Blocks, and numbers of gist pages, that a step over `new_tokens` more tokens reads.

        Order of rights: the new tokens, pins, sinks, half of what is left for the newest, what is
        wanted (but for `gist_pages_min`), gist pages of what is left out (those of wanted blocks,
        then newest first), the recent past. Blocks and gist
        pages together never pass the budget; no gist page is read while all blocks fit.

        Raises:
            OverBudget: the new tokens and pins alone are more than the budget.
        """
        end = self.token_count + new_tokens
        own = self.own_blocks(new_tokens)
        room = limits.budget_places // K
        chosen = set(own) | self.pinned
        if len(chosen) > room:
            raise OverBudget(
                f"[paged] {new_tokens} new tokens and {len(self.pinned)} pinned blocks need "
                f"{len(chosen) * K} places, the budget is {limits.budget_places}; read in shorter "
                "steps or pin less"
            )
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
        gists: list[int] = []
        if beyond:
            most = min(most, room - len(chosen))
            gists = list(islice(self._gists_besides(chosen), most))
        # Gist pages may be fewer than they were spared: then more of what is wanted.
        fill(chain(self.wanted, recent, rest), room - len(gists))
        return sorted(chosen), sorted(page for page in gists if self._has_rows(page, chosen))

    def gist_blocks(self, page: int) -> range:
        """Blocks that have rows in gist page number `page`."""
        size = K // self.gist_rows
        return range(page * size, min((page + 1) * size, self.gisted_blocks))

    @property
    def gist_page_count(self) -> int:
        return -(-self.gisted_blocks * self.gist_rows // K)

    def _gists_besides(self, blocks: set[int]) -> Iterator[int]:
        """Gist pages with a row of a block that is not in `blocks` or excluded: those of wanted
        blocks that found no room, then newest first."""
        wanted = (block // (K // self.gist_rows) for block in self.wanted if block not in blocks)
        newest_first = range(self.gist_page_count - 1, -1, -1)
        order = dict.fromkeys(chain(wanted, newest_first))
        return (
            page for page in order if page < self.gist_page_count and self._has_rows(page, blocks)
        )

    def _has_rows(self, page: int, blocks: set[int]) -> bool:
        return page not in self.lost_gists and any(
            b not in blocks and b not in self.excluded for b in self.gist_blocks(page)
        )
