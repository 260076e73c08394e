"""A leaderboard entry: what one folder of answers amounts to, in one file beside them.

Everything in an entry follows from the answers, so that it can be checked by making it again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from megacontext.eval.long.manifest import read_manifest
from megacontext.eval.long.runner import read_rows
from megacontext.eval.long.summary import OUT_OF_COMPETITION, Results
from megacontext_ext.errors import NotFound

FORMAT = "megacontext-board/1"
FILE = "board.json"
SCHEMA = Path(__file__).with_name("schema.json")


def make_entry(folder: Path, name: str, system: dict[str, str] | None = None) -> dict[str, Any]:
    """The entry of the run in `folder`. Raises NotFound without a run or without answers."""
    if not (folder / "manifest.json").is_file():
        raise NotFound(f"[board] folder must hold a run (manifest.json), {folder} does not")
    manifest = read_manifest(folder)
    settings = manifest["settings"]
    results = Results(tuple(newest_rows(folder)))
    version = str(manifest["packages"].get("megacontext"))
    return {
        "format": FORMAT,
        "name": name,
        "system": system or {"name": "megacontext", "version": version},
        "model": {"name": settings["model"], "identity": manifest["model_identity"]},
        "budget_places": settings["budget_places"],
        "seed": settings["seed"],
        "commands": [run["command"] for run in manifest.get("runs", [manifest])],
        "cells": cells(results),
        "answers_sha256": answer_hashes(folder),
    }


def write_entry(folder: Path, entry: dict[str, Any]) -> Path:
    path = folder / FILE
    path.write_text(json.dumps(entry, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def newest_rows(folder: Path) -> list[dict[str, Any]]:
    """Kept answers, the newest of each example and method, in a fixed order."""
    rows = read_rows(folder).values()
    newest = {(r["length"], r["task"], r["index"], r["method"]): r for r in rows}
    return [newest[place] for place in sorted(newest)]


def cells(results: Results) -> list[dict[str, Any]]:
    """Scores with their intervals by task, length and method, where every example was answered."""
    found = []
    for length in results.lengths:
        for task in results.tasks:
            for method in results.methods:
                wanted = {"task": task, "length": length, "method": method}
                score = results.score(**wanted)
                if score is None:
                    continue
                answered = results.answered(**wanted)
                found.append(
                    wanted
                    | {
                        "n": score.count,
                        "score": round(score.mean, 6),
                        "low": round(score.low, 6),
                        "high": round(score.high, 6),
                        "places": max(row["places"] for row in answered),
                        "ttft_s": results.median("ttft_s", **wanted),
                        "in_competition": method not in OUT_OF_COMPETITION,
                    }
                )
    return found


def answer_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of answers, by its path inside the folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("cells/*/*.jsonl"))
    }
