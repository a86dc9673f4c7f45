"""The training loop: every network of every experiment is trained here, on one process or on many.

A training is a function of the seed, the data and the recipe. The order of the items is one of seed and epoch, and
the random numbers of a step (dropout, outliers) are ones of seed, step and process; so a checkpoint holds no state of
a generator, and a training that was stopped anywhere goes on as if it had not been.
"""

import csv
import importlib.util
import io
import math
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from torchddn.datasets import Shards
from torchddn.experiments import storage
from torchddn.experiments.checkpoints import Checkpoints
from torchddn.experiments.clock import Clock
from torchddn.experiments.optimization import make_optimizer, make_schedule
from torchddn.experiments.recipe import Recipe
from torchddn.experiments.sharding import load_model, load_optimizer, model_state, optimizer_state

__all__ = ["Loss", "Training", "Validate", "seed_step"]

Loss = Callable[[nn.Module, Any], Tensor]
Validate = Callable[[nn.Module], dict[str, float]]

# With many processes, whether it is time for a checkpoint is asked of the first one: a message, so not at every step.
_STEPS_BETWEEN_QUESTIONS = 50


class Training:
    """One network that is being trained.

    Args:
        fabric: The processes and devices, launched.
        model: Trained in place.
        loader: Batches of this process; its sampler is a :class:`torchddn.datasets.Shards`.
        recipe: How.
        loss: Of the network and a batch: the mean over the batch.
        seed: Of all random numbers.
        validate: Numbers for the curves; called with the network in evaluation mode.
        folder: For checkpoints, curves and weights.
        name: Of those files.
        checkpoint_seconds: Least time between two checkpoints.
        clock: Charged for each phase.
        report: Called with the number of items seen, and of all.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module,
        loader: DataLoader[Any],
        recipe: Recipe,
        loss: Loss,
        *,
        seed: int,
        validate: Validate | None,
        folder: Path,
        name: str,
        checkpoint_seconds: float,
        clock: Clock,
        report: Callable[[int, int], None],
    ) -> None:
        self._fabric, self._loader, self._recipe, self._loss, self._seed = fabric, loader, recipe, loss, seed
        self._validate, self._folder, self._name = validate, folder, name
        self._checkpoint_seconds, self._clock, self._report = checkpoint_seconds, clock, report
        self._epoch_steps = len(loader)
        self._num_steps = recipe.epochs * self._epoch_steps
        self._model = model
        # The optimizer second: where a network is shared out, its parameters are other ones afterwards.
        self._wrapped = fabric.setup_module(model)
        self._optimizer = make_optimizer(recipe, model.parameters())
        self._schedule = make_schedule(recipe, self._optimizer, self._epoch_steps)
        self._wrapped_optimizer: Any = fabric.setup_optimizers(self._optimizer)
        self._checkpoints = Checkpoints(folder / "checkpoints" / name)
        self._step = 0
        self._loss_sum = torch.zeros((), device=fabric.device)
        self._history: list[dict[str, float]] = []
        self._last_save = time.monotonic()

    def run(self) -> nn.Module:
        """Trains to the end, from the last checkpoint if there is one; returns the network in evaluation mode."""
        with self._clock("checkpoint"):
            if not self._restore():
                # Before the first epoch and not after it, so that a disk that takes no checkpoint costs no epoch.
                self._save()
        logger = self._logger()
        while self._step < self._num_steps:
            epoch, num_seen = divmod(self._step, self._epoch_steps)
            self._pass(epoch, num_seen)
            self._close(epoch, logger)
        if logger is not None:
            logger.finalize("success")
        self._finish()
        return self._model.eval()

    def _pass(self, epoch: int, num_seen: int) -> None:
        """The steps of one epoch, but the first ``num_seen``."""
        self._wrapped.train()
        sampler = self._loader.sampler
        assert isinstance(sampler, Shards)
        sampler.set_epoch(epoch)
        with self._clock("loading"):
            batches = self._batches(num_seen)
        for _ in range(num_seen, self._epoch_steps):
            with self._clock("loading"):
                batch = self._fabric.to_device(next(batches))
            self._advance(batch)
            # The end of an epoch is not a place for one: what closes the epoch would be left out after a restart.
            if self._step % self._epoch_steps:
                self._save_if_time(_STEPS_BETWEEN_QUESTIONS)
            self._report(self._step * self._recipe.batch_size, self._num_steps * self._recipe.batch_size)

    def _batches(self, num_seen: int) -> Iterator[Any]:
        """The batches of an epoch, without reading the first ``num_seen``."""
        loader = self._loader
        if not num_seen:
            return iter(loader)
        assert loader.batch_size is not None
        rest = DataLoader(
            loader.dataset,
            loader.batch_size,
            sampler=list(loader.sampler)[num_seen * loader.batch_size :],
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
        )
        return iter(rest)

    def _advance(self, batch: Any) -> None:
        """One step."""
        seed_step(self._seed, self._step, self._fabric.global_rank)
        with self._clock("forward"):
            loss = self._loss(self._wrapped, batch)
        with self._clock("backward"):
            self._fabric.backward(loss)
        with self._clock("optimizer"):
            if self._recipe.clip is not None:
                self._fabric.clip_gradients(
                    self._wrapped, self._wrapped_optimizer, max_norm=self._recipe.clip, error_if_nonfinite=False
                )
            self._wrapped_optimizer.step()
            self._schedule.step()
            self._wrapped_optimizer.zero_grad()
            self._loss_sum += loss.detach()
        self._step += 1

    def _close(self, epoch: int, logger: TensorBoardLogger | None) -> None:
        """What follows an epoch: a point of the curves, a checkpoint."""
        rate = self._optimizer.param_groups[0]["lr"]
        loss = cast("Tensor", self._fabric.all_reduce(self._loss_sum / self._epoch_steps, reduce_op="mean")).item()
        self._loss_sum.zero_()
        point = {"epoch": epoch + 1, "learning_rate": rate, "loss": loss}
        if not math.isfinite(loss):
            warnings.warn(
                f"The loss of epoch {epoch + 1} is {loss}. Lower the learning rate, or set training.clip.", stacklevel=2
            )
        last = epoch + 1 == self._recipe.epochs
        if self._validate is not None and (last or (epoch + 1) % self._recipe.validate_every == 0):
            with self._clock("validation"), torch.no_grad():
                self._share_buffers()
                point |= self._validate(self._model.eval())
        self._history.append(point)
        if logger is not None:
            logger.log_metrics({name: value for name, value in point.items() if name != "epoch"}, step=self._step)
        if not last:
            self._save_if_time(1)

    def _save_if_time(self, every: int) -> None:
        fabric = self._fabric
        if fabric.world_size > 1 and self._step % every:
            return
        due = time.monotonic() - self._last_save >= self._checkpoint_seconds
        if fabric.world_size > 1:
            due = fabric.broadcast(due)
        if due:
            with self._clock("checkpoint"):
                self._save()

    def _save(self) -> None:
        state = self._state()
        if self._fabric.is_global_zero:
            self._checkpoints.save(self._step, state)
            self._write_curves()
        self._last_save = time.monotonic()

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds; all processes must ask, and the first gets it."""
        return {
            "step": self._step,
            "num_steps": self._num_steps,
            "loss_sum": self._fabric.all_reduce(self._loss_sum, reduce_op="mean"),
            "history": self._history,
            "model": model_state(self._model),
            "optimizer": optimizer_state(self._model, self._optimizer),
            "settings": [_settings(group) for group in self._optimizer.param_groups],
            "schedule": self._schedule.state_dict(),
            "precision": self._fabric.strategy.precision.state_dict(),
        }

    def _restore(self) -> bool:
        # The first process reads, so that the others need not see its disk, and all go on from the same step.
        state = self._checkpoints.load() if self._fabric.is_global_zero else None
        model, optimizer = (state.pop("model"), state.pop("optimizer")) if state else (None, None)
        state, remembers = self._fabric.broadcast((state, optimizer is not None))
        if state is None:
            return False
        self._step, self._history = state["step"], state["history"]
        self._loss_sum.copy_(state["loss_sum"])
        load_model(self._model, model)
        if remembers:
            load_optimizer(self._model, self._optimizer, optimizer)
        for group, settings in zip(self._optimizer.param_groups, state["settings"], strict=True):
            group.update(settings)
        self._schedule.load_state_dict(state["schedule"])
        self._fabric.strategy.precision.load_state_dict(state["precision"])
        self._last_save = time.monotonic()
        return True

    def _share_buffers(self) -> None:
        """Gives all processes the running statistics of the first, which are those that are saved."""
        if self._fabric.world_size > 1:
            for buffer in self._model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def _finish(self) -> None:
        self._share_buffers()
        with self._clock("checkpoint"):
            self._save()
            state = model_state(self._model)
            if self._fabric.is_global_zero:
                weights = io.BytesIO()
                torch.save(state, weights)
                storage.write(self._folder / f"{self._name}.pt", weights.getvalue())
        # Whatever draws after the training draws the same, whether or not the training was taken up again.
        seed_step(self._seed, self._num_steps, self._fabric.global_rank)

    def _write_curves(self) -> None:
        text = io.StringIO()
        names = list(dict.fromkeys(name for point in self._history for name in point))
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._history)
        storage.write(self._folder / f"{self._name}.csv", text.getvalue().encode())

    def _logger(self) -> TensorBoardLogger | None:
        """TensorBoard's file, where it is installed; what was written after the checkpoint is taken back."""
        if not self._fabric.is_global_zero or importlib.util.find_spec("tensorboard") is None:
            return None
        return TensorBoardLogger(self._folder, name="tensorboard", version=self._name, purge_step=self._step)


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """Of a group of parameters: its learning rate, momentum and so on."""
    return {name: value for name, value in group.items() if name != "params"}


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds torch's global generators for one step of one process.

    By a hash, because neighboring seeds of neighboring trainings must not meet: seed 0 at step 1, seed 1 at step 0.
    """
    number = zlib.crc32(f"{seed} {step} {rank}".encode())
    # torch.manual_seed does this too, and asks for every kind of device: 0.15 ms instead of 1 us.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(number)
