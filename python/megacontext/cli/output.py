"""How every verb speaks: rich text for people, one JSON object for programs, exit codes for shells.

With --json nothing but the object goes to standard output; progress and notes go to standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from megacontext.remote.errors import ErasureIncomplete, Fenced
from megacontext.runtime import IngestProgress
from megacontext_ext.errors import (
    Corruption,
    InvalidArgument,
    IoError,
    MegaContextError,
    NotFound,
    OverBudget,
    StoreFailed,
    StoreLocked,
    Unsupported,
)

# Exit codes. 2 is also what the option parser uses; 130 is the shell's word for Ctrl-C.
EXIT_CODES: dict[type[MegaContextError], int] = {
    InvalidArgument: 2,
    OverBudget: 2,
    NotFound: 3,
    StoreLocked: 4,
    Fenced: 4,
    Corruption: 5,
    StoreFailed: 5,
    IoError: 6,
    Unsupported: 7,
}
EXIT_INTERRUPTED = 130

console = Console()
notes = Console(stderr=True)


def say(note: str) -> None:
    """A line for the person waiting, not part of the result."""
    notes.print(f"[dim]{note}[/dim]")


def show_json(value: Any) -> None:
    """The result as one line of JSON."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def fail(error: MegaContextError, as_json: bool) -> NoReturn:
    """Say what went wrong and leave with its code."""
    code = next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)
    if as_json:
        told = {"error": type(error).__name__, "message": str(error)}
        remaining = error.remaining if isinstance(error, ErasureIncomplete) else ()
        show_json({**told, "remaining": list(remaining)} if remaining else told)
    notes.print(
        f"[bold red]{type(error).__name__}[/bold red] {error}", markup=True, highlight=False
    )
    raise typer.Exit(code)


@contextmanager
def guarded(as_json: bool) -> Iterator[None]:
    """Run a verb: known errors become messages and exit codes, Ctrl-C a quiet end."""
    try:
        yield
    except MegaContextError as error:
        fail(error, as_json)
    except KeyboardInterrupt:
        notes.print(
            "[yellow]interrupted[/yellow]: what was ingested is kept; run it again to go on"
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None


@contextmanager
def ingest_progress() -> Iterator[Callable[[IngestProgress], None]]:
    """A progress bar on standard error, one line a source."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[tokens]:,} tokens"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=notes, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def tell(told: IngestProgress) -> None:
            if told.source not in tasks:
                tasks[told.source] = progress.add_task(
                    told.source[-40:], total=told.length, tokens=0
                )
            progress.update(tasks[told.source], completed=told.characters, tokens=told.tokens)

        yield tell
