"""The command line of exports: `megacontext eval export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megacontext.eval.harness.export import ExportPlan, export
from megacontext.eval.long.command import parse_lengths, parse_names
from megacontext.eval.long.example import estimate_tokens
from megacontext.eval.long.tasks import RULER, TASKS
from megacontext.models import load
from megacontext_ext.errors import InvalidArgument, MegaContextError

app = typer.Typer(name="export", add_completion=False)


@app.command()
def write(
    out: Annotated[Path, typer.Option(help="Folder of the files.")],
    layout: Annotated[str, typer.Option("--format", help="lm-eval or longeval.")] = "lm-eval",
    tasks: Annotated[str, typer.Option(help="Comma-separated, or ruler, or all.")] = "ruler",
    lengths: Annotated[str, typer.Option(help="Tokens of history, like 4k,64k,1M.")] = "4k,16k",
    examples: Annotated[int, typer.Option(help="Examples a task and length.")] = 8,
    seed: int = 0,
    model: Annotated[
        str, typer.Option(help="Count tokens with this model's tokenizer; else by rule of thumb.")
    ] = "",
) -> None:
    """Write examples of the long tasks as files of other harnesses."""
    try:
        if layout not in ("lm-eval", "longeval"):
            raise InvalidArgument(f"[export] format must be lm-eval or longeval, got {layout!r}")
        tokenizer = load(model).tokenizer if model else None
        plan = ExportPlan(
            parse_names(tasks, {"ruler": RULER, "all": tuple(TASKS)}),
            parse_lengths(lengths),
            examples,
            seed,
            (lambda text: len(tokenizer.encode(text))) if tokenizer else estimate_tokens,
        )
        files = export(plan, out, layout)  # type: ignore[arg-type]
    except MegaContextError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(f"{len(files)} files in {out}")


def main(arguments: list[str]) -> None:
    app(arguments, prog_name="megacontext eval export")
