r"""Convex quadratic programs with elastic rows, dense and batched, by a primal-dual interior-point method.

Solves, for each item, with weights ``sigma`` of all rows, and ``kappa = sigma`` of equalities, 0 of inequalities::

    d = argmin_d  1/2 d'H d + c'd + sum_i sigma_i t_i + kappa_i s_i
        subject to   A d - b = t - s,   t, s >= 0,   lower <= d <= upper

An equality costs ``sigma |A d - b|``, an inequality ``sigma max(A d - b, 0)``: there is always a solution, and where
the rows can be satisfied and ``sigma`` exceeds their multipliers ``n`` it is that of the program with ``A d = b`` and
``A d <= b``. The multipliers lie between ``-kappa`` and ``sigma``, and their distances from both ends are the duals of
``s`` and ``t``. So with ``z_t = sigma - n``, ``z_s = kappa + n`` the perturbed conditions are ::

    H d + c + A'n - z_lower + z_upper = 0     t z_t = s z_s = (d - lower) z_lower = (upper - d) z_upper = mu

Newton's step for these, with ``w = t / z_t + s / z_s``, needs one Cholesky factorization, of
``H + A' diag(1 / w) A`` and what the bounds add to the diagonal.

References:
    Mehrotra, On the implementation of a primal-dual interior point method, 1992. Nocedal, Wright, Numerical
    Optimization, 2nd edition, algorithm 16.4 and, for elastic rows, section 18.5.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.solvers.base import freeze
from torchddn.solvers.vectors import back_substitute, divide, identity_like, is_settled, largest, times

__all__ = ["Quadratic", "QuadraticSolution", "solve_quadratic"]

# Far more than it takes: ten to twenty steps are usual.
_MAX_STEPS = 60
# How much of the way to the nearest boundary a step may go.
_FRACTION = 0.995


class Quadratic(NamedTuple):
    """A program in units in which its numbers are of order one."""

    H: Tensor  # (B, m, m), positive semidefinite
    c: Tensor  # (B, m)
    A: Tensor  # (B, r, m)
    b: Tensor  # (B, r)
    sigma: Tensor  # (B, r)
    kappa: Tensor  # (B, r): sigma for equalities, 0 for inequalities
    lower: Tensor  # (B, m)
    upper: Tensor  # (B, m)


class QuadraticSolution(NamedTuple):
    """The answer, and on which side of each pair of complementary numbers it is."""

    d: Tensor  # (B, m)
    n: Tensor  # (B, r)
    active: Tensor  # (B, r): rows that hold with equality
    violated: Tensor  # (B, r): rows that do not hold
    at_lower: Tensor  # (B, m)
    at_upper: Tensor  # (B, m)
    weak_rows: Tensor  # (B, r): inequalities of which neither the multiplier nor the slack is worth anything
    weak_bounds: Tensor  # (B, m): variables, likewise
    solved: Tensor  # (B,): whether the conditions hold to tolerance


class _Iterate(NamedTuple):
    """A point at which whatever must not be negative is positive."""

    d: Tensor
    n: Tensor
    t: Tensor
    s: Tensor
    gap_lower: Tensor  # d - lower, carried along: a difference would lose its digits
    gap_upper: Tensor
    z_lower: Tensor
    z_upper: Tensor


def solve_quadratic(program: Quadratic, skip: Tensor | None = None) -> QuadraticSolution:
    """Returns the solution of each program, to about eps^(1/2) of the units; nothing is differentiated.

    Args:
        program: The programs. A variable with ``lower == upper`` is fixed.
        skip: Items whose answer nobody needs, ``(B,)``.
    """
    program = Quadratic(*(part.detach() for part in program))
    fixed = program.lower >= program.upper
    free = (~fixed).to(program.H.dtype)
    at = torch.where(fixed, program.lower, 0.0)
    reduced = program._replace(
        H=program.H * free[:, None, :] * free[:, :, None] + torch.diag_embed(1 - free),
        c=torch.where(fixed, 0.0, program.c + times(program.H, at)),
        A=program.A * free[:, None, :],
        b=program.b - times(program.A, at),
        lower=torch.where(fixed, -torch.inf, program.lower),
        upper=torch.where(fixed, torch.inf, program.upper),
    )
    iterate = _start(reduced)
    done = torch.zeros_like(program.c[:, 0], dtype=torch.bool) if skip is None else skip
    solved = torch.zeros_like(done)
    for _ in range(_MAX_STEPS):
        solved = solved | (~done & _is_solved(reduced, iterate))
        done = done | solved
        if is_settled(done):
            break
        iterate = freeze(~done, _step(reduced, iterate), iterate)
    z_t, z_s = reduced.sigma - iterate.n, reduced.kappa + iterate.n
    is_equality = program.kappa > 0
    above, below = iterate.t > z_t, (iterate.s > z_s) & is_equality
    nothing = torch.finfo(program.c.dtype).eps ** 0.25
    weak_lower = torch.maximum(iterate.gap_lower, iterate.z_lower) <= nothing
    weak_upper = torch.maximum(iterate.gap_upper, iterate.z_upper) <= nothing
    return QuadraticSolution(
        d=torch.where(fixed, program.lower, iterate.d),
        n=iterate.n,
        active=~above & ~below & (is_equality | (iterate.n > iterate.s)),
        violated=above | below,
        at_lower=fixed | (iterate.z_lower > iterate.gap_lower),
        at_upper=fixed | (iterate.z_upper > iterate.gap_upper),
        weak_rows=~is_equality & (torch.maximum(iterate.s, iterate.n) <= nothing),
        weak_bounds=~fixed & (weak_lower | weak_upper),
        solved=solved,
    )


def _start(program: Quadratic) -> _Iterate:
    lower, upper = program.lower, program.upper
    width = upper - lower
    margin = torch.clamp(0.25 * width, max=0.5)
    d = torch.zeros_like(program.c)
    d = torch.minimum(torch.maximum(d, lower + margin), upper - margin)
    n = torch.where(program.kappa > 0, 0.0, torch.clamp(0.5 * program.sigma, max=1.0))
    slack = (program.b - times(program.A, d)).clamp(min=1.0)
    bounded_below, bounded_above = lower.isfinite(), upper.isfinite()
    ones = torch.ones_like(d)
    return _Iterate(
        d=d,
        n=n,
        t=1 / (program.sigma - n),
        s=torch.where(program.kappa > 0, 1 / (program.kappa + n), slack),
        gap_lower=torch.where(bounded_below, d - lower, 1.0),
        gap_upper=torch.where(bounded_above, upper - d, 1.0),
        z_lower=torch.where(bounded_below, ones, 0.0),
        z_upper=torch.where(bounded_above, ones, 0.0),
    )


def _residual(program: Quadratic, iterate: _Iterate) -> Tensor:
    pull = times(program.H, iterate.d) + program.c + times(program.A.mT, iterate.n)
    return pull - iterate.z_lower + iterate.z_upper


def _pairs(program: Quadratic, iterate: _Iterate) -> tuple[tuple[Tensor, Tensor], ...]:
    """What must not become negative, and whose product must become zero."""
    return (
        (iterate.t, program.sigma - iterate.n),
        (iterate.s, program.kappa + iterate.n),
        (iterate.gap_lower, iterate.z_lower),
        (iterate.gap_upper, iterate.z_upper),
    )


def _mean_product(program: Quadratic, iterate: _Iterate) -> Tensor:
    products = torch.cat([left * right for left, right in _pairs(program, iterate)], dim=1)
    count = 2 * program.b.shape[1] + (program.lower.isfinite().sum(1) + program.upper.isfinite().sum(1))
    return products.sum(1) / count.clamp(min=1)


def _is_solved(program: Quadratic, iterate: _Iterate) -> Tensor:
    """Whether the conditions hold, the rows only as well as the division by tiny numbers in a step lets them."""
    eps = torch.finfo(program.c.dtype).eps
    size = 1 + largest(iterate.d) + largest(iterate.n)
    gap = times(program.A, iterate.d) - program.b - iterate.t + iterate.s
    small = (largest(_residual(program, iterate)) <= eps**0.7 * size) & (largest(gap) <= eps**0.5 * size)
    return small & (_mean_product(program, iterate) <= eps**0.75 * size)


def _step(program: Quadratic, iterate: _Iterate) -> _Iterate:
    mu = _mean_product(program, iterate)
    z_t, z_s = program.sigma - iterate.n, program.kappa + iterate.n
    # Without the small term the changes of n would be rounding errors divided by w. With it a row is met to within its
    # product with the last change of n, which vanishes.
    weight = 1 / (iterate.t / z_t + iterate.s / z_s + torch.finfo(mu.dtype).eps ** 0.5)
    diagonal = iterate.z_lower / iterate.gap_lower + iterate.z_upper / iterate.gap_upper
    K = program.H + program.A.mT @ (weight[..., None] * program.A) + torch.diag_embed(diagonal)
    eps = torch.finfo(K.dtype).eps
    size = largest(K.diagonal(dim1=-2, dim2=-1))
    L, info = torch.linalg.cholesky_ex(K + (eps * (1 + eps**0.5 * size))[:, None, None] * identity_like(K))
    if not is_settled(info == 0):
        # Rounding has made it indefinite: a shift that it cannot have exceeded.
        shifted, _ = torch.linalg.cholesky_ex(K + (eps**0.75 * size)[:, None, None] * identity_like(K))
        L = torch.where((info == 0)[:, None, None], L, shifted)
    residual = _residual(program, iterate)
    rest = times(program.A, iterate.d) - program.b

    def solve(goals: tuple[Tensor, Tensor, Tensor, Tensor]) -> _Iterate:
        """The change that brings the products of the pairs to the goals, to first order."""
        at_t, at_s, at_lower, at_upper = goals
        shift = rest - at_t / z_t + at_s / z_s
        pushed = at_upper / iterate.gap_upper - at_lower / iterate.gap_lower + iterate.z_lower - iterate.z_upper
        right = -(residual + pushed + times(program.A.mT, weight * shift))
        d = back_substitute(L, right)
        d = d + back_substitute(L, right - times(K, d))
        n = weight * (times(program.A, d) + shift)
        return _Iterate(
            d=d,
            n=n,
            t=at_t / z_t - iterate.t + iterate.t / z_t * n,
            s=at_s / z_s - iterate.s - iterate.s / z_s * n,
            gap_lower=torch.where(program.lower.isfinite(), d, 0.0),
            gap_upper=torch.where(program.upper.isfinite(), -d, 0.0),
            z_lower=(at_lower - iterate.z_lower * d) / iterate.gap_lower - iterate.z_lower,
            z_upper=(at_upper + iterate.z_upper * d) / iterate.gap_upper - iterate.z_upper,
        )

    zero = torch.zeros_like(mu)
    predictor = solve(_goals(program, zero, None))
    reached = _move(iterate, predictor, _longest(program, iterate, predictor))
    # Mehrotra: aim lower the better the predictor does, and count in what its products will have been wrong by.
    target = mu * divide(_mean_product(program, reached), mu).clamp(max=1.0) ** 3
    change = solve(_goals(program, target, predictor))
    return _move(iterate, change, _FRACTION * _longest(program, iterate, change).clamp(max=1.0 / _FRACTION))


def _goals(program: Quadratic, target: Tensor, predictor: _Iterate | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    goal = target[:, None]
    if predictor is None:
        rows, columns = goal.expand_as(program.b), goal.expand_as(program.c)
        return rows, rows, columns, columns
    p = predictor
    below, above = program.lower.isfinite(), program.upper.isfinite()
    return (
        goal + p.t * p.n,
        goal - p.s * p.n,
        torch.where(below, goal - p.gap_lower * p.z_lower, 0.0),
        torch.where(above, goal - p.gap_upper * p.z_upper, 0.0),
    )


def _longest(program: Quadratic, iterate: _Iterate, change: _Iterate) -> Tensor:
    """The step, at most 1, that takes the first number to zero."""
    moves = (
        (iterate.t, change.t),
        (iterate.s, change.s),
        (program.sigma - iterate.n, -change.n),
        (program.kappa + iterate.n, change.n),
        (iterate.gap_lower, change.gap_lower),
        (iterate.gap_upper, change.gap_upper),
        (iterate.z_lower, change.z_lower),
        (iterate.z_upper, change.z_upper),
    )
    ratios = torch.cat([torch.where(step < 0, -value / step, torch.inf) for value, step in moves], dim=1)
    return ratios.amin(1).clamp(max=1.0)


def _move(iterate: _Iterate, change: _Iterate, alpha: Tensor) -> _Iterate:
    return _Iterate(*(value + alpha[:, None] * step for value, step in zip(iterate, change, strict=True)))
