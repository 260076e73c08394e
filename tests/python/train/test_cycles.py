"""Cycles: labels have the right sign, each turn moves its module alone, gates undo, a stopped run
equals one that was not, and the LoRA is peft's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from megacontext.gists.adapter import AdapterRanks
from megacontext.gists.base import BaseShape, FrozenBase, base_from_model, random_base
from megacontext.gists.layout import K
from megacontext.train.checkpoint import TrainingFailed
from megacontext.train.cycles import report, turns
from megacontext.train.cycles.__main__ import held_out
from megacontext.train.cycles.config import (
    MODULES,
    Cut,
    CycleTraining,
    Module,
    Phase,
    read_config,
)
from megacontext.train.cycles.lora import Lora
from megacontext.train.cycles.run import CycleRun, HeldOut
from megacontext.train.cycles.scene import (
    gist_rows,
    horizon_nats,
    mixture_index,
    open_scene,
    read_horizon,
)
from megacontext.train.cycles.system import System, measure
from megacontext.train.values import from_values
from megacontext_ext.errors import InvalidArgument

SHAPE = BaseShape(2, 32, 4, 2, 8, 48, 61, 1e4, 1e-5)
CUT = Cut(prefix=8, blocks=4, question=6, horizon=10, raw_blocks=2)


def config(**changes: Any) -> CycleTraining:
    values: dict[str, Any] = {
        "cut": CUT,
        "cycles": 2,
        "gists": Phase(3, 1e-2, 2),
        "lens": Phase(6, 1e-2, 4),
        "lora": Phase(3, 1e-2, 2),
        "label_windows": 3,
        "lora_rank": 2,
        "ranks": AdapterRanks(2, 2, 2, 2, 2, 2, 2),
        "little": -1.0,
    }
    return CycleTraining(**{**values, **changes})


@pytest.fixture
def base() -> FrozenBase:
    return random_base(SHAPE, seed=2)


def windows(place: int, count: int) -> Tensor:
    rows = [
        np.random.default_rng(i).integers(1, 61, CUT.window) for i in range(place, place + count)
    ]
    return torch.from_numpy(np.stack(rows))


def held() -> HeldOut:
    return HeldOut(windows(1000, 2), windows(2000, 2))


def cycle_run(base: FrozenBase, out: Path, **changes: Any) -> CycleRun:
    return CycleRun(config(**changes), base, windows, held(), out)


def test_all_blocks_raw_is_the_plain_base(base: FrozenBase) -> None:
    system, ids = System(config(), base), windows(0, 2)
    scene = open_scene(base, CUT, ids)
    rows = gist_rows(base, system.gists, CUT, scene)
    every = torch.arange(CUT.blocks).repeat(2, 1)
    seen = read_horizon(base, CUT, ids, system.past(scene, rows, every))
    plain = base.read(ids)[0][:, -CUT.horizon - 1 : -1]
    torch.testing.assert_close(seen, plain, atol=1e-5, rtol=1e-4)
    logits = torch.log_softmax(base.logits(plain), -1)
    wanted = -logits.gather(-1, ids[:, -CUT.horizon :, None])[..., 0].mean(1)
    torch.testing.assert_close(horizon_nats(base, CUT, ids, seen), wanted)


def test_a_mixture_stands_in_timeline_order_at_equal_places() -> None:
    index = mixture_index(CUT, torch.tensor([[1, 2], [0, 3]]))
    assert index.shape == (2, CUT.places)
    first = index[0].tolist()
    assert first[: CUT.prefix] == list(range(CUT.prefix))
    rest = [CUT.known, *range(CUT.prefix + K, CUT.prefix + 3 * K), CUT.known + 3]
    assert first[CUT.prefix :] == rest


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_gain_is_above_zero_where_raw_helps(
    base: FrozenBase, monkeypatch: pytest.MonkeyPatch, sign: float
) -> None:
    system = System(config(), base)
    marked = 2
    start = CUT.prefix + marked * K

    def nats(_base: Any, _cut: Any, ids: Tensor, hidden: Tensor) -> Tensor:
        return hidden

    def read(_base: Any, _cut: Any, ids: Tensor, past: Any, heard: Any = None) -> Tensor:
        if heard is not None:
            heard += [torch.zeros(1, SHAPE.heads, 16, SHAPE.head)] * SHAPE.layers
        # Told by whether the marked block's first raw key is there.
        key = system_past.keys[0][0, 0, start]
        there = bool((past.keys[0][0, 0] == key).all(-1).any())
        return torch.tensor([3.0 - sign * there])

    ids = windows(5, 1)[0]
    system_past = open_scene(base, CUT, ids[None]).past
    monkeypatch.setattr("megacontext.train.cycles.system.read_horizon", read)
    monkeypatch.setattr("megacontext.train.cycles.system.horizon_nats", nats)
    gain = system.gains(ids)[1]
    wanted = torch.zeros(CUT.blocks)
    wanted[marked] = sign
    torch.testing.assert_close(gain, wanted)


@pytest.mark.parametrize("module", MODULES)
def test_a_turn_moves_every_parameter_of_its_module_alone(base: FrozenBase, module: Module) -> None:
    system = System(config(), base)
    weights = [t.clone() for layer in base.layers for t in layer]
    before = system.state()
    if module == "lens":
        labels = turns.relabel(system, windows, 0, 3)
        turns.train_lens(system, Phase(12, 1e-2, 4), 12, labels, 0)
    else:
        part = system.module(module)
        turns.train_reader(system, module, part, Phase(3, 1e-2, 2), 3, windows, 0, 0)
    after = system.state()
    for name, parameters in after.items():
        moved = [n for n, p in parameters.items() if not torch.equal(p, before[name][n])]
        assert moved == (list(parameters) if name == module else []), name
    now = [t for layer in base.layers for t in layer]
    assert all(torch.equal(a, b) for a, b in zip(now, weights, strict=True))


def test_a_lens_learns_which_head_to_trust() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = []
    for _ in range(40):
        attention = torch.randn(CUT.blocks, 8, generator=generator)
        labels.append((attention, 0.05 * torch.tanh(attention[:, 5])))
    system = System(config(), random_base(SHAPE, seed=2))
    before = [system.lens(a).argmax() == g.argmax() for a, g in labels]
    turns.train_lens(system, Phase(200, 1e-2, 8), 200, labels, 0)
    after = [system.lens(a).argmax() == g.argmax() for a, g in labels]
    assert sum(after) >= 36 > sum(before)


def test_a_stopped_run_equals_one_that_was_not(base: FrozenBase, tmp_path: Path) -> None:
    whole = cycle_run(base, tmp_path / "whole")
    whole.run()
    for _ in range(6):
        part = cycle_run(base, tmp_path / "parts")
        part.resume()
        part.run(turns_at_most=1)
    assert part.done == whole.done == 6
    for name, parameters in whole.system.state().items():
        for n, p in part.system.state()[name].items():
            assert torch.equal(p, parameters[n]), (name, n)

    def told(run: CycleRun) -> list[dict[str, Any]]:
        return [{k: v for k, v in record.items() if k != "seconds"} for record in run.curve]

    assert told(part) == told(whole)
    lines = (tmp_path / "parts/curve.jsonl").read_text().splitlines()
    assert [json.loads(line)["turn"] for line in lines] == ["start", *MODULES, *MODULES]


def test_a_turn_that_harms_is_undone_and_shortened(
    base: FrozenBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cycle_run(base, tmp_path, little=0.5)
    run.run(turns_at_most=0)
    before = run.system.state()
    monkeypatch.setattr(run, "_gate", lambda: 99.0)
    run._turn("gists", 1)
    assert run.curve[-1]["kept"] is False
    assert run.steps["gists"] == 4
    after = run.system.state()["gists"]
    assert all(torch.equal(p, after[n]) for n, p in before["gists"].items())


def test_a_frozen_module_stays(base: FrozenBase, tmp_path: Path) -> None:
    run = cycle_run(base, tmp_path, frozen=("lora",), cycles=1)
    before = run.system.state()["lora"]
    run.run()
    assert [r.get("frozen", False) for r in run.curve] == [False, False, False, True]
    assert "kept" not in run.curve[-1]
    assert run.curve[-1]["recovery"] == run.curve[-2]["recovery"]
    after = run.system.state()["lora"]
    assert all(torch.equal(p, after[n]) for n, p in before.items())


def test_an_oracle_is_measured_and_full_recovers_all(base: FrozenBase) -> None:
    found = measure(System(config(), base), windows(0, 2), oracle=True)
    assert found.recovery("full") == 1.0
    assert found.recovery("drop") == 0.0
    # An untouched LoRA costs nothing.
    np.testing.assert_allclose(found.nats["full, own"], found.nats["full"], atol=1e-5)
    assert {"gists", "lens", "random", "recent", "oracle"} <= set(found.nats)


def test_another_base_or_config_is_refused(base: FrozenBase, tmp_path: Path) -> None:
    cycle_run(base, tmp_path).run(turns_at_most=0)
    with pytest.raises(TrainingFailed, match="base"):
        cycle_run(random_base(SHAPE, seed=3), tmp_path).resume()
    with pytest.raises(TrainingFailed, match="config"):
        cycle_run(base, tmp_path, label_windows=4).resume()
    with pytest.raises(TrainingFailed, match="data: expected b, got"):
        CycleRun(config(), base, windows, held(), tmp_path, "b").resume()


def test_shards_that_are_missing_or_too_short_are_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"must hold val\.u16 or .u16.xz, got none"):
        held_out(config(), tmp_path)
    (tmp_path / "val.u16").write_bytes(np.ones(20, "<u2").tobytes())
    (tmp_path / "val.json").write_text(json.dumps({"documents": [["s", "d", "t", 0, 20]]}))
    with pytest.raises(InvalidArgument, match=f"a document of {CUT.window} tokens, got none"):
        held_out(config(), tmp_path)


def test_a_loss_that_is_not_finite_stops_before_anything_moves(base: FrozenBase) -> None:
    system = System(config(), base)
    before = system.state()["lens"]
    labels = [(torch.full((CUT.blocks, 8), float("nan")), torch.zeros(CUT.blocks))]
    with pytest.raises(TrainingFailed, match="finite"):
        turns.train_lens(system, Phase(2, 1e-2, 1), 2, labels, 0)
    assert all(torch.equal(p, before[n]) for n, p in system.lens.named_parameters())


def test_a_gradient_that_is_not_finite_stops_too() -> None:
    module = torch.nn.Linear(1, 1)
    before = module.weight.detach().clone()

    def steep(step: int) -> Tensor:
        return (module.weight - module.weight.detach()).sum().abs().sqrt()  # 0, its slope is not

    with pytest.raises(TrainingFailed, match=r"got 0\.0 and nan at step 0"):
        turns._turn("steep", module, Phase(1, 1e-2), 1, steep)
    assert torch.equal(module.weight, before)


def test_bad_configs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"raw_blocks must be 1\.\.3, got 4"):
        Cut(blocks=4, raw_blocks=4)
    with pytest.raises(InvalidArgument, match="frozen"):
        config(frozen=("base",))
    with pytest.raises(InvalidArgument, match="gate_windows must be at least 1, got 0"):
        config(gate_windows=0)
    with pytest.raises(InvalidArgument, match="steps and batch must be at least 1, got 0 and 4"):
        Phase(0, 1e-2)
    with pytest.raises(InvalidArgument, match="keys must be of"):
        from_values(CycleTraining, {"rounds": 3})
    text = "cut: {blocks: 8, raw_blocks: 2}\nlora: {steps: 5, lr: 0.1}\n"
    (tmp_path / "c.yaml").write_text(text)
    read = read_config(tmp_path / "c.yaml", frozen=["lens"])
    assert (read.cut.blocks, read.lora.steps, read.frozen) == (8, 5, ("lens",))


def test_the_lora_is_what_peft_loads(tmp_path: Path) -> None:
    import peft
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        )
    ).eval()  # fmt: skip
    base = base_from_model(model)
    lora = Lora(base.shape, 2)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.normal_(std=0.2)
    lora.save(tmp_path, "tiny")
    ids = windows(0, 1)[:, :20]
    ours = lora.applied(base)
    logits = ours.logits(ours.read(ids)[0])
    plain = model(ids).logits
    theirs = peft.PeftModel.from_pretrained(model, str(tmp_path))
    torch.testing.assert_close(theirs(ids).logits, logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(theirs.unload()(ids).logits, plain)
    assert not torch.allclose(logits, plain, atol=1e-2)


def test_a_report_compares_runs_window_by_window(base: FrozenBase, tmp_path: Path) -> None:
    for name, frozen in (("all", ()), ("without-gists", ("gists",))):
        cycle_run(base, tmp_path / name, cycles=1, frozen=frozen).run()
    report.main(
        [
            *("--run", f"all={tmp_path / 'all'}"),
            *("--run", f"without-gists={tmp_path / 'without-gists'}"),
            *("--out", str(tmp_path / "out")),
        ]
    )
    found = json.loads((tmp_path / "out/cycles.json").read_text())
    curves = [report.read_run(tmp_path / name) for name in ("all", "without-gists")]
    ends = [np.array(curve[-1]["windows"]["lens"]) for curve in curves]
    behind, low, high = found["without-gists"]["behind_nats"]
    assert behind == pytest.approx((ends[1] - ends[0]).mean())
    assert low <= behind <= high
    assert "behind_nats" not in found["all"]
    assert (tmp_path / "out/cycles.png").stat().st_size > 10_000
    assert (tmp_path / "out/cycles.md").read_text().count("\n") == 4
    (tmp_path / "all/curve.jsonl").write_text("")
    with pytest.raises(InvalidArgument, match="must hold a turn"):
        report.read_run(tmp_path / "all")
