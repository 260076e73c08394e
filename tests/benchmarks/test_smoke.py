"""Every benchmark runs in smoke size, so that none rots."""

from __future__ import annotations

import json

import pytest

from benchmarks.__main__ import discover, main, select
from benchmarks.harness import Bench, Case
from benchmarks.machine import Ceilings, machine_slug


@pytest.mark.parametrize("name", sorted(discover()))
def test_benchmark_runs_and_ends_with_one_json_object(name, tmp_path, capsys):
    assert main(["run", name, "--smoke", "--no-gate", "--out", str(tmp_path)]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    result = json.loads(last)
    assert result["bench"] == name
    assert set(result) >= {"params", "ratios", "commit", "dirty", "machine", "samples"}
    assert all(ratio > 0 for ratio in result["ratios"].values())
    raw = [json.loads(line) for line in (tmp_path / "raw.jsonl").read_text().splitlines()]
    assert raw[-1]["kind"] == "bench"
    assert name in (tmp_path / "summary.md").read_text()


def test_a_full_run_may_not_skip_its_tests():
    with pytest.raises(SystemExit):
        main(["run", "kernels/gist_pool", "--full", "--no-gate"])


def test_a_red_gate_prints_no_speed(monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.__main__.gate_is_green", lambda module, device: False)
    assert main(["run", "kernels/gist_pool", "--smoke"]) == 1
    shown = capsys.readouterr().out
    assert "no speed" in shown
    assert "GB/s =" not in shown


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(SystemExit, match="kernels/gist_pool"):
        select(["nothing"], ["kernels/gist_pool"])
    assert select(["gist_pool", "kernels/*"], ["kernels/gist_pool"]) == ["kernels/gist_pool"]


def test_ratios_are_theirs_over_ours_and_results_are_hashed(capsys):
    import time

    bench = Bench("x/y", "cpu", True, Ceilings(1e9, {"float32": 1e9}))
    case = Case("sleep", {"n": 1}, moved_bytes=1e6, flops=1e6)
    bench.compare(case, lambda: time.sleep(0.001), {"slow": lambda: time.sleep(0.02) or 3})
    assert bench.ratios["sleep vs slow"] > 2
    assert bench.lines[0]["hash"] == ""
    assert len(bench.lines[1]["hash"]) == 16
    assert 0 < bench.lines[0]["share_of_copy"] < 1.01


def test_machine_names_become_folder_names():
    cpu = {"gpu": None, "cpu": "AMD EPYC 9R14 96-Core Processor", "cores": 2}
    assert machine_slug(cpu) == "epyc-9r14-2-cores"
    assert machine_slug({"gpu": "NVIDIA H100 80GB HBM3"}) == "h100-80gb-hbm3"
