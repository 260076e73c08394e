"""The command line: one function a verb, each a few lines over the Python API."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from megacontext.cli.life import add_verbs
from megacontext.cli.output import console, guarded, ingest_progress, notes, say, show_json
from megacontext.cli.remote import remote_app

app = typer.Typer(
    name="megacontext",
    help="Memory without end for frozen language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(remote_app, name="remote")

StorePath = Annotated[Path, typer.Argument(help="Directory of the memory.", metavar="MEMORY")]
StorePathOrUrl = Annotated[
    str, typer.Argument(help="Directory or URL of the memory.", metavar="MEMORY")
]
Model = Annotated[str, typer.Option(help="smollm2, a model folder, or a hub id.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Budget = Annotated[int, typer.Option(help="Places of one prompt.", min=128)]
MaxTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)]
Temperature = Annotated[float, typer.Option(help="0 is greedy.", min=0.0)]


@app.command()
def ingest(
    memory: StorePath,
    paths: Annotated[list[str], typer.Argument(help="Files or folders; - is standard input.")],
    source: Annotated[
        str | None, typer.Option(help="Name of the source, for one file or -.")
    ] = None,
    model: Model = "smollm2",
    as_json: Json = False,
) -> None:
    """Take text into a memory. Made again after an interruption, it goes on where it stopped."""
    from megacontext import memory as memories

    with guarded(as_json), memories.open(memory, model, say=say) as opened:
        reports = []
        with ingest_progress() as tell:
            for path in paths:
                what = iter(sys.stdin.readline, "") if path == "-" else Path(path)
                name = source or ("stdin" if path == "-" else None)
                reports += opened.ingest(what, source=name, progress=tell)
        if as_json:
            show_json({"sources": [_plain(report) for report in reports],
                       "history_tokens": opened.token_count})  # fmt: skip
            return
        for report in reports:
            bad = f", {report.invalid_bytes:,} invalid bytes" if report.invalid_bytes else ""
            rate = report.added_tokens / max(report.seconds, 1e-9)
            console.print(
                f"{report.source}: {report.added_tokens:,} tokens added{bad} "
                f"({report.seconds:.1f} s, {rate:,.0f} tokens/s)",
                highlight=False,
            )
        console.print(f"{opened.token_count:,} tokens in {memory}", highlight=False)


@app.command()
def ask(
    memory: StorePathOrUrl,
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    model: Model = "smollm2",
    budget: Budget = 2048,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    picture: Annotated[
        Path | None, typer.Option(help="Write the working context here, PNG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask a memory; the answer streams, and the spans it was read from follow."""
    from megacontext import memory as memories
    from megacontext.config import GenerationConfig, RuntimeConfig

    generation = GenerationConfig(max_new_tokens=max_tokens, temperature=temperature)
    with (
        guarded(as_json),
        memories.open(
            memory, model, read_only=True, config=RuntimeConfig(budget_places=budget), say=say
        ) as opened,
    ):
        answer = opened.ask(question, generation)
        if not as_json:
            for piece in answer:
                console.print(piece, end="", markup=False, highlight=False)
            console.print("\n")
            _print_sources(answer)
        else:
            show_json(answer.to_json())
        if picture is not None:
            opened.last_working_context(question).save_png(picture)
            notes.print(f"picture: {picture}", highlight=False)


@app.command()
def chat(
    memory: StorePath,
    name: Annotated[str, typer.Option(help="Conversation to begin or go on with.")] = "default",
    model: Model = "smollm2",
    budget: Budget = 2048,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    as_json: Json = False,
) -> None:
    """Talk with a memory; the conversation is remembered. An empty line or Ctrl-D ends it."""
    from megacontext import memory as memories
    from megacontext.config import GenerationConfig, RuntimeConfig

    generation = GenerationConfig(max_new_tokens=max_tokens, temperature=temperature)
    config = RuntimeConfig(budget_places=budget)
    with guarded(as_json), memories.open(memory, model, config=config, say=say) as opened:
        talk = opened.chat(name)
        while message := _next_message():
            answer = talk.ask(message, generation)
            if as_json:
                show_json(answer.to_json())
                continue
            for piece in answer:
                console.print(piece, end="", markup=False, highlight=False)
            console.print()


