r"""Whether Newton's steps become short: what tells a minimum from an infimum at infinity.

Where a function vanishes like ``exp(-y)``, its slope and its curvature become rounding beside everything else, as they
do at a minimum, while Newton's step, their quotient, keeps its length. At a minimum steps shrink: quadratically, or,
where the Hessian is singular, by a constant factor. So what is remembered is the length of the last step that was
Newton's own and left of the slope more than a small part: it must be small by the time a point is taken for a minimum.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Stride"]

# What a step that converges quadratically leaves of the slope is less.
_LEFT = 0.05
# A step this short, relative to y, is on its way to a minimum; in single precision rounding makes longer ones.
_SHORT = 1e-3


class Stride(NamedTuple):
    """Steps relative to the size of ``y``, ``(B,)`` each."""

    last: Tensor  # length of the last step
    drift: Tensor  # length of the last step that did not do what it should; zero after one that did

    @staticmethod
    def of(f: Tensor) -> "Stride":
        """At the start."""
        return Stride(torch.full_like(f, torch.inf), torch.zeros_like(f))

    def next(self, size: Tensor, accepted: Tensor, newton: Tensor, left: Tensor) -> "Stride":
        """After a step.

        Args:
            size: Its length, relative to ``y``, ``(B,)``.
            accepted: Whether it was taken.
            newton: Whether it was Newton's own, in whole. Others count where they reduce the slope.
            left: The part of the slope that is left.
        """
        counts = accepted & (newton | (left <= 0.9))
        drift = torch.where(left > _LEFT, size, 0.0)
        return Stride(torch.where(accepted, size, self.last), torch.where(counts, drift, self.drift))

    @property
    def drifts(self) -> Tensor:
        """Whether a point at which nothing is left of the slope is on its way to infinity."""
        return self.drift > max(_SHORT, torch.finfo(self.drift.dtype).eps ** 0.25)
