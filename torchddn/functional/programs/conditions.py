r"""The derivative of the conditions of a quadratic program, and how to solve with it by a factor that is known.

::

    K = [ F Q F + N   F R'a ]          F, N: which variables are free, which are held
        [   a R F    -(1-a) ]          a:    which rows count

The last step of the forward pass has factored ``Q + E' w E``, with large weights ``w`` on the rows that hold and on
the limits of the variables that are held. From that, ::

    u = F (Q + E' w E)^-1 (v + R'w r),    mu = w (R u - r)       for  K (u, mu) = (v, r)

up to ``1 / w``, which refinement removes: nothing is factored a second time.
"""

import dataclasses

import torch
from torch import Tensor

from torchddn.linear import Operator, Saddle, Solver
from torchddn.linear.operators import multiply
from torchddn.linear.solver import as_columns

__all__ = ["Conditions", "KnownFactor"]


# One gains five digits at least, where the units of the rows differ most from those of the objective.
_NUM_REFINEMENTS = 2


class Conditions(Operator):
    """``K``, for the symmetric part of ``Q``, ``(B, m, m)``; rows ``R``, ``(B, r, m)``; and masks."""

    symmetric = True

    def __init__(self, Q: Tensor, R: Tensor, free: Tensor, active: Tensor) -> None:
        self.Q, self.R, self.free, self.active = Q, R, free, active
        self.batch, self.size = Q.shape[0], Q.shape[1] + R.shape[1]
        self.dtype, self.device = Q.dtype, Q.device

    @property
    def primal_size(self) -> int:
        return self.Q.shape[1]

    def matvec(self, u: Tensor) -> Tensor:
        m = self.primal_size
        free, active = (mask if u.ndim == 2 else mask.unsqueeze(-1) for mask in (self.free, self.active))
        y, mu = u[:, :m], u[:, m:]
        at, rows = y * free, mu * active
        Q_y = 0.5 * (multiply(self.Q, at) + multiply(self.Q.mT, at))
        upper = torch.where(free, Q_y + multiply(self.R.mT, rows), y)
        return torch.cat([upper, torch.where(active, multiply(self.R, at), -mu)], dim=1)

    def rmatvec(self, u: Tensor) -> Tensor:
        return self.matvec(u)

    def dense(self) -> Tensor:
        held = ~self.free
        H = (0.5 * (self.Q + self.Q.mT)).masked_fill(held.unsqueeze(1) | held.unsqueeze(2), 0.0)
        H.diagonal(dim1=1, dim2=2).add_(held.to(H.dtype))
        return Saddle(H, self.R.masked_fill(held.unsqueeze(1), 0.0), self.active).dense()

    def transpose(self) -> "Conditions":
        return self

    def select(self, items: Tensor) -> "Conditions":
        return Conditions(self.Q[items], self.R[items], self.free[items], self.active[items])


@dataclasses.dataclass(frozen=True, eq=False)
class KnownFactor(Solver):
    """Solves with :class:`Conditions`.

    Attributes:
        L: Lower triangular, ``(B, m, m)``: the factor of ``Q + E' w E``.
        w: Weights of the rows ``R``, ``(B, r)``; zero where a row does not count.
        regular: Where there is such a factor, and no pivot of it is small, ``(B,)``.
    """

    L: Tensor
    w: Tensor
    regular: Tensor

    def init(self, operator: Operator) -> Conditions:
        assert isinstance(operator, Conditions)
        return operator

    def solve(self, state: Conditions, rhs: Tensor) -> Tensor:
        columns = as_columns("KnownFactor.solve", torch.cat([state.free, state.active], dim=1), rhs)
        u = self._approximate(state, columns)
        for _ in range(_NUM_REFINEMENTS):
            u = u + self._approximate(state, columns - state.matvec(u))
        return u.view_as(rhs)

    def _approximate(self, state: Conditions, rhs: Tensor) -> Tensor:
        """The first formula, without refinement."""
        m = state.primal_size
        free, active, w = state.free.unsqueeze(-1), state.active.unsqueeze(-1), self.w.unsqueeze(-1)
        v, r = rhs[:, :m], rhs[:, m:]
        half = torch.linalg.solve_triangular(self.L, v * free + multiply(state.R.mT, w * r), upper=False)
        u = torch.linalg.solve_triangular(self.L.mT, half, upper=True)
        # With what u has of held variables, about 1 / w: without it the rows would be off by one.
        mu = torch.where(active, w * (multiply(state.R, u) - r), -r)
        return torch.cat([torch.where(free, u, v), mu], dim=1)

    def transpose(self, state: Conditions) -> Conditions:
        return state

    def sound(self, state: Conditions) -> Tensor:
        return self.regular
