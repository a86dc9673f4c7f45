r"""The nearest matrix with given row and column sums, by Newton's method on the dual.

Solves, for each matrix X and marginals r and c >= 0 of the same sum::

    Y = argmin_Y  1/2 |Y - X|^2   subject to   Y 1 = r,   Y^T 1 = c,   Y >= 0

``Y_ij = max(X_ij + v_j - tau_i, 0)``, where tau and -v are the multipliers. For any v each row of ``X + 1 v^T`` is
projected onto its simplex, which finds tau; what is left is the concave function ``d(v)`` with the gradient
``g = c - Y^T 1``. It is quadratic as long as the support S of Y, a matrix of zeros and ones, does not change, and has
the Hessian::

    -L,     L = diag(S^T 1) - S^T diag(S 1)^-1 S

the Laplacian of a graph that links columns with a row in common. Steps solve ``(L + mu) dv = g``, mu falling with
``|g|``, and are shortened by the secant rule while d does not rise. After each, all columns are given their sums by
themselves, which is ascent too, and leaves none without entries. The step that finds the support is exact.

If the numbers of X spread far beyond the mass of a row, as in an assignment, the support is nearly a forest, and steps
from afar are short. So X is scaled down to a small spread first, and with each solution that is about right the scale
doubles, and v with it, until it is one: a few steps at each scale.

References:
    Li, Sun, Toh, On the Efficient Computation of a Projector over the Birkhoff Polytope, 2020: semismooth Newton on
    both multipliers, with conjugate gradients. Qi, Sun, A Nonsmooth Version of Newton's Method, 1993.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.functional.projection.threshold import find_level
from torchddn.functional.transport.balance import balance
from torchddn.solvers.base import RUNNING, iterate
from torchddn.solvers.vectors import identity_like
from torchddn.status import Status

__all__ = ["Nearest", "nearest"]

_SPREAD = 1.0  # of X at the first scale, in units of the mean row sum
_NEAR = 0.01  # error, as a part of the mass, at which to go to the next scale
_DAMPING = 0.1  # mu over |g|, or over one
_LEAST_DAMPING = 1e-11  # keeps the factorization of the singular L positive
_ROUNDINGS = 100.0  # of the largest numbers in a column sum: the error that counts as none
_NOTHING = 4.0  # roundings of the mean row sum: an entry that counts as none, and an error that no other can beat
_SHORTEST = 1e-6  # length of a step at which an item is given up


class Nearest(NamedTuple):
    """``Y``, ``(R, m, n)``; ``tau``, ``(R, m)``, and ``v``, ``(R, n)``; status, steps and error, ``(R,)``."""

    Y: Tensor
    tau: Tensor
    v: Tensor
    status: Tensor
    num_steps: Tensor
    error: Tensor


def nearest(X: Tensor, r: Tensor, c: Tensor, max_steps: int) -> Nearest:
    """The nearest matrices for ``X``, ``(R, m, n)``, ``r``, ``(R, m)``, and ``c``, ``(R, n)``, in float64, finite."""
    if X.shape[2] > X.shape[1]:  # the dual has a number for each column: the shorter side
        found = nearest(X.mT, c, r, max_steps)
        return found._replace(Y=found.Y.mT, tau=-found.v, v=-found.tau)
    mass = r.sum(dim=1)
    unit = torch.where(mass > 0, mass / X.shape[1], 1).unsqueeze(1)
    offset = X.mean(dim=(1, 2), keepdim=True)
    x = ((X - offset) / unit.unsqueeze(2), r / unit, c / unit * _ratio(mass, c.sum(dim=1)).unsqueeze(1))
    state, status, num_steps = iterate(_DualNewton(max_steps), _Batch(), x, torch.zeros_like(c))
    Y, tau, v, error = _settled(*x, state)
    status = torch.where(error <= torch.finfo(X.dtype).eps ** 0.75, int(Status.CONVERGED), status)
    tau = tau * unit + offset.squeeze(2)
    return Nearest(Y * unit.unsqueeze(2), tau, v * unit, status, num_steps, error)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b, 1)


def _settled(X: Tensor, r: Tensor, c: Tensor, state: "_State") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``Y``, ``tau``, ``v`` and the error, its rounding left out, and its sums corrected on the support."""
    size = (1 + X.abs().amax(dim=(1, 2)) + state.v.abs().amax(dim=1)).reshape(-1, 1, 1)
    eps = torch.finfo(X.dtype).eps
    rounding = _ROUNDINGS * eps * size
    Y = torch.where(rounding < state.Y, state.Y, 0)
    S = (Y > 0).to(Y.dtype)
    found = balance(S, None, None, r - Y.sum(dim=2), c - Y.sum(dim=1), eps)
    Y = Y + S * (found.x.unsqueeze(2) + found.y.unsqueeze(1))
    Y = torch.where(_NOTHING * eps < Y, Y, 0)

    def error(Y: Tensor, tau: Tensor, v: Tensor) -> Tensor:
        """Of the sums, a part of the mass, or of the form that Y must have, a part of the numbers it comes from."""
        total = (Y.sum(dim=2) - r).abs().sum(dim=1) + (Y.sum(dim=1) - c).abs().sum(dim=1)
        form = (Y - (X + v.unsqueeze(1) - tau.unsqueeze(2)).clamp(min=0)).abs() / size
        return torch.maximum(total / r.sum(dim=1).clamp(min=1), form.amax(dim=(1, 2)))

    before, after = (state.Y, state.tau, state.v), (Y, state.tau - found.x, state.v + found.y)
    errors = error(*before), error(*after)
    better = errors[1] <= errors[0].clamp(min=_NOTHING * eps)
    Y, tau, v = (
        torch.where(better.reshape(-1, *[1] * (one.dim() - 1)), two, one)
        for one, two in zip(before, after, strict=True)
    )
    return Y, tau, v, torch.fmin(*errors)


