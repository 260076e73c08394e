"""Verbs that look after a memory: curate, reencode, backup, export, import."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TextIO, cast

import typer
from rich.table import Table

from megacontext.cli.output import console, guarded, say, show_json
from megacontext_ext import Store
from megacontext_ext.store import RowDtype

StorePath = Annotated[Path, typer.Argument(help="Directory of the memory.", metavar="MEMORY")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do it; without, only say what would be done.")]

curate = typer.Typer(
    no_args_is_help=True,
    help="Look after a memory: report, plan, apply, restore, purge.",
)


def add_verbs(app: typer.Typer) -> None:
    app.add_typer(curate, name="curate")
    app.command()(reencode)
    app.command()(backup)
    app.command()(export)
    app.command(name="import")(import_)


@curate.command()
def report(memory: StorePath, as_json: Json = False) -> None:
    """What every source takes, how old it is and how often it was shown."""
    from megacontext.curate import report as make_report

    with guarded(as_json), Store.open(memory, read_only=True) as store:
        sources = make_report(store)
    if as_json:
        show_json([{**asdict(source), "total_bytes": source.total_bytes} for source in sources])
        return
    table = Table("source", "state", "tokens", "bytes", "days", "shown", "tags", title=str(memory))
    for source in sources:
        table.add_row(
            source.source,
            source.state,
            f"{source.tokens:,}",
            f"{source.total_bytes:,}",
            f"{source.age_days:.0f}",
            f"{source.shown_times:,}",
            " ".join(source.tags),
        )
    console.print(table)


@curate.command()
def plan(
    memory: StorePath,
    rules: Annotated[Path, typer.Option(help="Rules as JSON, see curate/README.md.")],
    output: Annotated[Path | None, typer.Option(help="Write the plan here.")] = None,
    as_json: Json = False,
) -> None:
    """What the rules would do, and the bytes that would come back. Changes nothing."""
    from megacontext.curate import Rules, make_plan
    from megacontext.curate import report as make_report

    with guarded(as_json):
        chosen = Rules.from_json(rules.read_text("utf-8"))
        with Store.open(memory, read_only=True) as store:
            made = make_plan(make_report(store), chosen)
        if output is not None:
            output.write_text(made.to_json(), "utf-8")
        _show_steps([asdict(step) for step in made.steps], made.saved_bytes, as_json)


@curate.command()
def apply(
    memory: StorePath,
    plan_file: Annotated[Path, typer.Argument(help="What `curate plan --output` wrote.")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Do what a plan says; every action can be restored until the purge."""
    from megacontext.curate import Plan, apply_plan

    with guarded(as_json):
        made = Plan.from_json(plan_file.read_text("utf-8"))
        if not yes:
            _show_steps([asdict(step) for step in made.steps], made.saved_bytes, as_json)
            return
        with Store.open(memory) as store:
            applied = apply_plan(store, made, getpass.getuser())
        done = [asdict(entry) for entry in applied.done]
        skipped = [{"source": step.source, "reason": why} for step, why in applied.skipped]
        if as_json:
            show_json({"done": done, "skipped": skipped})
            return
        for entry in applied.done:
            console.print(f"{entry.number}: {entry.action} {entry.source}", highlight=False)
        for step, why in applied.skipped:
            console.print(f"skipped: {step.source} {why}", highlight=False)


@curate.command()
def restore(
    memory: StorePath,
    number: Annotated[int, typer.Argument(help="Entry of the log.")],
    as_json: Json = False,
) -> None:
    """Take back one action."""
    from megacontext.curate import restore as take_back

    with guarded(as_json), Store.open(memory) as store:
        entry = take_back(store, number, getpass.getuser())
        if as_json:
            show_json(asdict(entry))
        else:
            console.print(f"{entry.number}: restored {entry.source}", highlight=False)


