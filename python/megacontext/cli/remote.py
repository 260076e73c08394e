"""The `megacontext remote` verbs: memories in object stores."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from megacontext.cli.output import console, guarded, show_json

remote_app = typer.Typer(
    help="Share memories between machines through an object store.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

MemoryPath = Annotated[Path, typer.Argument(help="Directory of the memory.", metavar="MEMORY")]
Url = Annotated[str, typer.Argument(help="s3://BUCKET/PREFIX?endpoint=..., file:///FOLDER")]
Mirrors = Annotated[
    list[str] | None, typer.Option("--mirror", help="A further store with a copy; repeatable.")
]
Quorum = Annotated[
    int | None, typer.Option(help="Stores a write must reach; a majority when left out.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def _open(url: str, mirrors: list[str] | None, quorum: int | None = None) -> Any:
    from megacontext.remote import open_remote

    return open_remote([url, *(mirrors or [])], quorum)


@remote_app.command()
def push(
    memory: MemoryPath,
    url: Url,
    mirror: Mirrors = None,
    quorum: Quorum = None,
    as_json: Json = False,
) -> None:
    """Publish a memory as it is now. The first push of a memory makes it the writer there."""
    from megacontext.remote import Writer
    from megacontext_ext import Store

    with guarded(as_json):
        remote = _open(url, mirror, quorum)
        with Store.open(memory) as store:
            store.checkpoint()
        report = Writer.resume(remote, memory).push()
        if as_json:
            show_json({**asdict(report), "troubles": remote.troubles})
            return
        what = "published" if report.published else "is there already as"
        console.print(
            f"{memory} {what} generation {report.generation} of epoch {report.epoch}: "
            f"{report.uploaded_objects} new objects, {report.uploaded_bytes:,} of "
            f"{report.total_bytes:,} bytes sent in {report.seconds:.2f} s",
            highlight=False,
        )
        _print_troubles(remote.troubles)


@remote_app.command()
def pull(
    url: Url,
    directory: Annotated[
        Path | None, typer.Argument(help="Copy it here; else it goes to the cache.")
    ] = None,
    mirror: Mirrors = None,
    as_json: Json = False,
) -> None:
    """Fetch the newest published state, for reading."""
    from megacontext.remote import Cache, Reader
    from megacontext_ext.errors import InvalidArgument

    with guarded(as_json), Reader(_open(url, mirror)) as reader:
        if directory is not None and (directory / "MANIFEST").exists():
            raise InvalidArgument(f"[pull] directory must be new, {directory} has a memory")
        path, commit, fetched = reader.path, reader.commit, reader.fetched
        if directory is not None:
            Cache().build(reader.remote, commit, directory, own_files=True)
            path = directory
        found = {"path": str(path), "generation": commit.generation, "epoch": commit.epoch,
                 "bytes": commit.byte_count, **asdict(fetched)}  # fmt: skip
        if as_json:
            show_json(found)
            return
        console.print(
            f"{path}: generation {commit.generation} of epoch {commit.epoch}, "
            f"{fetched.fetched_bytes:,} of {commit.byte_count:,} bytes fetched",
            highlight=False,
        )


@remote_app.command("promote")
def promote_verb(
    url: Url,
    memory: MemoryPath,
    mirror: Mirrors = None,
    quorum: Quorum = None,
    as_json: Json = False,
) -> None:
    """Make a directory on this machine the writer; the writer before is refused from now on."""
    from megacontext.remote import promote

    with guarded(as_json):
        writer = promote(_open(url, mirror, quorum), memory)
        if as_json:
            show_json({"path": str(memory), "epoch": writer.epoch, "writer": writer.name})
            return
        console.print(f"{memory} is the writer now, epoch {writer.epoch}", highlight=False)


@remote_app.command()
def status(
    url: Url,
    mirror: Mirrors = None,
    probe: Annotated[bool, typer.Option(help="Try what the store can do; writes.")] = False,
    as_json: Json = False,
) -> None:
    """Who writes, what was published, and what each store shows of it."""
    from megacontext.remote.status import status as look

    with guarded(as_json):
        found = look(_open(url, mirror), with_probe=probe)
        if as_json:
            show_json(found)
            return
        console.print(
            f"generation {found['generation']} of epoch {found['epoch']} by {found['writer']}, "
            f"{found['objects']} objects, {found['bytes']:,} bytes",
            highlight=False,
        )
        for store in found["stores"]:
            console.print(f"  {store['url']}: {store['state']}", highlight=False)
            if probe:
                console.print(f"    {store['can']}", highlight=False)


@remote_app.command()
def scrub(
    url: Url,
    mirror: Mirrors = None,
    repair: Annotated[bool, typer.Option(help="Mend from another copy.")] = False,
    quick: Annotated[bool, typer.Option(help="Compare lengths only, read nothing.")] = False,
    local: Annotated[Path | None, typer.Option(help="A memory that may have it, too.")] = None,
    as_json: Json = False,
) -> None:
    """Compare every copy with its hash. Leaves with 5 when something stays wrong."""
    from megacontext.remote.scrub import scrub as look

    with guarded(as_json):
        report = look(_open(url, mirror), deep=not quick, repair=repair, local=local)
        if as_json:
            show_json(report.to_json())
        else:
            for fault in report.faults:
                after = f"repaired from {fault.repaired}" if fault.repaired else "not repaired"
                console.print(f"{fault.store} {fault.key}: {fault.what} ({after})", highlight=False)
            console.print(
                f"{report.objects} objects looked at, {report.bytes_read:,} bytes read, "
                f"{len(report.faults)} faults",
                highlight=False,
            )
    if not report.healthy:
        raise typer.Exit(5)


@remote_app.command()
def gc(
    url: Url,
    mirror: Mirrors = None,
    grace_hours: Annotated[float, typer.Option(help="Least age of what goes.", min=0)] = 24.0,
    memory: Annotated[
        Path | None,
        typer.Option(help="Memory of the writer, for less than an hour of grace (erasure)."),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Remove nothing, say what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Remove what no commit names any more. To erase, see `purge`."""
    from megacontext.remote import Writer
    from megacontext.remote.collect import collect

    with guarded(as_json):
        remote = _open(url, mirror)
        writer = None
        if memory is not None and not dry_run:
            Writer.resume(remote, memory).require_current()
            writer = Writer.acquire(remote, memory)
        report = collect(remote, grace_s=grace_hours * 3600, writer=writer, dry_run=dry_run)
        if as_json:
            show_json(report.to_json())
            return
        would = "would go" if dry_run else "removed"
        console.print(
            f"{report.removed_objects} objects, {report.removed_bytes:,} bytes {would}; "
            f"{report.kept_objects} named, {report.young_objects} too young",
            highlight=False,
        )


@remote_app.command()
def purge(
    memory: MemoryPath,
    url: Annotated[
        str | None, typer.Argument(help="Only this place; else all that it was ever pushed to.")
    ] = None,
    mirror: Mirrors = None,
    as_json: Json = False,
) -> None:
    """Purge a memory here and in every object store: what was erased is nowhere any more."""
    from megacontext.remote import erase, erase_everywhere
    from megacontext_ext import Store

    with guarded(as_json):
        with Store.open(memory) as store:
            store.purge()
        report = erase_everywhere(memory) if url is None else erase(_open(url, mirror), memory)
        if as_json:
            show_json(report.to_json())
            return
        console.print(
            f"{report.removed_objects} objects, {report.removed_bytes:,} bytes removed from "
            f"{len(report.stores)} stores; nothing but the newest state is there",
            highlight=False,
        )


def _print_troubles(troubles: list[str]) -> None:
    for trouble in troubles:
        console.print(f"[yellow]trouble[/yellow] {trouble}", highlight=False)
