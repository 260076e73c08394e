"""What an example is made of, as a digest, without making it.

A run that goes on knows by it what it has answered. Making every example again would take seconds
each at a million tokens.
"""

from __future__ import annotations

import hashlib
import importlib.util
import platform
from functools import lru_cache
from pathlib import Path

from megacontext.eval.long.filler import PACKAGE
from megacontext.eval.long.loaders import is_local, local_file
from megacontext.eval.long.tasks.humaneval import HUMANEVAL_TASKS, problem_file

# Everything that makes examples; a change in any of them makes them again.
_SOURCES = ("example.py", "filler.py", "haystack.py", "loaders.py", "vocabulary.py", "tasks/*.py")


@lru_cache
def recipe(task: str, tokenizer_hash: str) -> str:
    """Digest of what the examples of `task` depend on beside length, index and seed: code, texts,
    tokenizer (lengths are counted with it), and Python (code tasks ask about its library).

    Raises: NotFound for a local file or a problem set that is missing.
    """
    parts = [task, tokenizer_hash, _code(), platform.python_version(), *question_hashes().values()]
    if is_local(task):
        parts.append(hashlib.sha256(local_file(task).read_bytes()).hexdigest())
    if task in {made.name for made in HUMANEVAL_TASKS}:
        parts.append(hashlib.sha256(problem_file().read_bytes()).hexdigest())
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


@lru_cache
def question_hashes() -> dict[str, str]:
    """SHA-256 by name of the files of the question package; empty when it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return {}
    folder = Path(spec.origin).parent / "data" / "synthetic" / "json"
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("*.json"))
    }


@lru_cache
def _code() -> str:
    folder, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(path for pattern in _SOURCES for path in folder.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()
