r"""A line search that evaluates one point per call, for a whole batch whose items are at different stages.

Finds, along a direction of descent ``d`` from ``y``, with ``phi(alpha) = f(y + alpha d)``, a step length with the
strong Wolfe conditions ::

    phi(alpha) <= phi(0) + decrease alpha phi'(0)        |phi'(alpha)| <= curvature |phi'(0)|

Each item keeps a bracket: ``low``, which satisfies the first condition and where ``phi`` still falls, and ``high``
(infinite at first), which violates it or where ``phi`` rises. Between the two there is a point with both
conditions. The next trial is the minimum of the cubic through both ends, kept away from them, or a longer step while
there is no ``high``.
"""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.solvers.options import check_number

__all__ = ["Bracket", "StrongWolfe"]


class Bracket(NamedTuple):
    """What the search of each item knows, ``(B,)`` each; ``f`` and ``slope`` with each end."""

    alpha: Tensor  # to be tried next
    low: Tensor
    f_low: Tensor
    slope_low: Tensor
    high: Tensor
    f_high: Tensor
    slope_high: Tensor


@dataclasses.dataclass(frozen=True)
class StrongWolfe:
    """The search and its two constants.

    Args:
        decrease: How much of the decrease that the slope promises must come; above 0.
        curvature: How much of the slope may remain; above ``decrease``, below 1. Less means longer searches.

    References:
        Nocedal, Wright, Numerical Optimization, 2nd edition, algorithms 3.5 and 3.6. Hager, Zhang, A new conjugate
        gradient method with guaranteed descent and an efficient line search, 2005, equation 4.1: where rounding
        hides the first condition, slopes stand in for values.
    """

    decrease: float = 1e-4
    curvature: float = 0.9

    def __post_init__(self) -> None:
        check_number(self, "decrease", self.decrease, strict=True)
        check_number(self, "curvature", self.curvature, strict=True)
        if not self.decrease < self.curvature < 1:
            raise InvalidInputError(
                f"`StrongWolfe(decrease=..., curvature=...)` must satisfy decrease < curvature < 1, got "
                f"{self.decrease!r} and {self.curvature!r}."
            )

    def init(self, alpha: Tensor, f: Tensor, slope: Tensor) -> Bracket:
        """The state before the first trial ``alpha``; ``f`` and ``slope`` are those at zero."""
        zero, infinite = torch.zeros_like(alpha), torch.full_like(alpha, torch.inf)
        return Bracket(alpha, zero, f, slope, infinite, infinite, zero)

    def step(
        self, bracket: Bracket, f_0: Tensor, slope_0: Tensor, f: Tensor, slope: Tensor
    ) -> tuple[Bracket, Tensor, Tensor]:
        """Takes in ``f`` and ``slope`` at ``bracket.alpha``: the next state, which items accept it, which gave up."""
        eps = torch.finfo(f.dtype).eps
        alpha = bracket.alpha
        flat = 10 * eps * torch.maximum(f_0.abs(), f.abs())
        sufficient = (f <= f_0 + self.decrease * alpha * slope_0) | (
            (f <= f_0 + flat) & (slope <= (2 * self.decrease - 1) * slope_0)
        )
        finite = f.isfinite() & slope.isfinite()
        accepted = finite & sufficient & (slope.abs() <= -self.curvature * slope_0)
        too_long = ~finite | ~sufficient | (slope >= 0) | (f > bracket.f_low + flat)
        ends = (alpha, f, slope)
        low = [torch.where(too_long, old, new) for old, new in zip(bracket[1:4], ends, strict=True)]
        high = [torch.where(too_long, new, old) for old, new in zip(bracket[4:7], ends, strict=True)]
        width = high[0] - low[0]
        given_up = ~accepted & high[0].isfinite() & (width <= 4 * eps * high[0])
        return Bracket(_between(*low, *high), *low, *high), accepted, given_up


def _between(low: Tensor, f_low: Tensor, slope_low: Tensor, high: Tensor, f_high: Tensor, slope_high: Tensor) -> Tensor:
    """Minimum of the cubic through both ends; where there is none, the middle, or four times as far."""
    width = high - low
    # Nocedal and Wright, equation 3.59.
    s = slope_low + slope_high - 3 * (f_high - f_low) / width
    root = (s.square() - slope_low * slope_high).sqrt()
    cubic = 1 - (slope_high + root - s) / (slope_high - slope_low + 2 * root)
    inside = torch.where(cubic.isfinite(), cubic.clamp(0.1, 0.9), 0.5)
    # Values that are not finite say nothing but "too long".
    inside = torch.where(f_high.isfinite() & slope_high.isfinite(), inside, 0.1)
    return torch.where(high.isinf(), 4 * low, low + inside * width)
