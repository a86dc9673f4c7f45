r"""The solution of a quadratic program as a function of its data, once it is known which rows hold with equality.

::

    Q y + c + R'(a lam) = 0   for free variables,   y = lower or upper   for held ones
    a (R y - b) - (1 - a) lam = 0

Only the symmetric part of Q counts. The unknowns are ``z = (y, lam)``. With ``K`` the derivative of
these equations, ``K'u = v`` and the solution itself give every gradient: no other matrix is formed.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from torchddn.functional.nodes.handmade import Answer
from torchddn.functional.programs.saddle import solve_saddle, sum_of_outer, times_symmetric
from torchddn.solvers.vectors import times

__all__ = ["QuadraticPoint"]


@dataclasses.dataclass(frozen=True)
class QuadraticPoint:
    """The formula of ``z``, ``(R, m + r)``, from ``Q, c, R, b, lower, upper``, ``z`` itself, masks and a factor.

    The factor is that of :class:`~torchddn.functional.programs.conditions.KnownFactor`. The masks are ``at_lower``,
    ``at_upper``, ``(R, m)``, and ``active``, ``(R, r)``. An item that is not finite has derivatives of zero.

    Attributes:
        call: Who asks, for warnings.
    """

    call: str

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``z``, which is known."""
        return (inputs[6].clone(),)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        """``z``."""
        return (torch.empty_like(inputs[6]),)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        Q, c, R, _, _, _, _, at_lower, at_upper, active, *factor = inputs
        m, free = c.shape[1], ~(at_lower | at_upper)
        sound = ~y.isnan().any(dim=1, keepdim=True)
        y, v = torch.where(sound, y, 0), torch.where(sound, v, 0)
        point, lam = y[:, :m], y[:, m:] * active
        u = solve_saddle(self.call, Q, R, torch.cat([v[:, :m] * free, v[:, m:]], dim=1), free, active, factor)
        along, rows = u[:, :m] * free, u[:, m:] * active
        d_Q = d_c = d_R = d_b = d_lower = d_upper = None
        if needed[0]:
            d_Q = -0.5 * sum_of_outer((along, point), (point, along))
        if needed[1]:
            d_c = -along
        if needed[2]:
            d_R = -sum_of_outer((lam, rows), (along, point))
        if needed[3]:
            d_b = rows
        if needed[4] or needed[5]:
            at_bound = v[:, :m] - times_symmetric(Q, along) - times(R.mT, rows)
            d_lower, d_upper = at_bound * at_lower, at_bound * (at_upper & ~at_lower)
        return d_Q, d_c, d_R, d_b, d_lower, d_upper, *[None] * 7

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        Q, c, R, b, _, _, _, at_lower, at_upper, active, *factor = inputs
        m, free = c.shape[1], ~(at_lower | at_upper)
        y = torch.where(y.isnan().any(dim=1, keepdim=True), 0, y)
        point, lam = y[:, :m], y[:, m:] * active
        d_Q, d_c, d_R, d_b, d_lower, d_upper = tangents[:6]
        force, rest = torch.zeros_like(c), torch.zeros_like(b)
        moved = torch.zeros_like(c)
        if d_lower is not None:
            moved = moved + d_lower * at_lower
        if d_upper is not None:
            moved = moved + d_upper * (at_upper & ~at_lower)
        if d_Q is not None:
            force = force + times_symmetric(d_Q, point)
        if d_c is not None:
            force = force + d_c
        if d_R is not None:
            force = force + times(d_R.mT, lam)
            rest = rest + times(d_R, point)
        if d_b is not None:
            rest = rest - d_b
        force = force + times_symmetric(Q, moved)
        rest = (rest + times(R, moved)) * active
        change = solve_saddle(self.call, Q, R, -torch.cat([force * free, rest], dim=1), free, active, factor)
        return torch.cat([change[:, :m] * free + moved, change[:, m:]], dim=1)
