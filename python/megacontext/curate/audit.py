"""The audit log: one line for every action, appended and synced before the action is done.

It lies with the rows that a compaction set aside in `MEMORY.curate/`. An entry holds the old state,
so that it can be restored; doing so twice, or of an action that a crash prevented, changes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacontext_ext.errors import Corruption, NotFound

_ERASED = "(erased)"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """`old` and `new` are states of the source; `rows` names the file of rows set aside."""

    number: int
    time: str
    actor: str
    action: str
    source: str
    partition: int
    old: dict[str, Any] = field(hash=False)
    new: dict[str, Any] = field(hash=False)
    reason: str = ""
    rows: str | None = None


class AuditLog:
    """The log of one memory. One writer."""

    def __init__(self, memory_path: str | os.PathLike[str]) -> None:
        self.folder = Path(f"{os.fspath(memory_path)}.curate")
        self._path = self.folder / "audit.jsonl"

    def entries(self) -> list[AuditEntry]:
        """All of them, oldest first. A torn last line, of an action that never began, is left out.

        Raises: Corruption for any other line that is no entry.
        """
        if not self._path.exists():
            return []
        lines = self._path.read_text("utf-8").split("\n")
        found = []
        for number, line in enumerate(lines[:-1], 1):
            try:
                found.append(AuditEntry(**json.loads(line)))
            except (TypeError, json.JSONDecodeError) as error:
                raise Corruption(
                    f"{self._path}:{number}: expected an entry, got {error}"
                ) from error
        return found

    def append(
        self,
        action: str,
        source: tuple[str, int],
        change: tuple[dict[str, Any], dict[str, Any]],
        *,
        actor: str,
        reason: str = "",
        rows: Mapping[str, NDArray[Any]] | None = None,
    ) -> AuditEntry:
        """Write an entry, and the rows that go with it, durably."""
        known = self.entries()
        number = known[-1].number + 1 if known else 1
        self.folder.mkdir(exist_ok=True)
        entry = AuditEntry(
            number=number,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            actor=actor,
            action=action,
            source=source[0],
            partition=source[1],
            old=change[0],
            new=change[1],
            reason=reason,
            rows=None if rows is None else f"rows-{number:06d}.npy",
        )
        if rows is not None:
            with (self.folder / str(entry.rows)).open("wb") as file:
                for value in rows.values():
                    np.save(file, value, allow_pickle=False)
                _sync(file)
        line = json.dumps(asdict(entry), ensure_ascii=False) + "\n"
        there = self._path.read_bytes() if self._path.exists() else b""
        with self._path.open("r+b" if there else "wb") as file:
            file.seek(there.rfind(b"\n") + 1)  # over a torn line
            file.truncate()
            file.write(line.encode("utf-8"))
            _sync(file)
        return entry

    def rows(self, entry: AuditEntry) -> dict[str, NDArray[Any]]:
        """Rows that a compaction set aside, by family. Raises: NotFound after a purge."""
        path = self.folder / str(entry.rows)
        if not path.exists():
            raise NotFound(
                f"[restore] rows of entry {entry.number} must be there, a purge took them"
            )
        with path.open("rb") as file:
            return {name: np.load(file, allow_pickle=False) for name in entry.old["families"]}

    def erase(self, source: str, *, rows_only: bool = False) -> None:
        """Remove rows set aside for a source and, where it was erased, its name."""
        entries = self.entries()
        for entry in entries:
            if entry.source == source and entry.rows is not None:
                (self.folder / entry.rows).unlink(missing_ok=True)
        if rows_only or all(entry.source != source for entry in entries):
            return
        fresh = self._path.with_suffix(".new")
        with fresh.open("wb") as file:
            for entry in entries:
                plain = asdict(entry)
                if entry.source == source:
                    plain |= {"source": _ERASED, "reason": "", "old": {}, "new": {}, "rows": None}
                file.write((json.dumps(plain, ensure_ascii=False) + "\n").encode("utf-8"))
            _sync(file)
        fresh.replace(self._path)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
