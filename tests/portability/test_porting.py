"""Porting: a good checkpoint is certified, a broken one is refused with the right reason."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parent))

import rehearsals
from families import FAMILIES, tokenizer

from megacontext.models import TextTokenizer, TransformersBase, load
from megacontext.models.port import CHECKS, Subject, inspect_checkpoint, port
from megacontext.models.port.arithmetic import BaseShape, parameter_count
from megacontext.models.port.checks import verdict
from megacontext.models.port.command import app
from megacontext.models.port.porting import planned
from megacontext.models.port.rehearsal import shrunk
from megacontext_ext.errors import NotFound

pytestmark = pytest.mark.portability

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "models"
LOADABLE = [f for f in FAMILIES if f.name != "qwen2_vl_text"]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "tiny-llama"
    _save(next(f for f in FAMILIES if f.name == "llama3"), folder)
    return folder


@pytest.fixture
def broken(good, tmp_path) -> Path:
    return shutil.copytree(good, tmp_path / "broken")


def _save(family, folder: Path) -> None:
    family.base().model.save_pretrained(folder)
    tokenizer(family.tokenizer).save_pretrained(folder)


def _edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("family", LOADABLE, ids=lambda f: f.name)
def test_family_goes_from_a_folder_to_a_card(family, tmp_path):
    folder = tmp_path / family.name
    _save(family, folder)
    outcome = port(str(folder), tmp_path / "out", untrained=True)
    assert outcome.reasons == []
    written = yaml.safe_load(outcome.files[0].read_text())
    assert written["shape"]["width"] == 48
    assert written["positions"] == ("absolute" if family.name == "gpt2" else "rotary")
    assert written["checks"]["plain_forward"] == "pass"
    assert written["bytes_per_million_tokens"]["tokens_u32"] == 4_000_000
    assert "| plain_forward | pass |" in outcome.files[1].read_text()


def test_untrained_weights_are_refused_unless_they_were_announced(good, tmp_path):
    outcome = port(str(good), tmp_path / "out")
    assert len(outcome.reasons) == 1
    assert "reads_text: plain English costs" in outcome.reasons[0]
    assert not (tmp_path / "out").exists()


def test_weights_with_nan_are_refused_by_name(broken):
    path = broken / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    weights["model.norm.weight"][0] = torch.inf
    save_file(weights, path, {"format": "pt"})
    (reason,) = inspect_checkpoint(broken).refusals
    assert "1 values of model.layers.1.mlp.up_proj.weight and 1 more are NaN" in reason


def test_tokenizer_of_another_model_is_refused(broken):
    state = json.loads((broken / "tokenizer.json").read_text())
    state["model"]["vocab"]["far"] = 70_000
    (broken / "tokenizer.json").write_text(json.dumps(state))
    (reason,) = inspect_checkpoint(broken).refusals
    assert reason == "wrong tokenizer: its largest token is 70000, the base has 512 rows"


def test_tokenizer_that_is_far_too_small_is_refused(broken):
    state = json.loads((broken / "tokenizer.json").read_text())
    kept = dict(list(state["model"]["vocab"].items())[:100])
    state["model"] |= {"vocab": kept, "merges": []}
    (broken / "tokenizer.json").write_text(json.dumps(state))
    (reason,) = inspect_checkpoint(broken).refusals
    assert "wrong tokenizer: it has 100 tokens" in reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"auto_map": {"AutoModel": "modeling.My"}}, "asks for code of its own"),
        ({"model_type": "my-own"}, "knows no model_type 'my-own'"),
        ({"model_type": "mamba"}, "unsupported attention"),
        ({"model_type": "t5"}, "unsupported attention: an encoder-decoder"),
        ({"model_type": "bert"}, "every token of this model sees those after it"),
        ({"model_type": "clip"}, "no causal language model for model_type 'clip'"),
        ({"num_attention_heads": 5}, "is not a multiple of the number of attention heads (5)"),
    ],
)
def test_configuration_that_cannot_be_a_base_is_refused(broken, changes, reason):
    _edit(broken / "config.json", **changes)
    refusals = inspect_checkpoint(broken, weights=False).refusals
    assert reason in refusals[0]


def test_python_files_are_refused_and_never_run(broken):
    (broken / "modeling_mine.py").write_text("raise SystemExit('was run')")
    (reason,) = inspect_checkpoint(broken).refusals
    assert "modeling_mine.py" in reason


def test_tokenizer_with_code_of_its_own_is_refused(broken):
    _edit(broken / "tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.Tokenizer", None]})
    (reason,) = inspect_checkpoint(broken).refusals
    assert "tokenizer_config.json asks for code of its own" in reason


def _with_nan(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _with_a_far_token(folder: Path) -> None:
    state = json.loads((folder / "tokenizer.json").read_text())
    state["model"]["vocab"]["far"] = 70_000
    (folder / "tokenizer.json").write_text(json.dumps(state))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_with_nan, "1 values of model.norm.weight are NaN or infinite"),
        (_with_a_far_token, "wrong tokenizer: its largest token is 70000"),
        (lambda f: _edit(f / "config.json", model_type="mamba"), "unsupported attention"),
        (lambda f: (f / "mine.py").write_text("raise SystemExit"), "remote code is never run"),
    ],
    ids=["nan weights", "wrong tokenizer", "unsupported attention", "remote code"],
)
def test_command_refuses_a_broken_model_with_a_reason_and_writes_nothing(
    broken, tmp_path, damage, reason
):
    damage(broken)
    out = tmp_path / "out"
    told = CliRunner().invoke(app, ["--untrained", str(broken), "--out", str(out)])
    assert told.exit_code == 1
    assert "refused: " in told.output
    assert reason in told.output
    assert not out.exists()


@pytest.mark.smollm2
def test_tokenizer_of_the_right_size_with_other_tokens_is_told_by_its_text():
    base = load("smollm2", dtype="float32")
    assert verdict(CHECKS["reads_text"], Subject(base)).status == "pass"
    shuffled = Subject(TransformersBase(base.model, _shuffled(base.tokenizer), "shuffled"))
    found = verdict(CHECKS["reads_text"], shuffled)
    assert found.status == "fail"
    assert "another model's tokenizer" in found.detail


def _shuffled(real: TextTokenizer) -> Any:
    """The same vocabulary in another order: nothing but the text that comes out tells."""
    order = np.random.default_rng(0).permutation(real.vocabulary_tokens).astype(np.uint32)

    class Shuffled:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def encode(self, text: str) -> Any:
            return order[real.encode(text)]

    return Shuffled()


def test_layers_without_keys_are_refused(broken):
    _edit(
        broken / "config.json", model_type="qwen3_next", layer_types=["linear_attention"] * 4,
    )  # fmt: skip
    assert "linear_attention" in inspect_checkpoint(broken, weights=False).refusals[0]


def test_pickled_weights_are_not_opened(broken):
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    (reason,) = inspect_checkpoint(broken).refusals
    assert "pytorch_model.bin are not opened" in reason


def test_torn_weights_are_refused(broken):
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    (reason,) = inspect_checkpoint(broken).refusals
    assert "model.safetensors cannot be read" in reason


def test_folder_without_tokenizer_is_refused(broken):
    (broken / "tokenizer.json").unlink()
    assert "no tokenizer.json" in inspect_checkpoint(broken).refusals[0]


def test_folder_without_configuration_is_not_found(tmp_path):
    with pytest.raises(NotFound, match=r"config\.json"):
        inspect_checkpoint(tmp_path)


def test_good_checkpoint_is_not_refused(good):
    found = inspect_checkpoint(good)
    assert found.refusals == ()
    assert found.facts["rope"] == "llama3"
    assert found.shape.kv_values_per_token == 2 * 4 * 2 * 8


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_ready_made_configuration_follows_from_its_architecture(path):
    written = yaml.safe_load(path.read_text())
    shape, parameters = planned(path)
    assert written["parameters"] == parameters
    assert written["bytes_per_million_tokens"] == shape.bytes_per_million_tokens()
    assert written["gists"]["width"] == shape.width


# Parameter counts that their makers published.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-3.1-8b", 8_030_261_248), ("llama-3.3-70b", 70_553_706_496),
        ("mixtral-8x7b", 46_702_792_704), ("qwen3-8b", 8_190_735_360),
        ("gemma-2-9b", 9_241_705_984), ("phi-3-mini-4k", 3_821_079_552), ("gpt2", 124_439_808),
    ],
)  # fmt: skip
def test_ready_made_configuration_has_the_published_size(name, parameters):
    assert yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["parameters"] == parameters


# Scaled rotary positions; windows with soft caps; absolute positions. 6 s of one core each.
@pytest.mark.parametrize("name", ["llama-3.3-70b", "gemma-2-9b", "gpt2"])
def test_configuration_goes_to_a_card_by_one_command(name, tmp_path, capsys):
    from megacontext.cli.main import app as megacontext

    with pytest.raises(SystemExit) as ended:
        megacontext(["port", str(CONFIGS / f"{name}.yaml"), "--out", str(tmp_path)])
    assert ended.value.code == 0, capsys.readouterr()
    card = (tmp_path / f"{name}.md").read_text()
    assert "Not certified: the real weights and tokenizer" in card
    assert "| plain_forward | pass |" in card
    paged = "degraded" if name == "gpt2" else "pass"
    assert f"| paged_memory | {paged} |" in card
    assert f"- lens: `train/{name}-lens.yaml`" in card
    assert (tmp_path / "train" / f"{name}-lens.yaml").is_file()


def test_page_of_configurations_has_all_of_them_and_their_facts():
    rows = rehearsals.committed_rows()
    assert list(rows) == [path.stem for path in sorted(CONFIGS.glob("*.yaml"))]
    for path in sorted(CONFIGS.glob("*.yaml")):
        assert rows[path.stem].startswith("| " + " | ".join(rehearsals.facts(path)) + " | ")
        assert rows[path.stem].endswith(f" | {rehearsals.job(path)} |")


# Layers without positions, experts: the others are those above, or differ from them in size alone.
@pytest.mark.parametrize("name", ["smollm3-3b", "mixtral-8x7b"])
def test_page_of_configurations_says_what_comes_out(name, tmp_path):
    found = rehearsals.rehearsed(CONFIGS / f"{name}.yaml", tmp_path)
    assert found.card is not None
    assert rehearsals.committed_rows()[name] == found.row()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_twin_is_small_and_keeps_the_kinds(path):
    stored = yaml.safe_load(path.read_text())["config"]
    real, small = planned(path)[0], BaseShape.of(shrunk(stored))
    assert parameter_count(shrunk(stored)) < 12_000_000
    assert small.head_width == real.head_width
    assert (small.sliding_window > 0) == (real.sliding_window > 0)
    assert (small.experts > 0) == (real.experts > 0)
    assert (small.kv_head_count < small.head_count) == (real.kv_head_count < real.head_count)


def test_bytes_of_a_million_tokens_worked_by_hand():
    shape = BaseShape("x", 62, 3, 4, 2, 8, 100, 512, 0, 0)
    rows = shape.bytes_per_million_tokens()
    assert shape.kv_values_per_token == 96
    assert rows["embedding_gists_bf16"] == 4_000_000
    assert rows["kv_pages_bf16"] == 192_000_000
    assert rows["kv_gists_bf16"] == round(1e6 / 31 * 2 * (96 + 6))
