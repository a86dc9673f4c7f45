r"""The Lagrangian around a point, for a batch: derivatives, units, and Newton's step with a convex model.

With ``A = h_y`` whose rows are scaled to length one, ::

    [ K     A^T    ] [ d   ]     [ L_y + rho A^T h ]      K = L_yy + rho A^T A + tau I
    [ A   -delta I ] [ dnu ] = - [ h               ]

A Cholesky factorization of ``K`` solves this and decides whether ``L_yy`` curves up along the constraints; see
``newton.py`` for what is made of it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.derivatives import gradient, value_and_gradient
from torchddn.fusion import fused
from torchddn.problem import BatchedProblem
from torchddn.solvers.base import Inputs, is_differentiated
from torchddn.solvers.expansion import value_and_jacobian, value_gradient_hessian
from torchddn.solvers.points import where_items
from torchddn.solvers.vectors import (
    back_substitute,
    divide,
    identity_like,
    is_settled,
    largest,
    length,
    row_sum_norm,
    times,
)

__all__ = [
    "Point",
    "Scales",
    "System",
    "expand",
    "fit_multipliers",
    "least_curvature",
    "make_convex",
    "measure",
    "row_scales",
]


class Point(NamedTuple):
    """The problem around a point. Differentiable but for ``f``, which only decides.

    Where there are inequalities, ``h`` stands for all rows, ``(h, g)``, and ``nu`` for their multipliers.
    """

    y: Tensor  # (B, m)
    nu: Tensor  # (B, p)
    f: Tensor  # (B,)
    h: Tensor  # (B, p)
    h_y: Tensor  # (B, p, m)
    L_y: Tensor  # (B, m)
    L_yy: Tensor  # (B, m, m)

    @property
    def f_y(self) -> Tensor:
        """The gradient of the objective alone."""
        return self.L_y - times(self.h_y.mT, self.nu)


@fused
def expand(problem: BatchedProblem, x: Inputs, y: Tensor, fit: Callable[[Tensor, Tensor], Tensor]) -> Point:
    """The problem around ``y``, with the multipliers that ``fit`` makes of ``f_y`` and ``h_y``."""
    work = problem.work(x)

    def objective(y: Tensor) -> Tensor:
        return problem.objective(y, x)

    if not problem.p + problem.q:
        f, L_y, L_yy = value_gradient_hessian(objective, y, work)
        none = y.new_zeros(y.shape[0], 0)
        return Point(y, none, f, none, y.new_zeros(*none.shape, problem.m), L_y, L_yy)

    f, f_y = value_and_gradient(objective, y)
    h, h_y = value_and_jacobian(lambda y: problem.constraints(y, x), y, work)
    # Not the multipliers of the step that led here: those of a long step are huge where its model was wrong.
    nu = fit(f_y, h_y)

    def L(y: Tensor) -> Tensor:
        return problem.objective(y, x) + (nu * problem.constraints(y, x)).sum(-1)

    L_y, L_yy = value_and_jacobian(lambda y: gradient(L, y), y, work)
    return Point(y, nu, f.detach(), h, h_y, L_y, L_yy)


def fit_multipliers(f_y: Tensor, h_y: Tensor) -> Tensor:
    """``nu`` that makes ``|f_y + h_y' nu|`` small, ``(B, p)``, differentiable; zero for rows of zeros."""
    row_scale = row_scales(h_y)
    A = h_y / row_scale[..., None]
    factor, _ = torch.linalg.cholesky_ex(_regularize((A @ A.mT).detach()))
    nu = torch.zeros_like(h_y[..., 0])
    # The normal equations, twice refined: exact derivatives up to the second order through a constant factor, and
    # an error that grows with the condition of A and not with its square.
    for _ in range(3):
        nu = nu - back_substitute(factor, times(A, f_y + times(A.mT, nu)))
    return nu / row_scale


