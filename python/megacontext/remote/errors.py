"""What can go wrong between machines. Each message says what was tried, where, and the answer."""

from __future__ import annotations

from megacontext_ext.errors import MegaContextError

__all__ = ["ErasureIncomplete", "Fenced", "ObjectExists", "QuorumMissed", "RemoteError"]


class RemoteError(MegaContextError, OSError):
    """The object store did not answer, or refused. Nothing wrong was published; try again."""


class QuorumMissed(RemoteError):
    """Fewer copies than the quorum took a write. Run `scrub --repair` when the stores are back."""


class ErasureIncomplete(RemoteError):
    """Some copies may still hold what was erased. Erase again when their stores are back.

    `remaining` names every object that could not be shown to be gone.
    """

    def __init__(self, message: str, remaining: tuple[str, ...]) -> None:
        super().__init__(message)
        self.remaining = remaining


class Fenced(MegaContextError, RuntimeError):
    """Another writer has a higher epoch. The local store keeps everything: push it elsewhere."""


class ObjectExists(MegaContextError, RuntimeError):
    """A conditional put lost: the object is there already, or is not what was expected."""
