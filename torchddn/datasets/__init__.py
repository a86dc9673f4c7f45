"""Real data, and what is done to it."""

from torchddn.datasets.digits import Digits, PointSets, load_digits
from torchddn.datasets.outliers import replace_with_outliers

__all__ = ["Digits", "PointSets", "load_digits", "replace_with_outliers"]
