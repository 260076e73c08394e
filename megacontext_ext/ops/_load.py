"""Loads the compiled operators into torch, once."""

from __future__ import annotations

import importlib.util
import os

import torch

__all__ = ["library_path", "load"]


def library_path() -> str:
    """Path of the compiled operators: MC_OPS_LIBRARY, else the installed ``_ops`` module."""
    override = os.environ.get("MC_OPS_LIBRARY")
    if override:
        return override
    spec = importlib.util.find_spec("megacontext_ext._ops")
    if spec is None or spec.origin is None:
        raise ImportError(
            "megacontext_ext._ops is missing: the package was not built. Install the wheel, or run "
            "`make build` in a clone"
        )
    return spec.origin


def load() -> None:
    """Registers the operators as ``torch.ops.megacontext.*``.

    Registering one namespace twice ends the process (the stable ABI cannot report it), so a second
    library is refused here.
    """
    if hasattr(torch.ops.megacontext, "cpu_level"):
        return
    torch.ops.load_library(library_path())
