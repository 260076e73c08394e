"""Fixtures that every test may use: where kernels run, poisoned memory, seeds."""

from __future__ import annotations

import importlib
import os
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
# Other orders of the emulated threads find missing barriers; 0 would run them in order.
EMULATED_THREAD_ORDER_SEED = 7
CPU_LEVEL_AMX = 3  # of CpuLevel in cpu_level.h


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--model", help="with -m portability: certify this checkpoint folder")


@dataclass(frozen=True)
class KernelDevice:
    """One way to run the operators: a CPU level, CUDA source on the CPU, or a CUDA device."""

    name: str
    ops: Any  # torch.ops.megacontext, or its emulated twin
    place: str  # "cpu" or "cuda"

    @property
    def is_cuda(self) -> bool:
        """True when the CUDA source runs, emulated or not."""
        return self.name.startswith("cuda")

    def put(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        """A contiguous copy on this device with NaN (or the largest integer) behind its end."""
        if tensor is None:
            return None
        guard = 64
        poison = float("nan") if tensor.dtype.is_floating_point else 1
        if not tensor.dtype.is_floating_point and tensor.dtype != torch.bool:
            poison = torch.iinfo(tensor.dtype).max
        buffer = torch.full((tensor.numel() + guard,), poison, device=self.place).to(tensor.dtype)
        copy = buffer[: tensor.numel()].view(tensor.shape)
        copy.copy_(tensor)
        return copy


def emulated_library() -> Path | None:
    """The twin of the operators that runs CUDA source on the CPU, the newest one built."""
    named = os.environ.get("MC_OPS_EMU_LIBRARY")
    if named:
        return Path(named)
    built = sorted(ROOT.glob("build/*/_ops_emu.so"), key=lambda path: path.stat().st_mtime)
    return built[-1] if built else None


def _emulated_ops() -> Any:
    if not hasattr(torch.ops.megacontext_emu, "cpu_level"):
        path = emulated_library()
        if path is None:
            pytest.skip("the emulated twin is not built: configure with -DMC_BUILD_TESTS=ON")
        torch.ops.load_library(str(path))
        torch.ops.megacontext_emu.set_heeds_fill(True)
    torch.ops.megacontext_emu.set_thread_order(EMULATED_THREAD_ORDER_SEED)
    return torch.ops.megacontext_emu


@pytest.fixture
def emulated_ops() -> Any:
    """The operators of the emulated twin, for tests of the emulation itself."""
    return _emulated_ops()


KERNEL_DEVICES = ["cpu_portable", "cpu_avx2", "cpu_avx512", "cpu_amx", "cuda_emu", "cuda"]


def open_device(name: str) -> Iterator[KernelDevice]:
    """A device by name: one of KERNEL_DEVICES, or amx_emu, for kernels that have AMX sources."""
    if name == "cuda_emu":
        yield KernelDevice(name, _emulated_ops(), "cpu")
        return
    if name == "amx_emu":
        emulated = _emulated_ops()
        if not emulated.set_cpu_level(CPU_LEVEL_AMX):
            pytest.skip("emulated tiles need a CPU with AVX512-BF16")
        emulated.set_emulates_cuda(False)
        yield KernelDevice(name, emulated, "cpu")
        emulated.set_emulates_cuda(True)
        return
    from megacontext_ext import ops

    if name == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("torch sees no CUDA device on this machine")
        yield KernelDevice(name, torch.ops.megacontext, "cuda")
        return
    before = ops.cpu_level()
    level = name.removeprefix("cpu_")
    if not ops.set_cpu_level(level):
        pytest.skip(f"this CPU has no {level}")
    yield KernelDevice(name, torch.ops.megacontext, "cpu")
    ops.set_cpu_level(before)


def kernel_device(*more: str) -> Any:
    """A fixture `device`: every way to run a kernel, and `more` of `open_device`'s names."""

    @pytest.fixture(name="device", params=[*KERNEL_DEVICES, *more])
    def opened(request: pytest.FixtureRequest) -> Iterator[KernelDevice]:
        yield from open_device(request.param)

    return opened


# Four CPU levels, CUDA source emulated, CUDA.
device = kernel_device()


@pytest.fixture(params=["cpu_portable", "cuda"])
def wrapper_device(request: pytest.FixtureRequest) -> Iterator[KernelDevice]:
    """Where the typed wrappers run (they know no emulation): for autograd and torch.compile."""
    yield from open_device(request.param)


@pytest.fixture(params=["portable", "avx2", "avx512", "amx"])
def cpu_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of the CPU kernels that this machine has."""
    for device in open_device("cpu_" + request.param):
        yield device.name.removeprefix("cpu_")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    torch.manual_seed(20261122)
    np.random.seed(20261122)
    random.seed(20261122)


@pytest.fixture(autouse=True)
def _poisoned_outputs(request: pytest.FixtureRequest) -> Iterator[None]:
    """In kernel tests torch.empty, from C++ too, gives NaN: what nobody wrote shows."""
    if request.path.parent.name != "kernels":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        importlib.import_module("megacontext_ext.ops")
        torch.ops.megacontext.set_heeds_fill(True)
        yield
        torch.ops.megacontext.set_heeds_fill(False)
        torch.use_deterministic_algorithms(before)
