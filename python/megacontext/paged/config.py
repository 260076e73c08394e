"""What a paged memory may use and how it keeps its pages."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from megacontext.config import K
from megacontext.gists.adapter import GistAdapter
from megacontext.paged.page_codec import PageFormat
from megacontext.paged.stream import FocusLimits
from megacontext_ext.errors import InvalidArgument


@dataclass(frozen=True)
class PagedConfig:
    """Settings of one attached memory."""

    limits: FocusLimits = field(default_factory=FocusLimits)
    # Most pages held in memory, over all streams. 0: no limit without a store; with one, four
    # budgets a stream, so that what was in focus a moment ago is still there.
    pages_max: int = 0
    # Tokens a step of `read`; longer steps are faster and need more of the budget.
    read_tokens: int = 512
    # Who chooses what is in focus: "caller" (`focus`, `focus_on`), or "step": besides, every
    # `refocus_tokens` the last queries choose among all blocks.
    focus: Literal["caller", "step"] = "caller"
    refocus_tokens: int = K
    # A block that is not wanted must beat one that is by this share.
    hysteresis: float = 0.25
    # Gist rows for blocks out of focus: "kept", rows of their own tokens, which need no training;
    # "learned", where the package has an adapter that was measured to help this base; an adapter;
    # "off". "auto" is "kept", which recovers more (benchmarks/results/2026-11-29-kept-rows).
    gists: Literal["auto", "kept", "learned", "off"] | GistAdapter = "auto"
    gist_rows: Literal[1, 2, 4] = 1
    # How a store keeps pages. None: as the store has them; a new one, in the model's dtype. In
    # another format a block is rounded when it is complete, once, also in memory.
    pages: PageFormat | None = None
    # A page that the store cannot give back: stop with an error, or go on without its block.
    on_corrupt: Literal["raise", "skip"] = "raise"
    # The store is committed behind the reading after so many tokens.
    commit_tokens: int = 4096

    @property
    def shares(self) -> FocusLimits:
        """`limits` with the share of gist pages that is best for this focus where none is given.

        The step's queries want as many blocks as there are places; a quarter of the places for the
        gists of the others finds facts better (benchmarks/results/2026-11-26-paged-peers: 0.52
        nats a digit). The blocks that a question or the caller names come first.
        """
        given = self.limits.gist_pages_min is not None
        if given or self.focus != "step" or self.gists == "off":
            return self.limits
        return replace(self.limits, gist_pages_min=self.limits.budget_places // K // 4)

    @property
    def choice_blocks(self) -> int:
        """Blocks that a choice of the step's queries may bring into focus, at most."""
        return max(0, self.limits.budget_places // K - (self.shares.gist_pages_min or 0))

    def __post_init__(self) -> None:
        for name in ("read_tokens", "commit_tokens", "refocus_tokens"):
            if getattr(self, name) < 1:
                raise InvalidArgument(
                    f"[paged] {name} must be at least 1, got {getattr(self, name)}"
                )
        if self.pages_max < 0:
            raise InvalidArgument(f"[paged] pages_max must be 0 or more, got {self.pages_max}")
