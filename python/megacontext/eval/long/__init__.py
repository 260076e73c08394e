"""Questions over long histories: tasks, scorers, methods at equal budget, a runner, a report.

`command.app` is the command line that `megacontext eval` mounts as `long`.
"""

from __future__ import annotations

from megacontext.eval.long.example import Example, ExampleRequest, GoldSpan, Source, Task
from megacontext.eval.long.scorers import score
from megacontext.eval.long.tasks import RULER, TASKS, task

__all__ = [
    "RULER",
    "TASKS",
    "Example",
    "ExampleRequest",
    "GoldSpan",
    "Source",
    "Task",
    "score",
    "task",
]
