"""Visual permutation learning: the patches of an image in random order, to be put back.

A network per relaxation, size of the puzzle and seed. It is trained with the squared distance of its matrix from the
permutation, new orders every epoch; in the test, the assignment of largest sum is its answer.

References:
    Santa Cruz, Fernando, Cherian, Gould, DeepPermNet: Visual Permutation Learning, 2017: Sinkhorn's iteration,
    unrolled, on photographs. Here it is differentiated implicitly, beside the exact projection and rows alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchddn.datasets import Data, ImageFolder, Labeled, Puzzles, hold_out, load_digit_images
from torchddn.errors import InvalidInputError
from torchddn.experiments.experiment import Experiment, Job, Row, Table
from torchddn.experiments.recipe import Recipe
from torchddn.experiments.session import Session
from torchddn.models import RELAXATIONS, PermutationNet

__all__ = ["PERMUTATION", "Permutation", "assignments", "kendall_tau"]

_DATASETS = ("images", "digits")
_VALIDATION = 0.1
_FULL = Recipe(
    epochs=60,
    batch_size=128,
    optimizer="adamw",
    learning_rate=1e-3,
    weight_decay=1e-3,
    schedule="one-cycle",
    clip=1.0,
)


@dataclass(frozen=True)
class Permutation:
    """The configuration.

    Attributes:
        seeds: Of networks and of the orders in training; those of the test are the same for all.
        dataset: ``"images"`` (a folder, ``--data``) or ``"digits"``.
        relaxations: What is compared.
        grids: Rows, and columns, of a puzzle, a network for each.
        gamma: Sharpness of the relaxation.
        size: Of an image in pixels; must be a multiple of the grids.
        widths: Channels of the convolutions.
        num_features: Of a patch.
        training: How the networks are trained.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    dataset: str = "images"
    relaxations: tuple[str, ...] = RELAXATIONS
    grids: tuple[int, ...] = (3, 4)
    gamma: float = 1.0
    size: int = 192
    widths: tuple[int, ...] = (32, 64, 128, 128)
    num_features: int = 128
    training: Recipe = _FULL

    def __post_init__(self) -> None:
        if self.dataset not in _DATASETS:
            raise InvalidInputError(f"`Permutation(dataset=...)` must be one of {_DATASETS}, got {self.dataset!r}.")
        for relaxation in self.relaxations:
            if relaxation not in RELAXATIONS:
                raise InvalidInputError(f"`Permutation(relaxations=...)` must be of {RELAXATIONS}, got {relaxation!r}.")
        for grid in self.grids:
            if grid < 2 or self.size % grid:
                raise InvalidInputError(
                    f"`Permutation(grids=...)` must be at least 2 and divide size = {self.size}, got {grid}."
                )


def _prepare(config: Permutation, data: Path | None) -> None:
    if config.dataset == "images" and data is None:
        raise InvalidInputError(
            "The experiment needs a folder of images: name it with --data; --preset small has digits."
        )
    _puzzles(config, config.grids[0], 0, data)


def _jobs(config: Permutation) -> list[Job]:
    return [
        {"relaxation": relaxation, "grid": grid, "seed": seed}
        for seed in config.seeds
        for grid in config.grids
        for relaxation in config.relaxations
    ]


def _run(config: Permutation, job: Job, session: Session) -> list[Row]:
    """Trains one network and tests it."""
    train, validation, test = _puzzles(config, job["grid"], job["seed"], session.data)
    num_patches = job["grid"] ** 2
    torch.manual_seed(job["seed"])
    model = PermutationNet(
        num_patches,
        relaxation=job["relaxation"],
        gamma=config.gamma,
        in_channels=train[0][0].shape[1],
        widths=config.widths,
        num_features=config.num_features,
    )

    def loss(model: nn.Module, batch: Any) -> Tensor:
        patches, places = batch
        return (model(patches) - F.one_hot(places, num_patches)).square().sum(dim=(1, 2)).mean()

    def validate(model: nn.Module) -> dict[str, float]:
        return {f"validation_{name}": score for name, score in _scores(*session.predict(model, validation)).items()}

    model = session.fit(model, train, config.training, loss, seed=job["seed"], validate=validate)
    return [_scores(*session.predict(model, test))]


