"""Where a run's numbers go: JSON lines by default, TensorBoard where it is installed."""

from __future__ import annotations

import importlib.util
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from megacontext_ext.errors import InvalidArgument, NotFound

CURVE = "curve.jsonl"


class Tracker(Protocol):
    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One object a line in `folder`/curve.jsonl. A resumed run drops what lies behind its step."""

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / CURVE
        kept = [row for row in read_curve(folder) if row["step"] <= resume_step]
        self._file = self.path.open("w")
        for row in kept:
            self._file.write(json.dumps(row) + "\n")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Event files for `tensorboard --logdir`. Needs the extra megacontext[track]."""

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise NotFound(
                "[track] tensorboard must be installed: pip install 'megacontext[track]'"
            )
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=resume_step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


_TRACKERS: dict[str, Callable[[Path, int], Tracker]] = {
    "jsonl": JsonLines,
    "tensorboard": TensorBoard,
}


def open_tracker(name: str, folder: Path, resume_step: int = 0) -> Tracker:
    """The tracker called `name`. Raises: InvalidArgument for another name, NotFound when what it
    needs is not installed."""
    if name not in _TRACKERS:
        known = ", ".join(_TRACKERS)
        raise InvalidArgument(f"[track] tracker must be one of {known}, got {name!r}")
    return _TRACKERS[name](folder, resume_step)


def read_curve(folder: Path) -> list[dict[str, float]]:
    """Rows of a folder's curve, none where there is none yet."""
    path = folder / CURVE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def draw_curves(folder: Path, path: Path) -> Path:
    """Every number of a run over its steps, PNG; one panel a number. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in read_curve(folder):
        for name, value in row.items():
            if name != "step":
                series[name].append((row["step"], value))
    if not series:
        raise NotFound(f"[track] {folder / CURVE} must hold at least one row, got none")
    figure, panels = plt.subplots(1, len(series), figsize=(3.4 * len(series), 2.8), squeeze=False)
    for panel, (name, points) in zip(panels[0], sorted(series.items()), strict=True):
        panel.plot(*zip(*points, strict=True), linewidth=1)
        panel.set_title(name)
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
