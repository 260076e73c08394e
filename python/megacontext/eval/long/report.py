"""Turns a folder of answers into one report: report.md with its figures, and report.html."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacontext.eval.long.document import (
    Block,
    Code,
    Figure,
    Heading,
    Paragraph,
    Table,
    write_html,
    write_markdown,
)
from megacontext.eval.long.figures import frontier, heat_map, length_name
from megacontext.eval.long.manifest import read_manifest
from megacontext.eval.long.runner import read_rows
from megacontext.eval.long.summary import (
    OUT_OF_COMPETITION,
    Results,
    calibration,
    depth_grid,
)
from megacontext.eval.long.versus import versus
from megacontext.eval.statistics import Interval
from megacontext_ext.errors import NotFound

SUBJECT = "megacontext"


def write_report(out: Path, subject: str = SUBJECT) -> Path:
    """Write the report of the run in `out`; returns the Markdown file. Raises NotFound."""
    if not (out / "manifest.json").is_file():
        raise NotFound(f"[report] folder must hold a run (manifest.json), {out} does not")
    manifest = read_manifest(out)
    results = _named_by(manifest, read_rows(out))
    blocks = list(_blocks(results, manifest, subject, Again(out)))
    write_markdown(blocks, out / "report.md")
    write_html("MegaContext over long histories", blocks, out / "report.html")
    return out / "report.md"


def _named_by(manifest: dict[str, Any], rows: dict[str, Any]) -> Results:
    """The newest rows that the manifest's settings name, in its order; others are left out."""
    settings = manifest["settings"]
    methods, tasks = list(settings["methods"]), list(settings["tasks"])
    newest = {(r["task"], r["length"], r["index"], r["method"]): r for r in rows.values()}
    wanted = [
        row
        for row in newest.values()
        if row["method"] in methods
        and row["task"] in tasks
        and (row["length"] in settings["lengths"] or row["length"] == 0)
        and row["index"] < settings["examples"]
    ]
    wanted.sort(
        key=lambda r: (r["length"], tasks.index(r["task"]), r["index"], methods.index(r["method"]))
    )
    return Results(tuple(wanted))


@dataclass(frozen=True)
class Again:
    """The command that answers a figure of the report in `out` again, from a fresh clone."""

    out: Path

    def __call__(self, **filters: str) -> str:
        folder = os.path.relpath(self.out)
        shown = str(self.out.resolve()) if folder.startswith("..") else folder
        options = (f"--{name} {value}" for name, value in filters.items())
        return " ".join(("tools/reproduce.sh", shlex.quote(shown), *options))


def _blocks(
    results: Results, manifest: dict[str, Any], subject: str, again: Again
) -> Iterator[Block]:
    settings = manifest["settings"]
    yield Heading("Long histories: scores, places, time", 1)
    yield Paragraph(
        f"Model `{settings['model']}` ({manifest['model_identity']}), budget "
        f"{settings['budget_places']} places, at most {settings['examples']} examples a task and "
        f"length (n says how many), seed {settings['seed']}. Scores are 0 to 1; brackets hold 95% "
        "bootstrap intervals. A mean over tasks counts each the same, whatever number of examples "
        "it has. All methods but `full` stay within the budget and share questions, answer "
        "prefixes and greedy decoding. `ceiling` is given the gold spans, `no_context` nothing. A "
        'dash: not applicable. "n=3 of 4": to one of four it was not.'
    )
    yield Paragraph(
        "The command under a figure or table answers what it shows again and compares the mean "
        "with the stated interval. With `--sample 20` it answers 20 of the answers behind it, "
        "which takes minutes instead of hours."
    )
    changed = " with uncommitted changes" if manifest["uncommitted_changes"] else ""
    runs = manifest.get("runs", [manifest])
    yield Paragraph(f"Made by `{manifest['command']}` at commit `{manifest['commit']}`{changed}.")
    if len(runs) > 1:
        yield Heading("Commands, in order", 3)
        yield Table(
            ("command", "commit"), tuple((f"`{r['command']}`", str(r["commit"])) for r in runs)
        )
    yield Heading("Score by history length")
    yield _score_table(results)
    yield from _figures(results, again)
    yield Heading("Score by task")
    for length in results.lengths:
        name = length_name(length)
        yield Heading(f"History of {name} tokens", 3)
        yield _task_table(results, length)
        yield Code(again(length=name) if length else again())
    if subject in results.methods:
        yield from versus(results, subject)
    yield Heading("Cost of an answer")
    yield Paragraph(
        "Medians over the examples. Places are of the largest prompt; time to first token starts "
        "at the question and includes looking things up; ingest is everything before it. Times are "
        "of the machine below, whatever else it did."
    )
    yield _cost_table(results)
    yield from _refusals(results)
    yield Heading("Methods")
    yield Table(
        ("method", "what it does"), tuple((n, about) for n, about in settings["methods"].items())
    )
    yield Heading("Made with")
    yield Table(("part", "value"), tuple(_made_with(manifest)))


