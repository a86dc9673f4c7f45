r"""The soft choice of k out of m: entropic projection onto the capped simplex.

Solves, for each vector of x, for 0 <= k <= m and gamma > 0::

    y(x, k, gamma) = argmin_y  -x.y + 1/gamma sum_i [y_i log y_i + (1 - y_i) log (1 - y_i)]
                     subject to   sum_i y_i = k,  0 <= y <= 1

With the multiplier tau of the sum, ``y_i = sigmoid(gamma (x_i - tau))``; the sum, which falls with tau, determines it.
With ``w = y (1 - y)`` and any tangents::

    Dy = w (t - (w.t - dk) / w.1),     t = gamma dx + (x - tau) dgamma

The part of tau cancels. The closer y to the hard choice, the closer w to zero, and then the derivative in k is a
quotient of tiny numbers: w must have all its digits. So the answer is handed on as the distance from the nearer of 0
and 1, ``d = y - [y > 1/2]``, whose sign tells which it is. Then ``w = |d| (1 - |d|)``, and ``Dd = Dy``.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from torchddn.compiler import constant
from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.blocks import sorted_rows
from torchddn.functional.nodes.handmade import Answer, solve
from torchddn.functional.nodes.reading import read
from torchddn.functional.pooling.bracket import Root, find_root
from torchddn.functional.projection.vectors import (
    Vectors,
    along,
    answer_of,
    clean,
    finite_rows,
    nan_unless,
    outline_of,
)
from torchddn.status import Solution

__all__ = ["soft_top_k"]


@overload
def soft_top_k(
    x: Tensor,
    k: float | Tensor,
    gamma: float | Tensor = ...,
    dim: int = ...,
    *,
    on_failure: str = ...,
    solution: Literal[False] = ...,
) -> Tensor: ...
@overload
def soft_top_k(
    x: Tensor,
    k: float | Tensor,
    gamma: float | Tensor = ...,
    dim: int = ...,
    *,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
def soft_top_k(
    x: Tensor,
    k: float | Tensor,
    gamma: float | Tensor = 1.0,
    dim: int = -1,
    *,
    on_failure: str = "warn",
    solution: bool = False,
) -> Tensor | Solution:
    r"""Returns how much each coordinate of a vector belongs to its k largest: numbers in [0, 1] whose sum is k.

    y_i = sigmoid(gamma (x_i - tau)), the maximizer of ``x.y`` plus 1/gamma times the entropies of coins that fall with
    the chances y. tau by Newton's method on a logarithm, within a bracket that the coordinates beside the k-th largest
    give: one sort, and a handful of passes over the data.

    Args:
        x: Scores along ``dim``, ``(*B, m)`` for the last axis.
        k: Sum of each answer, from 0 to m, broadcastable to ``(*B,)``; need not be an integer.
        gamma: Sharpness, positive, broadcastable to ``(*B,)``. The larger, the closer to the hard choice.
        dim: Axis of the scores.
        on_failure: What to do about vectors with a number that is not finite: ``"warn"``, ``"raise"``, ``"nan"`` or
            ``"ignore"``. Their answer is NaN in any case; they do not disturb others.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``y``; the multiplier tau of the sum has
            shape ``(*B, 1)`` and is differentiable, other fields are ``(*B,)``. Where the hard choice is reached tau
            lies between the coordinates chosen and the others.

    Returns:
        ``y``, shaped as ``x`` and of its dtype (half precision computes in float32), between 0 and 1, with sums ``k``.
        All zeros for k = 0, all ones for k = m.

    Raises:
        InvalidInputError: If an argument is wrong, or the vectors have no coordinates.
        SolveError: If a vector fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the vector contains NaN or infinity.

    Gradients:
        Exact in ``x``, ``k`` and ``gamma``, of every order and in every mode. They go to zero, that in ``k`` too, where
        every coordinate is 0 or 1 to within about 1e-24 in float32 or 1e-276 in float64, as for k = 0, for k = m, or
        where gamma makes the choice hard; the record of :func:`torchddn.diagnostics` tells. A vector that is not finite
        has gradient zero.

    Example:
        >>> soft_top_k(torch.tensor([2.0, 0.0, -1.0, 1.0]), k=2)
        tensor([0.8176, 0.3775, 0.1824, 0.6225])

    References:
        Amos, Koltun, Kolter, The Limited Multi-Label Projection Layer, 2019, for gamma = 1 and integers k, where tau is
        found by bracketing.
    """
    call = "soft_top_k"
    vectors = Vectors.enter(call, x, dim, on_failure, solution)
    rows = vectors.rows
    num = vectors.numbers("k", k, "non-negative and finite")
    _check_at_most(k, rows.shape[1])
    sharp = vectors.positive("gamma", gamma)

    def details(y: Tensor) -> Mapping[str, Tensor]:
        plain = y.detach()
        entropy = torch.special.entr(plain) + torch.special.entr(1 - plain)
        return {
            "objective": -(plain * rows.detach()).sum(dim=1) - entropy.sum(dim=1) / sharp.detach().squeeze(1),
            "feasibility": (plain.sum(dim=1) - num.detach().squeeze(1)).abs(),
            "equality_multipliers": _multiplier(y, rows, sharp),
        }

    def compute() -> Answer:
        d, *told = solve(SoftTopK(), rows, num, sharp)
        return d + d.signbit(), *told

    def notes() -> Mapping[str, Tensor]:
        w = _weights(SoftTopK().solve((rows.detach(), num.detach(), sharp.detach()))[0])
        return {"with a choice that is hard, and gradient zero": w.sum(dim=1) < _least_total(w.dtype)}

    return vectors.leave(compute, "Newton", details, notes)


def _check_at_most(k: float | Tensor, m: int) -> None:
    if isinstance(k, Tensor):
        read(_refuse_more, k, k - m)
    elif k > m:
        raise InvalidInputError(f"`soft_top_k(k=...)` must be at most the number of coordinates, got {constant(k)}.")


def _refuse_more(k: Tensor, excess: Tensor) -> None:
    wrong = excess > 0
    if bool(wrong.any()):
        raise InvalidInputError(
            f"`soft_top_k(k=...)` must be at most the number of coordinates, got {k[wrong][0].item():g} among its "
            f"entries."
        )


def _multiplier(y: Tensor, x: Tensor, gamma: Tensor) -> Tensor:
    """``tau = x_i - logit(y_i) / gamma``, ``(R, 1)``, the same for all i but for rounding."""
    plain, dtype = y.detach(), torch.finfo(y.dtype)
    # A small y_i has all its digits, one near 1 has lost those of 1 - y_i.
    low = plain <= plain.amin(dim=1, keepdim=True).clamp(min=0.5)
    i = torch.where(low, x.detach(), -torch.inf).argmax(dim=1, keepdim=True)
    failed = plain[:, :1].isnan()
    y_i = torch.where(failed, 0.5, y.gather(1, i)).clamp(dtype.tiny, 1 - dtype.eps)
    return torch.where(failed, torch.nan, x.gather(1, i) - y_i.logit() / gamma)


@dataclasses.dataclass(frozen=True)
class SoftTopK:
    """The formula of ``d`` from ``x``, ``(R, m)``, and ``k`` and ``gamma``, ``(R, 1)`` each."""

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``d``, status, steps, violation."""
        x, k, gamma = (each.detach() for each in inputs)
        finite = finite_rows(x)
        rows = x if finite is None else torch.where(finite, x, 0)
        middle, half, root = _threshold(rows, k, gamma)
        z = (rows - middle + half).mul_(gamma).sub_(root.y).neg_()
        d = torch.copysign(z.abs().neg_().sigmoid_(), z)
        return answer_of(nan_unless(finite, d), finite, root.num_steps.squeeze(1))

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return outline_of(inputs[0])

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        d, kept, failed = clean(y, v)
        x, _, gamma = inputs
        w = _weights(d)
        total = _total(w)
        dk = along(w, v, failed) / total
        g = w * (kept - dk)
        dgamma = (g * _from_center(x, w, total, failed)).sum(dim=1, keepdim=True) if needed[2] else None
        return gamma * g if needed[0] else None, dk, dgamma

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        x, _, gamma = inputs
        dx, dk, dgamma = tangents
        t = torch.zeros_like(y) if dx is None else gamma * dx
        d, kept, failed = clean(y, t)
        w = _weights(d)
        total = _total(w)
        taken = along(w, t, failed)
        if dgamma is not None:
            turned = torch.where(failed, 0, dgamma) * _from_center(x, w, total, failed)
            kept, taken = kept + turned, taken + (w * turned).sum(dim=1, keepdim=True)
        taken = taken if dk is None else taken - torch.where(failed, 0, dk)
        return w * (kept - taken / total)


