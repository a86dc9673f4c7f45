r"""A symmetric saddle system as a node: its solution, differentiable in the matrices as often as one likes.

::

    [ F Q F + N   F R'a ] [ u ]   [ F v ]          F, N: which variables are free, which are held
    [   a R F    -(1-a) ] [ w ] = [  r  ]          a:    which rows count

Its derivative is the same system with another right-hand side, so this function differentiates itself. Every solve is
certified (:func:`torchddn.linear.solve_certified`).
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from torchddn.functional.nodes.degeneracy import warn_undetermined
from torchddn.functional.nodes.handmade import Answer, solve
from torchddn.linear import Saddle, solve_certified

__all__ = ["SaddleSolve", "solve_saddle"]


@dataclasses.dataclass(frozen=True)
class SaddleSolve:
    """The formula of ``(u, w)``, ``(R, m + r)``, from Q, R, the right-hand side, and the masks of free and active.

    Attributes:
        call: Who asks, for warnings.
    """

    call: str

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``(u, w)``."""
        Q, R, rhs, free, active = inputs
        m = Q.shape[1]
        held = ~free
        H = Q.masked_fill(held.unsqueeze(1) | held.unsqueeze(2), 0.0)
        H.diagonal(dim1=1, dim2=2).add_(held.to(Q.dtype))
        v = torch.cat([rhs[:, :m] * free, rhs[:, m:]], dim=1)
        certified = solve_certified(Saddle(H, R.masked_fill(held.unsqueeze(1), 0.0), active), v)
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
        Q, R, _, free, active = inputs
        m = Q.shape[1]
        back = solve(self, Q, R, v, free, active)[0]
        d_Q = d_R = d_rhs = None
        u, w = y[:, :m] * free, y[:, m:] * active
        u_back, w_back = back[:, :m] * free, back[:, m:] * active
        if needed[0]:
            d_Q = -(u_back.unsqueeze(2) * u.unsqueeze(1))
        if needed[1]:
            d_R = -(w.unsqueeze(2) * u_back.unsqueeze(1) + w_back.unsqueeze(2) * u.unsqueeze(1))
        if needed[2]:
            d_rhs = torch.cat([u_back, back[:, m:]], dim=1)
        return d_Q, d_R, d_rhs, None, None

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        Q, R, _, free, active = inputs
        m = Q.shape[1]
        d_Q, d_R, d_rhs, _, _ = tangents
        u, w = (y[:, :m] * free).unsqueeze(2), (y[:, m:] * active).unsqueeze(2)
        change = torch.zeros_like(y) if d_rhs is None else d_rhs
        if d_Q is not None:
            change = change - torch.cat([(d_Q @ u).squeeze(2), torch.zeros_like(y[:, m:])], dim=1)
        if d_R is not None:
            rows = (d_R @ u).squeeze(2) * active
            change = change - torch.cat([(d_R.mT @ w).squeeze(2), rows], dim=1)
        return solve(self, Q, R, change, free, active)[0]


def solve_saddle(call: str, Q: Tensor, R: Tensor, rhs: Tensor, free: Tensor, active: Tensor) -> Tensor:
    """``(u, w)``, ``(R, m + r)``, for Q, ``(R, m, m)``, rows ``(R, r, m)``, and the masks ``(R, m)``, ``(R, r)``."""
    return solve(SaddleSolve(call), Q, R, rhs, free, active)[0]
