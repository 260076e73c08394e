"""A reader that remembers what it read: the same passages for the same question are read once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megacontext.lens import QuestionReader
from megacontext.models import FrozenBase, TokenArray


class KeptReader(QuestionReader):
    """A QuestionReader over one file of JSON lines; what another base read is kept apart. One
    thread."""

    def __init__(self, base: FrozenBase, path: Path) -> None:
        super().__init__(base)
        self._identity = base.facts.identity
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # killed while the last line was written
            path.write_text(whole)
        self._known: dict[str, list[list[float]]] = dict(map(json.loads, whole.splitlines()))
        self._path = path

    def log_likelihood(self, question: str, passages: Sequence[TokenArray]) -> NDArray[np.float32]:
        """As QuestionReader's, rounded to 1/10,000 nat."""
        digest = hashlib.sha256(f"{self._identity}|{question}".encode())
        for passage in passages:
            digest.update(b"|" + passage.astype(np.uint32).tobytes())
        key = digest.hexdigest()[:24]
        if key not in self._known:
            found = super().log_likelihood(question, passages)
            self._known[key] = np.round(found.astype(np.float64), 4).tolist()
            with self._path.open("a") as file:
                file.write(json.dumps([key, self._known[key]]) + "\n")
        return np.array(self._known[key], dtype=np.float32)