def _weights(d: Tensor) -> Tensor:
    """``w``, ``(R, m)``."""
    a = d.abs()
    return torch.addcmul(a, a, a, value=-1)


def _total(w: Tensor) -> Tensor:
    """``w.1``, ``(R, 1)``, at least so large that derivatives of quotients by it do not overflow."""
    return w.sum(dim=1, keepdim=True).clamp(min=_least_total(w.dtype))


def _least_total(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).tiny / torch.finfo(dtype).eps ** 2


def _from_center(x: Tensor, w: Tensor, total: Tensor, failed: Tensor) -> Tensor:
    """``x`` minus a constant near tau, which makes no difference to derivatives but for rounding; zero where failed."""
    x = torch.where(failed, 0, x)
    return x - ((w * x).sum(dim=1, keepdim=True) / total).detach()


def _threshold(x: Tensor, k: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Root]:
    r"""Level tau as ``a - h + u / gamma``: ``a`` and ``h``, ``(R, 1)``, and the root ``u``.

    Let a and b be the coordinates at the places K = ceil(k) and J = floor(k) + 1 from the top: the same one unless k is
    an integer. Half their gap is h. The n = round(k) largest coordinates are *in*; what they lack is ``1 - y_i``, and
    what the others lack is ``y_i``. With their distances from a or b, ``e_i = max(x_i - a, b - x_i)``, that is
    ``sigmoid(-gamma (e_i + h) +- u)``, + for those in. The sum of y is n - lack_in + lack_out, and so k where::

        lack_in + max(k - n, 0) = lack_out + max(n - k, 0)

    Of both sides the logarithms are compared, whose difference grows with u: about linearly, where sums of sigmoids
    have plateaus, and near the root with a slope between 1/2 and 2. All terms are positive; no digits cancel. From
    ``k >= J y_J`` and ``k <= K - 1 + (m - K + 1) y_K`` follows a bracket.
    """
    m, eps = x.shape[1], torch.finfo(x.dtype).eps
    empty, full = k <= 0, k >= m
    k = torch.where(empty | full, m / 2, k)
    ascending = sorted_rows(x)
    K, J, n = k.ceil(), k.floor() + 1, k.round()
    a, b = ascending.gather(1, (m - K).long()), ascending.gather(1, (m - J).long())
    h = a / 2 - b / 2
    inside = (torch.arange(m, 0, -1, device=x.device) <= n).to(x.dtype)
    sign = 2 * inside - 1
    # Where the sigmoid is an exponential to within rounding, a narrower gap has the same u, and underflow is far off.
    gap = (gamma * h).clamp(max=-math.log(eps))
    at_zero = torch.maximum(ascending - a, b - ascending).mul_(-gamma).sub_(gap)
    lack, lack_in, lack_out = (torch.empty_like(x) for _ in range(3))
    over, under = (k - n).clamp(min=0), (n - k).clamp(min=0)
    # The last step of Newton, which is free, squares the error.
    near = torch.full_like(k, eps**0.5 / 16)

    def look(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        torch.addcmul(at_zero, sign, u, out=lack).sigmoid_()
        torch.mul(lack, inside, out=lack_in)
        torch.sub(lack, lack_in, out=lack_out)
        left, right = (part.sum(dim=1, keepdim=True) for part in (lack_in, lack_out))
        left, right, rest = left + over, right + under, lack.neg_().add_(1)
        slope_in, slope_out = (part.mul_(rest).sum(dim=1, keepdim=True) for part in (lack_in, lack_out))
        return left.log() - right.log(), slope_in / left + slope_out / right, near

    low = ((J - k) / k).log() - math.log(2)
    high = ((m - k) / (k - (K - 1))).log() + math.log(2)
    root = find_root(look, low, high, (low + high) / 2)
    ends = torch.where(empty, torch.inf, torch.where(full, -torch.inf, root.y))
    return a, h, root._replace(y=ends)
