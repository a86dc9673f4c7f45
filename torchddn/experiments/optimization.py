"""The optimizer and the schedule that a recipe describes."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR, StepLR

from torchddn.experiments.recipe import Recipe

__all__ = ["make_optimizer", "make_schedule"]


def make_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Returns the optimizer of ``recipe``."""
    rate, decay, parameters = recipe.learning_rate, recipe.weight_decay, list(parameters)
    # Fused: on a small network a loop over the parameters is a tenth of the whole step. Slices of tensors have no
    # fused SGD (torch 2.13).
    fused = not any(isinstance(parameter, DTensor) for parameter in parameters)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=recipe.momentum, weight_decay=decay, fused=fused)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=rate, weight_decay=decay, fused=fused)


def make_schedule(recipe: Recipe, optimizer: torch.optim.Optimizer, epoch_steps: int) -> LRScheduler:
    """Returns the schedule of ``recipe``, which makes one step after each of the optimizer."""
    num_steps = recipe.epochs * epoch_steps
    if recipe.schedule == "step":
        return StepLR(optimizer, recipe.decay_every * epoch_steps, recipe.decay_factor)
    if recipe.schedule == "cosine":
        return CosineAnnealingLR(optimizer, num_steps)
    if recipe.schedule == "one-cycle":
        return OneCycleLR(optimizer, recipe.learning_rate, total_steps=num_steps)
    return LambdaLR(optimizer, lambda step: 1.0)
