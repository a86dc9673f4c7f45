"""Networks too large for each process to hold with its optimizer: every process keeps a slice of each tensor (FSDP).

The whole weights of one part of the network are put together when it is computed, and let go of again. In files the
states are whole, whatever they were in memory, so that any number of processes goes on from them.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

__all__ = ["load_model", "load_optimizer", "model_state", "optimizer_state", "sharded"]

State = dict[str, Any]

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def sharded(num_processes: int) -> ModelParallelStrategy:
    """Returns the strategy that shares networks out to all processes.

    Fabric's own ``FSDPStrategy`` refuses the CPU, where it could not be tested; this one is the same on all devices.
    """
    return ModelParallelStrategy(_shard, data_parallel_size=num_processes, tensor_parallel_size=1)


def model_state(model: nn.Module) -> State:
    """Returns the whole weights and buffers on the CPU; on the first process only, but all must ask."""
    return get_model_state_dict(model, options=_WHOLE)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> State | None:
    """Returns the whole state of an optimizer as :func:`model_state` does; ``None`` if it remembers nothing.

    So it is before the first step, where torch would make a state, by a step that Adam counts; and always with SGD
    without momentum, of which torch (2.13) gives a state that it cannot load.
    """
    return get_optimizer_state_dict(model, optimizer, options=_WHOLE) if optimizer.state else None


def load_model(model: nn.Module, state: State | None) -> None:
    """Gives ``model`` the state that the first process has; all must ask."""
    set_model_state_dict(model, state or {}, options=_from_first())


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, state: State | None) -> None:
    """Gives ``optimizer`` the state that the first process has; all must ask."""
    set_optimizer_state_dict(model, optimizer, state or {}, options=_from_first())


def _from_first() -> StateDictOptions:
    return StateDictOptions(full_state_dict=True, broadcast_from_rank0=torch.distributed.is_initialized())


def _shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    mesh = mesh["data_parallel"]
    model.to(mesh.device_type)
    # Slices of one network and not of as many as there are processes, however those were made.
    for tensor in (*model.parameters(), *model.buffers()):
        torch.distributed.broadcast(tensor.detach(), 0)
    for part in _parts(model):
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    """The children that have parameters and are called; what is called is what is put together at a time."""
    for child in model.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _parts(child)
        elif next(child.parameters(), None) is not None:
            yield child
