"""One scoring for all methods: does the answer contain an accepted one?"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans(string.punctuation, " " * len(string.punctuation))


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces (SQuAD's normalisation)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def is_right(answer: str, accepted: Sequence[str]) -> bool:
    """Whether the words of one accepted answer stand in `answer` in a row."""
    said = f" {normalised(answer)} "
    return any(f" {normalised(each)} " in said for each in accepted if normalised(each))
