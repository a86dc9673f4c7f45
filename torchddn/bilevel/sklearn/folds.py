"""Cross-validation as weights: fold k trains with ``training[k]`` and is judged with ``validation[k]``.

All folds keep all samples, and so a solve of all folds is one batch.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.model_selection import check_cv
from torch import Tensor

__all__ = ["Folds", "split", "whole"]


class Folds(NamedTuple):
    """Weights of the samples: ``training`` and ``validation``, ``(K, N)``, the latter with sum 1."""

    training: Tensor
    validation: Tensor


def split(cv: Any, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray, classifier: bool) -> Folds:
    """Returns the folds of ``cv`` as scikit-learn's ``check_cv`` understands it.

    The error of a fold is the weighted mean over its validation samples, and that of all folds the mean over those that
    have any, as in ``GridSearchCV``.

    Raises:
        ValueError: If ``cv`` cannot split these samples, or a fold has nothing to train or be judged with.
    """
    splitter: Any = check_cv(cv, y, classifier=classifier)
    parts = list(splitter.split(X, y))
    training, validation = (
        # An index may appear twice, as in a bootstrap.
        np.stack([np.bincount(part, minlength=len(X)) * sample_weight for part in side])
        for side in zip(*parts, strict=True)
    )
    if not (training.sum(1) > 0).all():
        raise ValueError(f"cv={cv!r} has a fold without training samples of positive weight.")
    judged = validation.sum(1)
    if not (judged > 0).any():
        raise ValueError(f"cv={cv!r} has no fold with validation samples of positive weight.")
    training, validation = training[judged > 0], validation[judged > 0]
    validation = validation / (len(validation) * validation.sum(1, keepdims=True))
    return Folds(torch.from_numpy(training), torch.from_numpy(validation))


def whole(sample_weight: np.ndarray) -> Folds:
    """Returns the one fold that trains with all samples, for the last fit."""
    weight = torch.from_numpy(sample_weight)[None]
    return Folds(weight, weight / weight.sum())
