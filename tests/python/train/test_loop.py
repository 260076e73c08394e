"""The training loop: what was interrupted equals what was not, bit for bit; clear errors; the last
checkpoint is whole; two processes equal one."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from megacontext.train.loop import LoopConfig, TrainingFailed, TrainLoop
from megacontext.train.track import CURVE, draw_curves, open_tracker, read_curve
from megacontext_ext.errors import InvalidArgument, NotFound

CONFIG = LoopConfig(steps=12, accumulate=3, warmup_steps=2, save_every=4)


class Net(nn.Module):
    """Two layers and dropout: it draws from the global random state, as models do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Dropout(0.1), nn.Linear(9, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def item_loss(model, item, generator):
    x = torch.randn(4, 6, generator=generator) + item / 10
    loss = (model(x) - x.sum(dim=1, keepdim=True)).square().mean()
    return loss, {"spread": float(x.std())}


def loop(out: Path, **changes) -> TrainLoop:
    values = {"config": CONFIG, "item_count": 7, "provenance": {"tokenizer": "a"}, **changes}
    return TrainLoop(model=Net(), item_loss=item_loss, out=out, **values)


def parameters(run: TrainLoop) -> list[torch.Tensor]:
    return [p.detach().clone() for p in run.model.parameters()]


def test_an_interrupted_run_gives_the_bits_of_one_that_was_not(tmp_path):
    whole = loop(tmp_path / "whole")
    whole.run()
    for steps in (5, 3, 9):  # stops between checkpoints, and asks for more than is left
        part = loop(tmp_path / "parts")
        if part.resume():
            torch.rand(11)  # what other code draws does not matter: the state is restored
            part.resume()
        part.run(steps)
    assert part.step == whole.step == 12
    assert part.position == whole.position == 36
    for one, other in zip(parameters(whole), parameters(part), strict=True):
        assert torch.equal(one, other)
    curves = [read_curve(tmp_path / name) for name in ("whole", "parts")]
    assert curves[0] == curves[1]
    assert [row["step"] for row in curves[0]] == list(range(1, 13))


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path):
    whole = loop(tmp_path / "whole")
    whole.run()
    killed = loop(tmp_path / "killed")
    for _ in range(6):
        killed.train_step()
        if killed.step == 4:
            killed.save()
    again = loop(tmp_path / "killed")
    assert again.resume()
    assert again.step == 4
    again.run()
    for one, other in zip(parameters(whole), parameters(again), strict=True):
        assert torch.equal(one, other)


