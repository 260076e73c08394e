"""The leaderboard page: entries side by side, made from their files alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megacontext.eval.board.entry import FILE
from megacontext.eval.long.document import (
    Block,
    Heading,
    Paragraph,
    Table,
    write_html,
    write_markdown,
)
from megacontext.eval.long.figures import length_name
from megacontext_ext.errors import InvalidArgument, NotFound

TITLE = "Long histories: leaderboard"


def read_entries(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Entries of files, of folders of a run, or of all runs below a folder, by name.

    Raises: NotFound when there is none, InvalidArgument for one name twice.
    """
    files: dict[Path, None] = {}
    for path in paths:
        files |= dict.fromkeys(sorted(path.rglob(FILE)) if path.is_dir() else [path])
    if not files:
        raise NotFound(f"[board] no {FILE} at {', '.join(map(str, paths))}")
    entries: dict[str, dict[str, Any]] = {}
    for file in files:
        entry = json.loads(file.read_text(encoding="utf-8"))
        if entry["name"] in entries:
            raise InvalidArgument(f"[board] name must be of one entry, {entry['name']!r} is of two")
        entries[entry["name"]] = entry | {"folder": file.parent.name}
    return [entries[name] for name in sorted(entries)]


def write_page(entries: Sequence[dict[str, Any]], out: Path) -> list[Path]:
    """leaderboard.md and leaderboard.html in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    blocks = list(_blocks(entries))
    markdown, html = out / "leaderboard.md", out / "leaderboard.html"
    write_markdown(blocks, markdown)
    write_html(TITLE, blocks, html)
    return [markdown, html]


def _blocks(entries: Sequence[dict[str, Any]]) -> Iterator[Block]:
    yield Heading(TITLE, 1)
    yield Paragraph(
        "Mean score over the tasks of an entry, each task weighing the same; n is the examples of "
        "all of them. Rows of one model and budget compare; rows of two models do not. `full`, "
        "`ceiling` and `no_context` are out of competition. `megacontext eval board validate "
        "FOLDER` checks an entry against its answers, `tools/reproduce.sh FOLDER --sample 20` "
        "answers 20 of them again."
    )
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault((entry["model"]["name"], entry["budget_places"]), []).append(entry)
    for (model, budget), members in groups.items():
        yield Heading(f"{model}, {budget:,} places")
        yield _table(members)
        for entry in members:
            yield Paragraph(
                f"`{entry['name']}` ({entry['system']['name']} {entry['system']['version']}), "
                f"folder `{entry['folder']}`, the last command of {len(entry['commands'])}: "
                f"`{entry['commands'][-1]}`."
            )


def _table(entries: Sequence[dict[str, Any]]) -> Table:
    lengths = sorted({cell["length"] for entry in entries for cell in entry["cells"]})
    scored: list[tuple[bool, float, tuple[str, ...]]] = []
    for entry in entries:
        most = _most_tasks(entry)
        for method in dict.fromkeys(cell["method"] for cell in entry["cells"]):
            mine = [cell for cell in entry["cells"] if cell["method"] == method]
            shown = [_mean([c for c in mine if c["length"] == length]) for length in lengths]
            competes = all(cell["in_competition"] for cell in mine)
            # By the longest length with all tasks of the entry, where memories differ most: a mean
            # of some tasks says nothing beside one of all.
            tasks = Counter(c["length"] for c in mine)
            rank = max((n for n, count in tasks.items() if count == most[n]), default=0)
            longest = [c["score"] for c in mine if c["length"] == rank] or [0.0]
            places = max(cell["places"] for cell in mine)
            label = method if competes else f"({method})"
            row = (label, entry["name"], *shown, f"{places:,}")
            scored.append((not competes, -rank - sum(longest) / len(longest), row))
    scored.sort(key=lambda line: line[:2])
    head = ("method", "entry", *map(length_name, lengths), "places at most")
    return Table(head, tuple(row for _, _, row in scored))


def _most_tasks(entry: dict[str, Any]) -> dict[int, int]:
    """By length, the tasks of the method of `entry` that has most."""
    counts = Counter((cell["length"], cell["method"]) for cell in entry["cells"])
    most: dict[int, int] = {}
    for (length, _), count in counts.items():
        most[length] = max(count, most.get(length, 0))
    return most


def _mean(cells: Sequence[dict[str, Any]]) -> str:
    if not cells:
        return "-"
    mean = sum(cell["score"] for cell in cells) / len(cells)
    return f"{mean:.3f} ({len(cells)} tasks, n={sum(cell['n'] for cell in cells)})"
