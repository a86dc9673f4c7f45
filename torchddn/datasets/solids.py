"""Generated solids: a stand-in for ModelNet40 that every machine makes for itself in seconds."""

from pathlib import Path

import numpy as np
import torch

from torchddn.datasets.arguments import SPLITS, check_count, check_integer, check_path
from torchddn.datasets.cache import cached
from torchddn.datasets.labeled import InMemory
from torchddn.datasets.meshes import sample_surface, unit_ball
from torchddn.datasets.shapes import RECIPES, pose
from torchddn.functional.nodes.arguments import check_choice

__all__ = ["Solids"]

_PER_CLASS = {"train": 80, "validation": 20, "test": 40}
_POSES = ("upright", "free")
# Part of the name of the file in the cache; to be raised when a recipe changes.
_VERSION = 1


class Solids(InMemory):
    """Point sets ``(num_points, 3)`` in the unit ball, on procedural solids of 24 classes, and the class of each.

    The classes are made of primitives, their unions and differences, and deformations: blocks and balls, tables and
    chairs, mugs, wheels, twisted bars. Proportions, stretch and pose are random. Item i of a class and split is a
    function of ``seed`` alone: asking for more items or points per class changes none before. It is made when first
    asked for, and kept in the cache.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``: other solids, from the same recipes.
        num_points: Per solid, uniform on its surface.
        per_class: Solids per class; 80, 20 and 40 unless given.
        seed: Decides everything.
        pose: ``"upright"``: turned by any angle about the vertical axis, tilted by up to 15 degrees; ``"free"``: turned
            by any rotation.
        cache: Folder to keep it in; see :func:`torchddn.datasets.cache.cached`.

    Raises:
        InvalidInputError: If ``split`` or ``pose`` is unknown or a number is out of range.
    """

    classes = tuple(RECIPES)

    def __init__(
        self,
        split: str = "train",
        *,
        num_points: int = 1024,
        per_class: int | None = None,
        seed: int = 0,
        pose: str = "upright",
        cache: str | Path | None = None,
    ) -> None:
        check_choice("Solids", "split", split, SPLITS)
        check_choice("Solids", "pose", pose, _POSES)
        check_count("Solids", "num_points", num_points)
        check_integer("Solids", "seed", seed)
        check_path("Solids", "cache", cache)
        if per_class is None:
            per_class = _PER_CLASS[split]
        check_count("Solids", "per_class", per_class)
        shape = (len(self.classes) * per_class, num_points, 3)
        name = f"solids-{_VERSION}-{split}-{per_class}x{num_points}-{pose}-{seed}"
        self.inputs = cached(name, shape, lambda: _make(split, num_points, per_class, seed, pose == "free"), cache)
        self.labels = torch.arange(len(self.classes)).repeat_interleave(per_class)


def _make(split: str, num_points: int, per_class: int, seed: int, free: bool) -> np.ndarray:
    points = np.empty((len(RECIPES), per_class, num_points, 3), dtype=np.float32)
    for number, recipe in enumerate(RECIPES.values()):
        for item in range(per_class):
            generator = np.random.default_rng((seed, SPLITS.index(split), number, item))
            mesh = pose(recipe(generator), generator, free)
            points[number, item] = unit_ball(sample_surface(mesh, num_points, int(generator.integers(2**31))))
    return points.reshape(-1, num_points, 3)
