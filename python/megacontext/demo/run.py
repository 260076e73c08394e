"""The demo: 250,000 tokens of real text, 45 questions, 2,048 places, five ways to answer."""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from megacontext import memory as memories
from megacontext.config import FrameConfig, GenerationConfig, RuntimeConfig
from megacontext.demo.corpus import TextQuestion, load_corpus, sample_questions
from megacontext.demo.facts import plant
from megacontext.demo.methods import Baselines
from megacontext.demo.scoring import is_right
from megacontext.memory import Memory

SEED = 20261
READING_QUESTIONS = 30
PLANTED_OF_EACH = 5
BUDGET_PLACES = 2048
# One wording for every method; short answers suit a model of 135 million parameters.
FRAME = FrameConfig(
    ask="\n\nAnswer the question using the text above, in a few words.\nQuestion: {question}"
)
GENERATION = GenerationConfig(max_new_tokens=24)
# Prompts that fill the budget are slow: a slow machine asks them only a sample of the questions.
DEMO_SECONDS = 360.0
FULL_BUDGET_QUESTIONS_MIN = 10
METHODS = ("plain", "rag", "rag few", "megacontext", "ceiling")
FEW_PIECES = 2

_TITLES = {
    "plain": "plain model,\nlast tokens",
    "rag": "RAG,\nsame budget",
    "rag few": f"RAG,\nbest {FEW_PIECES} pieces",
    "megacontext": "MegaContext",
    "ceiling": "ceiling:\nspan given",
}


@dataclass(slots=True)
class Outcome:
    """Answers by method, and seconds."""

    questions: list[TextQuestion]
    # None: not asked, since time was short.
    answers: dict[str, list[str | None]] = field(default_factory=dict)
    first_token_seconds: list[float] = field(default_factory=list)
    places_used: list[int] = field(default_factory=list)
    prefill_seconds: float = 0.0

    def asked(self, method: str, kind: str | None = None) -> list[int]:
        """Places of the questions that a method was asked, of one kind or of all."""
        return [
            place
            for place, answer in enumerate(self.answers[method])
            if answer is not None and kind in (None, self.questions[place].kind)
        ]

    def right(self, method: str, places: Sequence[int]) -> int:
        """Right answers of a method to the questions at `places`."""
        return sum(
            is_right(self.answers[method][place] or "", self.questions[place].answers)
            for place in places
        )

    def over_ceiling(self, method: str) -> float:
        """Right answers over the ceiling's, both of the questions that the method was asked."""
        places = self.asked(method)
        return round(self.right(method, places) / max(self.right("ceiling", places), 1), 3)

    def cell(self, method: str, kind: str | None = None) -> str:
        places = self.asked(method, kind)
        return f"{self.right(method, places)} of {len(places)}"


def run_demo(output: Path) -> None:
    """The whole demo; the last line of standard output is one JSON object."""
    ends = time.monotonic() + DEMO_SECONDS
    # Rich output is for people; with a pipe it goes to standard error, the JSON line always to
    # standard output.
    console = Console(stderr=not sys.stdout.isatty())
    corpus = load_corpus()
    planted = plant(corpus.documents, PLANTED_OF_EACH, SEED)
    questions = [*sample_questions(corpus, READING_QUESTIONS, SEED), *planted]
    store = output / "memory.mc"
    shutil.rmtree(store, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    console.rule("[bold]MegaContext demo")
    config = RuntimeConfig(budget_places=BUDGET_PLACES, frame=FRAME)
    with memories.open(store, "smollm2", config=config, say=console.print) as memory:
        began = time.perf_counter()
        for document in corpus.documents:
            memory.ingest(document.text, source=document.name)
        ingest_seconds = time.perf_counter() - began
        console.print(
            f"ingested {memory.token_count:,} tokens of real text in {ingest_seconds:.1f} s "
            f"({memory.token_count / ingest_seconds:,.0f} tokens/s); "
            f"budget {BUDGET_PLACES:,} places",
            highlight=False,
        )
        outcome = _answer_all(memory, questions, console, ends)
        _show_results(console, outcome)
        _show_one(console, memory, outcome, output)
        summary = _summary(memory, outcome, ingest_seconds)
    (output / "answers.json").write_text(json.dumps(_answers(outcome), indent=2) + "\n")
    console.print(f"answers and pictures: {output}", highlight=False)
    sys.stdout.write(json.dumps(summary) + "\n")
    sys.stdout.flush()


def _answer_all(
    memory: Memory, questions: Sequence[TextQuestion], console: Console, ends: float
) -> Outcome:
    outcome = Outcome(list(questions))
    baselines = Baselines(memory, GENERATION)
    with _progress(console, len(questions)) as step:
        outcome.prefill_seconds = baselines.prefill_seconds()
        with step("megacontext") as tell:
            outcome.answers["megacontext"] = [
                _ask(memory, question, outcome, tell) for question in questions
            ]
        with step("ceiling") as tell:
            outcome.answers["ceiling"] = [*baselines.ceiling(questions, tell)]
        with step("rag few") as tell:
            outcome.answers["rag few"] = [*baselines.best_pieces(questions, tell, FEW_PIECES)]
        with step("plain, rag") as tell:
            _ask_at_full_budget(baselines, outcome, ends, tell)
    return outcome


def _ask_at_full_budget(
    baselines: Baselines, outcome: Outcome, ends: float, tell: Callable[[], None]
) -> None:
    """Truncation and retrieval, the questions in seeded order, until time is short."""
    count = len(outcome.questions)
    order = random.Random(SEED).sample(range(count), count)
    asked = [outcome.questions[place] for place in order]
    methods = ("plain", "rag")
    for method in methods:
        outcome.answers[method] = [None] * count
    rounds = zip(order, baselines.plain(asked), baselines.retrieval(asked), strict=True)
    for done, (place, *answers) in enumerate(rounds, start=1):
        for method, answer in zip(methods, answers, strict=True):
            outcome.answers[method][place] = answer
        tell()
        if done >= FULL_BUDGET_QUESTIONS_MIN and time.monotonic() > ends:
            break


def _ask(memory: Memory, question: TextQuestion, outcome: Outcome, tell: Callable[[], None]) -> str:
    answer = memory.ask(question.question, GENERATION)
    text = answer.text
    outcome.first_token_seconds.append(answer.stats.first_token_seconds)
    outcome.places_used.append(answer.stats.prompt_places)
    tell()
    return text


Step = Callable[[str], AbstractContextManager[Callable[[], None]]]


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Step]:
    columns = (TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, console=console) as progress:

        @contextmanager
        def step(name: str) -> Iterator[Callable[[], None]]:
            if not console.is_terminal:  # a bar would show only at the end
                console.print(f"{name}: {total} questions ...")
            task = progress.add_task(name, total=total)
            yield lambda: progress.advance(task)

        yield step


