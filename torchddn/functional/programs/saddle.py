r"""A symmetric saddle system as a node: its solution, differentiable in the matrices as often as one likes.

::

    [ F Q F + N   F R'a ] [ u ]   [ F v ]          F, N: which variables are free, which are held
    [   a R F    -(1-a) ] [ w ] = [  r  ]          a:    which rows count

with the symmetric part of Q. Its derivative is the same system with another right-hand side, so this function
differentiates itself. Every solve is certified (:func:`torchddn.linear.solve_certified`).
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from torchddn.functional.nodes.degeneracy import warn_undetermined
from torchddn.functional.nodes.handmade import Answer, solve
from torchddn.functional.programs.conditions import Conditions, KnownFactor
from torchddn.linear import solve_certified
from torchddn.solvers.vectors import times

__all__ = ["SaddleSolve", "solve_saddle", "sum_of_outer", "times_symmetric"]


@dataclasses.dataclass(frozen=True)
class SaddleSolve:
    """The formula of ``(u, w)``, ``(R, m + r)``, from Q, R, the right-hand side, masks and a factor.

    The masks are ``free`` and ``active``, the factor that of :class:`KnownFactor`.

    Attributes:
        call: Who asks, for warnings.
    """

    call: str

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``(u, w)``."""
        Q, R, rhs, free, active, L, w, regular = inputs
        m = Q.shape[1]
        v = torch.cat([rhs[:, :m] * free, rhs[:, m:]], dim=1)
        certified = solve_certified(Conditions(Q, R, free, active), v, linear=KnownFactor(L, w, regular))
        # What v asks for may be determined although not everything is: then the system has a solution.
        asked = certified.residual > torch.finfo(v.dtype).eps ** 0.5
        warn_undetermined(
            self.call,
            certified.degenerate & asked,
            "the solution is not isolated there",
            "curvature or another constraint singles one out",
        )
        return (certified.solution,)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        """``(u, w)``."""
        return (torch.empty_like(inputs[2]),)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        Q, R, _, free, active, *factor = inputs
        m = Q.shape[1]
        back = solve(self, Q, R, v, free, active, *factor)[0]
        d_Q = d_R = d_rhs = None
        u, w = y[:, :m] * free, y[:, m:] * active
        u_back, w_back = back[:, :m] * free, back[:, m:] * active
        if needed[0]:
            d_Q = -0.5 * sum_of_outer((u_back, u), (u, u_back))
        if needed[1]:
            d_R = -sum_of_outer((w, w_back), (u_back, u))
        if needed[2]:
            d_rhs = torch.cat([u_back, back[:, m:]], dim=1)
        return d_Q, d_R, d_rhs, *[None] * 5

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        Q, R, _, free, active, *factor = inputs
        m = Q.shape[1]
        d_Q, d_R, d_rhs = tangents[:3]
        u, w = y[:, :m] * free, y[:, m:] * active
        change = torch.zeros_like(y) if d_rhs is None else d_rhs
        if d_Q is not None:
            change = change - torch.cat([times_symmetric(d_Q, u), torch.zeros_like(y[:, m:])], dim=1)
        if d_R is not None:
            change = change - torch.cat([times(d_R.mT, w), times(d_R, u) * active], dim=1)
        return solve(self, Q, R, change, free, active, *factor)[0]


def solve_saddle(
    call: str, Q: Tensor, R: Tensor, rhs: Tensor, free: Tensor, active: Tensor, factor: Sequence[Tensor]
) -> Tensor:
    """``(u, w)``, ``(R, m + r)``, for Q, ``(R, m, m)``, rows ``(R, r, m)``, and the masks ``(R, m)``, ``(R, r)``."""
    return solve(SaddleSolve(call), Q, R, rhs, free, active, *factor)[0]


def times_symmetric(Q: Tensor, y: Tensor) -> Tensor:
    """The symmetric part of Q times ``y``, ``(R, m)``, without forming it."""
    return 0.5 * (times(Q, y) + times(Q.mT, y))


def sum_of_outer(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """``sum_i left_i right_i'``, in one pass over the memory of the result."""
    return torch.stack(list(left), dim=2) @ torch.stack(list(right), dim=1)
