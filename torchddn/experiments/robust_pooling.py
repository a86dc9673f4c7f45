"""Robust pooling: point sets with outliers that the network has never seen in training.

A PointNet per pooling and seed learns the handwritten digits without outliers, and is tested with a growing share of
the points replaced by uniform ones.

References:
    Gould, Hartley, Campbell, Deep Declarative Networks, section 7, table 4. There ModelNet40, 2048 points in three
    dimensions, 60 epochs of SGD; here digits, 64 points in two dimensions with intensities.
"""

import math
from collections.abc import Callable

import sklearn.metrics
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchddn.datasets import Digits, PointSets, load_digits, replace_with_outliers
from torchddn.experiments.experiment import Experiment, Outcome, Settings
from torchddn.models import POOLINGS, PointNet

__all__ = ["OUTLIERS", "ROBUST_POOLING"]

OUTLIERS = (0.0, 0.1, 0.2, 0.3, 0.5)

_BATCH_SIZE = 32
_LEARNING_RATE = 1e-2
_WEIGHT_DECAY = 1e-3
_FEW = 96  # items of a quick run; and of validation data whose features, a million numbers, are looked at


def _run(pooling: str, seed: int, settings: Settings, advance: Callable[[], None]) -> Outcome:
    """Trains one network without outliers and tests it with them."""
    digits = load_digits()
    if settings.quick:
        digits = Digits(*(PointSets(part.points[:_FEW], part.labels[:_FEW]) for part in digits))
    torch.manual_seed(seed)
    model = PointNet(pooling).to(settings.device)
    _train(model, digits.train, settings, torch.Generator().manual_seed(seed), advance)
    model.eval()
    outlier_auc = _outlier_auc(model, digits.validation.points[:_FEW], seed)
    validation = {**_scores(model, digits.validation), "outlier_auc": outlier_auc}
    test = [
        {
            "outliers": fraction,
            **_scores(model, PointSets(_corrupt(digits.test.points, fraction, seed), digits.test.labels)),
        }
        for fraction in OUTLIERS
    ]
    return Outcome(validation, test, {name: tensor.cpu() for name, tensor in model.state_dict().items()})


def _corrupt(points: Tensor, fraction: float, seed: int) -> Tensor:
    """The same outliers for every pooling, others for every seed."""
    return replace_with_outliers(points, fraction, torch.Generator().manual_seed(seed))


def _train(
    model: PointNet, data: PointSets, settings: Settings, generator: torch.Generator, advance: Callable[[], None]
) -> None:
    num_items = len(data.labels)
    points, labels = (column.to(settings.device) for column in data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    num_steps = settings.epochs * math.ceil(num_items / _BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=num_steps)
    model.train()
    for _ in range(settings.epochs):
        for batch in torch.randperm(num_items, generator=generator).to(settings.device).split(_BATCH_SIZE):
            loss = F.cross_entropy(model(points[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            # Where two minima of a non-convex penalty are about to trade places, a gradient can be very large.
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        advance()


@torch.no_grad()
def _scores(model: PointNet, data: PointSets) -> dict[str, float]:
    logits = model(data.points.to(_device(model))).cpu()
    return {
        "top1": (logits.argmax(dim=1) == data.labels).double().mean().item(),
        "mean_average_precision": _mean_average_precision(logits, data.labels),
    }


def _mean_average_precision(logits: Tensor, labels: Tensor) -> float:
    """Mean over the classes of the average precision of "this class or not"."""
    truth = F.one_hot(labels, logits.shape[1]).numpy()
    return float(sklearn.metrics.average_precision_score(truth, logits.softmax(dim=1).numpy(), average="macro"))


@torch.no_grad()
def _outlier_auc(model: PointNet, points: Tensor, seed: int) -> float:
    """How well the distance from the pooled feature, all that a penalty sees, tells outliers from inliers.

    The probability that an outlier's feature is further away than an inlier's, over all sets and features: 1 if some
    alpha separates them, 1/2 if none can.
    """
    corrupted = _corrupt(points, 0.3, seed)
    features = model.features(corrupted.to(_device(model)))
    distance = (features - model.pool(features).unsqueeze(1)).abs().cpu()
    outlying = (corrupted != points).any(dim=2, keepdim=True).expand_as(distance)
    return float(sklearn.metrics.roc_auc_score(outlying.flatten(), distance.flatten()))


def _device(model: PointNet) -> torch.device:
    return next(model.parameters()).device


ROBUST_POOLING = Experiment(
    name="robust-pooling",
    summary="PointNet on handwritten digits: which global pooling bears outliers that training did not show?",
    variants=POOLINGS,
    condition="outliers",
    metrics={"top1": "Top-1 accuracy", "mean_average_precision": "Mean average precision"},
    settings=Settings(seeds=3, epochs=15),
    run=_run,
)
