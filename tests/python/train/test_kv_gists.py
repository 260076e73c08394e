"""The trainer learns, stops and goes on bit for bit, and leaves the base alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from megacontext.eval.held_out import HeldOutSpan
from megacontext.gists.adapter import AdapterRanks, GistAdapter
from megacontext.gists.base import BaseShape, FrozenBase, random_base
from megacontext.train import kv_gists
from megacontext.train.config import GistTraining, LayoutChoice
from megacontext.train.kv_gists import GistTrainer, TrainingFailed, draw_layouts, learning_rate
from megacontext.train.tokens import TokenWindows

SHAPE = BaseShape(2, 32, 4, 2, 8, 48, 61, 1e4, 1e-5)


def config(**changes: object) -> GistTraining:
    values: dict = {
        "layouts": (LayoutChoice(3, 16, 64, 32), LayoutChoice(1, 0, 1024, 16, lod=2)),
        "ranks": AdapterRanks(2, 2, 2, 2, 2, 2, 2),
        "batch": 4,
        "lr": 1e-2,
        "students": 3,
        "budget_steps": 60,
        "validate_every": 0,
        "min_document": 50,
    }
    return GistTraining(**{**values, **changes})


@pytest.fixture
def base() -> FrozenBase:
    return random_base(SHAPE, seed=2)


@pytest.fixture
def windows(tmp_path: Path) -> TokenWindows:
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 61, 20_000).astype("<u2")
    ids[::4000] = 0
    (tmp_path / "train-00.u16").write_bytes(ids.tobytes())
    return TokenWindows([tmp_path / "train-00.u16"], config().window, 0, 50)


def parameters(trainer: GistTrainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.adapter.named_parameters()}


def fixed_loss(trainer: GistTrainer) -> float:
    layouts = [x for s in range(30) for x in draw_layouts(trainer.config, s) if x.lod == 1][:3]
    ids = trainer.ids_at(0, layouts[0].tokens + 1)
    total = sum(float(part.divergence) for _, part in trainer.losses(ids, layouts))
    trainer.optimizer.zero_grad(set_to_none=True)
    return total


def test_loss_falls_parameters_move_base_stays(
    base: FrozenBase, windows: TokenWindows, tmp_path: Path
) -> None:
    before = base.fingerprint(), [t.clone() for layer in base.layers for t in layer]
    trainer = GistTrainer(config(), base, windows, tmp_path / "run")
    with torch.no_grad():  # Rows that harm: what is to be unlearned.
        trainer.adapter.row_inputs[:, 0].normal_(std=2.0, generator=torch.manual_seed(0))
    start, first = fixed_loss(trainer), parameters(trainer)
    trainer.run()
    assert fixed_loss(trainer) < 0.97 * start
    for name, parameter in trainer.adapter.named_parameters():
        assert not torch.equal(parameter, first[name]), name
        assert not torch.equal(trainer.average[name], first[name]), name
    assert base.fingerprint() == before[0]
    after = [t for layer in base.layers for t in layer]
    assert all(torch.equal(a, b) for a, b in zip(after, before[1], strict=True))


def test_interrupted_equals_uninterrupted(
    base: FrozenBase, windows: TokenWindows, tmp_path: Path
) -> None:
    whole = GistTrainer(config(budget_steps=8), base, windows, tmp_path / "whole")
    whole.run()
    first = GistTrainer(config(budget_steps=8), base, windows, tmp_path / "parts")
    first.run(steps=3)
    second = GistTrainer(config(budget_steps=8), base, windows, tmp_path / "parts")
    assert second.resume()
    assert second.step == 3
    second.run()
    assert second.step == whole.step == 8
    for name, value in parameters(whole).items():
        assert torch.equal(value, parameters(second)[name]), name
        assert torch.equal(whole.average[name], second.average[name]), name


def test_a_checkpoint_of_another_base_is_refused(
    base: FrozenBase, windows: TokenWindows, tmp_path: Path
) -> None:
    GistTrainer(config(), base, windows, tmp_path / "run").save()
    other = GistTrainer(config(), random_base(SHAPE, seed=9), windows, tmp_path / "run")
    with pytest.raises(TrainingFailed, match="base: expected"):
        other.resume()


def test_nan_stops_the_run_and_keeps_the_checkpoint(
    base: FrozenBase, windows: TokenWindows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = GistTrainer(config(), base, windows, tmp_path / "run")
    trainer.run(steps=2)
    kept, saved = parameters(trainer), (tmp_path / "run/checkpoint.pt").read_bytes()
    real = kv_gists.distill

    def broken(hidden, *rest):
        return real(hidden * float("nan"), *rest)

    monkeypatch.setattr(kv_gists, "distill", broken)
    with pytest.raises(TrainingFailed, match="not finite 10 times"):
        trainer.run()
    assert all(torch.equal(v, parameters(trainer)[n]) for n, v in kept.items())
    assert (tmp_path / "run/checkpoint.pt").read_bytes() == saved


def test_targets_are_the_next_token_by_position(
    base: FrozenBase, windows: TokenWindows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = GistTrainer(config(), base, windows, tmp_path / "run")
    seen = {}

    def spy(hidden, head, teacher, targets, *rest):
        seen["targets"], seen["positions"] = targets, hidden.shape[0]
        return real(hidden, head, teacher, targets, *rest)

    real = kv_gists.distill
    monkeypatch.setattr(kv_gists, "distill", spy)
    layouts = [x for s in range(30) for x in draw_layouts(trainer.config, s) if x.lod == 1][:1]
    ids = trainer.ids_at(0, layouts[0].tokens + 1)
    trainer.losses(ids, layouts)
    known = layouts[0].prefix + layouts[0].span
    assert torch.equal(seen["targets"].view(4, -1), ids[:, known + 1 :])
    assert seen["positions"] == 4 * layouts[0].suffix


def test_export_writes_adapter_and_card(
    base: FrozenBase, windows: TokenWindows, tmp_path: Path
) -> None:
    ids = np.random.default_rng(1).integers(1, 61, (3, 1281)).astype(np.uint16)
    spans = [HeldOutSpan("s", "d", str(i), row) for i, row in enumerate(ids)]
    trainer = GistTrainer(config(), base, windows, tmp_path / "run", spans)
    trainer.run(steps=1)
    path = trainer.export(tmp_path / "export", {"command": "x"})
    card = json.loads((tmp_path / "export/card.json").read_text())
    assert card["base_fingerprint"] == base.fingerprint()
    assert card["steps"] == 1
    assert set(card["validation"]) == {"average", "last"}
    assert GistAdapter.load(path).shape == SHAPE


def test_layouts_depend_on_seed_and_step_only() -> None:
    assert draw_layouts(config(), 7) == draw_layouts(config(), 7)
    drawn = [x for step in range(200) for x in draw_layouts(config(), step)]
    assert {x.rows for x in drawn} == {1, 2, 4}
    assert {x.lod for x in drawn} == {1, 2}
    assert any(x.raw_blocks for x in drawn)
    assert any(x.lookback is not None for x in drawn)


def test_learning_rate_warms_up_and_decays() -> None:
    rates = [learning_rate(config(), p) for p in (0.0, 0.01, 0.02, 0.5, 1.0)]
    assert rates[0] < rates[1] < rates[2] > rates[3] > rates[4] > 0
