"""The command line of the long-history evaluation: `megacontext eval long run | report | list`."""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from megacontext.eval.long.loaders import LOADERS
from megacontext.eval.long.methods import METHODS, why_not_here
from megacontext.eval.long.report import SUBJECT, write_report
from megacontext.eval.long.reproduce import Figure
from megacontext.eval.long.reproduce import reproduce as reproduce_figure
from megacontext.eval.long.runner import RunConfig, answer_count
from megacontext.eval.long.runner import run as run_config
from megacontext.eval.long.tasks import NAMED_ONLY, RULER, TASKS
from megacontext_ext.errors import InvalidArgument, MegaContextError

app = typer.Typer(
    name="long", help="Questions over long histories, with baselines at equal budget.",
    no_args_is_help=True, add_completion=False,
)  # fmt: skip

_Names = Annotated[str, typer.Option(help="Comma-separated; see `list`.")]


def parse_lengths(text: str) -> tuple[int, ...]:
    """ "4k,16k,1M" -> (4096, 16384, 1048576). Raises InvalidArgument."""
    units = {"": 1, "k": 2**10, "m": 2**20}
    lengths = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)([kKmM]?)", part.strip())
        if not found:
            raise InvalidArgument(f"[lengths] must be like 4k,16k,1M, got {part.strip()!r}")
        lengths.append(int(found[1]) * units[found[2].lower()])
    return tuple(lengths)


def parse_names(text: str, groups: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Comma-separated names in which the name of a group stands for its members."""
    names: dict[str, None] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        names.update(dict.fromkeys(groups.get(part, (part,))))
    return tuple(names)


@app.command()
def run(
    out: Annotated[Path, typer.Option(help="Folder of the answers and the report.")],
    tasks: _Names = "ruler",
    methods: _Names = "all",
    lengths: Annotated[str, typer.Option(help="Tokens of history, like 4k,64k,1M.")] = "4k,16k",
    examples: Annotated[int, typer.Option(help="Examples a task and length.")] = 8,
    seed: int = 0,
    budget: Annotated[int, typer.Option(help="Places a prompt may take.")] = 2048,
    model: Annotated[str, typer.Option(help="Of several, each gets a folder in OUT.")] = "smollm2",
    dtype: str = "auto",
    workers: Annotated[int, typer.Option(help="Processes, each with its own model.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads in each of them.")] = 1,
    minutes: Annotated[
        float | None, typer.Option(help="Begin no answer after so many; the next run goes on.")
    ] = None,
) -> None:
    """Answer, keeping what is already there, and write the report."""
    models = parse_names(model, {})
    end = None if minutes is None else time.monotonic() + 60.0 * minutes
    try:
        for number, name in enumerate(models):
            config = RunConfig(
                tasks=parse_names(tasks, {"ruler": RULER, "all": tuple(TASKS)}),
                methods=parse_names(methods, {"all": _methods_here()}),
                lengths=parse_lengths(lengths),
                out=out if len(models) == 1 else out / Path(name).name,
                examples=examples,
                seed=seed,
                budget_places=budget,
                model=name,
                dtype=dtype,
                workers=workers,
                threads=threads,
            )
            # An equal share of what is left, so that no model waits for another to end.
            left = None if end is None else (end - time.monotonic()) / 60.0 / (len(models) - number)
            _run_and_report(config, left)
    except MegaContextError as error:
        raise _ended(error) from error


def _methods_here() -> tuple[str, ...]:
    """All methods that can run on this machine; says of the others why not."""
    reasons = {name: why_not_here(name) for name in METHODS}
    for name, reason in reasons.items():
        if reason:
            typer.echo(f"note: {name} is left out: {reason}", err=True)
    return tuple(name for name, reason in reasons.items() if not reason)


def _run_and_report(config: RunConfig, minutes: float | None) -> None:
    rows = run_config(config, typer.echo, minutes=minutes)
    typer.echo(f"report: {write_report(config.out)}")
    wanted = answer_count(config)
    rest = "" if len(rows) == wanted else "; the same command goes on"
    typer.echo(f"{config.model}: {len(rows):,} of {wanted:,} answers are there{rest}")


@app.command()
def report(
    out: Annotated[Path, typer.Argument(help="Folder of a run.")], subject: str = SUBJECT
) -> None:
    """Write the report again from the kept answers."""
    try:
        typer.echo(f"report: {write_report(out, subject)}")
    except MegaContextError as error:
        raise _ended(error) from error


@app.command()
def reproduce(
    folder: Annotated[Path, typer.Argument(help="Folder of a committed run.")],
    task: Annotated[str, typer.Option(help="Tasks of the run; none: all.")] = "",
    length: Annotated[str, typer.Option(help="Tokens of history, like 64k; none: all.")] = "",
    method: Annotated[str, typer.Option(help="Methods of the run; none: all.")] = "",
    examples: Annotated[int, typer.Option(help="Of each, only the first so many; 0: all.")] = 0,
    sample: Annotated[int, typer.Option(help="At most so many answers in all; 0: all.")] = 0,
    dtype: Annotated[str, typer.Option(help="Instead of that of the run.")] = "",
) -> None:
    """Answer a figure's examples again; exit 1 when its mean leaves its stated interval."""
    try:
        figure = Figure(
            tasks=parse_names(task, {}),
            lengths=parse_lengths(length) if length else (),
            methods=parse_names(method, {}),
            examples=examples,
            sample=sample,
        )
        with tempfile.TemporaryDirectory(prefix="megacontext-again-") as out:
            found = reproduce_figure(folder, figure, Path(out), typer.echo, dtype or None)
    except MegaContextError as error:
        raise _ended(error) from error
    typer.echo(str(found))
    if not found.within:
        raise typer.Exit(1)


@app.command(name="list")
def list_names() -> None:
    """Tasks, methods and public benchmarks by name."""
    typer.echo("tasks (groups: ruler, all)")
    for name, entry in (TASKS | NAMED_ONLY).items():
        typer.echo(f"  {name:24s}{entry.category}")
    typer.echo("methods (group: all)")
    for name in METHODS:
        typer.echo(f"  {name}")
    typer.echo("public benchmarks, from your own file: <name>:<path>")
    for name, (_, category) in LOADERS.items():
        typer.echo(f"  {name:24s}{category}")


def main(arguments: list[str]) -> None:
    """Run with `arguments`: what the CLI calls for `megacontext eval long ...`."""
    app(arguments, prog_name="megacontext eval long")


def _ended(error: MegaContextError) -> typer.Exit:
    typer.echo(f"error: {error}", err=True)
    return typer.Exit(2)
