"""Projection of features: ResNet-18 whose normalized features are brought onto a sphere or ball before the last layer.

With f the batch-normalized features, the radius follows the rule of the reference: two thirds of the median of |f|_p
over the training set, of a network without projection. That is 250, 15 and 3 for the 512 features of ImageNet's
(p = 1, 2, inf); it is measured anew and printed in every run.

References:
    Gould, Hartley, Campbell, Deep Declarative Networks, section 7, table 5. The expected calibration error, which the
    paper argues about and does not print, is that of Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural
    Networks, 2017.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchddn.datasets import Data, ImageFolder, Labeled, Part, hold_out, load_digit_images
from torchddn.errors import InvalidInputError
from torchddn.experiments.experiment import Experiment, Job, Row, Table
from torchddn.experiments.recipe import Recipe
from torchddn.experiments.scores import expected_calibration_error, mean_average_precision, top_k
from torchddn.experiments.session import Session
from torchddn.models import RADII, ResNet18

__all__ = ["IMAGENET_PROJECTION", "ImageNetProjection"]

_DATASETS = ("images", "digits")
_PLAIN = "none"
_NORMS = {"L1": 1, "L2": 2, "Linf": math.inf}
_SETS = ("sphere", "ball")
_PROJECTIONS = (_PLAIN, *(f"{norm} {kind}" for kind in _SETS for norm in _NORMS))
_FEW = 10_000  # images over which the median is taken
_PAPER = Recipe(
    epochs=90,
    batch_size=256,
    learning_rate=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    decay_every=30,
    decay_factor=0.1,
)


@dataclass(frozen=True)
class ImageNetProjection:
    """The configuration; the defaults are the paper's.

    Attributes:
        seeds: Of networks and orders.
        dataset: ``"images"`` (a folder, ``--data``: ImageNet, Mini-ImageNet or one's own) or ``"digits"``.
        projections: What is compared: ``"L1 sphere"``, ``"L2 ball"``, ...; ``"none"`` comes first in any case, because
            the radii are measured on it.
        measured_radii: Whether the radii are those measured; else the paper's 250, 15 and 3.
        crop: Side of the images in pixels.
        width: Channels of the first stage of the network.
        num_train: Digits to train on.
        noise: Standard deviation of the noise on the digits, whose intensities are in [0, 1]; the same in every run.
        held_out: Share of the training images that are kept for the curves; the paper keeps none. Digits have a part of
            their own for that.
        training: How the networks are trained.
    """

    seeds: tuple[int, ...] = (0,)
    dataset: str = "images"
    projections: tuple[str, ...] = _PROJECTIONS
    measured_radii: bool = False
    crop: int = 224
    width: int = 64
    num_train: int = 300
    noise: float = 0.0
    held_out: float = 0.0
    training: Recipe = _PAPER

    def __post_init__(self) -> None:
        if self.dataset not in _DATASETS:
            raise InvalidInputError(
                f"`ImageNetProjection(dataset=...)` must be one of {_DATASETS}, got {self.dataset!r}."
            )
        for projection in self.projections:
            if projection not in _PROJECTIONS:
                raise InvalidInputError(
                    f"`ImageNetProjection(projections=...)` must be of {', '.join(_PROJECTIONS)}, got {projection!r}."
                )
        if not 0 <= self.held_out < 1:
            raise InvalidInputError(
                f"`ImageNetProjection(held_out=...)` must be in [0, 1), got {self.held_out}. Divide per cent by 100."
            )


class _Parts(NamedTuple):
    train: Data
    plain: Data  # the same items without random crops
    validation: Data | None
    test: Data


def _prepare(config: ImageNetProjection, data: Path | None) -> None:
    if config.dataset == "images" and data is None:
        raise InvalidInputError(
            "The experiment needs a folder of images: name it with --data; --preset small has digits."
        )
    _parts(config, data)


def _jobs(config: ImageNetProjection) -> list[Job]:
    # All networks of a seed in one job: the radii of the others are measured on the first.
    return [{"seed": seed} for seed in config.seeds]


def _run(config: ImageNetProjection, job: Job, session: Session) -> list[Row]:
    """Trains the networks of one seed and tests them."""
    parts, seed = _parts(config, session.data), job["seed"]
    plain = _trained(config, parts, session, seed, _PLAIN, None)
    radii = _measured(plain, parts.plain, session)
    rows: list[Row] = [
        {"norm": norm, "which": which, "radius": number}
        for norm, p in _NORMS.items()
        for which, number in (("measured", radii[p]), ("used", radii[p] if config.measured_radii else RADII[p]))
    ]
    rows += _tested(plain, parts, session, _PLAIN)
    for projection in config.projections:
        if projection != _PLAIN:
            used = radii if config.measured_radii else RADII
            model = _trained(config, parts, session, seed, projection, used[_NORMS[projection.split()[0]]])
            rows += _tested(model, parts, session, projection)
    return rows


def _trained(
    config: ImageNetProjection, parts: _Parts, session: Session, seed: int, projection: str, radius: float | None
) -> ResNet18:
    # Networks of a seed begin with the same weights: a projection has none.
    torch.manual_seed(seed)
    norm, kind = (None, None) if projection == _PLAIN else projection.split()
    digits = config.dataset == "digits"
    model = ResNet18(
        len(parts.train.classes),
        projection=kind,
        p=2 if norm is None else _NORMS[norm],
        radius=radius,
        in_channels=1 if digits else 3,
        width=config.width,
        small_images=digits,
    )

    def loss(model: nn.Module, batch: Any) -> Tensor:
        images, labels = batch
        return F.cross_entropy(model(images), labels)

    def validate(model: nn.Module) -> dict[str, float]:
        if parts.validation is None:
            return {}
        logits, labels = session.predict(model, parts.validation)
        return {"validation_top1": top_k(logits, labels), "validation_map": mean_average_precision(logits, labels)}

    name = projection.replace(" ", "-")
    model = session.fit(model, parts.train, config.training, loss, seed=seed, validate=validate, name=name)
    assert isinstance(model, ResNet18)
    return model


def _measured(model: ResNet18, plain: Data, session: Session) -> dict[float, float]:
    """Two thirds of the median of |f|_p of the normalized features of a network without projection, for each p."""
    chosen = torch.randperm(len(plain), generator=torch.Generator().manual_seed(0))[:_FEW]
    features, _ = session.predict(model, Part(plain, chosen.sort().values), forward=_features)
    normalized = F.batch_norm(features.double(), None, None, training=True)
    return {p: 2 / 3 * normalized.norm(p=p, dim=1).median().item() for p in _NORMS.values()}


def _features(model: nn.Module, images: Tensor) -> Tensor:
    assert isinstance(model, ResNet18)
    return model.features(images)


def _tested(model: ResNet18, parts: _Parts, session: Session, projection: str) -> list[Row]:
    logits, labels = session.predict(model, parts.test)
    scores = {
        "top-1": top_k(logits, labels),
        "top-5": top_k(logits, labels, 5),
        "mAP": mean_average_precision(logits, labels),
        "calibration error": expected_calibration_error(logits, labels),
    }
    rows: list[Row] = [{"score": name, "unit": "percent", "value": value} for name, value in scores.items()]
    likelihood = F.cross_entropy(logits.double(), labels).item()
    rows.append({"score": "negative log-likelihood", "unit": "nats", "value": likelihood})
    return [{"projection": projection, **row} for row in rows]


def _parts(config: ImageNetProjection, data: Path | None) -> _Parts:
    if config.dataset == "digits":
        generator = torch.Generator().manual_seed(0)
        train, validation, test = (_noisy(part, config.noise, generator) for part in load_digit_images())
        train = Labeled(train.inputs[: config.num_train], train.labels[: config.num_train], test.classes)
        return _Parts(train, train, validation, test)
    assert data is not None
    # The labels of ImageNet's test part are secret: results are those of its validation part, here as in the paper.
    train, plain = (ImageFolder(data, "train", crop=config.crop, augment=augment) for augment in (True, False))
    test = ImageFolder(data, "validation", crop=config.crop)
    if config.held_out == 0:
        return _Parts(train, plain, None, test)
    return _Parts(hold_out(train, config.held_out)[0], *hold_out(plain, config.held_out), test)


def _noisy(images: Labeled, noise: float, generator: torch.Generator) -> Labeled:
    inputs = images.inputs + noise * torch.randn(images.inputs.shape, generator=generator)
    return Labeled(inputs, images.labels, images.classes)


def _tables(config: ImageNetProjection) -> list[Table]:
    names = ("top-1", "top-5", "mAP")
    table_5 = {
        projection: dict(zip(names, (number / 100 for number in row), strict=True))
        for projection, row in _TABLE_5.items()
    }
    return [
        Table(
            title="Scores with each projection",
            value="value",
            row="projection",
            column="score",
            where={"unit": "percent"},
            scale="percent",
            value_title="score",
            paper={"source": "table 5 of the paper, ImageNet", **table_5},
        ),
        Table(
            title="Negative log-likelihood with each projection",
            value="value",
            row="projection",
            column="score",
            where={"unit": "nats"},
        ),
        Table(
            title="Radius by the rule: two thirds of the median norm of the normalized features",
            value="radius",
            row="norm",
            column="which",
            paper={"source": "section 7 of the paper", **{norm: {"used": RADII[p]} for norm, p in _NORMS.items()}},
        ),
    ]


# Top-1 and top-5 accuracy and mean average precision, times 100.
_TABLE_5 = {
    "none": (69.80, 89.26, 58.97),
    "L1 sphere": (69.92, 89.38, 62.72),
    "L2 sphere": (70.66, 89.60, 71.97),
    "Linf sphere": (70.03, 89.22, 63.98),
    "L1 ball": (70.17, 89.47, 61.26),
    "L2 ball": (70.59, 89.70, 72.43),
    "Linf ball": (70.06, 89.29, 63.33),
}

_SMALL = ImageNetProjection(
    seeds=(0, 1, 2, 3, 4),
    dataset="digits",
    measured_radii=True,
    width=8,
    training=Recipe(
        epochs=15,
        batch_size=30,
        learning_rate=0.1,
        weight_decay=1e-4,
        decay_every=5,
        decay_factor=0.1,
        validate_every=5,
    ),
)

IMAGENET_PROJECTION = Experiment(
    name="imagenet-projection",
    summary="ResNet-18: what does projecting the features do to accuracy and calibration? (ImageNet, table 5)",
    presets={
        "paper": ImageNetProjection(),
        "small": _SMALL,
        "noisy": replace(_SMALL, num_train=1078, noise=0.7),
    },
    jobs=_jobs,
    run=_run,
    tables=_tables,
    prepare=_prepare,
)
