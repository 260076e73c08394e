"""Learned gists for frozen bases: KV gist rows that stand in for blocks of tokens.

Needs torch only; the compiled engine is not imported here.
"""

from __future__ import annotations
