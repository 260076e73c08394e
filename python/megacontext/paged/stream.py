"""One memory's timeline of pages, and what of it the next step attends to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from megacontext.config import K
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

    def __post_init__(self) -> None:
        least = (self.sink_blocks + 2) * K
        if self.budget_places < least:
            raise InvalidArgument(
                f"[paged] budget_places must be >= {least} (sinks, the tail and one block), "
                f"got {self.budget_places}"
            )
        if self.recent_tokens < 0 or self.sink_blocks < 0:
            raise InvalidArgument(
                "[paged] recent_tokens and sink_blocks must be >= 0, got "
                f"{self.recent_tokens} and {self.sink_blocks}"
            )


@dataclass
class Stream:
    """The timeline of one memory: how many tokens, the page of each block, what is in focus.

    `pages[b]` is the page of block b. `wanted` are blocks in order of preference, set by a focus
    strategy or the caller; `pinned` come before everything, `excluded` never come.
    `gist_pages[g]` has `gist_rows` rows for each block from g * 32 / gist_rows on; the first
    `gisted_blocks` blocks have theirs.
    """

    token_count: int = 0
    pages: list[int] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    pinned: set[int] = field(default_factory=set)
    excluded: set[int] = field(default_factory=set)
    gist_pages: list[int] = field(default_factory=list)
    gist_rows: int = 1
    gisted_blocks: int = 0
    tokens: list[int] = field(default_factory=list)  # kept only where gists are made

    def blocks_for(self, new_tokens: int) -> int:
        """Pages to add before `new_tokens` can be written."""
        return (self.token_count + new_tokens + K - 1) // K - len(self.pages)

    def in_focus(self, limits: FocusLimits, new_tokens: int) -> list[int]:
        """Blocks that a step over `new_tokens` more tokens reads, ascending; its own included."""
        return self.focus(limits, new_tokens)[0]

    def focus(self, limits: FocusLimits, new_tokens: int) -> tuple[list[int], list[int]]:
        """Blocks, and numbers of gist pages, that a step over `new_tokens` more tokens reads.

        Order of rights: the new tokens, pins, sinks, half of what is left for the newest, what is
        wanted, gist pages of what is left out (newest first), the recent past. Blocks and gist
        pages together never pass the budget; no gist page is read while all blocks fit.

        Raises:
            OverBudget: the new tokens and pins alone are more than the budget.
        """
        end = self.token_count + new_tokens
        own = list(range(self.token_count // K, (end + K - 1) // K))
        room = limits.budget_places // K
        chosen = set(own) | self.pinned
        if len(chosen) > room:
            raise OverBudget(
                f"[paged] {new_tokens} new tokens and {len(self.pinned)} pinned blocks need "
                f"{len(chosen) * K} places, the budget is {limits.budget_places}; read in shorter "
                "steps or pin less"
            )
        recent_start = max(0, self.token_count - limits.recent_tokens) // K
        recent = range(own[0] - 1, recent_start - 1, -1) if own else ()
        kept_recent = list(recent)[: max(1, (room - len(chosen)) // 2)]
        rest = range(recent_start - 1, -1, -1)

        def fill(blocks: Iterable[int], places: int) -> None:
            for block in blocks:
                if len(chosen) >= places:
                    break
                if own and block < own[0] and block not in self.excluded:
                    chosen.add(block)

        fill((*range(limits.sink_blocks), *kept_recent, *self.wanted), room)
        gists: list[int] = []
        if (end + K - 1) // K > room:
            gists = self._gists_besides(chosen)[: room - len(chosen)][: limits.gist_pages_max]
        fill((*recent, *rest), room - len(gists))
        return sorted(chosen), sorted(set(gists) & set(self._gists_besides(chosen)))

    def gist_blocks(self, page: int) -> range:
        """Blocks that have rows in gist page number `page`."""
        size = K // self.gist_rows
        return range(page * size, min((page + 1) * size, self.gisted_blocks))

    def _gists_besides(self, blocks: set[int]) -> list[int]:
        """Gist pages, newest first, with a row of a block that is not in `blocks` or excluded."""
        shown = blocks | self.excluded
        newest_first = range(len(self.gist_pages) - 1, -1, -1)
        return [page for page in newest_first if not shown.issuperset(self.gist_blocks(page))]
