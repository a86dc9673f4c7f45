"""A program that trains ten steps and predicts, on as many processes as it is told; test_harness_devices.py runs it."""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from torchddn.datasets import Labeled
from torchddn.experiments.experiment import Recipe
from torchddn.experiments.options import Options
from torchddn.experiments.session import Session
from torchddn.functional import robust_pool


class Pooled(nn.Module):
    """Layers around a declarative node; without batch normalization, which sees only the batch of its own process."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, points):
        return self.last(robust_pool(self.first(points).tanh(), "welsch", 0.5, dim=1))


def main(folder, num_processes):
    torch.set_num_threads(1)
    options = Options(accelerator="cpu", devices=num_processes)
    fabric = options.fabric()
    fabric.launch()
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(4, (61,), generator=generator)
    points = torch.randn(61, 10, 3, generator=generator) + labels[:, None, None]
    session = Session(fabric, folder, None, options, lambda done, total: None)
    torch.manual_seed(2)
    model = session.fit(
        Pooled(),
        Labeled(points[:60], labels[:60]),
        Recipe(epochs=2, batch_size=12, learning_rate=0.1),
        lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        seed=3,
    )
    normalized = session.fit(
        nn.Sequential(nn.Flatten(), nn.Linear(30, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)),
        Labeled(points[:60], labels[:60]),
        Recipe(epochs=2, batch_size=12, learning_rate=0.1),
        lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        seed=3,
        name="normalized",
        validate=lambda model: {"mean": session.predict(model, Labeled(points, labels))[0].mean().item()},
    )
    by_all, _ = session.predict(normalized, Labeled(points, labels))
    # Not a multiple of the processes: one of them has an item less.
    logits, targets = session.predict(model, Labeled(points, labels), batch_size=7)
    if session.is_first:
        by_first = normalized(points).detach()
        torch.save(
            {"logits": logits, "targets": targets, "truth": labels, "by_all": by_all, "by_first": by_first},
            folder / "predicted.pt",
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
