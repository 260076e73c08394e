"""Every knob of gist training, with its unit and why it has its default."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megacontext.gists.adapter import AdapterRanks
from megacontext.train.values import from_values


@dataclass(frozen=True)
class LayoutChoice:
    """One way to cut a window, in tokens, and how often it is drawn."""

    weight: float
    prefix: int
    span: int
    suffix: int
    lod: int = 1


@dataclass(frozen=True)
class GistTraining:
    """Training of KV gists on a frozen base.

    The schedule runs over the budget: wall-clock minutes on a GPU, so that slices chain into
    one run, or steps where a run must repeat bit for bit.
    """

    layouts: tuple[LayoutChoice, ...] = (
        LayoutChoice(4, 256, 512, 512),
        LayoutChoice(1, 0, 512, 512),  # The first block of a stream is collapsed too.
        LayoutChoice(1, 128, 768, 384),
        LayoutChoice(1, 512, 256, 512),
        LayoutChoice(1, 128, 1024, 384, lod=2),
    )
    rows: tuple[int, ...] = (1, 2, 4)
    students: int = 2  # Row counts trained a step against one teacher pass.
    batch: int = 32
    seed: int = 0
    ranks: AdapterRanks = field(default_factory=AdapterRanks)
    hard_weight: float = 0.1  # Share of NLL beside KL: the goal is NLL, KL has less noise.
    raw_share: float = 0.2  # Students that see a random part of the span raw.
    lookback_share: float = 0.3  # Students whose rows see a short window before their node.
    lr: float = 1e-3
    warmup: float = 0.02  # Of the budget.
    final_lr: float = 0.03  # Of lr.
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    ema: float = 0.998
    budget_minutes: float | None = None
    budget_steps: int | None = 400
    validate_every: int = 400  # Steps.
    validation_spans: int = 12  # Per domain of the held-out shard.
    save_every_s: float = 120.0
    min_document: int = 512

    def __post_init__(self) -> None:
        if (self.budget_minutes is None) == (self.budget_steps is None):
            raise ValueError("[GistTraining] exactly one of budget_minutes, budget_steps is needed")
        if not 1 <= self.students <= len(self.rows):
            raise ValueError(f"[GistTraining] students must be 1..{len(self.rows)}")

    @property
    def window(self) -> int:
        """Tokens a window needs: the longest layout and the last target."""
        return 1 + max(x.prefix + x.span + x.suffix for x in self.layouts)


def read_config(path: Path, **changes: Any) -> GistTraining:
    """A config from a YAML file, with values changed by name."""
    import yaml

    values = yaml.safe_load(path.read_text()) or {}
    return from_values(GistTraining, {**values, **changes})
