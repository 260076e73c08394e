"""An answer: text that streams, the spans the model had in focus, and what it took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class SourceSpan:
    """A span that the model could read. Ranges are half-open, in tokens and characters of its
    source."""

    source: str
    partition: int
    token_start: int
    token_end: int
    char_start: int
    char_end: int
    lod: int
    score: float
    text: str


@dataclass(slots=True)
class AnswerStats:
    """Places are of the first prompt; seconds since the question was asked."""

    history_tokens: int = 0
    left_out_tokens: int = 0
    budget_places: int = 0
    prompt_places: int = 0
    entry_places: int = 0
    marker_places: int = 0
    frame_places: int = 0
    positions: str = ""
    generated_tokens: int = 0
    # Geometric mean of the drawn tokens' probabilities, the end token's included.
    confidence: float = 0.0
    refocus_count: int = 0
    # Places of all prompts of this answer taken from the KV cache, and computed.
    reused_places: int = 0
    computed_places: int = 0
    focus_seconds: float = 0.0
    first_token_seconds: float = 0.0
    seconds: float = 0.0


@dataclass(slots=True)
class Answer:
    """Iterate for pieces of text as they come; `text` waits for the whole."""

    question: str
    _pieces: Iterator[str]
    stats: AnswerStats = field(default_factory=AnswerStats)
    _sources: list[SourceSpan] = field(default_factory=list)
    _told: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[str]:
        """All pieces from the beginning; may be iterated again."""
        yield from self._told
        for piece in self._pieces:
            self._told.append(piece)
            yield piece

    def close(self) -> None:
        """Give up what was not read yet."""
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()

    @property
    def text(self) -> str:
        return "".join(self).strip()

    @property
    def sources(self) -> Sequence[SourceSpan]:
        """Spans in focus while answering, best score first. Known when the first piece is there."""
        if not self._told:
            next(iter(self), None)
        return tuple(self._sources)

    def to_json(self) -> dict[str, Any]:
        """Plain values of everything."""
        return {
            "question": self.question,
            "answer": self.text,
            "sources": [asdict(span) for span in self.sources],
            "stats": asdict(self.stats),
        }
