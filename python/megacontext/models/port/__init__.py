"""From a checkpoint to a certified base: inspection, checks, a configuration, a card."""

from __future__ import annotations

from megacontext.models.port.checks import CHECKS, Subject, Verdict, examine
from megacontext.models.port.inspection import Inspection, inspect_checkpoint
from megacontext.models.port.porting import Port, port

__all__ = [
    "CHECKS",
    "Inspection",
    "Port",
    "Subject",
    "Verdict",
    "examine",
    "inspect_checkpoint",
    "port",
]
