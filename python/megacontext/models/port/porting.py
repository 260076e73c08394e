"""One command from a checkpoint to a certified card: inspect, load, check, measure, write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig

from megacontext.models.catalog import locate
from megacontext.models.port.arithmetic import MILLION, BaseShape, parameter_count
from megacontext.models.port.checks import (
    CHECKS,
    Check,
    Subject,
    Verdict,
    checkpoint_subject,
    examine,
)
from megacontext.models.port.inspection import Inspection, inspect_checkpoint
from megacontext.models.port.jobs import write_jobs


@dataclass(frozen=True)
class Port:
    """The outcome. `files` were written; there are none when the checkpoint was refused."""

    inspection: Inspection
    verdicts: tuple[Verdict, ...] = ()
    description: dict[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    @property
    def reasons(self) -> list[str]:
        """Why the checkpoint is refused; empty when it is certified."""
        failed = [f"{v.check}: {v.detail}" for v in self.verdicts if v.status == "fail"]
        return [*self.inspection.refusals, *failed]


def port(
    source: str,
    out: Path,
    *,
    name: str | None = None,
    untrained: bool = False,
    checks: Mapping[str, Check] = CHECKS,
    say: Callable[[str], None] | None = None,
) -> Port:
    """Port the model that `source` names (a known name, a folder, a hub id) and write into `out`.

    `checks` are run in order; higher rooms add theirs (`megacontext.paged.certify`).

    A refused checkpoint writes nothing; `Port.reasons` says why. Raises: NotFound.
    """
    tell = say or (lambda _: None)
    folder = Path(locate(source, say))
    if not folder.is_dir():
        folder = _downloaded(source)
    tell(f"inspecting {folder.name}")
    inspection = inspect_checkpoint(folder)
    if not inspection.ok:
        return Port(inspection)
    tell("loading in float32")
    subject = checkpoint_subject(folder, trained=not untrained)
    tell("checking")
    verdicts = tuple(examine(subject, checks))
    described = describe(source, inspection, subject, verdicts)
    outcome = Port(inspection, verdicts, described)
    if outcome.reasons:
        return outcome
    out.mkdir(parents=True, exist_ok=True)
    stem = (name or Path(source).name).lower()
    config_file, card_file = out / f"{stem}.yaml", out / f"{stem}.md"
    config_file.write_text(yaml.safe_dump(described, sort_keys=False, allow_unicode=True))
    jobs = write_jobs(out, stem, AutoConfig.from_pretrained(inspection.folder))
    text = card(stem, described, verdicts, inspection.notes)
    card_file.write_text("\n".join([text, "Training jobs:", "", *jobs.lines(), ""]))
    return Port(inspection, verdicts, described, (config_file, card_file, *jobs.files.values()))


def describe(
    source: str, inspection: Inspection, subject: Subject, verdicts: tuple[Verdict, ...]
) -> dict[str, Any]:
    """What configs/models/<name>.yaml holds: shape, costs, statistics, jobs."""
    facts, shape = subject.base.facts, inspection.shape
    assert shape is not None
    positions = next((v.status for v in verdicts if v.check == "rotary_positions"), "pass")
    return {
        "model": source,
        "identity": facts.identity,
        "tokenizer_sha256": subject.base.tokenizer.hash,
        "chat_template": subject.base.tokenizer.has_chat_template,
        "shape": shape.plain(),
        "architecture": inspection.facts,
        "parameters": parameter_count(AutoConfig.from_pretrained(inspection.folder)),
        "positions": "rotary" if positions == "pass" else "absolute",
        "bytes_per_million_tokens": shape.bytes_per_million_tokens(),
        "embeddings": embedding_statistics(subject),
        "gists": {"rows": "embedding", "width": shape.width, "lods": 3, "places_per_node": 1},
        "lens": {"width": min(256, shape.width), "queries": "question tokens"},
        "checks": {v.check: v.status for v in verdicts},
    }


@torch.inference_mode()
def embedding_statistics(subject: Subject) -> dict[str, float]:
    """Norms and directions of the rows that the base reads, over 8,192 of its tokens.

    A gist has to lie where the base expects rows: its norm should be near `norm_mean`, and
    `mean_share` says how much of a row is the same for all tokens (anisotropy).
    """
    count = subject.base.facts.vocabulary_tokens
    tokens = torch.arange(0, count, max(1, count // 8192))
    rows = subject.base.embed(tokens).float()
    norms = rows.norm(dim=-1)
    return {
        "norm_mean": round(float(norms.mean()), 4),
        "norm_std": round(float(norms.std()), 4),
        "value_std": round(float(rows.std()), 4),
        "mean_share": round(float(rows.mean(dim=0).norm() / norms.mean()), 4),
    }


def card(
    name: str, described: dict[str, Any], verdicts: tuple[Verdict, ...], notes: tuple[str, ...]
) -> str:
    """The certificate as Markdown."""
    shape = described["shape"]
    lines = [
        f"# {name}",
        "",
        f"{described['parameters'] / 1e6:,.1f} M parameters, {shape['layer_count']} layers, width "
        f"{shape['width']}, {shape['head_count']} heads ({shape['kv_head_count']} of keys and "
        f"values), trained on {shape['trained_tokens']:,} tokens. Identity "
        f"`{described['identity']}`.",
        "",
        *(f"- {note}" for note in notes),
        "",
        verdict_table(verdicts),
        "",
        "| a million tokens as | MB |",
        "| :-- | --: |",
        *(
            f"| {row.replace('_', ' ')} | {count / MILLION:,.1f} |"
            for row, count in described["bytes_per_million_tokens"].items()
        ),
        "",
    ]
    return "\n".join(lines)


def verdict_table(verdicts: tuple[Verdict, ...] | list[Verdict]) -> str:
    """Checks with their verdicts as a Markdown table."""
    lines = ["| check | verdict | found |", "| :-- | :-- | :-- |"]
    for entry in verdicts:
        found = entry.detail.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {entry.check} | {entry.status} | {found} |")
    return "\n".join(lines)


def planned(config_file: Path) -> tuple[BaseShape, int]:
    """Shape and parameters of a ready-made configuration, from its `config` alone.

    No weights are needed, so this holds for models of any size.
    """
    stored = yaml.safe_load(config_file.read_text())["config"]
    config = AutoConfig.for_model(**stored)
    return BaseShape.of(config), parameter_count(config)


def _downloaded(source: str) -> Path:
    from huggingface_hub import snapshot_download

    # Only what is read here: never Python files, never pickles.
    return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))