class _Batch:
    """Everything that differs between items is in ``x``."""

    def select(self, x: Sequence[Tensor], items: Tensor) -> tuple["_Batch", tuple[Tensor, ...]]:
        return self, tuple(tensor[items] for tensor in x)


class _State(NamedTuple):
    """The last point that was accepted, and the step from there that is tried next."""

    scale: Tensor  # (B,): of X
    v: Tensor  # (B, n)
    tau: Tensor  # (B, m)
    Y: Tensor  # (B, m, n)
    g: Tensor  # (B, n)
    value: Tensor  # (B,): d(v)
    step: Tensor  # (B, n)
    length: Tensor  # (B,)


class _Point(NamedTuple):
    """What follows from v at one scale."""

    tau: Tensor
    Y: Tensor
    g: Tensor
    value: Tensor


@dataclasses.dataclass(frozen=True)
class _DualNewton:
    """The method, for :func:`torchddn.solvers.base.iterate`, from v; ``x`` is ``(X, r, c)`` with mean row sums one."""

    max_steps: int

    def init(self, problem: _Batch, x: Sequence[Tensor], y: Tensor) -> _State:
        X, r, c = x
        spread = X.square().mean(dim=(1, 2)).sqrt()
        scale = (_SPREAD / spread.clamp(min=1e-300)).clamp(max=1.0)
        return _begun(X, r, c, scale, y)

    def step(self, problem: _Batch, x: Sequence[Tensor], state: _State) -> _State:
        X, r, c = x
        scaled = X * state.scale.reshape(-1, 1, 1)
        v = _risen(scaled, r, c, state.v + state.length.unsqueeze(1) * state.step)
        trial = _point(scaled, r, c, v)
        slope = (state.g * state.step).sum(dim=1)
        # What rounding hides is no fall.
        noise = 1e2 * torch.finfo(v.dtype).eps * (state.value.abs() + scaled.square().sum(dim=(1, 2)))
        accepted = trial.value >= state.value + 1e-4 * state.length * slope - noise
        kept = _State(state.scale, v, *trial, state.step, state.length)
        state = _chosen(accepted, kept, state)
        ahead = (state.scale < 1) & (_error(state.g, c) <= _NEAR)
        step = torch.where(accepted.unsqueeze(1), _direction(state), state.step)
        secant = slope / (slope - (trial.g * state.step).sum(dim=1))
        length = torch.where(accepted, 1.0, state.length * secant.clamp(0.05, 0.5))
        state = state._replace(step=step, length=length)
        if bool(ahead.any()):
            items = ahead.nonzero().squeeze(1)
            scale = (2 * state.scale[items]).clamp(max=1.0)
            v = state.v[items] * (scale / state.scale[items]).unsqueeze(1)
            begun = _begun(X[items], r[items], c[items], scale, v)
            state = _State(*(whole.index_copy(0, items, part) for whole, part in zip(state, begun, strict=True)))
        return state

    def status(self, problem: _Batch, x: Sequence[Tensor], state: _State) -> Tensor:
        X, _, c = x
        size = 1 + X.abs().amax(dim=(1, 2))
        limit = _ROUNDINGS * torch.finfo(c.dtype).eps * size
        done = (state.scale == 1) & (_error(state.g, c) <= limit)
        lost = (state.length < _SHORTEST) | ~state.value.isfinite()
        status = torch.where(lost, int(Status.STALLED), RUNNING)
        return torch.where(done, int(Status.CONVERGED), status)


