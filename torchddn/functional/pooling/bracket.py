"""Roots of increasing functions of one variable per item, by Newton within a shrinking bracket."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Root", "find_root"]

# Each step halves the bracket, or the step before: twice what the range and the digits of float64 can bear.
_MAX_STEPS = 200


class Root(NamedTuple):
    """``y``, shaped as the start; the steps taken and whether it converged, likewise."""

    y: Tensor
    num_steps: Tensor
    converged: Tensor


def find_root(
    look: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], low: Tensor, high: Tensor, start: Tensor
) -> Root:
    """Returns where a function crosses zero from below; it must do so between ``low`` and ``high``.

    A Newton step that leaves the bracket, or is more than half the step before, is replaced by bisection, so that
    the search cannot fail. It ends where the function is within its own rounding error, or where no number is left
    in the bracket, with one more Newton step, which is free.

    Args:
        look: The function, its slope, and the rounding error of the function, at a point for each item.
        low: Where the function is not positive.
        high: Where it is not negative.
        start: Between the two.
    """
    eps = torch.finfo(start.dtype).eps
    y, step = start, high - low
    running = torch.ones_like(y, dtype=torch.bool)
    num_steps = torch.zeros_like(y, dtype=torch.int64)
    for _ in range(_MAX_STEPS):
        f, slope, rounding = look(y)
        low, high = torch.where(f <= 0, y, low), torch.where(f >= 0, y, high)
        newton = y - f / slope
        inside = (newton > low) & (newton < high)
        done = (f.abs() <= rounding) | (high - low <= eps * y.abs())
        fast = inside & ((newton - y).abs() < 0.5 * step)
        y_next = torch.where(done, torch.where(inside, newton, y), torch.where(fast, newton, low + (high - low) / 2))
        step = (y_next - y).abs()
        y = torch.where(running, y_next, y)
        num_steps += running
        running = running & ~done
        if not bool(running.any()):
            break
    return Root(y, num_steps, ~running)
