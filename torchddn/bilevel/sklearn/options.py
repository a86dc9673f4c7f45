"""The arguments of the estimators: checked when they fit, as scikit-learn wants it."""

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.metrics import check_scoring
from torch import Tensor

from torchddn.bilevel.sklearn.search import Limits
from torchddn.errors import InvalidInputError

__all__ = ["check_choice", "check_flag", "check_search", "is_number", "read_limits", "read_positive", "score"]


def check_choice(call: str, name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises unless ``value`` is one of the words."""
    if not (isinstance(value, str) and value in choices):
        raise InvalidInputError(f"`{call}({name}=...)` must be {' or '.join(map(repr, choices))}, got {value!r}.")


def check_flag(call: str, name: str, value: object) -> None:
    """Raises unless ``value`` is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidInputError(f"`{call}({name}=...)` must be True or False, got {value!r}.")


def is_number(value: object) -> bool:
    """Whether ``value`` is a real number, and neither NaN nor infinite."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_search(estimator: Any) -> None:
    """Raises unless ``max_iter`` and ``tol`` make sense."""
    call = type(estimator).__name__
    max_iter, tol = estimator.max_iter, estimator.tol
    if isinstance(max_iter, bool) or not isinstance(max_iter, Integral) or max_iter < 1:
        raise InvalidInputError(f"`{call}(max_iter=...)` must be a positive integer, got {max_iter!r}.")
    if tol is not None and not (is_number(tol) and 0 < tol < 1):
        raise InvalidInputError(f"`{call}(tol=...)` must be a number between 0 and 1, or None, got {tol!r}.")
    check_flag(call, "warm_start", estimator.warm_start)


def read_positive(call: str, name: str, value: Any, size: int) -> Tensor:
    """The logarithms of one positive number or of one per feature, ``(1,)`` or ``(size,)``."""
    try:
        numbers = np.atleast_1d(np.asarray(value, dtype=np.float64))
    except (TypeError, ValueError):
        numbers = np.array([math.nan])
    if numbers.shape not in {(1,), (size,)} or not ((numbers > 0) & np.isfinite(numbers)).all():
        one_each = "" if size == 1 else f" or {size} of them, one per feature"
        raise InvalidInputError(f"`{call}({name}=...)` must be a positive number{one_each}, got {value!r}.")
    return torch.from_numpy(numbers).log()


def read_limits(call: str, name: str, value: Any) -> Limits:
    """The logarithms of a pair of positive numbers."""
    try:
        low, high = (float(side) for side in value)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not 0 < low < high < math.inf:
        raise InvalidInputError(
            f"`{call}({name}=...)` must be two positive numbers, the smaller one first, got {value!r}."
        )
    return Limits(
        torch.tensor([math.log(low)], dtype=torch.float64), torch.tensor([math.log(high)], dtype=torch.float64)
    )


def score(estimator: Any, default: str, X: Any, y: Any, sample_weight: Any) -> float:
    """What ``estimator.scoring``, or the ``default``, says of its predictions."""
    scorer: Any = check_scoring(estimator, default if estimator.scoring is None else estimator.scoring)
    return float(scorer(estimator, X, y, **({} if sample_weight is None else {"sample_weight": sample_weight})))
