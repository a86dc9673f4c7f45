r"""The dual of entropic transport: potentials, and the plan that they stand for.

With the sharpness gamma and penalties rho_r, rho_c of the marginals (infinite where these are constraints)::

    min_P  <P, M> + 1/gamma sum P (log P - 1) + rho_r KL(P 1 | r) + rho_c KL(P^T 1 | c)

has the solution ``P_ij = exp(u_i + v_j - gamma M_ij)`` with ``P 1 = r exp(-kappa_r u)``, where
``kappa_r = 1 / (gamma rho_r)``, and the same for columns; ``kappa = 0`` is a constraint. Dividing r, c and P by their
total mass shifts the potentials; here that mass is one.

Potentials are float64 whatever the data: the exponent is a small difference of large numbers, and its rounding is the
relative error of the plan.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Marginals", "Potentials", "Transport", "blocks_of_rows", "column_sums", "plan", "row_sums", "start"]

# exp is sixty times slower near underflow, and numbers below it slow all that follows.
_SMALLEST, _LARGEST = -80.0, 80.0
_LOG2_E = 1 / math.log(2)
_BLOCK = 2**15  # float64 exponents at once on CPU: a quarter of a megabyte


class Marginals(NamedTuple):
    """``r exp(-kappa_r u)``, ``(R, m)``, and the same for columns, ``(R, n)``, float64."""

    r: Tensor
    c: Tensor


class Potentials(NamedTuple):
    """``u``, ``(R, m)``, and ``v``, ``(R, n)``, float64."""

    u: Tensor
    v: Tensor

    def __getitem__(self, items: Tensor) -> "Potentials":  # pyright: ignore[reportIncompatibleMethodOverride]
        return Potentials(self.u.index_select(0, items), self.v.index_select(0, items))


class Transport(NamedTuple):
    """Problems whose numbers are finite, of mass one, and m <= n.

    Attributes:
        cost: ``(N, m, n)``; infinite where the plan must be zero.
        items: Which of these costs the problems have, ``(R,)``; None for all of them.
        r: ``(R, m)``, float64, and so is the rest.
        c: ``(R, n)``.
        gamma: ``(R,)``.
        kappa_r: ``(R,)``.
        kappa_c: ``(R,)``.
        masked: Whether there is an infinite cost or a marginal of zero.
        penalized: Whether a kappa is not zero.
        gentle: Whether no exponent can be large: these problems are computed in the dtype of the cost.
    """

    cost: Tensor
    items: Tensor | None
    r: Tensor
    c: Tensor
    gamma: Tensor
    kappa_r: Tensor
    kappa_c: Tensor
    masked: bool
    penalized: bool
    gentle: bool

    def select(self, items: Tensor) -> "Transport":
        """Those problems, without a copy of their costs."""
        if len(items) == len(self.r):
            return self
        vectors = self.r, self.c, self.gamma, self.kappa_r, self.kappa_c
        r, c, gamma, kappa_r, kappa_c = (vector.index_select(0, items) for vector in vectors)
        items = items if self.items is None else self.items.index_select(0, items)
        return self._replace(items=items, r=r, c=c, gamma=gamma, kappa_r=kappa_r, kappa_c=kappa_c)

    def costs(self, rows: slice) -> Tensor:
        """Rows of the costs, ``(R, ..., n)``."""
        part = self.cost[:, rows]
        return part if self.items is None else part.index_select(0, self.items)

    def marginals(self, potentials: Potentials) -> Marginals:
        """What the plan must sum to."""
        if not self.penalized:
            return Marginals(self.r, self.c)
        return Marginals(
            self.r * (-self.kappa_r.unsqueeze(1) * potentials.u).clamp(_SMALLEST, _LARGEST).exp(),
            self.c * (-self.kappa_c.unsqueeze(1) * potentials.v).clamp(_SMALLEST, _LARGEST).exp(),
        )

    def at(self, gamma: Tensor) -> "Transport":
        """The same problems with another sharpness, ``(R,)``."""
        ratio = self.gamma / gamma
        return self._replace(gamma=gamma, kappa_r=self.kappa_r * ratio, kappa_c=self.kappa_c * ratio)


def plan(problem: Transport, potentials: Potentials, out: Tensor | None = None) -> Tensor:
    """``exp(u_i + v_j - gamma M_ij)`` in the dtype of the cost, its exponent kept within the range of float32.

    ``out``, contiguous, is overwritten by it if given.
    """
    (_, m, n), num_items, dtype = problem.cost.shape, len(problem.r), problem.cost.dtype
    P = problem.cost.new_empty((num_items, m, n)) if out is None else out
    # Powers of two are four times as fast as those of e.
    u, v = (potentials.u * _LOG2_E).unsqueeze(2), (potentials.v * _LOG2_E).unsqueeze(1)
    gamma = (problem.gamma * -_LOG2_E).reshape(-1, 1, 1)
    for rows in blocks_of_rows(m, num_items * n, P.device):
        cost = problem.costs(rows)
        exponent = (cost * gamma).add_(u[:, rows]).add_(v)
        part = exponent.clamp_(_SMALLEST * _LOG2_E, _LARGEST * _LOG2_E).to(dtype).exp2_()
        if problem.masked:
            part.masked_fill_(cost.isinf(), 0)
        P[:, rows] = part
    return P.mul_((problem.r > 0).unsqueeze(2)).mul_((problem.c > 0).unsqueeze(1)) if problem.masked else P


def blocks_of_rows(m: int, numbers_per_row: int, device: torch.device) -> Iterator[slice]:
    """Slices of m rows, each small enough for the cache on CPU."""
    num_rows = max(1, (_BLOCK if device.type == "cpu" else 2**24) // max(numbers_per_row, 1))
    return (slice(first, first + num_rows) for first in range(0, m, num_rows))


def gentle_start(problem: Transport, low: Tensor) -> tuple[Potentials, Tensor]:
    """Potentials that make the largest entry of the plan of a gentle problem one, and the plan; ``low`` is min M."""
    cost = problem.cost
    u = (problem.gamma * low).unsqueeze(1)
    gamma = (problem.gamma * -_LOG2_E).to(cost.dtype).reshape(-1, 1, 1)
    shift = (u * _LOG2_E).to(cost.dtype).unsqueeze(2)
    shift = shift.expand(-1, 1, cost.shape[2]).contiguous()  # a whole row is read faster
    P = torch.addcmul(shift, cost, gamma, out=cost.new_empty(cost.shape)).exp2_()
    return Potentials(u.expand(problem.r.shape), torch.zeros_like(problem.c)), P


def start(problem: Transport) -> Potentials:
    """Potentials that make the largest entry of every row and column of the plan of size ``r_i c_j``."""
    cost = problem.cost
    row = cost.amin(dim=2)
    if problem.masked:
        row = torch.where(row.isfinite(), row, 0)
    column = (cost - row.unsqueeze(2)).amin(dim=1)
    if problem.masked:
        column = torch.where(column.isfinite(), column, 0)
    gamma = problem.gamma.unsqueeze(1)
    tiny = torch.finfo(torch.float32).tiny  # a marginal of zero needs no potential, but a finite one
    return Potentials(gamma * row + problem.r.clamp(min=tiny).log(), gamma * column + problem.c.clamp(min=tiny).log())


# A row times a batch of matrices is several times faster than the matrices times a column.


def row_sums(P: Tensor, b: Tensor) -> Tensor:
    """``P b``, ``(R, m)``."""
    return torch.bmm(b.unsqueeze(1), P.mT).squeeze(1)


def column_sums(P: Tensor, a: Tensor) -> Tensor:
    """``P^T a``, ``(R, n)``."""
    return torch.bmm(a.unsqueeze(1), P).squeeze(1)
