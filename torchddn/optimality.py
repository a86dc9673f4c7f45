r"""What holds at a solution, and how far a point is from it.

With ``L = f + nu.h + lam.g``, ``dual = (nu, lam)`` and ``c = (h, g)``, a minimum is a point where ::

    L_y = 0,  h = 0,  min(lam, -g) = 0          and, for a variable with bounds,  y = clip(y - L_y, lower, upper)

Once it is known which inequalities and bounds are active, :class:`Held`, this is a system of equations. Its residual,
with ``z = (y, dual)``, is for minimization and for root finding ::

    R(z, x) = [ L_y for free y,     y - bound for held y     ]          R(z, x) = F(y, x)
              [ c for active rows,  -lam for inactive ones   ]

where ``c`` and ``L_y`` see held variables at their bound and inactive multipliers as zero. Its derivative with respect
to ``z`` is the matrix ``K`` of the gradient rule, symmetric in the first case, of the same shape for every item.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.derivatives import gradient, jacobian, jvp, outer_gradient, value_and_vjp, vjp
from torchddn.fusion import fused
from torchddn.problem import BatchedProblem

__all__ = [
    "Held",
    "Measures",
    "Scales",
    "bound_multipliers",
    "is_irregular",
    "kkt_error",
    "lagrangian",
    "measure",
    "measure_known",
    "residual",
    "row_lengths",
    "scales",
]

# Up to this many numbers in the Jacobian of one item the lengths of its rows are computed; above, estimated.
_DENSE_JACOBIAN = 2**16
_NUM_PROBES = 8


class Held(NamedTuple):
    """Which constraints hold as equations: ``rows``, ``(B, p + q)``, and ``at_lower``, ``at_upper``, ``(B, m)``."""

    rows: Tensor
    at_lower: Tensor
    at_upper: Tensor

    @property
    def variables(self) -> Tensor:
        """Which variables are at a bound, ``(B, m)``."""
        return self.at_lower | self.at_upper

    def put(self, problem: BatchedProblem, y: Tensor, x: Sequence[Tensor]) -> Tensor:
        """``y`` with the held variables at their bound."""
        lower, upper = problem.bounds(x)
        return torch.where(self.at_lower, lower, torch.where(self.at_upper, upper, y))


def lagrangian(problem: BatchedProblem, y: Tensor, dual: Tensor, x: Sequence[Tensor]) -> Tensor:
    """``L = f + nu.h + lam.g``, ``(B,)``."""
    if not dual.shape[1]:
        return problem.objective(y, x)
    return (_weights(dual) * problem.values(y, x)).sum(-1)


def residual(problem: BatchedProblem, z: Tensor, x: Sequence[Tensor], held: Held | None = None) -> Tensor:
    """``R(z, x)``, shaped as ``z``, ``(B, m + p + q)``; ``held`` is None where there are equalities only."""
    if problem.kind != "minimize":
        return problem.residual(z, x)
    y, dual = z.split([problem.m, z.shape[1] - problem.m], dim=1)
    if held is None:
        if not problem.p:
            return gradient(lambda y: problem.objective(y, x), z)
        _, c, L_y = _first_order(problem, y, dual, x)
        return torch.cat([L_y, c], dim=1)
    put, active = held.put(problem, y, x), torch.where(held.rows, dual, 0.0)
    _, c, L_y = _first_order(problem, put, active, x)
    R_y = torch.where(held.variables, y - put, L_y)
    return torch.cat([R_y, torch.where(held.rows, c, -dual)], dim=1) if problem.p + problem.q else R_y


def _first_order(
    problem: BatchedProblem, y: Tensor, dual: Tensor, x: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """``f``, ``(B,)``, ``c``, ``(B, p + q)``, and ``L_y``, ``(B, m)``, from one evaluation."""
    values, (L_y,) = value_and_vjp(lambda y: problem.values(y, x), (y,), _weights(dual))
    return values[:, 0], values[:, 1:], L_y


def _weights(dual: Tensor) -> Tensor:
    """What the Lagrangian multiplies ``(f, h, g)`` by, ``(B, 1 + p + q)``."""
    return torch.cat([dual.new_ones(dual.shape[0], 1), dual], dim=1)


def bound_multipliers(
    problem: BatchedProblem, y: Tensor, dual: Tensor, x: Sequence[Tensor], held: Held
) -> tuple[Tensor, Tensor]:
    """Multipliers of ``lower <= y`` and ``y <= upper``, ``(B, m)`` each, differentiable in ``y``, ``dual`` and ``x``.

    Stationarity, ``L_y - z_lower + z_upper = 0``, says what they are: nobody has to carry them.
    """
    L_y = outer_gradient(lambda y: lagrangian(problem, y, dual, x), y)
    # Of a fixed variable, which is at both bounds, the one that pushes.
    pushes_up = held.at_lower & (~held.at_upper | (L_y > 0))
    pushes_down = held.at_upper & ~pushes_up
    return torch.where(pushes_up, L_y, 0.0), torch.where(pushes_down, -L_y, 0.0)


class Measures(NamedTuple):
    """How good a point is, per item, ``(B,)`` each, in the units of the problem."""

    objective: Tensor
    stationarity: Tensor
    feasibility: Tensor
    complementarity: Tensor


@fused
def measure(
    problem: BatchedProblem, y: Tensor, dual: Tensor, x: Sequence[Tensor], held: Held | None = None
) -> Measures:
    """Objective, largest entry of the Lagrangian's gradient (or residual), largest violation, largest ``|lam g|``.

    Where a variable is at a bound, the part of the gradient that the bound takes up does not count.
    """
    if problem.kind != "minimize":
        zeros = y.new_zeros(y.shape[0])
        return Measures(zeros, _largest(problem.residual(y, x)), zeros, zeros)
    return measure_known(problem, y, dual, x, held, *_first_order(problem, y, dual, x))


def measure_known(
    problem: BatchedProblem,
    y: Tensor,
    dual: Tensor,
    x: Sequence[Tensor],
    held: Held | None,
    f: Tensor,
    c: Tensor,
    L_y: Tensor,
) -> Measures:
    """:func:`measure` of a minimization for those who know ``f``, ``c`` and ``L_y`` at the point."""
    if held is None:
        return Measures(f, _largest(L_y), _largest(c), torch.zeros_like(f))
    lower, upper = problem.bounds(x)
    h, g = c[:, : problem.p], c[:, problem.p :]
    L_y = torch.where(held.at_lower, L_y.clamp(max=0), L_y)
    L_y = torch.where(held.at_upper, L_y.clamp(min=0), L_y)  # nothing is left of a variable at both
    parts = (_largest(h), _largest(g.clamp(min=0)), _largest(torch.maximum(lower - y, y - upper).clamp(min=0)))
    violation = torch.stack(parts).amax(0)
    return Measures(f, _largest(L_y), violation, _largest(dual[:, problem.p :] * g))


class Scales(NamedTuple):
    """Units in which a point's errors are small or large, whatever the units of the problem."""

    force: Tensor  # (B,): size of the gradients that balance at a solution, multipliers included
    own: Tensor  # (B,): that of the objective; infinite where there is none
    length: Tensor  # (B,): size of y
    rows: Tensor  # (B, p + q): length of each constraint's gradient