def test_accumulated_items_are_a_mean_over_them(tmp_path):
    config = LoopConfig(steps=1, accumulate=7, clip=1e9)
    run = loop(tmp_path, config=config)
    run.model.eval()
    expected = Net().eval()
    losses = [
        item_loss(expected, run.item_at(n), torch.Generator().manual_seed(n))[0] for n in range(7)
    ]
    torch.stack(losses).mean().backward()
    run.train_step()
    for one, other in zip(run.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_every_epoch_reads_every_item_once_in_another_order(tmp_path):
    run = loop(tmp_path)
    epochs = [[run.item_at(7 * epoch + n) for n in range(7)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_loss_that_is_not_finite_is_told_and_changes_nothing(tmp_path):
    def poisoned(model, item, generator):
        loss, values = item_loss(model, item, generator)
        return loss * (float("nan") if item == 3 else 1.0), values

    run = loop(tmp_path)
    run.save()
    run.item_loss = poisoned
    while 3 not in [run.item_at(run.position + n) for n in range(3)]:
        run.train_step()
    before = parameters(run)
    with pytest.raises(TrainingFailed, match=r"loss must be finite, got nan at step \d+, item 3"):
        run.train_step()
    for one, other in zip(before, parameters(run), strict=True):
        assert torch.equal(one, other)
    assert loop(tmp_path).resume()


def test_an_empty_shard_and_bad_knobs_are_refused(tmp_path):
    with pytest.raises(InvalidArgument, match="at least 1 item, got 0: an empty shard"):
        loop(tmp_path, item_count=0)
    with pytest.raises(InvalidArgument, match="accumulate must be at least 1, got 0"):
        LoopConfig(accumulate=0)
    with pytest.raises(InvalidArgument, match="ddp needs at least 2 processes"):
        loop(tmp_path, config=LoopConfig(parallel="ddp"))


def test_a_checkpoint_of_another_tokenizer_or_seed_is_refused(tmp_path):
    loop(tmp_path).run(1)
    with pytest.raises(TrainingFailed, match="tokenizer: expected b, got a"):
        loop(tmp_path, provenance={"tokenizer": "b"}).resume()
    with pytest.raises(TrainingFailed, match="seed: expected 9, got 0"):
        loop(tmp_path, config=LoopConfig(steps=12, seed=9)).resume()


def test_a_full_disk_is_told_and_the_last_checkpoint_is_whole(tmp_path):
    """The limit on file size makes the real writer fail half way, as a full disk does."""
    run = loop(tmp_path)
    run.run(2)
    run.train_step()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        with pytest.raises(TrainingFailed, match="could not be written"):
            run.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.glob("checkpoint*")] == ["checkpoint.pt"]
    again = loop(tmp_path)
    assert again.resume()
    assert again.step == 2


def test_a_resumed_curve_drops_what_was_behind_the_checkpoint(tmp_path):
    tracker = open_tracker("jsonl", tmp_path)
    for step in (1, 2, 3):
        tracker.log(step, {"loss": float(step)})
    tracker.close()
    tracker = open_tracker("jsonl", tmp_path, resume_step=2)
    tracker.log(3, {"loss": 9.0})
    tracker.close()
    lines = (tmp_path / CURVE).read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [1.0, 2.0, 9.0]
    assert draw_curves(tmp_path, tmp_path / "curves.png").stat().st_size > 1000


def test_an_unknown_tracker_and_an_empty_curve_are_told(tmp_path):
    with pytest.raises(InvalidArgument, match="jsonl, tensorboard, got 'paper'"):
        open_tracker("paper", tmp_path)
    with pytest.raises(NotFound, match="at least one row"):
        draw_curves(tmp_path, tmp_path / "curves.png")


def test_tensorboard_writes_events_or_says_what_to_install(tmp_path):
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(NotFound, match=r"megacontext\[track\]"):
            open_tracker("tensorboard", tmp_path)
        return
    tracker = open_tracker("tensorboard", tmp_path)
    tracker.log(1, {"loss": 2.0})
    tracker.close()
    (events,) = tmp_path.glob("events.out.*")
    assert b"loss" in events.read_bytes()


_WORKER = """
    import sys
    from pathlib import Path
    import torch
    sys.path.insert(0, {here!r})
    from test_loop import Net, item_loss
    from megacontext.train.loop import LoopConfig, TrainLoop
    from megacontext.train.parallel import joined_processes
    torch.set_num_threads(1)

    def train(kind):
        config = LoopConfig(steps=6, accumulate=2, warmup_steps=2, save_every=3, parallel=kind)
        for steps in (3, 3):  # the second goes on from the first one's checkpoint
            run = TrainLoop(config, Net().eval(), 7, item_loss, Path({out!r}) / kind)
            run.resume()
            run.run(steps)
        whole = run.whole_model()
        if run.rank == 0:
            torch.save(whole.state_dict(), run.out / "whole.pt")

    with joined_processes():
        train("ddp")
        train("fsdp")
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """DDP and FSDP2 with two gloo processes, against one process that accumulates twice as much."""
    config = LoopConfig(steps=6, accumulate=4, warmup_steps=2, save_every=3)
    single = TrainLoop(config, Net().eval(), 7, item_loss, tmp_path / "single")
    single.run()
    script = tmp_path / "worker.py"
    here = str(Path(__file__).parent)
    script.write_text(textwrap.dedent(_WORKER).format(here=here, out=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
               "--master-port", str(20000 + os.getpid() % 20000), str(script)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    wanted = dict(single.model.named_parameters())
    for kind in ("ddp", "fsdp"):
        state = torch.load(tmp_path / kind / "checkpoint.pt", weights_only=True)
        assert state["step"] == 6
        assert state["position"] == single.position
        assert state["parameters"].keys() == wanted.keys()
        for name, parameter in wanted.items():
            torch.testing.assert_close(
                state["parameters"][name], parameter.detach(), rtol=1e-5, atol=1e-6
            )
        whole = torch.load(tmp_path / kind / "whole.pt", weights_only=True)
        assert whole.keys() == wanted.keys()
        assert all(torch.equal(whole[name], state["parameters"][name]) for name in wanted)
