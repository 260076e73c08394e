"""What is asked on the side: how a memory was before, so that it can be so again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megacontext.config import K
from megacontext.paged.focus import StepFocus
from megacontext.paged.gist_pages import GistPages
from megacontext.paged.residents import PageKey, Residents
from megacontext.paged.stream import Stream


@dataclass(frozen=True)
class StreamState:
    """What an aside changes of a stream; none of it is in the store."""

    token_count: int = 0
    wanted: Sequence[int] = ()
    pinned: frozenset[int] = frozenset()
    excluded: frozenset[int] = frozenset()

    @classmethod
    def of(cls, stream: Stream) -> StreamState:
        return cls(
            stream.token_count,
            tuple(stream.wanted),
            frozenset(stream.pinned),
            frozenset(stream.excluded),
        )

    def restore(self, stream: Stream) -> list[int]:
        """Takes `stream` back; returns blocks that it has no more. Damage that was met stays."""
        stream.token_count = self.token_count
        del stream.tokens[self.token_count :]
        stream.wanted = list(self.wanted)
        stream.pinned = set(self.pinned) - stream.lost
        stream.excluded = set(self.excluded) | stream.lost
        end = -(-self.token_count // K)
        return [block for block in stream.pages if block >= end]


@dataclass(frozen=True)
class Before:
    """The memory before an aside."""

    streams: Sequence[StreamState]
    tokens_since_choice: dict[int, int]
    gists: GistPages | None

    @classmethod
    def of(
        cls, streams: Sequence[Stream], chooser: StepFocus | None, gists: GistPages | None
    ) -> Before:
        since = {} if chooser is None else dict(chooser.since)
        return cls([StreamState.of(stream) for stream in streams], since, gists)

    def tokens(self, number: int) -> int:
        """Of stream `number`."""
        return self.streams[number].token_count if number < len(self.streams) else 0

    def restore(
        self, streams: Sequence[Stream], residents: Residents | None, chooser: StepFocus | None
    ) -> None:
        """Takes streams and focus back; streams that began in the aside are empty."""
        for number, stream in enumerate(streams):
            known = number < len(self.streams)
            gone = (self.streams[number] if known else StreamState()).restore(stream)
            if residents is not None:
                residents.drop([PageKey(number, block) for block in gone])
        if chooser is not None:
            chooser.since = dict(self.tokens_since_choice)
