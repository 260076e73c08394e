"""Training of the learned parts; plain torch, no engine."""

from __future__ import annotations
