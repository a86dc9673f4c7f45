"""Real data, generated data, and what is done to it.

A name is imported when it is first asked for: each kind of data needs libraries of its own (the extra ``data``).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchddn.datasets.digits import DigitImages, Digits, PointSets, load_digit_images, load_digits
    from torchddn.datasets.findings import Check, check
    from torchddn.datasets.images import ImageFolder
    from torchddn.datasets.labeled import Data, InMemory, Labeled, Part, hold_out
    from torchddn.datasets.loading import Shards, loader
    from torchddn.datasets.modelnet import ModelNet40
    from torchddn.datasets.moving_digits import MovingDigits
    from torchddn.datasets.outliers import replace_with_outliers
    from torchddn.datasets.puzzles import Puzzles
    from torchddn.datasets.solids import Solids

__all__ = [
    "Check",
    "Data",
    "DigitImages",
    "Digits",
    "ImageFolder",
    "InMemory",
    "Labeled",
    "ModelNet40",
    "MovingDigits",
    "Part",
    "PointSets",
    "Puzzles",
    "Shards",
    "Solids",
    "check",
    "hold_out",
    "load_digit_images",
    "load_digits",
    "loader",
    "replace_with_outliers",
]

_HOMES = {
    "digits": ("DigitImages", "Digits", "PointSets", "load_digit_images", "load_digits"),
    "findings": ("Check", "check"),
    "images": ("ImageFolder",),
    "labeled": ("Data", "InMemory", "Labeled", "Part", "hold_out"),
    "loading": ("Shards", "loader"),
    "modelnet": ("ModelNet40",),
    "moving_digits": ("MovingDigits",),
    "outliers": ("replace_with_outliers",),
    "puzzles": ("Puzzles",),
    "solids": ("Solids",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"torchddn.datasets.{home}"), name)
    raise AttributeError(f"module 'torchddn.datasets' has no attribute {name!r}")
