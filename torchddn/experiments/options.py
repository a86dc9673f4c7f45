"""On what a run runs: devices, processes, precision. Changes its speed, and its numbers by rounding only."""

import dataclasses
import os
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric

from torchddn.errors import InvalidInputError
from torchddn.experiments.sharding import sharded

__all__ = ["Options"]

_STRATEGIES = ("auto", "ddp", "fsdp")
_PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed", "bf16-true")
_SHARDED_PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")  # what Fabric has for it


@dataclass(frozen=True)
class Options:
    """What the user chooses of the machine.

    Attributes:
        accelerator: ``"auto"`` (a GPU where there is one), ``"cpu"``, ``"cuda"``, ``"mps"``, as Fabric knows them.
        devices: Processes on each machine that train one network together, each with a device of its own.
        nodes: Machines.
        strategy: How they do it: ``"ddp"``, each with the whole network, or ``"fsdp"``, each with a slice of every
            tensor; ``"auto"`` is ``"ddp"`` wherever there is more than one process.
        precision: Fabric's word for it.
        jobs: Jobs beside each other, each in a process of its own; 0 for one per core on the CPU, else 1.
        threads: Of each process on the CPU. With one, numbers do not depend on how many jobs run beside each other.
        workers: Processes that load data for each training; 0 loads in the training itself.
        checkpoint_seconds: Least time between two checkpoints.
    """

    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    jobs: int = 0
    threads: int = 1
    workers: int = 0
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name, least in (("devices", 1), ("nodes", 1), ("threads", 1), ("jobs", 0), ("workers", 0)):
            if getattr(self, name) < least:
                raise InvalidInputError(f"`--{name}` must be at least {least}, got {getattr(self, name)}.")
        for name, known in (("strategy", _STRATEGIES), ("precision", _PRECISIONS)):
            if getattr(self, name) not in known:
                raise InvalidInputError(f"`--{name}` must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        if self.strategy == "fsdp" and not self.together:
            raise InvalidInputError(
                "`--strategy fsdp` shares a network out to several processes, and there is one. "
                "Give it more with --devices or --nodes, or leave it out."
            )
        if self.strategy == "fsdp" and self.precision not in _SHARDED_PRECISIONS:
            raise InvalidInputError(
                f"`--precision` with --strategy fsdp must be one of {', '.join(_SHARDED_PRECISIONS)}, "
                f"got {self.precision!r}."
            )
        if self.together and self.jobs > 1:
            raise InvalidInputError("`--jobs` cannot be used with several devices: all work on one job at a time.")

    @property
    def together(self) -> bool:
        """Whether several processes train one network."""
        return self.devices * self.nodes > 1

    def fabric(self) -> Fabric:
        """Returns the processes and devices; not launched.

        Raises:
            InvalidInputError: If this machine does not have them.
        """
        strategy = "ddp" if self.together and self.strategy == "auto" else self.strategy
        if strategy == "fsdp":
            strategy = sharded(self.devices * self.nodes)
        try:
            return Fabric(
                accelerator=self.accelerator,
                devices=self.devices,
                num_nodes=self.nodes,
                strategy=strategy,
                precision=self.precision,  # pyright: ignore[reportArgumentType]
            )
        except (RuntimeError, ValueError, ImportError) as error:  # what Fabric raises
            reason = str(error).splitlines()[0].rstrip(".")
            raise InvalidInputError(f"The devices cannot be used: {reason}. Try --accelerator cpu.") from error

    def num_jobs(self, num_waiting: int) -> int:
        """Returns how many jobs run beside each other."""
        wanted = self.jobs or (_num_cores() if self._on_cpu() and not self.together else 1)
        return max(1, min(wanted, num_waiting))

    def alone(self) -> "Options":
        """Returns the options of one of several jobs beside each other."""
        return dataclasses.replace(self, jobs=1)

    def _on_cpu(self) -> bool:
        return self.accelerator == "cpu" or (self.accelerator == "auto" and not torch.accelerator.is_available())


def _num_cores() -> int:
    # The cores this process may use, where the system tells; a container often has fewer than the machine.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
