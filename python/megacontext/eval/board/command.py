"""The command line of the leaderboard: `megacontext eval board entry | validate | page`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megacontext.eval.board.entry import make_entry, write_entry
from megacontext.eval.board.page import read_entries, write_page
from megacontext.eval.board.validate import validate
from megacontext.models import load
from megacontext_ext.errors import MegaContextError

app = typer.Typer(
    name="board", help="Leaderboard entries out of runs over long histories.",
    no_args_is_help=True, add_completion=False,
)  # fmt: skip

_Folder = Annotated[Path, typer.Argument(help="Folder of a run.")]


@app.command(name="entry")
def make(
    folder: _Folder, name: Annotated[str, typer.Option(help="Name of the entry; a-z, 0-9, . _ -")]
) -> None:
    """Write the entry (board.json) of a run beside its answers."""
    try:
        typer.echo(f"entry: {write_entry(folder, make_entry(folder, name))}")
    except MegaContextError as error:
        raise _ended(error) from error


@app.command(name="validate")
def check(
    path: Annotated[Path, typer.Argument(help="board.json, or the folder of a run.")],
    deep: Annotated[
        str, typer.Option(help="Model whose tokenizer makes the examples again; scores them anew.")
    ] = "",
) -> None:
    """Check the form, and every number against the answers; exit 1 with the faults."""
    try:
        tokenizer = load(deep).tokenizer if deep else None
        counted = None if tokenizer is None else (lambda text: len(tokenizer.encode(text)))
        faults = validate(path, counted)
    except MegaContextError as error:
        raise _ended(error) from error
    for fault in faults:
        typer.echo(f"fault: {fault}", err=True)
    if faults:
        raise typer.Exit(1)
    typer.echo("valid" + (", every answer scored anew" if deep else ""))


@app.command()
def page(
    paths: Annotated[list[Path], typer.Argument(help="Entries, or folders that hold them.")],
    out: Annotated[Path, typer.Option(help="Folder of the page.")],
) -> None:
    """Write leaderboard.md and leaderboard.html."""
    try:
        for written in write_page(read_entries(paths), out):
            typer.echo(f"page: {written}")
    except MegaContextError as error:
        raise _ended(error) from error


def main(arguments: list[str]) -> None:
    app(arguments, prog_name="megacontext eval board")


def _ended(error: MegaContextError) -> typer.Exit:
    typer.echo(f"error: {error}", err=True)
    return typer.Exit(2)
