"""Training jobs for a base, sized to its shape: files that the trainers read as they are.

Sizes follow the runs that were measured on SmolLM2-135M (configs/train/): the same work a step, and
a learning rate that falls with the square root of the width. Beginnings, not optima.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import PretrainedConfig

from megacontext.config import K
from megacontext.models.port.arithmetic import BaseShape

# The measured run: width, layers, batch, learning rate.
_MEASURED_WIDTH, _MEASURED_LAYERS, _MEASURED_BATCH, _MEASURED_LR = 576, 30, 64, 2e-3
# Cuts of a window (weight, prefix, span, suffix, LOD), the longest last.
_LAYOUTS = ((4, 256, 512, 512, 1), (1, 0, 512, 512, 1), (1, 512, 256, 512, 1),
            (1, 128, 1024, 384, 2))  # fmt: skip
# Token shards hold 16-bit ids.
_SHARD_VOCABULARY = 1 << 16
# Numbers of a sketch at most, and the directions that are taken out of it (lens/sketch.py).
_SKETCH_WIDTH, _SHARED_DIRECTIONS = 192, 4

_GIST_HEAD = """# KV gists for {name}. Shards of text by tools/prepare_corpus.py come first.
#   python -m megacontext.train.kv_gists --config {file} \\
#     --base FOLDER --shards SHARDS --out RUN --export RUN/export
"""
_LENS_HEAD = """# Lens for {name}. Labels first, from the frozen base; then minutes of one core:
#   python -m megacontext.train.lens_labels --model FOLDER --out LABELS --split train
#   python -m megacontext.train.lens --model FOLDER --config {file} \\
#     --labels LABELS --out RUN --export RUN/export
"""


@dataclass(frozen=True)
class Jobs:
    """Files that were written, by kind ("kv_gists", "lens"), and why a kind has none."""

    files: dict[str, Path]
    reasons: dict[str, str]

    def lines(self) -> list[str]:
        """For a card: one line a kind."""
        made = [f"- {kind}: `train/{path.name}`" for kind, path in self.files.items()]
        return made + [f"- {kind}: none, {reason}" for kind, reason in self.reasons.items()]


def write_jobs(out: Path, name: str, config: PretrainedConfig) -> Jobs:
    """Write `out`/train/`name`-kv-gists.yaml and `name`-lens.yaml for the base of `config`."""
    shape, folder = BaseShape.of(config), out / "train"
    folder.mkdir(parents=True, exist_ok=True)
    jobs = Jobs({}, {})
    reason = no_gist_training(config)
    if reason:
        jobs.reasons["kv_gists"] = reason
    else:
        path = folder / f"{name}-kv-gists.yaml"
        _write(path, _GIST_HEAD, name, gist_job(shape))
        jobs.files["kv_gists"] = path
    path = folder / f"{name}-lens.yaml"
    _write(path, _LENS_HEAD, name, lens_job(shape))
    jobs.files["lens"] = path
    return jobs


def no_gist_training(config: PretrainedConfig) -> str:
    """Why the trainer of KV gists cannot read this base; empty when it can."""
    text: Any = config.get_text_config()
    if text.model_type != "llama":
        return f"the trainer reads bases of model_type llama, this is {text.model_type}"
    rope = (getattr(text, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope != "default":
        return f"the trainer reads default rotary positions, these are {rope}"
    if getattr(text, "attention_bias", False) or getattr(text, "mlp_bias", False):
        return "the trainer reads projections without biases"
    if text.vocab_size > _SHARD_VOCABULARY:
        return f"token shards hold 16-bit ids, the vocabulary has {text.vocab_size:,} tokens"
    return ""


def gist_job(shape: BaseShape) -> dict[str, Any]:
    """Values of a `train.config.GistTraining`."""
    size = shape.width * shape.layer_count / (_MEASURED_WIDTH * _MEASURED_LAYERS)
    batch = max(1, min(_MEASURED_BATCH, int(_MEASURED_BATCH / size)))
    lr = _MEASURED_LR * min(1.0, (_MEASURED_WIDTH / shape.width) ** 0.5)
    fitting = [cut for cut in _LAYOUTS if sum(cut[1:4]) < shape.trained_tokens]
    if not fitting:
        span = max(K, shape.trained_tokens // 2 // K * K)
        fitting = [(1, 0, span, shape.trained_tokens - span - 1, 1)]
    names = ("weight", "prefix", "span", "suffix", "lod")
    return {
        "layouts": [dict(zip(names, cut, strict=True)) for cut in fitting],
        "batch": 1 << (batch.bit_length() - 1),
        "students": 1,
        "rows": [1, 2, 4],
        "lr": float(f"{lr:.1e}"),
        "budget_minutes": 15.0,
        "budget_steps": None,
        "validate_every": 400,
        "min_document": min(512, shape.trained_tokens // 2),
    }


def lens_job(shape: BaseShape) -> dict[str, Any]:
    """Values of a `train.lens.LensTraining`."""
    return {
        "net": {
            "design": "cross",
            "row_width": min(_SKETCH_WIDTH, shape.width - _SHARED_DIRECTIONS),
        },
        "loop": {
            "steps": 1300, "accumulate": 4, "lr": 0.003, "warmup_steps": 40, "save_every": 100,
            "validate_every": 100,
        },
        "examples": {"best": 64, "random": 24},
        "train": {"reading": 2200, "two documents": 370, "needle": 50, "twin": 50},
        "validation": {"reading": 300, "two documents": 75, "needle": 20, "twin": 30},
    }  # fmt: skip


def _write(path: Path, head: str, name: str, values: dict[str, Any]) -> None:
    body = yaml.safe_dump(values, sort_keys=False)
    path.write_text(head.format(name=name, file=path.name) + body, encoding="utf-8")
