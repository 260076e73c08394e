"""Looking after a memory: what is in it, what could go, and taking it out reversibly."""

from __future__ import annotations

from megacontext.curate.apply import Applied, apply_plan, forget_traces, purge, restore
from megacontext.curate.audit import AuditEntry, AuditLog
from megacontext.curate.report import SourceReport, report
from megacontext.curate.rules import PROTECTED_TAGS, Plan, Rule, Rules, Step, make_plan

__all__ = [
    "PROTECTED_TAGS",
    "Applied",
    "AuditEntry",
    "AuditLog",
    "Plan",
    "Rule",
    "Rules",
    "SourceReport",
    "Step",
    "apply_plan",
    "forget_traces",
    "make_plan",
    "purge",
    "report",
    "restore",
]
