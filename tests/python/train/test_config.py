"""Configs refuse what they do not know."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacontext.train.config import GistTraining, LayoutChoice, read_config
from megacontext.train.values import from_values

ROOT = Path(__file__).parents[3]


def test_the_shipped_config_reads() -> None:
    config = read_config(ROOT / "configs/train/kv_gists_smollm2.yaml", batch=4)
    assert config.batch == 4
    assert config.budget_steps is None
    assert config.window == 1 + 128 + 1024 + 384


def test_unknown_keys_and_bad_budgets_are_refused() -> None:
    with pytest.raises(ValueError, match="learning_rate"):
        from_values(GistTraining, {"learning_rate": 1.0})
    with pytest.raises(ValueError, match=r"\[config\.ranks\] keys must be of .*, got \['z'\]"):
        from_values(GistTraining, {"ranks": {"z": 1}})
    with pytest.raises(ValueError, match="exactly one"):
        GistTraining(budget_minutes=1.0, budget_steps=5)


def test_nested_values_become_dataclasses() -> None:
    config = from_values(
        GistTraining,
        {"layouts": [{"weight": 1, "prefix": 0, "span": 32, "suffix": 8}], "ranks": {"q": 3}},
    )
    assert config.layouts == (LayoutChoice(1, 0, 32, 8),)
    assert config.ranks.q == 3
