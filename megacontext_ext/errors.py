"""The errors that the compiled engine raises.

Each class also derives from the builtin that people expect, so ``except ValueError`` works.
"""

from __future__ import annotations

__all__ = [
    "Corruption",
    "InvalidArgument",
    "IoError",
    "MegaContextError",
    "NotFound",
    "OverBudget",
    "StoreFailed",
    "StoreLocked",
    "Unsupported",
]


class MegaContextError(Exception):
    """Base of every error of MegaContext."""


class InvalidArgument(MegaContextError, ValueError):
    """A shape, dtype or range is wrong. Fix the call."""


class NotFound(MegaContextError, LookupError):
    """There is no such store, partition, node or version."""


class OverBudget(MegaContextError, ValueError):
    """A plan or a question needs more places than the budget has. Plan again."""


class Corruption(MegaContextError, RuntimeError):
    """A checksum, a magic number or a value in a file is impossible. Restore, or run mc_check."""


class IoError(MegaContextError, OSError):
    """The operating system refused; ``errno`` is kept. Free space, or look at permissions."""


class StoreFailed(MegaContextError, RuntimeError):
    """An earlier write failed, so the store refuses to write more. Open it again."""


class StoreLocked(MegaContextError, RuntimeError):
    """Another writer has the store open. Wait, or open it read-only."""


class Unsupported(MegaContextError, NotImplementedError):
    """Built without CUDA, or a format newer than this version. Install or upgrade."""