def _score_table(results: Results) -> Table:
    head = ("method", *map(length_name, results.lengths), "gold in view", "calibration error")
    rows = []
    for method in results.methods:
        cells = [_mean_cell(results, method, length) for length in results.lengths]
        seen = results.gold_shown(method=method)
        error = calibration(results, method)
        rows.append(
            (
                method,
                *cells,
                "-" if seen is None else f"{seen:.2f}",
                "-" if error is None else f"{error:.2f}",
            )
        )
    return Table(head, tuple(rows))


def _mean_cell(results: Results, method: str, length: int) -> str:
    """Mean score with its interval over what was answered, and of how many; "-" for nothing."""
    mean = results.mean_of_answered(method=method, length=length)
    if mean is None:
        return "-"
    asked = len(results.where(method=method, length=length))
    text = f"{mean} of {asked}" if asked > mean.count else str(mean)
    tasks, all_tasks = results.tasks_asked(length, method), results.tasks_asked(length)
    return text if tasks == all_tasks else f"{text}, {len(tasks)} of {len(all_tasks)} tasks"


def _task_table(results: Results, length: int) -> Table:
    rows = []
    for task in results.tasks:
        scores = [results.score(task=task, length=length, method=m) for m in results.methods]
        if any(score is not None for score in scores):
            rows.append((task, *("-" if s is None else _brief(s) for s in scores)))
    return Table(("task", *results.methods), tuple(rows))


def _brief(score: Interval) -> str:
    return f"{score.mean:.2f} [{score.low:.2f}, {score.high:.2f}] n={score.count}"


def _figures(results: Results, again: Again) -> Iterator[Block]:
    tasks = results.tasks
    names = [length_name(n) for n in results.lengths]
    cells: list[list[float | None]] = []
    for method in results.methods:
        whole = results.whole(method)
        means = [whole.mean_of_answered(method=method, length=n) for n in results.lengths]
        cells.append([None if mean is None else mean.mean for mean in means])
    title = f"Mean score over {len(tasks)} tasks, by method and length"
    yield Figure("scores", heat_map(title, names, results.methods, cells), again())
    for method in results.methods:
        if method in ("no_context", "ceiling"):
            continue
        lengths, grid = depth_grid(results, method)
        columns = ["0-20%", "20-40%", "40-60%", "60-80%", "80-100%"]
        svg = heat_map(f"{method}: length by depth", columns, list(map(length_name, lengths)), grid)
        yield Figure(f"depth_{method}", svg, again(method=method))
    for field, axis in (("places", "places of the prompt"), ("ttft_s", "seconds to first token")):
        points = []
        for method in results.methods:
            whole = results.whole(method)
            mean, x = whole.mean_of_answered(method=method), whole.median(field, method=method)
            if mean is not None and x is not None and method != "ceiling":
                points.append((method, x, mean.mean))
        if points:
            svg = frontier(f"Score against {axis}", axis, points)
            yield Figure(f"frontier_{field}", svg, again())


def _cost_table(results: Results) -> Table:
    rows = []
    for length in results.lengths:
        for method in results.methods:
            wanted = {"method": method, "length": length}
            places = results.median("places", **wanted)
            if places is None:
                continue
            seconds = [results.median(f, **wanted) for f in ("ttft_s", "total_s", "ingest_s")]
            kept = results.median("state_bytes", **wanted)
            rows.append(
                (
                    f"{method}, {length_name(length)}",
                    f"{places:.0f}",
                    *("-" if s is None else f"{s:.2f}" for s in seconds),
                    f"{(kept or 0) / 1e6:.2f}",
                )
            )
    head = ("method, length", "places", "first token s", "answer s", "ingest s", "kept MB")
    return Table(head, tuple(rows))


def _refusals(results: Results) -> Iterator[Block]:
    rows = []
    for method in results.methods:
        for length in results.lengths:
            refused = [
                r
                for r in results.where(method=method, length=length)
                if r["status"] == "not applicable"
            ]
            if refused:
                where = f"{method}, {length_name(length)}"
                rows.append((where, str(len(refused)), refused[0]["reason"]))
    if rows:
        yield Heading("Not applicable")
        yield Table(("method, length", "examples", "reason of the first"), tuple(rows))


def _made_with(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "command", f"`{manifest['command']}`"
    yield "commit", str(manifest["commit"])
    yield "Python", manifest["python"]
    for name, version in manifest["packages"].items():
        yield name, str(version)
    for name, digest in manifest["question_data_sha256"].items():
        yield f"SHA-256 of {name}", digest
    for name, value in manifest["machine"].items():
        yield name, str(value)
    yield "out of competition", ", ".join(OUT_OF_COMPETITION)