class Scales(NamedTuple):
    """Units for everything that is compared, ``(B,)`` each."""

    curvature: Tensor  # of L: f over length squared
    size: Tensor  # |L_yy|
    distance: Tensor  # a typical length of y here
    reference: Tensor  # a length by which steps are small or not


def measure(point: Point, scale: Tensor) -> Scales:
    """The units at a point; ``scale`` is the largest ``|y|`` so far."""
    size, slope = row_sum_norm(point.L_yy), length(point.L_y)
    # Where y = 0 by cancellation, y itself is no scale; the length over which f changes by itself is.
    change = torch.minimum((point.f.abs() / size).sqrt(), point.f.abs() / length(point.f_y))
    reference = torch.maximum(scale, change.nan_to_num(nan=0.0, posinf=0.0))
    distance = torch.maximum(reference, torch.maximum(divide(slope, size), length(_distance(point))))
    distance = torch.where((distance > 0) & distance.isfinite(), distance, 1.0)
    curvature = torch.maximum(size, slope / distance)
    curvature = torch.where(curvature > 0, curvature, 1.0)
    return Scales(curvature, size, distance, reference)


class System(NamedTuple):
    """The matrix of the Newton step, factored. The factors are constants, derivatives come from refinement."""

    curvature: Tensor  # L_yy
    K: Tensor
    A: Tensor
    L: Tensor  # K = L L^T
    S: Tensor  # Cholesky factor of A K^-1 A^T + delta I
    row_scale: Tensor
    tau: Tensor
    rho: Tensor
    level: Tensor  # (B,): which pair (tau, rho) was taken
    num_convex: int  # levels below this mean: curved up along the constraints

    @property
    def convex(self) -> Tensor:
        return self.level < self.num_convex

    def newton_step(self, point: Point) -> tuple[Tensor, Tensor]:
        """``d`` and ``nu + dnu``, differentiable in the point."""
        h = point.h / self.row_scale
        right = -(point.L_y + self.rho[:, None] * times(self.A.mT, h))
        d, dnu = self.solve(right.detach(), -h.detach())
        # Let K = K_0 + dK with the factored constant K_0. Each refinement makes one more order in dK exact, and takes
        # out the error that delta left, if there are constraints.
        for _ in range(2 if is_differentiated() else min(1, h.shape[-1])):
            residual = right - times(self.K, d) - times(self.A.mT, dnu)
            more_d, more_dnu = self.solve(residual, -h - times(self.A, d))
            d, dnu = d + more_d, dnu + more_dnu
        return d, point.nu + dnu / self.row_scale

    def solve(self, primal: Tensor, dual: Tensor) -> tuple[Tensor, Tensor]:
        """``(d, n)`` with ``K d + A' n = primal`` and ``A d - delta n = dual``."""
        u = back_substitute(self.L, primal)
        if not dual.shape[-1]:
            return u, dual
        A = self.A.detach()
        n = back_substitute(self.S, times(A, u) - dual)
        return back_substitute(self.L, primal - times(A.mT, n)), n

    def next_shift(self, shift: Tensor, curvature: Tensor, scales: Scales) -> Tensor:
        """Closer to the least that will do: smaller after success, larger after failure."""
        worked, failed = self.level == self.num_convex, self.level > self.num_convex
        # Once w has converged, -curvature is what tau must exceed.
        lower = torch.maximum(shift / 4, -1.5 * curvature)
        return torch.where(worked, lower, torch.where(failed, (4 * shift).clamp(max=scales.size), shift))


