"""One turn of each module, through what the others can do by then. Fresh optimizer a turn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from megacontext.gists.distill import distill
from megacontext.train.checkpoint import TrainingFailed
from megacontext.train.cycles.block_lens import lens_loss
from megacontext.train.cycles.config import Phase
from megacontext.train.cycles.scene import gist_rows, open_scene, read_horizon
from megacontext.train.cycles.system import System

Labels = list[tuple[Tensor, Tensor]]
# place in the data, how many -> windows [n, window].
Windows = Callable[[int, int], Tensor]


def drawn_blocks(system: System, generator: np.random.Generator, count: int) -> Tensor:
    """[count, raw_blocks] of blocks, each window's own."""
    cut = system.config.cut
    drawn = [generator.permutation(cut.blocks)[: cut.raw_blocks] for _ in range(count)]
    return torch.from_numpy(np.sort(np.stack(drawn), 1))


def distilled(system: System, ids: Tensor, generator: np.random.Generator) -> Tensor:
    """Loss of windows [B, window] seen as the budget allows, to the plain base with all raw.

    A share of the windows (`on_policy`) shows the lens's choice, the others blocks drawn at random.
    The past's own keys and values carry no gradient; its rows and what reads them do.
    """
    config, cut = system.config, system.config.cut
    own = system.reading()
    with torch.no_grad():
        past = open_scene(system.base, cut, ids).past
        wanted = read_horizon(system.base, cut, ids, past)
    scene = open_scene(own, cut, ids)
    rows = gist_rows(own, system.gists, cut, scene)
    raw = drawn_blocks(system, generator, len(ids))
    on_policy = torch.from_numpy(generator.random(len(ids)) < config.on_policy)
    if on_policy.any():
        attention = system.heard(own, scene, rows)[0]
        raw = torch.where(on_policy[:, None], system.lens.choose(attention, cut.raw_blocks), raw)
    hidden = read_horizon(own, cut, ids, system.past(scene, rows, raw))
    part = distill(
        hidden.flatten(0, 1), own.head, wanted.flatten(0, 1), ids[:, -cut.horizon :].flatten(),
        config.hard_weight,
    )  # fmt: skip
    return part.loss


def _turn(
    name: str, module: nn.Module, phase: Phase, steps: int, loss_of: Callable[[int], Tensor]
) -> list[float]:
    """`steps` updates of `module` alone by `loss_of(step)`: the loss of each.

    Raises: TrainingFailed for a loss or gradient that is not finite, before the step's update.
    """
    optimizer = torch.optim.AdamW(module.parameters(), lr=phase.lr, weight_decay=phase.weight_decay)
    losses = []
    for step in track(range(steps), name, transient=True):
        warm = min(1.0, (step + 1) / max(1, steps // 10))
        for group in optimizer.param_groups:
            group["lr"] = phase.lr * warm * (1.0 - 0.9 * step / steps)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(step)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        losses.append(float(loss.detach()))
        if not np.isfinite([losses[-1], float(norm)]).all():
            raise TrainingFailed(
                f"[{name}] loss and gradient norm must be finite, got {losses[-1]} and "
                f"{float(norm)} at step {step}"
            )
        optimizer.step()
    return losses


def _alone(system: System, module: nn.Module | None) -> None:
    """Gradients for one module at most, none for the others."""
    for other in (system.gists, system.lens, system.lora):
        other.requires_grad_(other is module)


def train_reader(
    system: System, name: str, module: nn.Module, phase: Phase, steps: int,
    windows: Windows, start: int, seed: int,
) -> list[float]:  # fmt: skip
    """A turn of gists or LoRA: the loss of every step."""
    _alone(system, module)
    generator = np.random.default_rng(seed)

    def loss_of(step: int) -> Tensor:
        return distilled(system, windows(start + step * phase.batch, phase.batch), generator)

    return _turn(name, module, phase, steps, loss_of)


def relabel(system: System, windows: Windows, start: int, count: int) -> Labels:
    """What each block is worth raw, with the gists and the LoRA as they are now."""
    _alone(system, None)
    places = track(range(start, start + count), "labels", transient=True)
    return [system.gains(windows(place, 1)[0]) for place in places]


def train_lens(system: System, phase: Phase, steps: int, labels: Labels, seed: int) -> list[float]:
    """A turn of the lens on this cycle's labels: the loss of every step."""
    _alone(system, system.lens)
    generator = np.random.default_rng(seed)

    def loss_of(step: int) -> Tensor:
        items = [labels[i] for i in generator.integers(0, len(labels), phase.batch)]
        losses = [lens_loss(system.lens(attention), gain) for attention, gain in items]
        return torch.stack(losses).mean()

    return _turn("lens", system.lens, phase, steps, loss_of)
