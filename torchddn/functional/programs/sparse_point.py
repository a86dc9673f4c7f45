r"""The solution of a sparse quadratic program as a function of its numbers, once it is known which rows hold.

The equations are those of the dense one: for the symmetric part of Q, with ``z = (y, lam)``, ::

    Q y + c + R'(a lam) = 0   for free variables,   y = lower or upper   for held ones
    a (R y - b) - (1 - a) lam = 0

and their derivative is the matrix of a saddle system. Gradients of Q and R are taken where these have numbers.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from torchddn.functional.nodes.handmade import Answer, solve
from torchddn.functional.programs.sparse_data import multiply, multiply_symmetric
from torchddn.functional.programs.sparse_saddle import SparseSaddle

__all__ = ["SparsePoint"]


@dataclasses.dataclass(frozen=True)
class SparsePoint:
    """The formula of ``z``, ``(R, m + r)``, from numbers of Q, c, numbers of R, b, lower, upper; z, masks and places.

    The masks are ``at_lower``, ``at_upper``, ``(R, m)``, and ``active``, ``(R, r)``. An item that is not finite has
    derivatives of zero.

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
        Q, c, R, _, _, _, _, at_lower, at_upper, active, *places = inputs
        Q_rows, Q_columns, rows_rows, rows_columns = places
        m, free = c.shape[1], ~(at_lower | at_upper)
        sound = ~y.isnan().any(dim=1, keepdim=True)
        y, v = torch.where(sound, y, 0), torch.where(sound, v, 0)
        point, lam = y[:, :m], y[:, m:] * active
        rhs = torch.cat([v[:, :m] * free, v[:, m:]], dim=1)
        u = solve(SparseSaddle(self.call), Q, R, rhs, free, active, *places)[0]
        along, rows = u[:, :m] * free, u[:, m:] * active
        d_Q = d_c = d_R = d_b = d_lower = d_upper = None
        if needed[0]:
            there = along.gather(1, Q_rows) * point.gather(1, Q_columns)
            d_Q = -0.5 * (there + along.gather(1, Q_columns) * point.gather(1, Q_rows))
        if needed[1]:
            d_c = -along
        if needed[2]:
            d_R = -(lam.gather(1, rows_rows) * along.gather(1, rows_columns))
            d_R = d_R - rows.gather(1, rows_rows) * point.gather(1, rows_columns)
        if needed[3]:
            d_b = rows
        if needed[4] or needed[5]:
            pulled = multiply_symmetric(Q, Q_rows, Q_columns, along)
            pulled = pulled + multiply(R, rows_columns, rows_rows, rows, m)
            at_bound = v[:, :m] - pulled
            d_lower, d_upper = at_bound * at_lower, at_bound * (at_upper & ~at_lower)
        return d_Q, d_c, d_R, d_b, d_lower, d_upper, *[None] * 8

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        Q, c, R, b, _, _, _, at_lower, at_upper, active, *places = inputs
        Q_rows, Q_columns, rows_rows, rows_columns = places
        (m, r), free = (c.shape[1], b.shape[1]), ~(at_lower | at_upper)
        y = torch.where(y.isnan().any(dim=1, keepdim=True), 0, y)
        point, lam = y[:, :m], y[:, m:] * active
        d_Q, d_c, d_R, d_b, d_lower, d_upper = tangents[:6]
        force, rest, moved = torch.zeros_like(c), torch.zeros_like(b), torch.zeros_like(c)
        if d_lower is not None:
            moved = moved + d_lower * at_lower
        if d_upper is not None:
            moved = moved + d_upper * (at_upper & ~at_lower)
        if d_Q is not None:
            force = force + multiply_symmetric(d_Q, Q_rows, Q_columns, point)
        if d_c is not None:
            force = force + d_c
        if d_R is not None:
            force = force + multiply(d_R, rows_columns, rows_rows, lam, m)
            rest = rest + multiply(d_R, rows_rows, rows_columns, point, r)
        if d_b is not None:
            rest = rest - d_b
        force = force + multiply_symmetric(Q, Q_rows, Q_columns, moved)
        rest = (rest + multiply(R, rows_rows, rows_columns, moved, r)) * active
        rhs = -torch.cat([force * free, rest], dim=1)
        change = solve(SparseSaddle(self.call), Q, R, rhs, free, active, *places)[0]
        return torch.cat([change[:, :m] * free + moved, change[:, m:]], dim=1)