@fused
def scales(problem: BatchedProblem, y: Tensor, dual: Tensor, x: Sequence[Tensor]) -> Scales:
    """The units at ``y``. The last tensor of ``x``, the start, counts as much as ``y`` for its length."""
    length = torch.maximum(_largest(y), _largest(x[-1]))
    length = torch.where(length > 0, length, 1.0)
    rows = row_lengths(problem, y, x)

    def f_y(y: Tensor) -> Tensor:
        return gradient(lambda y: problem.objective(y, x), y)

    # At an unconstrained minimum no force is left; how it grows with the distance is its unit then.
    (growth,) = vjp(f_y, (y,), length[:, None] * _signs(y))
    own = torch.maximum(_largest(f_y(y)), _largest(growth))
    # Without an objective nothing pushes, and multipliers are zero up to rounding: they are no unit.
    force = torch.where(own > 0, torch.maximum(own, _largest(dual * rows)), 1.0)
    return Scales(force, torch.where(own > 0, own, torch.inf), length, torch.where(rows > 0, rows, 1.0))


def row_lengths(problem: BatchedProblem, y: Tensor, x: Sequence[Tensor]) -> Tensor:
    """Euclidean length of the gradient of each constraint, ``(B, p + q)``; for large problems a random estimate."""
    num_rows = problem.p + problem.q
    if not num_rows:
        return y.new_zeros(y.shape[0], 0)

    def c(y: Tensor) -> Tensor:
        return problem.constraints(y, x)

    if num_rows * problem.m <= _DENSE_JACOBIAN:
        return jacobian(c, y, problem.work(x)).square().sum(-1).sqrt()
    squares = [jvp(c, (y,), (_signs(y, i),)).square() for i in range(_NUM_PROBES)]
    return torch.stack(squares).mean(0).sqrt()