@app.command()
def inspect(
    memory: StorePath,
    question: Annotated[
        str | None, typer.Option(help="Show what would be in focus for it.")
    ] = None,
    model: Model = "smollm2",
    budget: Budget = 2048,
    picture: Annotated[
        Path | None, typer.Option(help="Write the working context here, PNG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a memory holds, and what would be in focus for a question."""
    from megacontext.cli.inspection import inspect_store, inspect_working_context

    with guarded(as_json):
        if question is None:
            inspect_store(memory, as_json)
        else:
            inspect_working_context(memory, question, model, budget, picture, as_json)


@app.command()
def doctor(
    memory: Annotated[
        Path | None, typer.Argument(help="A memory to check, every byte of it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print versions, CPU level, CUDA, known models, and the health of a memory."""
    from megacontext.cli.doctor import examine, print_examination

    with guarded(as_json):
        found = examine(memory)
        if as_json:
            show_json(found)
        else:
            print_examination(found)
    if found["problems"]:
        raise typer.Exit(1)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def port(context: typer.Context) -> None:
    """Certify a checkpoint as a base: port MODEL; writes a configuration and a card."""
    from megacontext.models.port.command import main as port_main
    from megacontext.paged.certify import PAGED_CHECKS

    port_main(context.args or ["--help"], PAGED_CHECKS)


evaluate = typer.Typer(no_args_is_help=True, help="Measure answers: long, board, export.")
app.add_typer(evaluate, name="eval")


@evaluate.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def long(context: typer.Context) -> None:
    """Questions over long histories, with baselines at equal budget."""
    from megacontext.eval.long.command import main as long_main

    long_main(context.args or ["--help"])


@evaluate.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def board(context: typer.Context) -> None:
    """Leaderboard entries out of runs: entry, validate, page."""
    from megacontext.eval.board.command import main as board_main

    board_main(context.args or ["--help"])


@evaluate.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def export(context: typer.Context) -> None:
    """Examples of the long tasks as files of lm-evaluation-harness or LongEval."""
    from megacontext.eval.harness.command import main as export_main

    export_main(context.args or ["--help"])


@evaluate.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def lens(context: typer.Context) -> None:
    """The trained lens against untrained, BM25, embedding, random and an oracle."""
    from megacontext.eval.lens.command import main as lens_main

    lens_main(context.args or ["--help"])


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context) -> None:
    """Run benchmarks of a source checkout: bench list, bench run NAME [--smoke|--full]."""
    from megacontext.cli.checkout import run_benchmarks

    with guarded(False):
        raise typer.Exit(run_benchmarks(context.args or ["list"]))


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the memory and pictures.")] = Path(
        "demo-output"
    ),
    as_json: Json = False,
) -> None:
    """Ask SmolLM2 about 250,000 tokens of real text within 2,048 places, against baselines."""
    from megacontext.demo.run import run_demo

    with guarded(as_json):
        run_demo(output)


add_verbs(app)


def _next_message() -> str:
    if sys.stdin.isatty():
        notes.print("[bold]>[/bold] ", end="")
    return sys.stdin.readline().strip()


def _print_sources(answer: object) -> None:
    from megacontext.cli.inspection import sources_table
    from megacontext.runtime import Answer

    assert isinstance(answer, Answer)
    console.print(sources_table(answer.sources))
    stats = answer.stats
    console.print(
        f"[dim]{stats.history_tokens:,} tokens of history, {stats.prompt_places:,} of "
        f"{stats.budget_places:,} places used, {stats.left_out_tokens:,} tokens left out; first "
        f"token after {stats.first_token_seconds:.2f} s[/dim]",
        highlight=False,
    )


def _plain(report: object) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(report)  # type: ignore[call-overload]


def main() -> None:
    """Entry point of the `megacontext` command."""
    app()
