"""The command line of porting: `megacontext port MODEL`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from megacontext.models.port.checks import CHECKS, Check
from megacontext.models.port.porting import port, verdict_table
from megacontext.models.port.rehearsal import rehearse
from megacontext_ext.errors import MegaContextError

# Of higher rooms; the command line fills it before it runs.
_more_checks: dict[str, Check] = {}


def port_model(
    model: Annotated[
        str, typer.Argument(help="smollm2, a folder, a hub id, or configs/models/X.yaml.")
    ],
    out: Annotated[Path, typer.Option(help="Where configuration and card go.")] = Path(
        "configs/models"
    ),
    name: Annotated[str | None, typer.Option(help="Name of the files; else the model's.")] = None,
    untrained: Annotated[
        bool, typer.Option(help="Weights are random: ask nothing of the text they write.")
    ] = False,
) -> None:
    """Certify a checkpoint as a base: inspect, check, measure, write a configuration and a card.

    A configuration file stands for a model that is not at hand: a small twin of its architecture
    is checked. Runs no code of the checkpoint. Exit status 1: refused, with the reasons.
    """
    try:
        if Path(model).suffix == ".yaml" and Path(model).is_file():
            _rehearse(Path(model), out)
            return
        outcome = port(
            model, out, name=name, untrained=untrained, checks=CHECKS | _more_checks, say=_say
        )
    except MegaContextError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    if outcome.verdicts:
        typer.echo(verdict_table(outcome.verdicts))
    for note in outcome.inspection.notes:
        typer.echo(f"note: {note}")
    if outcome.reasons:
        for reason in outcome.reasons:
            typer.echo(f"refused: {reason}", err=True)
        raise typer.Exit(1)
    for path in outcome.files:
        typer.echo(f"wrote {path}")


def _rehearse(config_file: Path, out: Path) -> None:
    verdicts, card = rehearse(config_file, out, checks=CHECKS | _more_checks, say=_say)
    typer.echo(verdict_table(verdicts))
    if card is None:
        for failed in (verdict for verdict in verdicts if verdict.status == "fail"):
            typer.echo(f"refused: {failed.check}: {failed.detail}", err=True)
        raise typer.Exit(1)
    typer.echo(f"wrote {card}")


def _say(text: str) -> None:
    typer.echo(text, err=True)


app = typer.Typer(add_completion=False)
app.command(name="port")(port_model)


def main(arguments: list[str] | None = None, more: Mapping[str, Check] | None = None) -> None:
    """Run with `arguments`, or those of the process: what the CLI calls for `megacontext port`.

    `more` are checks of higher rooms, run after this room's own.
    """
    _more_checks.update(more or {})
    app(arguments, prog_name="megacontext port")
