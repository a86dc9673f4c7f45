r"""Which inequalities and bounds hold as equations at a solution: decided once, here, for everybody.

At a solution ``min(lam_j, -g_j) = 0``: of the multiplier and the distance to the constraint, one is zero, and the other
usually is not. Rounding, or a loose solver, leaves two small numbers, and a threshold on either alone gets half of them
wrong. Both are therefore compared with each other, each in its own unit (``optimality.Scales``)::

    active    if    lam_j |g_y| / force  >  -g_j / (|g_y| length)

which neither the scale of ``f`` nor that of a row can change. Where both are rounding, the constraint is *weakly*
active: the solution has a kink there, with one derivative on either side, and the adjoint's option says which is meant.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.derivatives import gradient
from torchddn.fusion import fused
from torchddn.optimality import Held, Scales, lagrangian
from torchddn.problem import BatchedProblem

__all__ = ["INACTIVE", "STRONG", "WEAK", "ActiveSet", "decide", "identify"]

INACTIVE, STRONG, WEAK = 0, 1, 2


class ActiveSet(NamedTuple):
    """How each inequality and bound is active: 0 not at all, 1 strongly, 2 weakly; integer tensors.

    Attributes:
        rows: Of ``g``, ``(B, q)``.
        lower: Of ``lower <= y``, ``(B, m)``.
        upper: Of ``y <= upper``, ``(B, m)``.
    """

    rows: Tensor
    lower: Tensor
    upper: Tensor

    def held(self, problem: BatchedProblem, weakly_active: bool = True) -> Held:
        """The constraints that hold as equations, the weakly active ones among them or not."""
        rows, lower, upper = (part > 0 if weakly_active else part == STRONG for part in self)
        if problem.p:
            rows = torch.cat([rows.new_ones(rows.shape[0], problem.p), rows], dim=1)
        return Held(rows, lower, upper)

    @property
    def weak(self) -> Tensor:
        """Which of ``(g, lower, upper)`` are weakly active, ``(B, q + 2 m)``."""
        return torch.cat([part == WEAK for part in self], dim=1)

    def weak_items(self, problem: BatchedProblem) -> Tensor:
        """Which items have a weakly active constraint, ``(B,)``."""
        at_rows = (self.rows == WEAK).any(1)
        return at_rows | (torch.maximum(self.lower, self.upper) == WEAK).any(1) if problem.has_bounds else at_rows

    def names(self, item: int, kind: int) -> list[str]:
        """What of an item is active in the given way, as a user would call it."""
        found = []
        for name, part in zip(("inequality", "lower", "upper"), self, strict=True):
            found += [f"{name}[{i}]" for i in torch.nonzero(part[item] == kind).flatten().tolist()]
        return found


@fused
def identify(
    problem: BatchedProblem, y: Tensor, dual: Tensor, x: Sequence[Tensor], units: Scales, weak: float | Tensor
) -> ActiveSet:
    """Returns the active set of a point that is close to a solution.

    Args:
        problem: The batched problem.
        y: The point, ``(B, m)``.
        dual: Its multipliers, ``(B, p + q)``.
        x: Inputs.
        units: ``optimality.scales`` at the point.
        weak: A constraint whose multiplier and distance are both below this, in their units, is weakly active; a
            number or ``(B, 1)``.
    """
    L_y = gradient(lambda y: lagrangian(problem, y, dual, x), y)
    return decide(problem, y, dual, x, units, weak, L_y, problem.inequality(y, x))


def decide(
    problem: BatchedProblem,
    y: Tensor,
    dual: Tensor,
    x: Sequence[Tensor],
    units: Scales,
    weak: float | Tensor,
    L_y: Tensor,
    g: Tensor,
) -> ActiveSet:
    """:func:`identify` for those who know ``L_y``, ``(B, m)``, and ``g``, ``(B, q)``, at the point."""
    p = problem.p
    g = g / (units.rows[:, p:] * units.length[:, None])
    lam = dual[:, p:] * units.rows[:, p:] / units.force[:, None]
    L_y = L_y / units.force[:, None]
    lower, upper = problem.bounds(x)
    to_lower, to_upper = (y - lower) / units.length[:, None], (upper - y) / units.length[:, None]
    fixed = lower == upper
    at_lower, at_upper = _decide(L_y, to_lower, weak), _decide(-L_y, to_upper, weak)
    # Only one bound can push, unless both are the same.
    closer = to_lower <= to_upper
    at_lower = torch.where(closer, at_lower, INACTIVE)
    at_upper = torch.where(closer, INACTIVE, at_upper)
    return ActiveSet(
        _decide(lam, -g, weak),
        torch.where(fixed, STRONG, at_lower),
        torch.where(fixed, STRONG, at_upper),
    )


def _decide(multiplier: Tensor, distance: Tensor, weak: float | Tensor) -> Tensor:
    ambiguous = (multiplier.abs() <= weak) & (distance.abs() <= weak)
    kind = torch.where(multiplier > distance, STRONG, INACTIVE)
    return torch.where(ambiguous, WEAK, kind).to(torch.int8)
