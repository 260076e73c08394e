"""A user's own checkpoint: pytest -m portability --model PATH prints its verdicts."""

from __future__ import annotations

import pytest

from megacontext.models.port.checks import CHECKS, Subject, checkpoint_subject, verdict
from megacontext.models.port.inspection import inspect_checkpoint

pytestmark = pytest.mark.portability


@pytest.fixture(scope="module")
def folder(request):
    from pathlib import Path

    chosen = request.config.getoption("--model")
    if chosen is None:
        pytest.skip("no checkpoint was named with --model")
    return Path(chosen)


@pytest.fixture(scope="module")
def checkpoint(folder) -> Subject:
    return checkpoint_subject(folder)


def test_checkpoint_is_not_refused(folder):
    assert inspect_checkpoint(folder).refusals == ()


@pytest.mark.parametrize("check", list(CHECKS))
def test_checkpoint_passes(checkpoint, check, capsys):
    found = verdict(CHECKS[check], checkpoint)
    with capsys.disabled():
        print(f"\n{found.check:26s}{found.status:10s}{found.detail}", end="")
    assert found.status != "fail", found.detail
