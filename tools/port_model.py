"""Certify a checkpoint as a base: python tools/port_model.py MODEL [--out configs/models]."""

from __future__ import annotations

from megacontext.models.port.command import main
from megacontext.paged.certify import PAGED_CHECKS

if __name__ == "__main__":
    main(more=PAGED_CHECKS)
