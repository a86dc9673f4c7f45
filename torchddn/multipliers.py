r"""Multipliers of a point that came without any.

They are those that fit stationarity best, with the signs that the multipliers of inequalities and bounds must have::

    min  |f_y + h_y' nu + g_y' lam - z_lower + z_upper|^2    subject to    lam, z_lower, z_upper >= 0

over the constraints at which the point lies, as far as its own accuracy lets tell. A non-negative least-squares problem
per item: the set of multipliers that are not zero is found by exchanging those that violate a sign or an optimality
condition, all at once while that makes progress, one at a time after.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from torchddn.derivatives import gradient, jacobian
from torchddn.linear import DenseMatrix, LeastSquares
from torchddn.problem import BatchedProblem

__all__ = ["estimate_multipliers"]

# Exchanges of all wrong signs at once that may fail to reduce their number before single ones are made.
_PATIENCE = 3


def estimate_multipliers(problem: BatchedProblem, y: Tensor, x: Sequence[Tensor], near: float | None = None) -> Tensor:
    """Returns the ``dual = (nu, lam)`` that fits best, the shortest one where rows are redundant, ``(B, p + q)``.

    Args:
        problem: The batched problem.
        y: The point, ``(B, m)``.
        x: Inputs.
        near: Distance, relative to the size of ``y``, up to which the point lies at a constraint; None for the
            accuracy that a decent solver has, eps^(1/3).
    """
    num_rows = problem.p + problem.q
    if not num_rows:
        return y.new_zeros(y.shape[0], 0)
    f_y = gradient(lambda y: problem.objective(y, x), y)
    a = jacobian(lambda y: problem.constraints(y, x), y, problem.work(x))
    if not problem.is_inequality_constrained:
        return _fit(a, f_y)
    relative = torch.finfo(y.dtype).eps ** (1 / 3) if near is None else near
    reach = relative * (1 + torch.maximum(y.abs(), x[-1].abs()).amax(1, keepdim=True))
    sizes = a.square().sum(-1).sqrt()
    free_sign = torch.arange(num_rows, device=y.device) < problem.p
    lies_at = free_sign | (problem.constraints(y, x) >= -reach * torch.where(sizes > 0, sizes, 1.0))
    lower, upper = problem.bounds(x)
    # A variable at a bound takes up a gradient of one sign, and at both of either: that entry is nobody's business.
    at_lower, at_upper = y - lower <= reach, upper - y <= reach
    return _fit_signed(a, f_y, lies_at, free_sign.expand_as(lies_at), at_lower, at_upper)


def _fit_signed(
    a: Tensor, f_y: Tensor, candidates: Tensor, free_sign: Tensor, at_lower: Tensor, at_upper: Tensor
) -> Tensor:
    """Block principal pivoting on rows and on the entries of ``f_y`` that a bound takes up."""
    held = at_lower | at_upper
    fixed = at_lower & at_upper
    unit = f_y.abs().amax(1, keepdim=True).clamp_min(torch.finfo(f_y.dtype).tiny)
    tolerance = 10 * torch.finfo(f_y.dtype).eps ** 0.75 * unit
    sizes = a.square().sum(-1).sqrt()
    used, taken = candidates, held  # rows with a multiplier; entries that their bound takes up
    best = torch.full_like(unit, torch.inf)
    patience = torch.full_like(unit, _PATIENCE)
    dual = torch.zeros_like(a[..., 0])
    for _ in range(3 * a.shape[1] + 10):
        seen = torch.where(taken[:, None, :], 0.0, a)
        dual = torch.where(used, _fit(torch.where(used[..., None], seen, 0.0), torch.where(taken, 0.0, f_y)), 0.0)
        r = f_y + (a.mT @ dual[..., None])[..., 0]
        pushes = torch.where(at_lower, r, -r)
        # What should leave, and what should come in because it would reduce the rest.
        rest = torch.where(taken, 0.0, r)
        slope = -(a @ rest[..., None])[..., 0]
        wrong_rows = (used & ~free_sign & (dual * sizes < -tolerance)) | (
            candidates & ~used & (slope > tolerance * sizes)
        )
        wrong_bounds = ~fixed & ((taken & (pushes < -tolerance)) | (held & ~taken & (pushes > tolerance)))
        wrong = torch.cat([wrong_rows, wrong_bounds], dim=1)
        count = wrong.sum(1, keepdim=True).to(f_y.dtype)
        if not bool((count > 0).any()):
            break
        better = count < best
        best = torch.where(better, count, best)
        patience = torch.where(better, float(_PATIENCE), patience - 1)
        last = wrong.shape[1] - 1 - wrong.flip(1).to(torch.int8).argmax(1, keepdim=True)
        single = torch.zeros_like(wrong).scatter(1, last, True) & wrong
        change = torch.where(patience >= 0, wrong, single)
        used = used ^ change[:, : a.shape[1]]
        taken = taken ^ change[:, a.shape[1] :]
    return torch.where(free_sign, dual, dual.clamp(min=0))


def _fit(a: Tensor, f_y: Tensor) -> Tensor:
    """``dual`` that makes ``|f_y + a' dual|`` smallest, the shortest one, ``(B, r)``."""
    solver = LeastSquares()
    # Normal equations square the condition of `a`; one step of refinement on the residual wins it back.
    state = solver.init(DenseMatrix(a @ a.mT, symmetric=True))
    dual = -solver.solve(state, (a @ f_y[..., None])[..., 0])
    return dual - solver.solve(state, (a @ (f_y[..., None] + a.mT @ dual[..., None]))[..., 0])