def make_convex(
    point: Point, shift: Tensor, scales: Scales, held: Tensor | None = None, bold: Tensor | None = None
) -> System:
    """The first system of the list whose ``K`` is positive definite; see ``newton.py``.

    Args:
        point: The problem, with the rows that hold.
        shift: The ``tau`` to try for an indefinite Hessian, ``(B,)``.
        scales: Units at the point.
        held: Variables, ``(B, m)``, on whose diagonal ``K`` also has ``rho``, as if each had a row.
        bold: Items, ``(B,)``, for which a pivot counts that is rounding beside other variables' only.
    """
    eps = torch.finfo(point.y.dtype).eps
    row_scale = row_scales(point.h_y)
    A = point.h_y / row_scale[..., None]
    L_yy = 0.5 * (point.L_yy + point.L_yy.mT)
    unit = scales.curvature
    none, tiny = torch.zeros_like(unit), eps**0.5 * unit
    bound = torch.where(scales.size > 0, 1.01 * scales.size, unit)
    if point.h.shape[-1] or held is not None:
        weak, medium, strong = 2 * unit, 2 * eps ** (-1 / 6) * unit, 2 * eps ** (-1 / 3) * unit
        levels = [(none, weak), (none, medium), (none, strong), (tiny, medium), (shift, medium), (bound, medium)]
    else:
        levels = [(none, none), (tiny, none), (shift, none), (bound, none)]
    gram = A.mT @ A if held is None else A.mT @ A + torch.diag_embed(held.to(A.dtype))
    identity = identity_like(L_yy)
    taken = [torch.zeros_like(L_yy), none, none]  # L, tau, rho
    level = torch.full_like(unit, len(levels), dtype=torch.int64)
    for i, (tau, rho) in enumerate(levels):
        K = (L_yy + rho[:, None, None] * gram).detach() + tau[:, None, None] * identity
        L, info = torch.linalg.cholesky_ex(K)
        pivots, diagonal = L.diagonal(dim1=-2, dim2=-1).square(), K.diagonal(dim1=-2, dim2=-1)
        # Regular: no pivot is what rounding leaves of its diagonal entry (whatever the units of the variables).
        small = pivots <= eps * unit[:, None]
        small = small if bold is None else small & ~bold[:, None]
        regular = ((pivots > eps**0.85 * diagonal) & ~small).all(-1)
        first = (info == 0) & (regular | (tau > 0)) & (level == len(levels))
        taken = [where_items(first, new, old) for new, old in zip((L, tau, rho), taken, strict=True)]
        level = torch.where(first, i, level)
        if is_settled(level < len(levels)):
            break
    L, tau, rho = taken
    K = L_yy + tau[:, None, None] * identity + rho[:, None, None] * gram
    S = _regularize(A.detach() @ torch.cholesky_solve(A.mT.detach(), L))
    return System(L_yy.detach(), K, A, L, torch.linalg.cholesky_ex(S)[0], row_scale, tau, rho, level, len(levels) - 2)


def least_curvature(system: System, w: Tensor) -> tuple[Tensor, Tensor]:
    """Two steps of inverse iteration along the constraints: unit ``w`` and ``w' L_yy w``; where convex, none."""
    for _ in range(0 if is_settled(system.convex) else 2):
        w_next, _ = system.solve(w, w.new_zeros(w.shape[0], system.A.shape[1]))
        w_next = w_next / length(w_next).clamp(min=torch.finfo(w.dtype).tiny)[:, None]
        w = where_items(system.convex, w, w_next)
    return w, (w * times(system.curvature, w)).sum(-1)


def _distance(point: Point) -> Tensor:
    return point.h.detach() / row_scales(point.h_y)


def row_scales(h_y: Tensor) -> Tensor:
    """Length of each row, one for a row of zeros."""
    size = length(h_y)
    return torch.where(size > 0, size, 1.0)


def _regularize(S: Tensor) -> Tensor:
    """``S + delta I`` with ``delta`` far below what matters and above rounding."""
    diagonal = S.detach().diagonal(dim1=-2, dim2=-1)
    delta = torch.finfo(S.dtype).eps ** (2 / 3) * largest(diagonal)
    delta = torch.where(delta > 0, delta, 1.0)
    return S + delta[:, None, None] * identity_like(S)
