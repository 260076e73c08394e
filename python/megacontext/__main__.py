"""`python -m megacontext` is the `megacontext` command."""

from __future__ import annotations

from megacontext.cli import main

if __name__ == "__main__":
    main()