@curate.command()
def purge(memory: StorePath, yes: Yes = False, as_json: Json = False) -> None:
    """Erase deleted sources and everything set aside, for good."""
    from megacontext.curate import purge as make_final
    from megacontext.curate import report as make_report

    with guarded(as_json):
        if not yes:
            with Store.open(memory, read_only=True) as store:
                doomed = [source for source in make_report(store) if source.state == "deleted"]
            steps = [
                {"action": "erase", "source": one.source, "saved_bytes": one.total_bytes}
                for one in doomed
            ]
            _show_steps(steps, sum(one.total_bytes for one in doomed), as_json)
            return
        with Store.open(memory) as store:
            erased, saved = make_final(store, getpass.getuser())
        if as_json:
            show_json({"erased": erased, "saved_bytes": saved})
        else:
            console.print(f"{len(erased)} sources erased, {saved:,} bytes back", highlight=False)


def reencode(
    memory: StorePath,
    family: Annotated[str, typer.Argument(help="Name of the rows; `mc_dump MEMORY` lists them.")],
    dtype: Annotated[str, typer.Option(help="q8, e4m3, q4, or a plain type of floats.")] = "q8",
    group_size: Annotated[
        int | None, typer.Option(help="Elements that share a scale; a row when left out.", min=1)
    ] = None,
    as_json: Json = False,
) -> None:
    """Keep the rows of a family in fewer bits from now on; readers get what they got, rounded."""
    with guarded(as_json), Store.open(memory) as store:
        done = store.reencode(family, cast(RowDtype, dtype), group_size)
        if as_json:
            show_json({**asdict(done), "saved_bytes": done.saved_bytes})
            return
        console.print(
            f"{done.rows:,} rows, {done.saved_bytes:,} bytes back, relative error "
            f"{done.relative_error:.3%}",
            highlight=False,
        )


def backup(
    memory: StorePath,
    target: Annotated[Path, typer.Argument(help="A new directory.")],
    as_json: Json = False,
) -> None:
    """Copy a memory, rows and all, and check the copy. Others may write meanwhile."""
    from megacontext.transfer import backup_memory

    with guarded(as_json), Store.open(memory, read_only=True) as store:
        backup_memory(store, target)
        tokens = sum(partition.token_count for partition in store.partitions())
        if as_json:
            show_json({"target": str(target), "tokens": tokens})
        else:
            console.print(f"{tokens:,} tokens copied to {target}", highlight=False)


def export(
    memory: StorePath,
    output: Annotated[str, typer.Argument(help="A file; - is standard output.")] = "-",
    text: Annotated[bool, typer.Option(help="Write text beside the token ids.")] = False,
    model: Annotated[str, typer.Option(help="Whose tokenizer, for --text.")] = "smollm2",
) -> None:
    """Write sources, tokens and metadata as JSON lines."""
    from megacontext.models import load
    from megacontext.transfer import export_store

    with guarded(False), Store.open(memory, read_only=True) as store:
        tokenizer = load(model, say=say).tokenizer if text else None
        with _file(output, "w") as out:
            export_store(store, out, tokenizer)


def import_(
    memory: StorePath,
    given: Annotated[str, typer.Argument(help="An export; - is standard input.", metavar="FILE")],
    model: Annotated[str, typer.Option(help="smollm2, a model folder, or a hub id.")] = "smollm2",
    as_json: Json = False,
) -> None:
    """Take in what `export` wrote."""
    from megacontext import memory as memories

    with guarded(as_json), memories.open(memory, model, say=say) as opened:
        with _file(given, "r") as lines:
            report = opened.import_lines(lines)
        if as_json:
            show_json(asdict(report))
        else:
            console.print(f"{report.sources} sources, {report.tokens:,} tokens", highlight=False)


@contextmanager
def _file(name: str, mode: str) -> Iterator[TextIO]:
    if name == "-":
        yield sys.stdin if mode == "r" else sys.stdout
        return
    with Path(name).open(mode, encoding="utf-8") as file:
        yield cast(TextIO, file)


def _show_steps(steps: Sequence[dict[str, Any]], saved: int, as_json: bool) -> None:
    if as_json:
        show_json({"steps": list(steps), "saved_bytes": saved})
        return
    for step in steps:
        why = f" ({step['reason']})" if step.get("reason") else ""
        console.print(
            f"{step['action']} {step['source']}: {step['saved_bytes']:,} bytes{why}",
            highlight=False,
        )
    console.print(f"{len(steps)} actions would save {saved:,} bytes", highlight=False)
