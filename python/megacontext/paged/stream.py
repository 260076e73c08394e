"""One memory's timeline of pages, and what of it the next step attends to."""

from __future__ import annotations

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
    """

    token_count: int = 0
    pages: list[int] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    pinned: set[int] = field(default_factory=set)
    excluded: set[int] = field(default_factory=set)

    def blocks_for(self, new_tokens: int) -> int:
        """Pages to add before `new_tokens` can be written."""
        return (self.token_count + new_tokens + K - 1) // K - len(self.pages)

    def in_focus(self, limits: FocusLimits, new_tokens: int) -> list[int]:
        """Blocks that a step over `new_tokens` more tokens reads, ascending; its own included.

        Order of rights: the new tokens, pins, sinks, what is wanted, the recent past. Never more
        than the budget.

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
        for block in (*range(limits.sink_blocks), *kept_recent, *self.wanted, *recent, *rest):
            if len(chosen) >= room:
                break
            if block < own[0] and block not in self.excluded:
                chosen.add(block)
        return sorted(chosen)