@fused
def kkt_error(
    problem: BatchedProblem, y: Tensor, dual: Tensor, x: Sequence[Tensor], units: Scales
) -> tuple[Tensor, Tensor]:
    """How far a point is from the conditions above, and from feasible, relative to ``units``, ``(B,)`` each.

    Zero exactly at a KKT point: signs of multipliers, violations and complementarity all count, and it is not asked
    which constraints are active. So does the objective that violations would buy: where no multipliers exist, they grow
    without limit along points whose other errors vanish.
    """
    _, c, L_y = _first_order(problem, y, dual, x)
    price = _largest(dual * c) / (units.own * units.length)
    L_y, c = L_y / units.force[:, None], c / (units.rows * units.length[:, None])
    h, g = c[:, : problem.p], c[:, problem.p :]
    lam = (dual * units.rows / units.force[:, None])[:, problem.p :]
    lower, upper = ((bound - y) / units.length[:, None] for bound in problem.bounds(x))
    stationarity = torch.minimum(torch.maximum(-L_y, lower), upper)
    parts = (_largest(stationarity), _largest(h), _largest(torch.minimum(lam, -g)), price)
    violation = (_largest(h), _largest(g.clamp(min=0)), _largest(torch.maximum(lower, -upper).clamp(min=0)))
    return torch.stack(parts).amax(0), torch.stack(violation).amax(0)


@fused
def is_irregular(problem: BatchedProblem, y: Tensor, dual: Tensor, x: Sequence[Tensor], scale: Tensor) -> Tensor:
    """Whether the constraints lose their gradient at ``y`` as far as can be told in this precision, ``(B,)``.

    At such a point (a circle of radius zero) the multipliers, and with them every gradient, are meaningless
    although a solver that comes close to it sees nothing wrong. The test: moving ``y`` by the smallest distance that
    matters, ``eps^(1/2) scale``, changes ``c_y' dual`` by more than all of it.

    Args:
        problem: The batched problem.
        y: A solution, ``(B, m)``.
        dual: Its multipliers, ``(B, p + q)``.
        x: Inputs.
        scale: Size of ``y`` and of what a solver passed on its way, ``(B,)``.
    """
    if not problem.p + problem.q:
        return torch.zeros(y.shape[0], dtype=torch.bool, device=y.device)

    def pull(y: Tensor) -> Tensor:
        return vjp(lambda y: problem.constraints(y, x), (y,), dual)[0]

    # No symmetry of a problem makes this direction special: multiples of the golden ratio.
    step = (torch.arange(1, problem.m + 1, device=y.device) * 0.6180339887498949).frac().to(y) - 0.5
    pulled, (bend,) = value_and_vjp(pull, (y,), step.expand_as(y) / step.norm())
    return _largest(bend) * torch.finfo(y.dtype).eps ** 0.5 * scale > _largest(pulled)


def _signs(y: Tensor, which: int = 0) -> Tensor:
    """Signs without a pattern, the same for every item, ``(B, m)``."""
    index = torch.arange(1, y.shape[1] + 1, device=y.device, dtype=y.dtype)
    return torch.where((index.square() + 7.3 * which).sin() >= 0, 1.0, -1.0).to(y).expand_as(y)


def _largest(rows: Tensor) -> Tensor:
    return rows.abs().amax(-1) if rows.shape[-1] else rows.new_zeros(rows.shape[0])