def _scores(Y: Tensor, places: Tensor) -> dict[str, float]:
    found = assignments(Y)
    return {
        "image": (found == places).all(dim=1).double().mean().item(),
        "patch": (found == places).double().mean().item(),
        "tau": kendall_tau(found, places).mean().item(),
        # Without the assignment: is the matrix itself one? And how much of it is exactly zero?
        "largest": (Y.argmax(dim=2) == places).all(dim=1).double().mean().item(),
        "zeros": (Y == 0).double().mean().item(),
    }


def assignments(Y: Tensor) -> Tensor:
    """Returns the permutation of largest sum of each matrix ``(B, n, n)``: its column in each row, ``(B, n)``."""
    return torch.from_numpy(
        np.stack([scipy.optimize.linear_sum_assignment(-matrix)[1] for matrix in Y.double().numpy()])
    )


def kendall_tau(a: Tensor, b: Tensor) -> Tensor:
    """Returns Kendall's rank correlation of each pair of permutations ``(B, n)``: 1 if equal, -1 if reversed."""
    first, second = torch.triu_indices(a.shape[1], a.shape[1], offset=1)
    signs = [(order[:, second] > order[:, first]).double() * 2 - 1 for order in (a, b)]
    return (signs[0] * signs[1]).mean(dim=1)


def _puzzles(config: Permutation, grid: int, seed: int, data: Path | None) -> tuple[Puzzles, Puzzles, Puzzles]:
    """The puzzles to train, validate and test on."""
    train, validation, test = _images(config, data)
    cut = (grid, grid)
    return Puzzles(train, cut, seed=seed, fresh=True), Puzzles(validation, cut, seed=1), Puzzles(test, cut, seed=2)


def _images(config: Permutation, data: Path | None) -> tuple[Data, Data, Data]:
    if config.dataset == "digits":
        digits = load_digit_images()
        return (
            _scaled(digits.train, config.size),
            _scaled(digits.validation, config.size),
            _scaled(digits.test, config.size),
        )
    assert data is not None
    # A flip would make the right half of an image look like its left one, so there are central crops only.
    train = ImageFolder(data, "train", crop=config.size, augment=False)
    rest, held = hold_out(train, _VALIDATION)
    return rest, held, ImageFolder(data, "validation", crop=config.size)


def _scaled(images: Labeled, size: int) -> Labeled:
    scaled = F.interpolate(images.inputs, (size, size), mode="bilinear", align_corners=False)
    return Labeled(scaled, images.labels, images.classes)


def _tables(config: Permutation) -> list[Table]:
    titles = {
        "image": ("Images with all patches in their place", "percent", "high"),
        "patch": ("Patches in their place", "percent", "high"),
        "tau": ("Kendall's tau between the answer and the truth", "number", "high"),
        "largest": ("Images of which the largest entry of each row is right, without an assignment", "percent", "high"),
        "zeros": ("Entries of the matrix that are exactly zero", "percent", None),
    }
    return [
        Table(title=title, value=value, row="grid", column="relaxation", scale=scale, better=better, row_title="rows")
        for value, (title, scale, better) in titles.items()
    ]


PERMUTATION = Experiment(
    name="permutation",
    summary="Shuffled patches of an image, put in order by Sinkhorn's iteration or the exact projection",
    presets={
        "images": Permutation(),
        "small": Permutation(
            dataset="digits",
            size=12,
            widths=(16, 32),
            num_features=64,
            training=Recipe(
                epochs=20,
                batch_size=32,
                optimizer="adamw",
                learning_rate=3e-3,
                weight_decay=1e-3,
                schedule="one-cycle",
                clip=1.0,
                validate_every=4,
            ),
        ),
    },
    jobs=_jobs,
    run=_run,
    tables=_tables,
    prepare=_prepare,
)
