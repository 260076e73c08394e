"""One process or several: DDP and FSDP2 behind two functions. Start several with torchrun.

A step of R processes reads R times the items of one, and takes their mean: it equals one process
that accumulates R times as many.
"""

from __future__ import annotations

import os
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


def join_processes() -> None:
    """Meet the other processes of a torchrun: NCCL where there is CUDA, gloo elsewhere."""
    if "RANK" in os.environ and not torch.distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend)


def wait_for_all() -> None:
    """Returns when every process has called it."""
    if rank_and_world()[1] > 1:
        torch.distributed.barrier()


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
        return nn.parallel.DistributedDataParallel(model)
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
