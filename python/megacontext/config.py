"""Every knob of the runtime: its unit, its default, and why that default.

Knows no model, no store and no file format.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megacontext_ext.errors import InvalidArgument

# Fan-out of the tree (DESIGN.md D3): the tokens of one block, and the children of one node.
K = 32

PositionRule = Literal["auto", "timeline", "contiguous"]
LensKind = Literal["auto", "untrained", "trained"]


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """How tokens are drawn from the model's logits."""

    max_new_tokens: int = 256
    # 0 is greedy: the same question over the same memory gives the same answer.
    temperature: float = 0.0
    # 0 means no limit.
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    # Texts that end the answer; they are not part of it.
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _need("max_new_tokens", self.max_new_tokens >= 1, "at least 1", self.max_new_tokens)
        _need("temperature", self.temperature >= 0.0, "0 or more", self.temperature)
        _need("top_k", self.top_k >= 0, "0 or more", self.top_k)
        _need("top_p", 0.0 < self.top_p <= 1.0, "in (0, 1]", self.top_p)
        _need("stop", all(self.stop), "non-empty texts", self.stop)


@dataclass(frozen=True, slots=True)
class HopConfig:
    """Following names from a shown passage to others (lens/hops.py)."""

    # Statements looked up, over all hops; 0: none. A chain of five assignments takes four.
    looks: int = 6
    # Sentences that the base compares for a statement.
    candidates: int = 4
    # A name in so many blocks or more leads nowhere.
    postings_max: int = 64
    # A next step is a sentence of whose surprise (-ln p) the statement takes this share away, and
    # its names a share and so many nats of what is left without them.
    share: float = 0.5
    names_share: float = 0.2
    names_nats: float = 10.0
    # Of a passage's score, what a passage that it leads to gets.
    score_share: float = 0.9

    def __post_init__(self) -> None:
        _need("looks", self.looks >= 0, "0 or more", self.looks)
        _need("candidates", self.candidates >= 1, "at least 1", self.candidates)
        _need("postings_max", self.postings_max >= 2, "at least 2", self.postings_max)
        _need("share", 0.0 <= self.share <= 1.0, "in [0, 1]", self.share)
        _need("names_share", 0.0 <= self.names_share <= 1.0, "in [0, 1]", self.names_share)
        _need("names_nats", self.names_nats >= 0.0, "0 or more", self.names_nats)
        _need("score_share", 0.0 < self.score_share <= 1.0, "in (0, 1]", self.score_share)


@dataclass(frozen=True, slots=True)
class LensConfig:
    """The lens. Values were chosen on SQuAD paragraphs (lens/README.md)."""

    # auto: the trained lens of this base where its card says that it is ahead of the untrained one
    # as the runtime uses them, else the untrained one.
    kind: LensKind = "auto"

    # Postings taken per question term: more than any passage needs, few enough for a millisecond.
    hits_per_term: int = 512
    # Weight of a term found this many blocks away: a sentence often spans two blocks.
    neighbour_weights: tuple[float, ...] = (1.0, 0.7, 0.4)
    # Weight of the sketches' cosine; lexical evidence weighs 1.
    sketch_weight: float = 0.3
    # A tie breaker for newer text, far below one matching word.
    recency_weight: float = 0.01
    # Blocks shown on each side of a hit, so that the sentence around it comes along.
    spread_blocks: int = 2
    # Passages compared: those with at least this share of the best one's evidence.
    candidate_passages: int = 6
    candidate_ratio: float = 0.4
    # And, for so many words of the question that are in the fewest blocks, at most `rare_hits`, the
    # newest of those: a name must be looked at however many of the other words are elsewhere.
    rare_terms: int = 2
    rare_hits: int = 16
    # Shown of them: at most so many, and only what is close to the best. A small model answers
    # better from little text, so the budget is a limit and not a target.
    max_passages: int = 3
    # Closeness where the base read them: nats of the question's likelihood behind the best, to
    # which full evidence adds `evidence_nats`.
    keep_nats: float = 2.0
    evidence_nats: float = 10.0
    # More candidates than `max_passages` that stand this many nats above all others, and twice as
    # far as they are from each other, are shown together: the question has several answers.
    apart_nats: float = 15.0
    # A candidate that explains tokens of the question better than all that is shown, by so many
    # nats beyond one nat a token, is shown too, whatever `max_passages`: the question has several
    # subjects. Measured: 5.6 to 22 for passages of four keys asked for at once, 5.3 at most for 60
    # ordinary questions, 6.0 for 15 questions of 64 tokens.
    complement_nats: float = 5.0
    # The newest candidate that explains the question as well as any, but for so many nats, is shown
    # too: later facts undo earlier ones.
    newest_nats: float = 3.0
    # A passage is cut to its sentences that hold the question's words where the question is as
    # likely behind them, but for so many nats.
    narrow_nats: float = 2.0
    # Closeness where it did not: share of the best one's evidence.
    keep_ratio: float = 0.6
    hops: HopConfig = field(default_factory=HopConfig)

    def __post_init__(self) -> None:
        _need("kind", self.kind in ("auto", "untrained", "trained"), "auto, untrained or trained",
              repr(self.kind))  # fmt: skip
        _need("neighbour_weights", len(self.neighbour_weights) >= 1, "non-empty", "()")
        _need("keep_ratio", 0.0 < self.keep_ratio <= 1.0, "in (0, 1]", self.keep_ratio)
        _need("max_passages", self.max_passages >= 1, "at least 1", self.max_passages)
        _need("rare_terms", self.rare_terms >= 0, "0 or more", self.rare_terms)
        _need("rare_hits", self.rare_hits >= 1, "at least 1", self.rare_hits)
        _need("newest_nats", self.newest_nats >= 0.0, "0 or more", self.newest_nats)
        _need("apart_nats", self.apart_nats > 0.0, "above 0", self.apart_nats)
        _need("complement_nats", self.complement_nats > 0.0, "above 0", self.complement_nats)


