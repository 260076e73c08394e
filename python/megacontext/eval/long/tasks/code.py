"""Looking things up in a repository: Python's own standard library, out of the running Python.

A history is made of whole functions and classes of many modules, each under its path. The answers
depend on the Python version, which the manifest of a report names.
"""

from __future__ import annotations

import ast
import random
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from megacontext.eval.long.example import Example, ExampleRequest
from megacontext.eval.long.haystack import place

_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo", "pydoc_data"}
# Longer definitions are left out: one of them would fill a short history.
_LONGEST_CHARACTERS = 6_000


@dataclass(frozen=True, slots=True)
class Definition:
    """One top-level function or class with the file it stands in."""

    path: str
    name: str
    text: str

    @property
    def shown(self) -> str:
        return f"# file: {self.path}\n{self.text}"


@lru_cache
def definitions() -> tuple[Definition, ...]:
    """Top-level definitions of the standard library, by path and place. Takes about 3 s, once."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if _LEFT_OUT.intersection(inside.parts[:-1]) or inside.name.startswith("_sysconfigdata"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
            tree = ast.parse(text)
        except (SyntaxError, UnicodeDecodeError):
            continue
        lines = text.splitlines()
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                source = "\n".join(lines[node.lineno - 1 : node.end_lineno])
                if len(source) <= _LONGEST_CHARACTERS:
                    found.append(Definition(inside.as_posix(), node.name, source))
    return tuple(found)


def whole_definitions(
    request: ExampleRequest, rng: random.Random, used: int, without: str
) -> list[str]:
    """Definitions from a random place on, wrapping around, that fill the history of `request`.

    Args:
        used: tokens of the history that are taken already.
        without: a name that questions give alone: what is called so is left out.
    """
    everything, units = definitions(), []
    at = rng.randrange(len(everything))
    for step in range(len(everything)):
        other = everything[(at + step) % len(everything)]
        if other.name == without:
            continue
        tokens = request.count_tokens(other.shown) + 2
        if used + tokens <= request.length_tokens:
            used += tokens
            units.append(other.shown)
        elif used > 0.95 * request.length_tokens:
            break
    return units


@dataclass(frozen=True)
class CodeTask:
    """`file`: which file defines a function; `default`: the default of one of its parameters."""

    name: str
    kind: Literal["file", "default"]
    category: str = "code"

    def make(self, request: ExampleRequest) -> Example:
        rng = request.rng(self.name)
        everything = definitions()
        while True:
            target = everything[rng.randrange(len(everything))]
            asked = self._ask(target, rng)
            if asked is not None and request.count_tokens(target.shown) < request.length_tokens:
                break
        question, answer, prefix = asked
        used = request.count_tokens(target.shown)
        units = whole_definitions(request, rng, used, without=target.name)
        placed = place(units, [target.shown], [request.spread_depth(self.name)], "\n\n")
        return Example(
            task=self.name,
            index=request.index,
            length_tokens=request.length_tokens,
            sources=placed.source("repository"),
            question=question,
            answers=(answer,),
            scorer="contains",
            gold=placed.gold(),
            answer_prefix=prefix,
            max_new_tokens=24,
        )

    def _ask(self, target: Definition, rng: random.Random) -> tuple[str, str, str] | None:
        if len(target.name) < 8 or target.name.startswith("__"):
            return None
        node = ast.parse(target.text).body[0]
        if not isinstance(node, ast.FunctionDef):
            return None
        if self.kind == "file":
            question = f"Which file of the repository defines the function {target.name}?"
            return question, target.path, f"The function {target.name} is defined in the file"
        positional = node.args.posonlyargs + node.args.args
        pairs = list(zip(positional[::-1], node.args.defaults[::-1], strict=False))
        pairs += [
            (arg, default)
            for arg, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            if default is not None
        ]
        constants = [
            (arg.arg, ast.unparse(default))
            for arg, default in pairs
            if isinstance(default, ast.Constant) and default.value not in ("", None)
        ]
        if not constants:
            return None
        parameter, value = rng.choice(constants)
        question = (
            f"In the repository, what is the default value of the parameter {parameter} of the "
            f"function {target.name}?"
        )
        return question, value.strip("'\""), f"The default value of {parameter} is"


CODE_TASKS = (CodeTask("code_file", "file"), CodeTask("code_default", "default"))
