"""Rules that say what to do with which sources, and the plan that they make."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from megacontext.curate.report import SourceReport
from megacontext.runtime import SKETCH_ROWS
from megacontext_ext.errors import InvalidArgument

ACTIONS = ("keep", "compact", "archive", "delete")
PROTECTED_TAGS = ("protected",)


@dataclass(frozen=True, slots=True)
class Rule:
    """An action for sources of which all that is given holds.

    "compact" drops `families` (none named: all but sketches and counts), "archive" takes a source
    out of search and focus, "delete" does so until `purge` erases it, "keep" ends the search for a
    rule.
    """

    action: str
    tag: str | None = None
    path: str | None = None  # glob over the path, or the name where there is none
    older_than_days: float | None = None
    shown_at_most: int | None = None
    larger_than_tokens: int | None = None
    trust_below: float | None = None
    families: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise InvalidArgument(f"[rule] action must be one of {ACTIONS}, got {self.action!r}")

    def holds(self, source: SourceReport) -> bool:
        return (
            (self.tag is None or self.tag in source.tags)
            and (self.path is None or fnmatchcase(source.path or source.source, self.path))
            and (self.older_than_days is None or source.age_days > self.older_than_days)
            and (self.shown_at_most is None or source.shown_times <= self.shown_at_most)
            and (self.larger_than_tokens is None or source.tokens > self.larger_than_tokens)
            and (
                self.trust_below is None
                or (source.trust is not None and source.trust < self.trust_below)
            )
        )

    def reason(self) -> str:
        """What held, in words."""
        given = [(f.name, getattr(self, f.name)) for f in fields(self)[1:]]
        said = [f"{name.replace('_', ' ')} {value}" for name, value in given if value]
        return ", ".join(said) or "every source"


@dataclass(frozen=True, slots=True)
class Rules:
    """The first rule that holds decides; none, and the source is kept. A source with a protected
    tag, on it or on one of its spans, is always kept."""

    rules: tuple[Rule, ...]
    protected_tags: tuple[str, ...] = PROTECTED_TAGS

    @classmethod
    def from_json(cls, text: str) -> Rules:
        """{"rules": [{"action": "archive", "older_than_days": 365}], "protected_tags": [...]}

        Raises: InvalidArgument for anything else.
        """
        try:
            given: dict[str, Any] = json.loads(text)
            rules = tuple(
                Rule(**{**rule, "families": tuple(rule.get("families", ()))})
                for rule in given["rules"]
            )
            return cls(rules, tuple(given.get("protected_tags", PROTECTED_TAGS)))
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise InvalidArgument(
                f"[rules] must be JSON with a list of rules, got {error}"
            ) from error


@dataclass(frozen=True, slots=True)
class Step:
    """One action on one source as it was when planned. `saved_bytes` come back at the purge."""

    action: str
    source: str
    partition: int
    tokens: int
    families: tuple[str, ...]
    saved_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps by partition; sources that are kept have none."""

    steps: tuple[Step, ...]
    protected_tags: tuple[str, ...] = PROTECTED_TAGS

    @property
    def saved_bytes(self) -> int:
        return sum(step.saved_bytes for step in self.steps)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Raises: InvalidArgument for what `to_json` did not write."""
        try:
            given = json.loads(text)
            steps = tuple(
                Step(**{**step, "families": tuple(step["families"])}) for step in given["steps"]
            )
            return cls(steps, tuple(given["protected_tags"]))
        except (TypeError, KeyError, json.JSONDecodeError) as error:
            raise InvalidArgument(f"[plan] must be a plan of `curate plan`, got {error}") from error


def make_plan(sources: Sequence[SourceReport], rules: Rules) -> Plan:
    """What the rules would do. Changes nothing."""
    steps = []
    for source in sources:
        if set(source.tags) & set(rules.protected_tags) or source.state == "deleted":
            continue
        rule = next((rule for rule in rules.rules if rule.holds(source)), None)
        if rule is None or rule.action == "keep":
            continue
        families = _families(rule, source) if rule.action == "compact" else ()
        done = rule.action == "archive" and source.state == "archived"
        if done or (rule.action == "compact" and not families):
            continue
        saved = {
            "compact": sum(source.row_bytes[name] for name in families),
            "archive": 0,
            "delete": source.total_bytes,
        }[rule.action]
        steps.append(
            Step(
                rule.action,
                source.source,
                source.partition,
                source.tokens,
                families,
                saved,
                rule.reason(),
            )
        )
    return Plan(tuple(steps), rules.protected_tags)


def _families(rule: Rule, source: SourceReport) -> tuple[str, ...]:
    named = rule.families or tuple(
        name for name in source.row_bytes if name != SKETCH_ROWS and not name.startswith("access-")
    )
    return tuple(name for name in named if name in source.row_bytes)
