"""Turns a refusal of a compiled operator into the error class that people can catch."""

from __future__ import annotations

import re

from megacontext_ext import errors

__all__ = ["refused"]

# A Status as text, "InvalidArgument: [op] name must ..., got ...", within what torch adds to it.
_STATUS = re.compile(r"\b([A-Z][A-Za-z]+): (\[[^\n]*)")


def refused(error: RuntimeError) -> Exception:
    """The error to raise instead of `error`, which itself comes back when it is not a Status."""
    found = _STATUS.search(str(error))
    kind = getattr(errors, found[1], None) if found else None
    return kind(found[2]) if found and kind is not None else error
