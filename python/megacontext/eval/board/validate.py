"""Is a leaderboard entry what its answers say? Faults in words, all of them, not the first alone.

Without the answers only the form is checked. With them every number is computed again; `deep` also
makes every example again from its seed and scores every answer anew, so that an edited answer, an
edited score and an edited question all show.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megacontext.eval.board.entry import FILE, SCHEMA, answer_hashes, make_entry, newest_rows
from megacontext.eval.long.example import CountTokens, ExampleRequest
from megacontext.eval.long.scorers import score
from megacontext.eval.long.summary import OUT_OF_COMPETITION
from megacontext.eval.long.tasks import TASKS, task
from megacontext_ext.errors import NotFound, Unsupported

# Faults named one by one; the rest is a number.
_SHOWN = 20


def validate(path: Path, count_tokens: CountTokens | None = None) -> list[str]:
    """Faults of the entry at `path` (a file, or a folder of a run); empty when there are none.

    With `count_tokens` (that of the entry's model) the check is deep: half a second an example.
    Raises: NotFound when there is no such entry.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise NotFound(f"[board] entry must be a file or a folder with {FILE}, got {path}")
    try:
        entry = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        return [f"{file.name}:{error.lineno}: not JSON: {error.msg}"]
    faults = list(_form(entry))
    if not faults:
        faults += _bounds(entry)
        if (file.parent / "manifest.json").is_file():
            faults += _against_answers(entry, file.parent)
            if count_tokens is not None:
                faults += _again(entry, file.parent, count_tokens)
    more = len(faults) - _SHOWN
    return faults[:_SHOWN] + ([f"and {more} more"] if more > 0 else [])


def _form(entry: Any) -> Iterator[str]:
    try:
        import jsonschema
    except ImportError:
        raise Unsupported(
            "[board] validation needs the package jsonschema: pip install 'megacontext[board]'"
        ) from None
    checker = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    for error in sorted(checker.iter_errors(entry), key=lambda e: list(map(str, e.path))):
        yield f"{'.'.join(map(str, error.path)) or 'entry'}: {error.message[:200]}"


def _bounds(entry: dict[str, Any]) -> Iterator[str]:
    seen: set[tuple[str, int, str]] = set()
    for cell in entry["cells"]:
        where = f"{cell['method']}, {cell['task']}, {cell['length']}"
        place = (cell["task"], cell["length"], cell["method"])
        if place in seen:
            yield f"{where}: stands twice"
        seen.add(place)
        if not cell["low"] <= cell["score"] <= cell["high"]:
            yield f"{where}: score {cell['score']} lies outside [{cell['low']}, {cell['high']}]"
        if cell["in_competition"] and cell["places"] > entry["budget_places"]:
            yield f"{where}: {cell['places']} places, the budget is {entry['budget_places']}"
        if cell["in_competition"] and cell["method"] in OUT_OF_COMPETITION:
            yield f"{where}: is never in competition"


def _against_answers(entry: dict[str, Any], folder: Path) -> Iterator[str]:
    for file, digest in _differences(entry["answers_sha256"], answer_hashes(folder)):
        yield f"{file}: {digest}"
    made = make_entry(folder, entry["name"], entry["system"])
    for part in ("model", "budget_places", "seed", "commands"):
        if made[part] != entry[part]:
            yield f"{part}: is {entry[part]!r}, the run has {made[part]!r}"
    told = {(c["task"], c["length"], c["method"]): c for c in entry["cells"]}
    found = {(c["task"], c["length"], c["method"]): c for c in made["cells"]}
    for place in sorted({*told, *found}):
        if told.get(place) != found.get(place):
            yield (
                f"{place[2]}, {place[0]}, {place[1]}: {_brief(told, place)}, the answers give "
                + (_brief(found, place))
            )
    examples: dict[tuple[str, int, int], str] = {}
    for row in newest_rows(folder):
        where = (row["task"], row["length"], row["index"])
        if examples.setdefault(where, row["example"]) != row["example"]:
            yield f"{row['method']}, {where}: answered another example than the others"


def _again(entry: dict[str, Any], folder: Path, count_tokens: CountTokens) -> Iterator[str]:
    """Examples made and answers scored anew. Left out: tasks from a user's own files, and those
    whose scorer runs what a model wrote."""
    last: tuple[tuple[str, int, int], Any] | None = None
    for row in newest_rows(folder):
        if row["task"] not in TASKS or row["status"] != "answered":
            continue
        where = (row["task"], row["length"], row["index"])
        if last is None or last[0] != where:
            length = max(row["length"], 256)
            request = ExampleRequest(length, row["index"], entry["seed"], count_tokens)
            last = (where, task(row["task"]).make(request))
        example = last[1]
        if example.digest[:16] != row["example"]:
            yield f"{row['method']}, {where}: the seed gives another example"
        elif abs(score(example, row["text"]) - row["score"]) > 1e-9:
            yield (
                f"{row['method']}, {where}: score {row['score']}, the scorer gives "
                f"{score(example, row['text'])}"
            )


def _differences(told: dict[str, str], found: dict[str, str]) -> Iterator[tuple[str, str]]:
    for file in sorted({*told, *found}):
        if file not in found:
            yield file, "is named by the entry and missing"
        elif file not in told:
            yield file, "is there and not named by the entry"
        elif told[file] != found[file]:
            yield file, f"expected sha256 {told[file][:16]}..., got {found[file][:16]}..."


def _brief(cells: dict[tuple[str, int, str], dict[str, Any]], place: tuple[str, int, str]) -> str:
    cell = cells.get(place)
    return "no such cell" if cell is None else f"{cell['score']} of {cell['n']}"
