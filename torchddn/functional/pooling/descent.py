r"""Descent on a sum of penalties: iteratively reweighted least squares, accelerated by Newton.

For each item, with ``r_i = y - x_i``::

    minimize over y   f(y) = sum_i phi(|r_i|)

The reweighted step ``y - sum_i w_i r_i``, ``w = kappa1 / sum kappa1``, minimizes a parabola that lies on or above
``f`` and touches it in ``y``: it never increases ``f``, from anywhere, and has no step size. Newton's step is tried
first, then quarters of it, and taken where ``f`` decreases; the reweighted one comes last.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.status import Status

__all__ = ["FAST", "NOISE", "Descent", "Local", "descend"]

# Roundings of a sum that count as none: pairwise sums lose a few units in the last place.
NOISE = 8.0

# As long as a reweighted step leaves this share of the gradient, another is cheaper than products with the Hessian.
FAST = 0.05

# Below this share of Newton's step the reweighted one is the better choice.
_LEAST_SHARE = 1 / 1024


class Local(NamedTuple):
    """What one evaluation at ``y`` tells, per item.

    Attributes:
        objective: ``f``, ``(R,)``.
        noise: Rounding error of ``f``, ``(R,)``.
        slope: Length of the gradient, ``(R,)``.
        at_rest: Whether the gradient is no larger than its rounding error, ``(R,)``.
        reweighted: Where reweighted least squares goes from here, shaped as ``y``.
        newton: Where Newton goes from here, shaped as ``y``; as ``reweighted`` where Newton has no minimum to go to, or
            is not worth its price.
    """

    objective: Tensor
    noise: Tensor
    slope: Tensor
    at_rest: Tensor
    reweighted: Tensor
    newton: Tensor


class Descent(NamedTuple):
    """Where the descent ended, per item; an objective that nobody needs may be NaN."""

    y: Tensor
    objective: Tensor
    status: Tensor
    num_steps: Tensor
    slope: Tensor


def descend(look: Callable[[Tensor, Tensor], Local], y: Tensor, max_steps: int) -> Descent:
    """Returns a stationary point below each start.

    Args:
        look: Evaluates the items with the given numbers, at the given points.
        y: Starts, ``(R, ...)``.
        max_steps: At most so many evaluations after the first.

    Returns:
        Points whose objective is at most that of their start, up to its rounding.

    Status:
        STALLED: If not even the reweighted step decreases ``f`` in this precision, although the gradient is not zero.
    """
    running = torch.arange(len(y), device=y.device)
    here = look(y, running)
    num_steps = torch.zeros_like(running)
    status = torch.full_like(running, Status.MAX_STEPS)
    status[here.at_rest] = Status.CONVERGED
    share = torch.ones_like(here.objective)  # of Newton's step
    for _ in range(max_steps):
        running = running[status[running] == Status.MAX_STEPS]
        if not running.numel():
            break
        every = len(running) == len(y)  # then nothing is taken out, which would cost more than the arithmetic
        state = [*here, y, share]
        *now, y_now, share_now = state if every else [field[running] for field in state]
        now = Local(*now)
        plain = share_now < _LEAST_SHARE
        newton = y_now + _column(share_now, y) * (now.newton - y_now)
        trial = torch.where(_column(plain, y), now.reweighted, newton)
        there = look(trial, running)
        # Where rounding hides whether f decreases, the gradient tells.
        change = there.objective - now.objective
        down = (change < -now.noise) | ((change <= now.noise) & (there.slope <= now.slope))
        share_next = torch.where(down, torch.where(plain, 1, (4 * share_now).clamp(max=1)), share_now / 4)
        better = [torch.where(_column(down, a), a, b) for a, b in zip([*there, trial], [*now, y_now], strict=True)]
        stopped = torch.where(down & there.at_rest, int(Status.CONVERGED), int(Status.MAX_STEPS))
        stopped = torch.where(plain & ~down, int(Status.STALLED), stopped)
        state = [*better, share_next]
        if not every:
            state = [a.index_copy(0, running, b) for a, b in zip([*here, y, share], state, strict=True)]
        *fields, y, share = state
        here = Local(*fields)
        num_steps[running] += 1
        status[running] = stopped
    # One more reweighted step is known. As kappa2 <= 0, the Hessian is at most sum kappa1: the step comes no less near.
    y = torch.where(_column(status == Status.CONVERGED, y), here.reweighted, y)
    return Descent(y, here.objective, status, num_steps, here.slope)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.dim() - 1))
