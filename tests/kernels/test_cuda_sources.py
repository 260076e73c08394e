"""What can be said of CUDA sources beyond their results: they never wait, and nothing spills."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from megacontext_ext import ops
from megacontext_ext.entry_table import EntryTable

ROOT = Path(__file__).parents[2]
# Waiting for the device, or memory from anywhere but torch, would break a CUDA graph.
WAITS = (
    r"cuda\w*Synchronize|cudaMalloc|cudaFree|cudaMemcpy\(|cudaMemset\(|cudaEvent|aten_item|\bnew \w"
)


def sources() -> list[Path]:
    files = [p for p in ROOT.glob("csrc/kernels/**/*") if p.suffix in (".cu", ".cuh")]
    return [*files, ROOT / "csrc/kernels/common/launch.h", *ROOT.glob("csrc/torch_ops/*")]


def waits(text: str) -> list[str]:
    code = re.sub(r"//.*", "", text)
    return re.findall(WAITS, code)


def test_no_operator_waits_for_the_device_or_allocates_behind_torch() -> None:
    assert len(sources()) > 30
    assert {p.name: waits(p.read_text()) for p in sources() if waits(p.read_text())} == {}


@pytest.mark.parametrize("planted", ["cudaStreamSynchronize(s);", "cudaMalloc(&p, 4);"])
def test_the_check_finds_a_planted_wait(planted: str) -> None:
    assert waits(f"int x;  // fine\n{planted}")
    assert not waits(f"// {planted}")


@pytest.mark.slow
def test_the_hottest_kernels_spill_no_registers(tmp_path: Path) -> None:
    """Prefill and decode of focused attention at head width 128, for Hopper."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed; `make cuda-check` looks at every kernel where it is")
    source = tmp_path / "hot.cu"
    source.write_text(
        '#include "kernels/focused_attention/attend_mma.cuh"\n'
        "namespace mc::focused {\n"
        "Status prefill(const AttendArgs& args, const Exec& exec) {\n"
        "  return launch_attend_mma<bf16, 128, 2, 4, 2>(args, exec);\n}\n"
        "Status decode(const AttendArgs& args, const Exec& exec) {\n"
        "  return launch_attend_mma<bf16, 128, 1, 1, 1>(args, exec);\n}\n}\n"
    )
    command = ["nvcc", "-std=c++20", "-O3", f"-I{ROOT / 'csrc'}", "--expt-relaxed-constexpr"]
    command += ["-gencode", "arch=compute_90a,code=sm_90a", "-Xptxas", "-v", "-cubin"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "hot.cubin"), str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert spills == [("0", "0")] * 2, done.stderr


@pytest.mark.cuda
def test_plans_attention_and_selection_replay_from_a_cuda_graph() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device on this machine")
    torch.use_deterministic_algorithms(False)  # filling outputs is torch's own launch
    keys, values = torch.randn(2, 64, 2, 32, 128, device="cuda", dtype=torch.bfloat16)
    q = torch.randn(4, 8, 128, device="cuda", dtype=torch.bfloat16)
    pages = torch.arange(64, dtype=torch.int32, device="cuda")
    starts = ops.dense_query_starts([1] * 4, 1, "cuda")
    scores = torch.randn(5000, device="cuda")
    mask = torch.rand(1, 4, 64, device="cuda") < 0.5

    def step() -> tuple[torch.Tensor, ...]:
        table = EntryTable.from_pages(pages)
        plan = ops.make_read_plan(table, starts, block_mask=mask, query_tile=1)
        out, lse = ops.focused_attention(q, keys, values, table, plan)
        return out, lse, *ops.topk(scores, 100)

    with torch.no_grad():
        step()  # compiles nothing, but torch sets up its pools
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        mask.copy_(torch.rand(1, 4, 64, device="cuda") < 0.3)
        scores.copy_(torch.randn(5000, device="cuda"))
        q.copy_(torch.randn_like(q))
        graph.replay()
        for replayed, now in zip(captured, step(), strict=True):
            assert torch.equal(replayed, now)
