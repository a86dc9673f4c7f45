r"""The robust mean of numbers under a convex penalty: the root of an increasing function.

Solves, for each row of x with weights c (one each unless given)::

    0 = f_y(y) = sum_i c_i phi'(y - x_i; alpha)

Newton's method, from the solution for a few evenly spaced points, sees all points two or three times: that is the
rule, and each look is one fused pass over data in the cache. What it has not proven to be a root goes to Newton's
method within a shrinking bracket, which cannot fail.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.functional.nodes.blocks import blocks, part, sorted_rows
from torchddn.functional.nodes.found import Found
from torchddn.functional.pooling.bracket import find_root
from torchddn.functional.pooling.descent import NOISE
from torchddn.functional.pooling.kernel import as_tensor, kernel, suits
from torchddn.penalties import Huber, Penalty, TruncatedQuadratic, Welsch

__all__ = ["curvature_", "solve_convex", "solve_huber"]

_MAX_LOOKS = 6  # of the fast method

# |phi'''| of pseudo-Huber is largest at |z| = alpha / 2, where it is this divided by alpha.
_LARGEST_THIRD = 0.859


class _Sums(NamedTuple):
    """``f_y`` and ``f_yy``, and a lower bound of ``sum_i c_i |phi'|`` for their rounding error, ``(R, 1)`` each."""

    f_y: Tensor
    f_yy: Tensor
    size: Tensor


def solve_convex(
    penalty: Penalty,
    x: Tensor,
    alpha: float | Tensor,
    c: Tensor | None,
    low: Tensor,
    high: Tensor,
    compile: bool = False,
) -> Found:
    """The root of ``f_y`` for each row; ``alpha`` is a number or ``(R, 1)``, ``c`` as ``x``, ``low`` its least."""
    return _solve(penalty, x, alpha, c, low, high, compile)[0]


def _solve(
    penalty: Penalty, x: Tensor, alpha: float | Tensor, c: Tensor | None, low: Tensor, high: Tensor, compile: bool
) -> tuple[Found, Tensor]:
    """What was found, and the lower bound of ``sum_i c_i |phi'|`` there, infinite if not known, ``(R,)``."""
    total = x.new_full((len(x), 1), x.shape[1]) if c is None else c.sum(dim=1, keepdim=True)
    y = _start(penalty, x, alpha, c)
    num_steps, settled = torch.zeros_like(y, dtype=torch.int64), torch.zeros_like(y, dtype=torch.bool)
    residual, size = torch.zeros_like(y), torch.full_like(y, torch.inf)
    # Where (r / alpha)^2 overflows the fused sums are wrong.
    largest = torch.maximum(-low, high).unsqueeze(1)
    running = (largest / alpha < torch.finfo(x.dtype).max ** 0.49).squeeze(1).nonzero().squeeze(1)
    for _ in range(_MAX_LOOKS):
        if not running.numel():
            break
        u, scale = y[running], part(alpha, running)
        if compile and suits(len(running), x):
            f_y, f_yy, pull = (t[running] for t in kernel(_sums_of_rows, penalty, x, y, as_tensor(alpha, x), c))
        else:
            f_y, f_yy, pull = _sums(penalty, x, u, alpha, c, running if len(running) < len(x) else None)
        step = f_y / f_yy
        rounding = _rounding(pull, f_yy, u, scale)
        left = (
            f_y.abs() if isinstance(penalty, Huber) else 0.5 * _LARGEST_THIRD * total[running] * step.square() / scale
        )
        done = left <= rounding
        y[running] = torch.where(step.isfinite(), u - step, u)
        residual[running], size[running], settled[running] = f_y.abs(), pull, done
        num_steps[running] += 1
        running = running[~done.squeeze(1)]
    found = Found(y.squeeze(1), num_steps.squeeze(1), settled.squeeze(1), residual.squeeze(1))
    rest = (~found.converged).nonzero().squeeze(1)
    size = torch.where(settled, size, torch.inf).squeeze(1)
    if not rest.numel():
        return found, size
    inner = alpha[rest] if isinstance(alpha, Tensor) else alpha
    slow = _bracketed(penalty, x[rest], inner, None if c is None else c[rest], y[rest])
    return Found(*(mine.index_copy(0, rest, theirs) for mine, theirs in zip(found, slow, strict=True))), size


