"""Where a function changes its sign, to the last digit, in as many steps for every item."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["bisect"]

# From a bracket of length 1400, which holds every exponent of float64, to a part in 2^53 of one.
_NUM_STEPS = 64


def bisect(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Returns where ``function`` goes from negative to positive between ``low`` and ``high``."""
    for _ in range(_NUM_STEPS):
        middle = 0.5 * (low + high)
        below = function(middle) < 0
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)
