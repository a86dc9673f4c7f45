"""Trainings of ten steps and predictions on as many processes as it is told; test_harness_devices.py runs it.

Arguments: folder, number of processes, strategy, and the step in which all processes kill themselves, if any.
"""

import itertools
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import torchddn as ddn
from torchddn.datasets import Labeled
from torchddn.experiments.options import Options
from torchddn.experiments.recipe import Recipe
from torchddn.experiments.session import Session
from torchddn.functional import robust_pool


class Shrink(ddn.Problem):
    """y = argmin 1/2 |y - x|^2 + 1/2 sum_i w_i^2 y_i^2, with parameters of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.2, 1.0, 8))

    def objective(self, y, x):
        return 0.5 * (y - x).square().sum() + 0.5 * (self.weight * y).square().sum()

    def initial(self, x):
        return x


class Pooled(nn.Module):
    """Layers around declarative nodes; without batch normalization, which sees only the batch of its own process."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 4)
        self.shrink = nn.ModuleList([ddn.DeclarativeNode(Shrink())])

    def forward(self, points):
        return self.last(self.features(points))

    def features(self, points):
        return self.shrink[0](robust_pool(self.first(points).tanh(), "welsch", 0.5, dim=1))


def data():
    """61 point sets, so that one of two processes has a set less, and one batch less in testing."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(4, (61,), generator=generator)
    return torch.randn(61, 10, 3, generator=generator) + labels[:, None, None], labels


def main(folder, num_processes, strategy="auto", kill_at=None):
    torch.set_num_threads(1)
    options = Options(accelerator="cpu", devices=num_processes, strategy=strategy, checkpoint_seconds=0)
    fabric = options.fabric()
    fabric.launch()
    session = Session(fabric, folder, None, options, lambda done, total: None)
    points, labels = data()
    training, everything = Labeled(points[:60], labels[:60]), Labeled(points, labels)
    steps = itertools.count()

    def loss(model, batch):
        if next(steps) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return F.cross_entropy(model(batch[0]), batch[1])

    # Each process makes another network; all train that of the first.
    torch.manual_seed(2 + fabric.global_rank)
    recipe = Recipe(epochs=2, batch_size=12, learning_rate=0.1, clip=0.1)
    model = session.fit(Pooled(), training, recipe, loss, seed=3)
    num_held = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in model.parameters())
    plain = Recipe(epochs=2, batch_size=12, learning_rate=0.1, momentum=0.0, decay_every=1)
    session.fit(Pooled(), training, plain, loss, seed=3, name="plain")
    adam = Recipe(epochs=2, batch_size=12, learning_rate=0.01, optimizer="adamw", schedule="one-cycle")
    session.fit(Pooled(), training, adam, loss, seed=3, name="adam")
    normalized = session.fit(
        nn.Sequential(nn.Flatten(), nn.Linear(30, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)),
        training,
        Recipe(epochs=2, batch_size=12, learning_rate=0.1),
        lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        seed=3,
        name="normalized",
        validate=lambda model: {"mean": session.predict(model, everything, batch_size=10)[0].mean().item()},
    )
    by_all, _ = session.predict(normalized, everything)
    logits, targets = session.predict(model, everything, batch_size=10)
    features, _ = session.predict(model, everything, forward=lambda model, inputs: model.features(inputs))
    few, _ = session.predict(model, Labeled(points[:1], labels[:1]))
    by_first = normalized(points).detach()
    if session.is_first:
        torch.save(
            {
                "logits": logits,
                "targets": targets,
                "truth": labels,
                "features": features,
                "few": few,
                "num_held": num_held,
                "by_all": by_all,
                "by_first": by_first,
            },
            folder / "predicted.pt",
        )


if __name__ == "__main__":
    place, number, name, *moment = sys.argv[1:]
    main(Path(place), int(number), name, *map(int, moment))