def solve_huber(
    penalty: Penalty,
    x: Tensor,
    alpha: float | Tensor,
    c: Tensor | None,
    low: Tensor,
    high: Tensor,
    compile: bool = False,
) -> Found:
    """As any convex penalty, but where every y between two points is a minimizer, the midpoint of these y.

    ``f`` is constant where no point is an inlier and as much weight lies below as above: between the two middle points,
    ``alpha`` away from both. Newton may end anywhere there; the middle points are then its two neighbors.
    """
    found, size = _solve(penalty, x, alpha, c, low, high, compile)
    # A point well within alpha, which is the rule, makes the minimizer unique; it has |phi'| < alpha.
    total = x.new_tensor(float(x.shape[1])) if c is None else c.sum(dim=1)
    share = 1 - max(1e-3 / x.shape[1], 32 * torch.finfo(x.dtype).eps)
    limit = share * (alpha.squeeze(1) if isinstance(alpha, Tensor) else alpha) * total
    suspects = (size >= limit).nonzero().squeeze(1)
    if not suspects.numel():
        return found
    x, middle = x[suspects], found.y[suspects].unsqueeze(1)
    alpha = alpha[suspects] if isinstance(alpha, Tensor) else alpha
    c = torch.ones_like(x) if c is None else c[suspects]
    lower = x <= middle
    left = torch.where(lower & (c > 0), x, -torch.inf).amax(dim=1, keepdim=True)
    right = torch.where(lower | (c == 0), torch.inf, x).amin(dim=1, keepdim=True)
    below, total = torch.where(lower, c, 0).sum(dim=1, keepdim=True), c.sum(dim=1, keepdim=True)
    balanced = (2 * below - total).abs() <= NOISE * torch.finfo(x.dtype).eps * total
    flat = balanced & (right - left >= 2 * alpha)
    y = torch.where(flat, left + (right - left) / 2, middle).squeeze(1)
    return found._replace(y=found.y.index_copy(0, suspects, y))


def curvature_(penalty: Penalty, r: Tensor, alpha: float | Tensor) -> Tensor:
    """``phi''(r)`` in the memory of ``r``, up to a factor for Welsch."""
    if isinstance(penalty, Huber | TruncatedQuadratic):
        return r.eq_(_clipped(r, alpha))
    if isinstance(penalty, Welsch):
        q = r.div_(alpha).square_()
        e = (q * -0.5).clamp_(min=-80.0).exp_()
        return q.neg_().add_(1).mul_(e)
    s = _inverse_root(r, alpha)
    return torch.mul(s, s, out=r).mul_(s)


def _sums(
    penalty: Penalty, x: Tensor, y: Tensor, alpha: float | Tensor, c: Tensor | None, rows: Tensor | None = None
) -> _Sums:
    """At y, for the rows named or for all; a block at a time, each pass over data in the cache."""
    f_y, f_yy, size = torch.empty_like(y), torch.empty_like(y), torch.empty_like(y)
    for at, some in blocks(len(y), x, rows):
        weights = None if c is None else c[some]
        f_y[at], f_yy[at], size[at] = _sums_of_rows(penalty, x[some], y[at], part(alpha, some), weights)
    return _Sums(f_y, f_yy, size)


def _sums_of_rows(penalty: Penalty, x: Tensor, y: Tensor, alpha: float | Tensor, c: Tensor | None) -> _Sums:
    sums = _huber_sums if isinstance(penalty, Huber) else _pseudo_huber_sums
    return _Sums(*sums(y - x, alpha, c))


def _rounding(size: Tensor, f_yy: Tensor, y: Tensor, alpha: float | Tensor) -> Tensor:
    """The rounding error of ``f_y``; that of y has a part in it, unless it exceeds alpha, when f_yy means nothing."""
    error = NOISE * torch.finfo(y.dtype).eps * y.abs()
    return NOISE * torch.finfo(y.dtype).eps * size + torch.where(error < alpha, f_yy * error, 0)


