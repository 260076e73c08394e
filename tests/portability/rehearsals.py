"""The table of what came of every ready-made configuration: a twin of each, checked by the command.

python tests/portability/rehearsals.py      writes configs/models/README.md, about two minutes
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml
from transformers import AutoConfig

from megacontext.models.port.arithmetic import BaseShape
from megacontext.models.port.checks import CHECKS, Verdict
from megacontext.models.port.jobs import no_gist_training
from megacontext.models.port.rehearsal import rehearse
from megacontext.paged.certify import PAGED_CHECKS

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "models"
TABLE = CONFIGS / "README.md"
ALL_CHECKS = CHECKS | PAGED_CHECKS
_HEAD = (
    "configuration", "parameters", "layers", "KV GB", "checks passed", "degraded", "KV gist job",
)  # fmt: skip
_INTRODUCTION = f"""# Ready-made configurations

For models that need not be at hand: architecture, parameters, bytes per million tokens, jobs.

```
megacontext port configs/models/qwen3-8b.yaml --out cards     a twin of it, from nothing to a card
megacontext port FOLDER                                       the model itself, once it is there
```

The table is what the first command finds for each (`python tests/portability/rehearsals.py`): a
small twin with random weights against all {len(ALL_CHECKS)} checks. `reads_text` is always degraded
(nothing is asked of the text of random weights) and not named. KV GB: keys and values of a million
tokens in bfloat16.
"""


@dataclass(frozen=True)
class Rehearsal:
    """What the command found; `card` is None when it refused."""

    path: Path
    verdicts: tuple[Verdict, ...]
    card: Path | None

    def row(self) -> str:
        passed = sum(v.status == "pass" for v in self.verdicts)
        less = [
            f"{v.check} ({v.detail.partition(';')[0]})"
            for v in self.verdicts
            if v.status != "pass" and v.check != "reads_text"
        ]
        cells = (*facts(self.path), f"{passed} of {len(self.verdicts)}", "; ".join(less) or "-")
        return "| " + " | ".join((*cells, job(self.path))) + " |"


def facts(path: Path) -> tuple[str, ...]:
    """The cells that follow from the configuration alone."""
    written = yaml.safe_load(path.read_text())
    shape = BaseShape.of(AutoConfig.for_model(**written["config"]))
    kept = shape.bytes_per_million_tokens()["kv_pages_bf16"] / 1e9
    return path.stem, f"{written['parameters'] / 1e9:.2f} B", str(shape.layer_count), f"{kept:,.0f}"


def job(path: Path) -> str:
    """Whether the trainer of KV gists reads it, or why not."""
    config = AutoConfig.for_model(**yaml.safe_load(path.read_text())["config"])
    return no_gist_training(config) or "yes"


def rehearsed(path: Path, out: Path) -> Rehearsal:
    verdicts, card = rehearse(path, out, checks=ALL_CHECKS)
    return Rehearsal(path, tuple(verdicts), card)


def committed_rows() -> dict[str, str]:
    """Lines of the page by configuration."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines[2:]}


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as out:
        for path in sorted(CONFIGS.glob("*.yaml")):
            found = rehearsed(path, Path(out))
            rows.append(found.row())
            print(rows[-1], "" if found.card else "REFUSED", flush=True)
            for verdict in found.verdicts:
                if verdict.status == "fail":
                    print(f"    {verdict.check}: {verdict.detail}", file=sys.stderr)
    head = "| " + " | ".join(_HEAD) + " |\n| :-- | --: | --: | --: | --: | :-- | :-- |"
    TABLE.write_text(_INTRODUCTION + "\n" + "\n".join((head, *rows)) + "\n")


if __name__ == "__main__":
    main()
