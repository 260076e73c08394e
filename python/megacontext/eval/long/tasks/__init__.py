"""The tasks by name."""

from __future__ import annotations

from megacontext.eval.long.example import Task
from megacontext.eval.long.tasks.code import CODE_TASKS
from megacontext.eval.long.tasks.dialogue import DIALOGUE_TASKS
from megacontext.eval.long.tasks.documents import DOCUMENT_TASKS
from megacontext.eval.long.tasks.facts import FACT_TASKS
from megacontext.eval.long.tasks.humaneval import HUMANEVAL_TASKS
from megacontext.eval.long.tasks.needles import NEEDLE_TASKS
from megacontext.eval.long.tasks.tracing import TRACING_TASKS
from megacontext_ext.errors import NotFound

_ALL: tuple[Task, ...] = (
    *NEEDLE_TASKS,
    *TRACING_TASKS,
    *DOCUMENT_TASKS,
    *FACT_TASKS,
    *CODE_TASKS,
    *DIALOGUE_TASKS,
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}
# Their scorer runs what a model wrote: part of no group, asked for by name.
NAMED_ONLY: dict[str, Task] = {task.name: task for task in HUMANEVAL_TASKS}
# The questions of RULER in its order, for comparison with its tables.
RULER = (
    *(task.name for task in NEEDLE_TASKS if task.name.startswith("niah")),
    "variable_tracking",
    "common_words",
    "frequent_words",
    "qa_squad",
    "qa_hotpot",
)


def task(name: str) -> Task:
    """The task called `name`. Raises NotFound with all names."""
    known = TASKS | NAMED_ONLY
    if name not in known:
        raise NotFound(f"[task] name must be one of {', '.join(known)}, got {name!r}")
    return known[name]