def _chosen(accepted: Tensor, one: _State, other: _State) -> _State:
    pairs = zip(one, other, strict=True)
    return _State(*(torch.where(accepted.reshape(-1, *[1] * (a.dim() - 1)), a, b) for a, b in pairs))


def _error(g: Tensor, c: Tensor) -> Tensor:
    return g.abs().sum(dim=1) / c.sum(dim=1).clamp(min=1)


def _point(X: Tensor, r: Tensor, c: Tensor, v: Tensor) -> _Point:
    tau = _row_levels(X, r, v)
    Y = (X + v.unsqueeze(1) - tau.unsqueeze(2)).clamp_(min=0)
    g = c - Y.sum(dim=1)
    return _Point(tau, Y, g, (Y - X).square().sum(dim=(1, 2)) / 2 + (v * g).sum(dim=1))


def _row_levels(X: Tensor, r: Tensor, v: Tensor) -> Tensor:
    """``tau`` for v."""
    return _levels((X + v.unsqueeze(1)).flatten(0, 1), r.reshape(-1, 1)).reshape(r.shape)


def _levels(rows: Tensor, total: Tensor) -> Tensor:
    """The levels above which rows have the sums ``total``, ``(N, 1)``."""
    return find_level(rows, total, rows.amax(dim=1, keepdim=True) - total)[0]


def _risen(X: Tensor, r: Tensor, c: Tensor, v: Tensor) -> Tensor:
    """The v that gives the columns their sums by themselves, with the levels that rows have at ``v``: ascent of d."""
    columns = (X - _row_levels(X, r, v).unsqueeze(2)).mT.flatten(0, 1)
    return -_levels(columns, c.reshape(-1, 1)).reshape(c.shape)


def _begun(X: Tensor, r: Tensor, c: Tensor, scale: Tensor, v: Tensor) -> _State:
    """The state at a scale, from v."""
    scaled = X * scale.reshape(-1, 1, 1)
    v = _risen(scaled, r, c, v)
    state = _State(scale, v, *_point(scaled, r, c, v), torch.zeros_like(v), torch.ones_like(scale))
    return state._replace(step=_direction(state))


def _direction(state: _State) -> Tensor:
    """Newton's step, ``(B, n)``, of columns without entries the gradient."""
    S = (state.Y > 0).to(state.Y.dtype)
    num_rows = S.sum(dim=1)
    weighted = S * S.sum(dim=2).clamp(min=1).rsqrt().unsqueeze(2)
    L = -torch.bmm(weighted.mT, weighted)
    size = torch.linalg.vector_norm(state.g, dim=1, keepdim=True)
    damping = (_DAMPING * size.clamp(max=1.0)).clamp(min=_LEAST_DAMPING)
    L.diagonal(dim1=1, dim2=2).add_(num_rows + (num_rows == 0) + damping)
    factor, info = torch.linalg.cholesky_ex(L)
    g = (state.g - state.g.mean(dim=1, keepdim=True)).unsqueeze(2)
    step = torch.cholesky_solve(g, torch.where((info == 0).reshape(-1, 1, 1), factor, identity_like(L)))
    return step.squeeze(2)
