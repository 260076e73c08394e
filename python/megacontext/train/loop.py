"""A small training loop that stops and goes on without a trace.

The order of items depends on seed and epoch alone, every item brings its own random generator, and
a checkpoint holds parameters, optimizer, place in the data and the global random state: a run that
was interrupted gives, on a CPU, the same bits as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from megacontext.train.checkpoint import TrainingFailed, read_checkpoint, write_checkpoint
from megacontext.train.parallel import (
    Parallel,
    distribute,
    rank_and_world,
    restore_state,
    wait_for_all,
    whole_state,
)
from megacontext.train.track import JsonLines, Tracker
from megacontext_ext.errors import InvalidArgument

# (model, item, generator) -> the item's loss and what else is worth a curve.
ItemLoss = Callable[[nn.Module, int, torch.Generator], tuple[Tensor, Mapping[str, float]]]


@dataclass(frozen=True)
class LoopConfig:
    """Every knob of a run that is not the model's or the loss's."""

    steps: int = 400
    # Items of one step and process: their gradients are accumulated.
    accumulate: int = 8
    seed: int = 0
    lr: float = 2e-3
    warmup_steps: int = 20
    final_lr: float = 0.05  # Of lr, at the end of the cosine.
    weight_decay: float = 0.01
    clip: float = 1.0
    save_every: int = 100
    validate_every: int = 100
    parallel: Parallel = "none"
    tracker: str = "jsonl"

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "save_every", "validate_every"):
            if getattr(self, name) < 1:
                raise InvalidArgument(
                    f"[loop] {name} must be at least 1, got {getattr(self, name)}"
                )

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then cosine."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        left = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))
        return self.lr * (self.final_lr + (1 - self.final_lr) * left)


@dataclass
class TrainLoop:
    """A run over `item_count` items.

    Args:
        provenance: what a checkpoint must agree with to be resumed: base, tokenizer, data.
        validate: called every `validate_every` steps; its numbers join the curve.

    Raises: InvalidArgument for no items.
    """

    config: LoopConfig
    model: nn.Module
    item_count: int
    item_loss: ItemLoss
    out: Path
    provenance: dict[str, str] = field(default_factory=dict)
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None
    step: int = 0
    # Items read by all processes so far.
    position: int = 0

    def __post_init__(self) -> None:
        if self.item_count < 1:
            raise InvalidArgument(
                f"[loop] data must hold at least 1 item, got {self.item_count}: an empty shard?"
            )
        self.rank, self.world = rank_and_world()
        # Sharding takes the model's own parameters apart.
        self._whole = deepcopy(self.model) if self.config.parallel == "fsdp" else self.model
        self.wrapped = distribute(self.model, self.config.parallel)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.config.lr, weight_decay=self.config.weight_decay
        )
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    def item_at(self, position: int) -> int:
        """The item that stands at a place of the endless, seeded order."""
        epoch, place = divmod(position, self.item_count)
        if epoch != self._epoch:
            rng = np.random.default_rng((self.config.seed, epoch))
            self._epoch, self._order = epoch, rng.permutation(self.item_count)
        return int(self._order[place])

    def train_step(self) -> dict[str, float]:
        """One update; returns its numbers.

        Raises: TrainingFailed for a loss or gradient that is not finite, before any parameter
        changes.
        """
        items = self.config.accumulate * self.world
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        for number in range(self.rank, items, self.world):
            place = self.position + number
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + place)
            loss, values = self.item_loss(self.wrapped, self.item_at(place), generator)
            self._need_finite("loss", loss.detach(), self.item_at(place))
            (loss / self.config.accumulate).backward()
            for name, value in {"loss": float(loss.detach()), **values}.items():
                sums[name] = sums.get(name, 0.0) + value / self.config.accumulate
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self._need_finite("gradient norm", norm, None)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(self.step)
        self.optimizer.step()
        self.step += 1
        self.position += items
        return {**sums, "norm": float(norm), "lr": self.config.rate(self.step - 1)}

    def run(self, steps: int | None = None, tracker: Tracker | None = None) -> None:
        """Trains to the end of the budget, or for `steps` more, then saves."""
        last = self.config.steps if steps is None else min(self.config.steps, self.step + steps)
        own = tracker or (JsonLines(self.out, self.step) if self.rank == 0 else None)
        while self.step < last:
            values = self.train_step()
            if self.validate is not None and self.step % self.config.validate_every == 0:
                values.update(self.validate(self.model))
            if own is not None:
                own.log(self.step, values)
            if self.step % self.config.save_every == 0 and self.step < last:
                self.save()
        self.save()
        if own is not None and tracker is None:
            own.close()

    def whole_model(self) -> nn.Module:
        """The model with all of its parameters, on the first process. All processes take part."""
        if self._whole is not self.model:
            parameters, _ = whole_state(self.wrapped, self.optimizer)
            if self.rank == 0:
                self._whole.load_state_dict(parameters)
        return self._whole

    def save(self) -> None:
        """Replaces the checkpoint. All processes take part, the first one writes.

        Raises: TrainingFailed when the disk refuses; the last checkpoint stays whole.
        """
        parameters, optimizer = whole_state(self.wrapped, self.optimizer)
        try:
            if self.rank == 0:
                self._write(parameters, optimizer)
        finally:
            # Nobody looks for the checkpoint before it is there.
            wait_for_all()

    def _write(self, parameters: dict[str, Any], optimizer: dict[str, Any]) -> None:
        state = {
            "parameters": parameters,
            "optimizer": optimizer,
            "step": self.step,
            "position": self.position,
            "random_state": torch.get_rng_state(),
            "provenance": self.provenance,
            "config": asdict(self.config),
        }
        write_checkpoint(self.checkpoint, state)

    def resume(self) -> bool:
        """Continues from the checkpoint of `out`, if there is one.

        Raises: TrainingFailed when it was made for another base, tokenizer, data or seed.
        """
        if not self.checkpoint.exists():
            return False
        state = read_checkpoint(self.checkpoint)
        wanted = {**self.provenance, "seed": str(self.config.seed)}
        found = {**state["provenance"], "seed": str(state["config"]["seed"])}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise TrainingFailed(
                    f"{self.checkpoint}: {name}: expected {wanted.get(name)}, got {found.get(name)}"
                )
        restore_state(self.wrapped, self.optimizer, state["parameters"], state["optimizer"])
        self.step, self.position = state["step"], state["position"]
        torch.set_rng_state(state["random_state"])
        return True

    def _need_finite(self, what: str, value: Tensor, item: int | None) -> None:
        if not bool(torch.isfinite(value)):
            where = "" if item is None else f", item {item}"
            raise TrainingFailed(
                f"[train_step] {what} must be finite, got {float(value)} at step {self.step}"
                f"{where}; parameters are as before the step"
            )
