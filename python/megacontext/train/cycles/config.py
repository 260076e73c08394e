"""Every knob of the cycles, with its unit and why it has its default."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from megacontext.gists.adapter import AdapterRanks
from megacontext.gists.layout import K
from megacontext.train.values import from_values
from megacontext_ext.errors import InvalidArgument

Module = Literal["gists", "lens", "lora"]
MODULES: tuple[Module, ...] = get_args(Module)


@dataclass(frozen=True)
class Cut:
    """How a window of text becomes a question about its past, in tokens.

    prefix, always raw | span, `blocks` of K tokens, each a gist row or raw | question, which the
    lens hears | horizon, whose NLL is scored.
    """

    prefix: int = 64
    blocks: int = 16
    question: int = 32
    horizon: int = 96
    raw_blocks: int = 4  # What the budget lets the lens show raw.

    def __post_init__(self) -> None:
        for name, least in (("prefix", 1), ("blocks", 2), ("question", 1), ("horizon", 1)):
            if getattr(self, name) < least:
                raise InvalidArgument(
                    f"[cut] {name} must be at least {least}, got {getattr(self, name)}"
                )
        if not 1 <= self.raw_blocks < self.blocks:
            raise InvalidArgument(
                f"[cut] raw_blocks must be 1..{self.blocks - 1}, got {self.raw_blocks}"
            )

    @property
    def known(self) -> int:
        """Tokens before the question."""
        return self.prefix + self.blocks * K

    @property
    def window(self) -> int:
        return self.known + self.question + self.horizon

    @property
    def places(self) -> int:
        """What prefix and span take in the working context."""
        return self.prefix + self.raw_blocks * K + self.blocks - self.raw_blocks


@dataclass(frozen=True)
class Phase:
    """One module's turn. Lengths adapt: a turn that gains little is half as long the next time."""

    steps: int
    lr: float
    batch: int = 4
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise InvalidArgument(
                f"[phase] steps and batch must be at least 1, got {self.steps} and {self.batch}"
            )


@dataclass(frozen=True)
class CycleTraining:
    """Cycles of gists -> labels -> lens -> LoRA on a frozen base."""

    cut: Cut = field(default_factory=Cut)
    cycles: int = 3
    gists: Phase = Phase(steps=24, lr=2e-3)
    lens: Phase = Phase(steps=60, lr=2e-3, batch=8, weight_decay=0.1)
    lora: Phase = Phase(steps=10, lr=5e-4)
    label_windows: int = 48  # Labelled anew each cycle: 1 + blocks reads of question and horizon.
    lora_rank: int = 8
    ranks: AdapterRanks = field(default_factory=AdapterRanks)
    # Windows of the gist's turn whose raw blocks are the lens's, not drawn: what it will meet.
    on_policy: float = 0.5
    hard_weight: float = 0.1
    seed: int = 0
    gate_windows: int = 6  # A domain of the validation shard: decide whether a turn is kept.
    test_windows: int = 6  # A domain of the test shard: only measured.
    # Nats a token: a turn below is halved, a cycle below is the last.
    little: float = 0.002
    frozen: tuple[Module, ...] = ()
    min_document: int = 512

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.frozen) - set(MODULES)):
            raise InvalidArgument(f"[cycles] frozen must be of {MODULES}, got {unknown}")
        for name in ("cycles", "label_windows", "gate_windows", "test_windows"):
            if getattr(self, name) < 1:
                raise InvalidArgument(
                    f"[cycles] {name} must be at least 1, got {getattr(self, name)}"
                )


def read_config(path: Path, **changes: Any) -> CycleTraining:
    """A config from a YAML file, with values changed by name."""
    import yaml

    return from_values(CycleTraining, {**(yaml.safe_load(path.read_text()) or {}), **changes})
