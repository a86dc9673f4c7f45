"""What a job of an experiment can use: it trains, predicts, shows how far it is, and leaves pictures."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning_fabric import Fabric
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import Subset

from torchddn.datasets import loader
from torchddn.errors import InvalidInputError
from torchddn.experiments import storage
from torchddn.experiments.clock import Clock
from torchddn.experiments.options import Options
from torchddn.experiments.recipe import Recipe
from torchddn.experiments.training import Loss, Training, Validate

__all__ = ["Session"]

_SECONDS_BETWEEN_REPORTS = 0.25


class Session:
    """The processes, the folder and the data of one job.

    Attributes:
        data: What the user gave as ``--data``; ``None`` if nothing.
        folder: Of this job.
        workers: Processes for loading data.
        clock: Where the time of the job goes.
    """

    def __init__(
        self, fabric: Fabric, folder: Path, data: Path | None, options: Options, report: Callable[[int, int], None]
    ) -> None:
        self.data, self.folder, self.workers, self.clock = data, folder, options.workers, Clock()
        self._fabric, self._checkpoint_seconds, self._report = fabric, options.checkpoint_seconds, report
        self._last_report = -_SECONDS_BETWEEN_REPORTS

    @property
    def device(self) -> torch.device:
        """Of this process."""
        return self._fabric.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self._fabric.is_global_zero

    def fit(
        self,
        model: nn.Module,
        dataset: Any,
        recipe: Recipe,
        loss: Loss,
        *,
        seed: int,
        validate: Validate | None = None,
        name: str = "model",
    ) -> nn.Module:
        """Trains ``model`` in place and returns it in evaluation mode, on ``device``.

        Goes on from the last checkpoint where there is one. Leaves ``NAME.pt``, the weights, and ``NAME.csv``, the
        curves, in ``folder``. Where the network is shared out to the processes (``--strategy fsdp``), what is returned
        is so too: all call it together, equally often, as :meth:`predict` does.

        Args:
            model: The network.
            dataset: A map-style data set; see :func:`torchddn.datasets.loader`.
            recipe: How it is trained.
            loss: ``loss(model, batch)``: the mean over the items of the batch, which is on the device. It calls
                ``model`` itself and none of its methods: with several processes it is a wrapper. May draw from torch's
                global generator.
            seed: Of the order of items and the random numbers of each step.
            validate: ``validate(model)``: numbers for the curves, after each ``recipe.validate_every`` epochs.
            name: Of this training among those of the job.

        Raises:
            InvalidInputError: If the batch cannot be shared out evenly, or the data set has fewer items than that.
            StorageError: If there is no room for checkpoints.
        """
        with self.clock("loading"):
            batches = self._training_batches(dataset, recipe, seed)
        training = Training(
            self._fabric,
            model,
            batches,
            recipe,
            loss,
            seed=seed,
            validate=validate,
            folder=self.folder,
            name=name,
            checkpoint_seconds=self._checkpoint_seconds,
            clock=self.clock,
            report=self.advance,
        )
        return training.run()

    @torch.no_grad()
    def predict(
        self,
        model: nn.Module,
        dataset: Any,
        *,
        batch_size: int = 256,
        forward: Callable[[nn.Module, Any], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns outputs ``(N, ...)`` and targets ``(N, ...)`` of the whole data set, in its order, on the CPU.

        Args:
            model: The network, as :meth:`fit` returned it.
            dataset: Items are (inputs, target). Several processes share them.
            batch_size: Of each process.
            forward: ``forward(model, inputs)``; ``model(inputs)`` unless given. All processes call it equally often.
        """
        fabric, precision = self._fabric, self._fabric.strategy.precision
        share: Any = Subset(dataset, self._share(len(dataset)))
        batches = loader(share, batch_size, num_workers=self.workers)
        outputs, targets, waiting = [], [], iter(batches)
        for _ in range(len(batches)):
            with self.clock("loading"):
                inputs, target = next(waiting)
                inputs = precision.convert_input(fabric.to_device(inputs))
            with self.clock("forward"), precision.forward_context():
                output = model(inputs) if forward is None else forward(model, inputs)
            outputs.append(precision.convert_output(output))
            targets.append(target)
        return self._gather(outputs, len(dataset)), self._gather(targets, len(dataset))

    def advance(self, done: int, total: int) -> None:
        """Shows how far the job is."""
        now = time.monotonic()
        if now - self._last_report >= _SECONDS_BETWEEN_REPORTS or done >= total:
            self._last_report = now
            self._report(done, total)

    def picture(self, name: str, figure: Figure) -> None:
        """Leaves a picture for the report."""
        if self.is_first:
            content = io.BytesIO()
            figure.savefig(content, format="png", dpi=150)
            storage.write(self.folder / "pictures" / f"{name}.png", content.getvalue())

    def _training_batches(self, dataset: Any, recipe: Recipe, seed: int) -> Any:
        fabric = self._fabric
        size, rest = divmod(recipe.batch_size, fabric.world_size)
        if rest:
            raise InvalidInputError(
                f"A batch of {recipe.batch_size} cannot be shared out evenly to {fabric.world_size} processes. "
                f"Try --set training.batch_size={fabric.world_size * (size + 1)}."
            )
        if len(dataset) < fabric.world_size:
            raise InvalidInputError(f"The data set has {len(dataset)} items for {fabric.world_size} processes.")
        return loader(
            dataset,
            size,
            shuffle=True,
            seed=seed,
            num_workers=self.workers,
            rank=fabric.global_rank,
            num_ranks=fabric.world_size,
        )

    def _share(self, size: int) -> list[int]:
        """The items of this process: every ``world_size``-th, as many as all others have, from the first on again.

        As many, because a network that is shared out is computed by all at a time.
        """
        rank, num_ranks = self._fabric.global_rank, self._fabric.world_size
        return [item % size for item in range(rank, -(-size // num_ranks) * num_ranks, num_ranks)]

    def _gather(self, parts: list[Tensor], size: int) -> Tensor:
        """The ``size`` items of all processes in their order, without those that come twice."""
        mine = torch.cat(parts) if parts else torch.empty(0)
        num_ranks = self._fabric.world_size
        if num_ranks == 1:
            return mine.cpu()
        mine = mine.to(self.device)
        shares = [torch.empty_like(mine) for _ in range(num_ranks)]
        torch.distributed.all_gather(shares, mine)
        return torch.stack(shares, dim=1).flatten(0, 1)[:size].cpu()
