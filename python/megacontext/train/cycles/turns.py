"""One turn of each module, through what the others can do by then. Fresh optimizer a turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from megacontext.gists.distill import distill
from megacontext.train.cycles.block_lens import lens_loss
from megacontext.train.cycles.config import Phase
from megacontext.train.cycles.scene import gist_rows, open_scene, read_horizon
from megacontext.train.cycles.system import System
from megacontext.train.loop import TrainingFailed

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


def _updates(
    name: str, module: nn.Module, phase: Phase, steps: int
) -> Iterator[tuple[int, Callable[[Tensor], float]]]:
    """(step, apply): `apply(loss)` makes one update of `module` alone and returns the loss."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=phase.lr, weight_decay=phase.weight_decay)
    for step in track(range(steps), name, transient=True):
        warm = min(1.0, (step + 1) / max(1, steps // 10))
        rate = phase.lr * warm * (1.0 - 0.9 * step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate

        def apply(loss: Tensor, step: int = step) -> float:
            value = float(loss.detach())
            if not np.isfinite(value):
                raise TrainingFailed(f"[{name}] loss must be finite, got {value} at step {step}")
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return value

        yield step, apply


def _alone(system: System, module: nn.Module) -> None:
    """Gradients for one module, none for the others."""
    for other in (system.gists, system.lens, system.lora):
        other.requires_grad_(other is module)


def train_reader(
    system: System, name: str, module: nn.Module, phase: Phase, steps: int,
    windows: Windows, start: int, seed: int,
) -> list[float]:  # fmt: skip
    """A turn of gists or LoRA: the loss of every step."""
    _alone(system, module)
    generator = np.random.default_rng(seed)
    return [
        apply(distilled(system, windows(start + step * phase.batch, phase.batch), generator))
        for step, apply in _updates(name, module, phase, steps)
    ]


def relabel(system: System, windows: Windows, start: int, count: int) -> Labels:
    """What each block is worth raw, with the gists and the LoRA as they are now."""
    _alone(system, nn.Identity())
    places = track(range(start, start + count), "labels", transient=True)
    return [system.gains(windows(place, 1)[0]) for place in places]


def train_lens(system: System, phase: Phase, steps: int, labels: Labels, seed: int) -> list[float]:
    """A turn of the lens on this cycle's labels: the loss of every step."""
    _alone(system, system.lens)
    generator = np.random.default_rng(seed)
    found = []
    for _, apply in _updates("lens", system.lens, phase, steps):
        items = [labels[i] for i in generator.integers(0, len(labels), phase.batch)]
        losses = [lens_loss(system.lens(attention), gain) for attention, gain in items]
        found.append(apply(torch.stack(losses).mean()))
    return found
