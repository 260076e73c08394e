"""How an answer is scored: always 0 to 1, always by code, never by a model.

Texts are compared as runs of normalised words, so that "12" is not found in "1234" and "A cat." is
found in "a cat". Knows no task.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from megacontext.eval.long.example import Example
from megacontext.eval.long.run_tests import passes
from megacontext_ext.errors import NotFound

Scorer = Callable[[str, Sequence[str]], float]
OptionScorer = Callable[[str, Sequence[str], Sequence[str]], float]

_ARTICLES = frozenset(("a", "an", "the"))
# Identifiers and numbers with separators stay whole: "3-5", "a_b", "2.50", "4e1f-9a".
_WORD = re.compile(r"\w+(?:[-.:/_']\w+)*")


def words(text: str) -> list[str]:
    """Lower-case words of `text` without punctuation and articles."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace(",", "")
    return [word for word in _WORD.findall(folded) if word not in _ARTICLES]


def names(prediction: str, answer: str) -> bool:
    """`answer` stands in `prediction` as a run of whole words."""
    there, wanted = words(prediction), words(answer)
    if not wanted:
        return answer.strip() != "" and answer.strip() in prediction
    return any(there[i : i + len(wanted)] == wanted for i in range(len(there) - len(wanted) + 1))


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 when the first line of `prediction` is one of `answers`."""
    lines = prediction.strip().splitlines()
    return float(bool(lines) and any(words(lines[0]) == words(answer) for answer in answers))


def contains(prediction: str, answers: Sequence[str]) -> float:
    """1 when any of `answers` is named."""
    return float(any(names(prediction, answer) for answer in answers))


def recall(prediction: str, answers: Sequence[str]) -> float:
    """Share of `answers` that are named: for questions with several answers."""
    return sum(names(prediction, answer) for answer in answers) / len(answers)


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Best word-level F1 against `answers` (Rajpurkar et al. 2016)."""
    return max(_f1(words(prediction), words(answer)) for answer in answers)


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """Best F1 of the longest common subsequence of words (Lin 2004)."""
    return max(_rouge_l(words(prediction), words(answer)) for answer in answers)


def first_named(prediction: str, answers: Sequence[str], options: Sequence[str]) -> float:
    """1 when, of `options`, the one that is named first is among `answers`."""
    there = words(prediction)
    best, named = len(there), ""
    for option in options:
        wanted = words(option)
        for i in range(min(best, len(there) - len(wanted) + 1)):
            if there[i : i + len(wanted)] == wanted:
                best, named = i, option
                break
    return float(named in answers)


def choice(prediction: str, answers: Sequence[str]) -> float:
    """1 when the first letter A to D that stands alone is among `answers`."""
    found = re.search(r"(?<![A-Za-z])\(?([A-D])\)?(?![A-Za-z'])", prediction)
    return float(found is not None and found[1] in answers)


def edit_similarity(prediction: str, answers: Sequence[str]) -> float:
    """Likeness of the first line of code with the best of `answers`, 0 to 1."""
    lines = [line for line in prediction.splitlines() if line.strip() and "```" not in line]
    first = lines[0].strip() if lines else ""
    return max(
        difflib.SequenceMatcher(None, first, answer.strip(), autojunk=False).ratio()
        for answer in answers
    )


def function_body(completion: str) -> str:
    """The lines of `completion` that still belong to the function it goes on with: up to the first
    one that is not indented, or a fence of Markdown. The first line of code is indented by four
    whatever it comes with, as a prompt may have given a part of that."""
    kept: list[str] = []
    for line in ("    " + completion.lstrip()).split("\n"):
        if line.strip() and (not line[0].isspace() or line.lstrip().startswith("```")):
            break
        kept.append(line)
    return "\n".join(kept)


def passes_tests(prediction: str, answers: Sequence[str], options: Sequence[str]) -> float:
    """1 when `prediction` completes a function that passes its tests. Runs it: see `run_tests`.

    Args:
        answers: not looked at: any function that passes will do.
        options: the function as far as its docstring, without a line end; the code that tests it.
    """
    before, behind = options
    return float(passes(f"{before}\n{function_body(prediction)}\n{behind}"))


SCORERS: dict[str, Scorer] = {
    scorer.__name__: scorer
    for scorer in (exact_match, contains, recall, f1, rouge_l, choice, edit_similarity)
}


_WITH_OPTIONS: dict[str, OptionScorer] = {
    scorer.__name__: scorer for scorer in (first_named, passes_tests)
}


def score(example: Example, prediction: str) -> float:
    """Score of `prediction` for `example`. Raises NotFound for a scorer that is not known."""
    if example.scorer in _WITH_OPTIONS:
        return _WITH_OPTIONS[example.scorer](prediction, example.answers, example.options)
    scorer = SCORERS.get(example.scorer)
    if scorer is None:
        raise NotFound(
            f"[score] scorer must be one of {', '.join([*_WITH_OPTIONS, *SCORERS])}, "
            f"got {example.scorer!r}"
        )
    return scorer(prediction, example.answers)


def _f1(there: list[str], wanted: list[str]) -> float:
    common = sum((Counter(there) & Counter(wanted)).values())
    return 2.0 * common / (len(there) + len(wanted)) if common else float(there == wanted)


def _rouge_l(there: list[str], wanted: list[str]) -> float:
    row = [0] * (len(wanted) + 1)
    for word in there:
        diagonal = 0
        for j, other in enumerate(wanted, 1):
            above = row[j]
            row[j] = diagonal + 1 if word == other else max(row[j], row[j - 1])
            diagonal = above
    return 2.0 * row[-1] / (len(there) + len(wanted)) if row[-1] else 0.0