@dataclass(frozen=True, slots=True)
class FrameConfig:
    """The words around the working context. Short and last-question forms suit small models."""

    system: str | None = None
    lead: str = "Text: "
    # Stands for a stretch that is left out; {tokens} may name its length in digits, {amount} in
    # words. A number here is read as an answer: asked for a number, SmolLM2-135M told the marker's
    # in 2 of 8 needles (python/megacontext/eval/long), and "the GDP was 93,582 tokens left out".
    # The short form stands where the long one does not fit.
    # In words it costs nothing: 13 of 30 SQuAD questions as with "[...]", 11 with digits.
    marker: str = "\n[... {amount} tokens left out ...]\n"
    short_marker: str = "\n[...]\n"
    ask: str = "\n\nAnswer the question using the text above.\nQuestion: {question}"

    def __post_init__(self) -> None:
        _need("ask", "{question}" in self.ask, "a text with {question}", repr(self.ask))


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """The loop: how much the model sees, and how often that is thought over."""

    # Places of one prompt: frame, question, entries, markers. Generated tokens come on top.
    budget_places: int = 2048
    # One block: below it a refocus costs more than the tokens between two of them.
    refocus_every_tokens: int = K
    # Newest tokens of a conversation that are always shown raw.
    protected_tail_tokens: int = 128
    # Share of the budget that markers may take; a marker is about 12 tokens.
    marker_share: float = 0.1
    # contiguous: as if nothing were left out. auto: true timeline positions while they lie in the
    # trained range; their gaps cost SmolLM2-135M 3 of 8 needles that it reads without them.
    positions: PositionRule = "contiguous"
    lens: LensConfig = field(default_factory=LensConfig)
    frame: FrameConfig = field(default_factory=FrameConfig)

    @property
    def marker_places(self) -> int:
        """Places of a prompt that markers may take."""
        return int(self.budget_places * self.marker_share)

    def __post_init__(self) -> None:
        _need("budget_places", self.budget_places >= 4 * K, f"at least {4 * K}", self.budget_places)
        _need("refocus_every_tokens", self.refocus_every_tokens >= 1, "at least 1",
              self.refocus_every_tokens)  # fmt: skip
        _need("marker_share", 0.0 <= self.marker_share <= 0.5, "in [0, 0.5]", self.marker_share)


@dataclass(frozen=True, slots=True)
class RemoteConfig:
    """Memories in an object store (remote/README.md)."""

    # One request; a part of `part_bytes` must get through in this time.
    request_timeout_s: float = 30.0
    connect_timeout_s: float = 5.0
    # Of one request, with growing pauses; then the error is the caller's.
    retries: int = 3
    retry_timeout_s: float = 60.0
    # A large object travels in parts of this size, each its own request.
    part_bytes: int = 8 << 20
    # Transfers at one time. More helps only on long lines.
    parallel: int = 4
    # Of the local cache of segments; what is open is never dropped.
    cache_bytes: int = 20 << 30
    # Younger unnamed objects may belong to a push that goes on, so gc leaves them.
    grace_s: float = 24 * 3600.0
    # Commit records kept for readers that are on their way through an older one.
    kept_commits: int = 64

    def __post_init__(self) -> None:
        _need("request_timeout_s", self.request_timeout_s > 0, "above 0", self.request_timeout_s)
        _need("retries", self.retries >= 0, "0 or more", self.retries)
        _need("part_bytes", self.part_bytes >= 5 << 20, "at least 5 MiB", self.part_bytes)
        _need("parallel", self.parallel >= 1, "at least 1", self.parallel)
        _need("grace_s", self.grace_s >= 0, "0 or more", self.grace_s)
        _need("kept_commits", self.kept_commits >= 1, "at least 1", self.kept_commits)


def cache_folder() -> Path:
    """Folder of converted models: $MEGACONTEXT_CACHE, else ~/.cache/megacontext."""
    return _folder("MEGACONTEXT_CACHE") or Path.home() / ".cache" / "megacontext"


def remote_cache_folder() -> Path:
    """Folder of segments fetched from object stores: $MEGACONTEXT_REMOTE_CACHE, else `remote` in
    the cache folder."""
    return _folder("MEGACONTEXT_REMOTE_CACHE") or cache_folder() / "remote"


def _folder(variable: str) -> Path | None:
    chosen = os.environ.get(variable)
    if chosen is not None and not chosen.strip():
        raise InvalidArgument(f"[config] {variable} must be a folder, got an empty text")
    return Path(chosen).expanduser() if chosen else None


def _need(name: str, holds: bool, must_be: str, got: object) -> None:
    if not holds:
        raise InvalidArgument(f"[config] {name} must be {must_be}, got {got}")