def _huber_sums(r: Tensor, alpha: float | Tensor, c: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    clamped = _clipped(r, alpha)
    inlier = r.eq_(clamped)
    if c is not None:
        inlier.mul_(c)
    f_yy = inlier.sum(dim=1, keepdim=True)
    weighted = clamped if c is None else clamped * c
    f_y = weighted.sum(dim=1, keepdim=True)
    # |phi'| <= alpha, so that |phi'| >= phi'^2 / alpha.
    if c is None:
        return f_y, f_yy, torch.linalg.vector_norm(clamped, dim=1, keepdim=True).square() / alpha
    return f_y, f_yy, torch.mul(weighted, clamped, out=r).sum(dim=1, keepdim=True) / alpha


def _pseudo_huber_sums(r: Tensor, alpha: float | Tensor, c: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    s = _inverse_root(r, alpha)
    slope = r.mul_(s)
    f_y = (slope if c is None else slope.mul_(c)).sum(dim=1, keepdim=True)
    cube = torch.mul(s, s, out=r).mul_(s)
    f_yy = (cube if c is None else cube.mul_(c)).sum(dim=1, keepdim=True)
    # |phi'| >= phi'^2 / alpha = alpha (1 - s^2), and the mean of s^2 is at most that of s^3 to the power 2/3.
    total = float(r.shape[1]) if c is None else c.sum(dim=1, keepdim=True)
    return f_y, f_yy, alpha * total * (1 - (f_yy / total).pow(2 / 3)).clamp(min=0)


def _clipped(r: Tensor, alpha: float | Tensor) -> Tensor:
    return r.clamp(-alpha, alpha)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _inverse_root(r: Tensor, alpha: float | Tensor) -> Tensor:
    """``1 / sqrt(1 + (r / alpha)^2)``."""
    one = r.new_ones(())
    if isinstance(alpha, float) and 1e-9 < alpha < 1e9:
        return torch.addcmul(one, r, r, value=alpha**-2).rsqrt_()
    t = r / alpha
    return torch.addcmul(one, t, t, out=t).rsqrt_()


def _start(penalty: Penalty, x: Tensor, alpha: float | Tensor, c: Tensor | None) -> Tensor:
    """The solution for a few points, about: from the median of fewer, which outliers do not move, by one step."""
    n = x.shape[1]
    if n < 512:
        few = sorted_rows(x[:, :: max(1, n // 31)])
        return few[:, few.shape[1] // 2, None]
    # Runs of 16 numbers, which share a cache line, from 8 places.
    x = x.unfold(1, 16, n // 8)[:, :8].flatten(1)
    c = None if c is None else c.unfold(1, 16, n // 8)[:, :8].flatten(1)
    y = sorted_rows(x[:, ::4])[:, 16, None]
    f_y, f_yy, _ = _sums(penalty, x, y, alpha, c)
    return y - _clipped(torch.where(f_yy > 0, f_y / f_yy, 0), alpha)


def _bracketed(penalty: Penalty, x: Tensor, alpha: float | Tensor, c: Tensor | None, start: Tensor) -> Found:
    """``f_y`` is non-decreasing, not positive at the least of x and not negative at the greatest."""
    low, high = x.aminmax(dim=1, keepdim=True)
    residual = torch.zeros_like(low)

    def look(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal residual
        r = y - x
        terms, curvature = penalty.dphi(r, alpha), penalty.ddphi(r, alpha)
        if c is not None:
            terms, curvature = c * terms, c * curvature
        f_y, f_yy = terms.sum(dim=1, keepdim=True), curvature.sum(dim=1, keepdim=True)
        residual = f_y.abs()
        return f_y, f_yy, _rounding(terms.abs().sum(dim=1, keepdim=True), f_yy, y, alpha)

    inside = (start >= low) & (start <= high)  # also not NaN
    y, num_steps, converged = find_root(look, low, high, torch.where(inside, start, low + (high / 2 - low / 2)))
    return Found(y.squeeze(1), num_steps.squeeze(1), converged.squeeze(1), residual.squeeze(1))
