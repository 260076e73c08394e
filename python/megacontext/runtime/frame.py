"""The frame of a question: what stands before and behind the working context in a prompt.

The question stands last, so that the places before it can be reused while it changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megacontext.config import K, RuntimeConfig
from megacontext.models import TextTokenizer, TokenArray
from megacontext_ext.errors import InvalidArgument, OverBudget


@dataclass(frozen=True, slots=True)
class QuestionFrame:
    """Token runs around the working context of one question."""

    before: TokenArray
    after: TokenArray

    @property
    def places(self) -> int:
        return len(self.before) + len(self.after)


def question_frame(tokenizer: TextTokenizer, question: str, config: RuntimeConfig) -> QuestionFrame:
    """The frame of `question`. Raises: OverBudget when it leaves no room for one block of history
    beside the markers."""
    if not question.strip():
        raise InvalidArgument("[ask] question must have at least one character, got none")
    words = config.frame
    parts = tokenizer.chat_parts(words.system)
    # Only the question is content of unknown origin; it cannot hold control tokens.
    lead = tokenizer.encode(words.lead)
    ask = tokenizer.encode(words.ask.replace("{question}", question))
    frame = QuestionFrame(
        before=np.concatenate([parts.before, lead]), after=np.concatenate([ask, parts.after])
    )
    budget_places = config.budget_places
    if frame.places + config.marker_places + K > budget_places:
        raise OverBudget(
            f"[ask] question must leave room in the budget of {budget_places:,} places, got a "
            f"question of {len(ask):,} tokens in a frame of {frame.places:,} places; shorten it, "
            "or raise budget_places"
        )
    return frame
