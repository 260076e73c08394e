"""Every family against every check, and the capability page against both."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import capabilities

pytestmark = pytest.mark.portability

# What may be less than a pass, and why. Everything else must pass.
MAY_BE_DEGRADED = {
    (name, "reads_text"): "randomly initialised"
    for name in capabilities.names()
    if name not in capabilities.REAL
} | {
    ("gpt2", "rotary_positions"): "absolute positions",
    ("gpt2", "paged_memory"): "rotary",
}

_SMOLLM2 = "SmolLM2-135M-Instruct"


def _marks(name: str) -> list[pytest.MarkDecorator]:
    if name == _SMOLLM2:
        return [pytest.mark.smollm2]
    reason = capabilities.missing(name)
    return [pytest.mark.skipif(bool(reason), reason=reason), pytest.mark.timeout(900)]


NAMES = [pytest.param(name, marks=_marks(name)) for name in capabilities.names()]


@pytest.mark.parametrize("check", list(capabilities.ALL_CHECKS))
@pytest.mark.parametrize("name", NAMES)
def test_family_passes_and_the_page_says_so(name, check):
    found = capabilities.verdict_of(name, check)
    reason = MAY_BE_DEGRADED.get((name, check))
    if reason is None:
        assert found.status == "pass", found.detail
    else:
        assert found.status == "degraded"
        assert reason in found.detail
    assert capabilities.committed_rows()[name][check] == capabilities.mark(name, check)


@pytest.mark.parametrize("name", NAMES)
def test_page_describes_the_architecture(name):
    assert capabilities.committed_rows()[name]["architecture"] == capabilities.traits(name)


def test_page_has_every_family_and_no_other():
    assert list(capabilities.committed_rows()) == capabilities.names()