def _show_results(console: Console, outcome: Outcome) -> None:
    table = Table(title=f"Right answers, {len(outcome.questions)} questions")
    table.add_column("kind")
    for method in METHODS:
        table.add_column(_TITLES[method], justify="right")
    kinds = list(dict.fromkeys(question.kind for question in outcome.questions))
    for kind in kinds:
        table.add_row(kind, *(outcome.cell(method, kind) for method in METHODS))
    table.add_section()
    table.add_row("all", *(outcome.cell(method) for method in METHODS))
    table.add_row("over ceiling", *(f"{outcome.over_ceiling(method):.0%}" for method in METHODS))
    console.print(table)
    console.print(
        f"first token: MegaContext {median(outcome.first_token_seconds):.2f} s over the whole "
        f"history, plain model {outcome.prefill_seconds:.2f} s over {BUDGET_PLACES:,} tokens; "
        f"MegaContext used {median(outcome.places_used):,.0f} places (median)",
        highlight=False,
    )


def _show_one(console: Console, memory: Memory, outcome: Outcome, output: Path) -> None:
    """One planted question, its answer, where it was read, and the picture of the focus."""
    question = outcome.questions[-1]
    answer = memory.ask(question.question, GENERATION)
    console.print(f"\n[bold]{question.question}[/bold]\n{answer.text}", highlight=False)
    for span in answer.sources[:3]:
        console.print(
            f"  read from {span.source} characters {span.char_start:,}-{span.char_end:,} "
            f"(score {span.score:.2f})",
            highlight=False,
        )
    view = memory.last_working_context(question.question)
    console.print(view.describe(), highlight=False)
    console.print(view.bar(columns=60))
    view.save_png(output / "working-context.png")


def _summary(memory: Memory, outcome: Outcome, ingest_seconds: float) -> dict[str, object]:
    first = median(outcome.first_token_seconds)
    return {
        "demo": "smollm2",
        "retrieval_over_ceiling": outcome.over_ceiling("megacontext"),
        "truncation_over_ceiling": outcome.over_ceiling("plain"),
        "rag_over_ceiling": outcome.over_ceiling("rag"),
        "rag_few_over_ceiling": outcome.over_ceiling("rag few"),
        "ceiling": round(
            outcome.right("ceiling", outcome.asked("ceiling")) / len(outcome.questions), 3
        ),
        "ingest_tokens_per_s": round(memory.token_count / ingest_seconds),
        "ttft_over_plain": round(first / outcome.prefill_seconds, 3),
        "ttft_seconds": round(first, 3),
        "places_used_median": int(median(outcome.places_used)),
        "history_tokens": memory.token_count,
        "budget": BUDGET_PLACES,
        "questions": len(outcome.questions),
        "questions_at_full_budget": len(outcome.asked("rag")),
    }


def _answers(outcome: Outcome) -> list[dict[str, object]]:
    return [
        {
            "kind": question.kind,
            "question": question.question,
            "accepted": question.answers,
            **{method: outcome.answers[method][place] for method in METHODS},
        }
        for place, question in enumerate(outcome.questions)
    ]
