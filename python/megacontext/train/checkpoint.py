"""Checkpoints that are whole or absent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


class TrainingFailed(RuntimeError):
    """The run cannot go on; the last checkpoint is whole."""


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replaces `path` atomically; the old one stays whole if this fails or is killed.

    Raises: TrainingFailed when the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        # Half a file would only take the room that a full disk lacks.
        part.unlink(missing_ok=True)
        if isinstance(
            error, OSError | RuntimeError
        ):  # torch's writer tells a full disk by the latter
            raise TrainingFailed(
                f"{path}: could not be written ({error}); the last checkpoint is whole"
            ) from error
        raise
    part.replace(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `write_checkpoint` wrote, on the CPU."""
    return torch.load(path, map_location="cpu", weights_only=True)
