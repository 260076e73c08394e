"""One process or several: DDP and FSDP2 behind two functions. Start several with torchrun.

A step of R processes reads R times the items of one, and takes their mean: it equals one process
that accumulates R times as many.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from megacontext_ext.errors import InvalidArgument

Parallel = Literal["none", "ddp", "fsdp"]
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) outside of torchrun."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


@contextmanager
def joined_processes() -> Iterator[None]:
    """Meets the other processes of a torchrun, by NCCL where there is CUDA and gloo elsewhere, and
    parts from them at the end; does nothing outside of torchrun. After an error inside, this
    process leaves without waiting: torchrun ends the others."""
    if "RANK" not in os.environ or torch.distributed.is_initialized():
        yield
        return
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    yield
    wait_for_all()
    # Wrapped models hold the group; left to the end of the process, gloo was seen to abort there.
    gc.collect()
    torch.distributed.destroy_process_group()


def wait_for_all() -> None:
    """Returns when every process has called it."""
    if rank_and_world()[1] > 1:
        torch.distributed.barrier()


@contextmanager
def first_process_first() -> Iterator[None]:
    """What the others may find there is made by the first process before they begin."""
    if rank_and_world()[0] > 0:
        wait_for_all()
    yield
    if rank_and_world()[0] == 0:
        wait_for_all()


def distribute(model: nn.Module, parallel: Parallel) -> nn.Module:
    """`model` for several processes: copies with summed gradients (ddp), or shards (fsdp)."""
    if parallel == "none":
        return model
    if rank_and_world()[1] < 2:
        raise InvalidArgument(
            f"[distribute] {parallel} needs at least 2 processes (torchrun --nproc-per-node 2), "
            f"got {rank_and_world()[1]}"
        )
    if parallel == "ddp":
        # A step need not read every parameter: a head whose labels are missing, a level.
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    from torch.distributed.fsdp import fully_shard

    mesh = None
    if not torch.cuda.is_available():
        from torch.distributed.device_mesh import init_device_mesh

        mesh = init_device_mesh("cpu", (rank_and_world()[1],))
    fully_shard(model, mesh=mesh)
    return model


def whole_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and optimizer state by plain names, on the CPU; every process takes part."""
    return get_state_dict(model, optimizer, options=_WHOLE)  # type: ignore[return-value]


def restore_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, Any],
    optimizer_state: dict[str, Any],
) -> None:
    """What `whole_state` gave, into any arrangement of processes."""
    set_state_dict(
        model,
        optimizer,
        model_state_dict=parameters,
        optim_state_dict=optimizer_state,  # type: ignore[arg-type]
        options=StateDictOptions(full_state_dict=True),
    )
