"""MegaContext inside other people's harnesses, and its tasks as their files."""

from __future__ import annotations

from megacontext.eval.harness.bounded import BoundedBase, Likelihood, SplitText, split_text
from megacontext.eval.harness.export import ExportPlan, export

__all__ = ["BoundedBase", "ExportPlan", "Likelihood", "SplitText", "export", "split_text"]
