"""A memory: one store, one frozen base, and questions about everything ever ingested.

import megacontext

with megacontext.open("notes.mc") as memory:
    memory.ingest(Path("handbook.txt"))
    for piece in (answer := memory.ask("Who signed the lease?")):
        print(piece, end="")
    print(answer.sources[0])
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType

from megacontext.config import GenerationConfig, RuntimeConfig
from megacontext.keeping import Keeping
from megacontext.lens import Lens, Sketcher, choose_lens
from megacontext.models import FrozenBase, load
from megacontext.remote import Reader, is_url, open_remote
from megacontext.runtime import (
    Answer,
    Assembled,
    Ingestor,
    IngestProgress,
    IngestReport,
    Parts,
    Session,
    ShownGists,
    Source,
    SourceState,
    StoreHistory,
    file_source,
    folder_sources,
    iterator_source,
    read_records,
    text_source,
)
from megacontext.view import SpanShown, save_png, terminal_bar
from megacontext_ext import Store
from megacontext_ext.errors import InvalidArgument, NotFound

DEFAULT_MODEL = "smollm2"
# Records of the gists of one store, beside it.
_RECORDS_SUFFIX = ".gists"
_LOOKS_LIKE_A_PATH = re.compile(r"^\S+$")
_HAS_PATH_FORM = re.compile(r"[/\\]|\.\w{1,5}$")


@dataclass(frozen=True, slots=True)
class WorkingContextView:
    """What the model would read for one question: entries, their LOD, their cost, pictures."""

    question: str
    assembled: Assembled
    names: dict[int, str]
    budget_places: int
    spans: Sequence[SpanShown]

    def describe(self) -> str:
        """A paragraph in words and numbers."""
        run_count = sum(run.shown for run in self.assembled.runs)
        gists = sum(run.places for run in self.assembled.runs if run.lod > 0)
        history = sum(run.end - run.start for run in self.assembled.runs)
        return (
            f"{history:,} tokens of history in {len(self.names)} sources; "
            f"{len(self.assembled.prompt):,} of {self.budget_places:,} places used: "
            f"{self.assembled.entry_places:,} by {run_count} spans in focus ({gists:,} by gists), "
            f"{self.assembled.marker_places:,} by markers, "
            f"{self.assembled.frame_places:,} by the question and its frame; "
            f"{self.assembled.left_out_tokens:,} tokens left out; "
            f"{self.assembled.positions} positions"
        )

    def bar(self, columns: int = 72) -> RenderableType:
        """One line a source for a rich console."""
        return terminal_bar(self.spans, self.names, columns)

    def save_png(self, path: str | Path) -> Path:
        """A picture; needs matplotlib."""
        return save_png(Path(path), self.spans, self.names, f"in focus for: {self.question}")

    def to_json(self) -> dict[str, Any]:
        """Plain values: the entries by run, and the accounting of places."""
        return {
            "question": self.question,
            "budget_places": self.budget_places,
            "prompt_places": len(self.assembled.prompt),
            "entry_places": self.assembled.entry_places,
            "marker_places": self.assembled.marker_places,
            "frame_places": self.assembled.frame_places,
            "left_out_tokens": self.assembled.left_out_tokens,
            "positions": self.assembled.positions,
            "entries": [
                {
                    "source": self.names[span.partition],
                    "token_start": span.start,
                    "token_end": span.end,
                    "lod": span.lod if span.places else None,
                    "places": span.places,
                    "score": round(span.score, 4),
                }
                for span in self.spans
            ],
        }


class Memory(Keeping):
    """An open memory. Not for several threads; a second process may open it read-only."""

    def __init__(self, store: Store, base: FrozenBase, config: RuntimeConfig, lens: Lens) -> None:
        sketcher = Sketcher(base)
        self._store = store
        self._lock = threading.RLock()
        self._background = []
        self._ingestor = None if store.read_only else Ingestor(store, base.tokenizer, sketcher)
        records = read_records(Path(f"{store.path}{_RECORDS_SUFFIX}"))
        self._parts = Parts(
            store=store,
            base=base,
            sketcher=sketcher,
            history=StoreHistory(store, base.tokenizer, sketcher),
            lens=lens,
            gists=ShownGists(records, base.facts.identity),
            config=config,
        )
        self._session = Session(self._parts)
        self._chats: list[Chat] = []
        self._reader: Reader | None = None  # keeps a memory from elsewhere in the cache

    @property
    def base(self) -> FrozenBase:
        return self._parts.base

    @property
    def store(self) -> Store:
        return self._store

    @property
    def config(self) -> RuntimeConfig:
        return self._parts.config

    @property
    def token_count(self) -> int:
        """Tokens of all sources."""
        return sum(partition.token_count for partition in self._store.partitions())

    def ingest(
        self,
        what: str | Path | Iterable[str],
        *,
        source: str | None = None,
        metadata: dict[str, Any] | None = None,
        progress: Callable[[IngestProgress], None] | None = None,
    ) -> list[IngestReport]:
        """Take in a text, a file, a folder of text files, or an iterator of texts.

        A `str` that names an existing file or folder is that; any other is the text itself. What
        is there already is not taken in twice, so an interrupted call is simply made again; a text
        that has grown at its end goes on from there.

        Raises: NotFound for a path that does not exist, InvalidArgument for a source whose earlier
        text has changed (see `replace`), IoError when the disk is full (what was acknowledged
        stays).
        """
        ingestor = self._writer("ingest")
        given = list(_sources(what, source))
        with self._lock:
            return [ingestor.ingest(each, metadata, progress) for each in given]

    def ask(self, question: str, generation: GenerationConfig | None = None) -> Answer:
        """An answer from everything ingested; it is computed while it is read.

        Raises: OverBudget for a question longer than the budget, InvalidArgument for an empty one.
        """
        return self._session.ask(question, generation or GenerationConfig())

    def chat(self, name: str = "default") -> Chat:
        """A conversation that is remembered: its turns become part of the memory."""
        self._chats.append(Chat(self, name))
        return self._chats[-1]

    def working_context(self, question: str) -> WorkingContextView:
        """What the model would have in focus for `question`."""
        assembled = self._session.look(question)
        return self._view(question, self._session, assembled)

    def last_working_context(self, question: str = "") -> WorkingContextView:
        """What it had in focus for the last question. Raises: NotFound before the first."""
        if self._session.last is None:
            raise NotFound("[working_context] a question must have been asked before, none was")
        return self._view(question, self._session, self._session.last)

    def close(self) -> None:
        """End open conversations and close the store; all that was ingested is durable already."""
        for chat in self._chats:
            chat.end_turn()
        self._end_work()
        self._store.close()
        if self._reader is not None:
            self._reader.close()

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _view(self, question: str, session: Session, assembled: Assembled) -> WorkingContextView:
        focus = session.focus
        spans = [
            SpanShown(
                run.partition,
                run.start,
                run.end,
                max(run.lod, 0),
                run.places,
                focus.score_of(run.partition, run.start, run.end),
            )
            for run in assembled.runs
        ]
        names = {p.id: p.source for p in self._store.partitions() if p.token_count}
        return WorkingContextView(
            question, assembled, names, self._parts.config.budget_places, spans
        )


class Chat:
    """A conversation over a memory. Each turn is appended to a source of its own, and its newest
    tokens are always in focus; older turns are found like any other text."""

    def __init__(self, memory: Memory, name: str) -> None:
        parts = memory._parts
        if memory._ingestor is None:
            raise InvalidArgument("[chat] memory must be open for writing, it is open read-only")
        self._ingestor = memory._ingestor
        self._lock = memory._lock
        self._parts = parts
        source = f"conversation/{name}"
        known = parts.store.find_partition(source)
        state = SourceState(kind="conversation", complete=True)
        self._partition = known.id if known else parts.store.add_partition(source, state.to_json())
        self._session = Session(parts, self._partition)
        self._previous = ""
        self._turn: Answer | None = None

    def ask(self, message: str, generation: GenerationConfig | None = None) -> Answer:
        """Say something. The turn is remembered once the answer was read to its end or given up:
        by `end_turn`, the next message, or closing the memory."""
        self.end_turn()
        # A short follow-up names its subject only together with the message before it.
        looked_for = f"{self._previous} {message}".strip()
        answer = self._session.ask(message, generation or GenerationConfig(), looked_for)
        answer._pieces = self._remembered(message, answer._pieces)
        self._turn = answer
        return answer

    def end_turn(self) -> None:
        """Remember the turn as far as its answer was read."""
        if self._turn is not None:
            self._turn.close()
            self._turn = None

    def _remembered(self, message: str, pieces: Iterator[str]) -> Iterator[str]:
        said: list[str] = []
        try:
            for piece in pieces:
                said.append(piece)
                yield piece
        finally:
            self._previous = message
            self._append(f"User: {message}\nAssistant: {''.join(said).strip()}\n\n")

    def _append(self, text: str) -> None:
        with self._lock:
            self._append_locked(text)

    def _append_locked(self, text: str) -> None:
        store = self._parts.store
        state = SourceState.from_json(store.partition(self._partition).metadata_json)
        (piece,) = self._parts.base.tokenizer.encode_pieces([text])
        starts = (state.characters + piece.char_starts).astype(np.uint64)
        store.append_tokens(self._partition, piece.tokens, starts)
        self._ingestor.index(self._partition)
        longer = replace(
            state,
            characters=state.characters + len(text),
            tokens=state.tokens + len(piece.tokens),
        )
        store.set_metadata(self._partition, longer.to_json())
        store.commit()


def open(
    path: str | Path,
    model: str | FrozenBase = DEFAULT_MODEL,
    *,
    read_only: bool = False,
    config: RuntimeConfig | None = None,
    lens: Lens | None = None,
    say: Callable[[str], None] | None = None,
) -> Memory:
    """Open the memory at `path`, or begin one.

    Args:
        path: a directory, made when it does not exist; or, with `read_only`, the URL of a memory
            in an object store (remote/README.md), which is fetched into the local cache.
        model: a name for `models.load`, or a loaded base.
        lens: instead of the one that `config.lens.kind` names.
        say: told about slow first-time work.

    Raises: InvalidArgument when the store was made for another model or tokenizer, StoreLocked when
    another process writes to it, Unsupported for a newer format, Corruption for a directory that is
    no store, NotFound for an unknown model.
    """
    chosen = config or RuntimeConfig()
    base = load(model, say=say) if isinstance(model, str) else model
    identity = {"model": base.facts.identity, "tokenizer": base.tokenizer.hash}
    reader = None
    if is_url(path):
        if not read_only:
            raise InvalidArgument(f"[open] {path} must be opened read_only: to write, promote it "
                                  "into a directory of this machine")  # fmt: skip
        reader = Reader(open_remote(str(path)))
        path = reader.path
    if read_only:
        store = Store.open(str(path), read_only=True, identity=identity)
    else:
        store = Store.open_or_create(str(path), identity)
    memory = Memory(store, base, chosen, lens or choose_lens(base, chosen.lens))
    memory._reader = reader
    return memory


def _sources(what: str | Path | Iterable[str], name: str | None) -> Iterator[Source]:
    if isinstance(what, str) and not _is_path(what):
        digest = hashlib.sha256(what.encode("utf-8", "surrogatepass")).hexdigest()
        yield text_source(name or f"text-{digest[:12]}", what)
    elif isinstance(what, str | Path):
        path = Path(what)
        if path.is_dir():
            if name is not None:
                raise InvalidArgument("[ingest] source must be left out for a folder: its files "
                                      f"name themselves, got {name!r}")  # fmt: skip
            yield from folder_sources(path)
        else:
            yield file_source(path, name)
    else:
        if name is None:
            raise InvalidArgument("[ingest] source must be given for an iterator, got none")
        yield iterator_source(name, what)


def _is_path(text: str) -> bool:
    """A text that exists as a path is one. One that only looks like a path is a slip, not a
    text."""
    if not text or len(text) > 1024 or "\n" in text or "\0" in text:
        return False
    try:
        if Path(text).exists():
            return True
    except OSError:  # longer than a name may be
        return False
    return bool(_LOOKS_LIKE_A_PATH.match(text) and _HAS_PATH_FORM.search(text))
