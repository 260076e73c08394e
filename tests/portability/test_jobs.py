"""The training jobs that porting writes: read by the trainers' own loaders, and run for a step."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from transformers import AutoConfig

sys.path.insert(0, str(Path(__file__).resolve().parent))

from families import FAMILIES, tokenizer

from megacontext.eval.lens.histories import open_history
from megacontext.eval.lens.streams import Stream, StreamQuestion
from megacontext.gists.base import shape_from_config
from megacontext.lens import Sketcher
from megacontext.lens.net import LensNet
from megacontext.models.port.jobs import no_gist_training, write_jobs
from megacontext.train import kv_gists, lens
from megacontext.train.config import read_config
from megacontext.train.lens_examples import make_examples
from megacontext.train.values import from_values

pytestmark = pytest.mark.portability

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs" / "models").glob("*.yaml"))
SMOLLM2 = next(family for family in FAMILIES if family.name == "smollm2")


def _lens(path: Path) -> lens.LensTraining:
    return from_values(lens.LensTraining, yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_jobs_of_every_configuration_are_read_by_the_trainers(path, tmp_path):
    stored = yaml.safe_load(path.read_text())["config"]
    config = AutoConfig.for_model(**stored)
    jobs = write_jobs(tmp_path, path.stem, config)
    assert _lens(jobs.files["lens"]).net.row_width == 192  # all of them are wider
    if "kv_gists" in jobs.files:
        job = read_config(jobs.files["kv_gists"])
        assert job.window <= config.max_position_embeddings
        assert 1 <= job.batch <= 64
        assert shape_from_config(config).vocab <= 1 << 16
    else:
        assert jobs.reasons["kv_gists"] in "\n".join(jobs.lines())


def test_smollm2_gets_the_measured_sizes_and_others_a_reason(tmp_path):
    held = {path.stem: yaml.safe_load(path.read_text())["config"] for path in CONFIGS}
    reasons = {name: no_gist_training(AutoConfig.for_model(**c)) for name, c in held.items()}
    assert reasons["smollm2-135m"] == ""
    assert "reads default rotary positions, these are llama3" in reasons["llama-3.1-8b"]
    assert "model_type llama, this is gemma3_text" in reasons["gemma-3-270m"]
    jobs = write_jobs(tmp_path, "x", AutoConfig.for_model(**held["smollm2-135m"]))
    job = read_config(jobs.files["kv_gists"])
    assert (job.batch, job.lr, job.rows) == (64, 2e-3, (1, 2, 4))
    wide = read_config(
        write_jobs(tmp_path, "y", AutoConfig.for_model(**held["llama-2-7b"])).files["kv_gists"]
    )
    assert (wide.batch, wide.lr) == (8, 7.5e-4)


def test_gist_job_takes_a_step_on_a_ported_base(tmp_path):
    base = SMOLLM2.base()
    base.model.save_pretrained(tmp_path / "base")
    job = write_jobs(tmp_path, "tiny", base.model.config).files["kv_gists"]
    ids = np.random.default_rng(0).integers(1, 512, 40_000).astype("<u2")
    ids[::5_000] = 0
    (tmp_path / "train-00.u16").write_bytes(ids.tobytes())
    kv_gists.main(
        ["--config", str(job), "--base", str(tmp_path / "base"), "--shards", str(tmp_path),
         "--out", str(tmp_path / "run"), "--export", str(tmp_path / "export"), "--steps", "1",
         "--batch", "2", "--device", "cpu", "--dtype", "float32"]
    )  # fmt: skip
    assert (tmp_path / "export" / "adapter.safetensors").is_file()


def test_lens_job_takes_a_step_on_a_ported_base(tmp_path):
    base = SMOLLM2.base()
    job = write_jobs(tmp_path, "tiny", base.model.config).files["lens"]
    fact = "The captain of the ship Astrid is Marlowe. "
    noise = "The harbour master read a number aloud and the crew kept a log. " * 30
    asked = StreamQuestion(
        "reading", "Who commands the Astrid?", "Marlowe", (("a", len(noise)),), "a"
    )
    stream = Stream("train", {"a": noise + fact + noise}, [asked])
    held = open_history(stream, tmp_path / "histories", base)
    config = _lens(job)
    assert config.net.row_width == Sketcher(base).width
    examples = make_examples(held, stream.questions, config.examples)
    net = LensNet(config.net, config.loop.seed)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    loop = lens.make_loop(config, net, examples, [], (held.sketcher, tmp_path / "run", {}))
    loop.run(1)
    assert loop.step == 1
    assert any(not (a == b).all() for a, b in zip(before, net.parameters(), strict=True))


def test_cards_name_the_jobs(tmp_path):
    from megacontext.models.port import port

    SMOLLM2.base().model.save_pretrained(tmp_path / "tiny")
    tokenizer(SMOLLM2.tokenizer).save_pretrained(tmp_path / "tiny")
    outcome = port(str(tmp_path / "tiny"), tmp_path / "out", untrained=True, checks={})
    assert [path.name for path in outcome.files] == [
        "tiny.yaml", "tiny.md", "tiny-kv-gists.yaml", "tiny-lens.yaml"
    ]  # fmt: skip
    assert "- kv_gists: `train/tiny-kv-gists.yaml`" in outcome.files[1].read_text()
