r"""The robust mean of points: descents from several starts, and its derivatives.

Solves, for each item of x, n points in R^m::

    y(x, alpha) = argmin_y  f(y) = sum_i phi(|y - x_i|; alpha)

Derivatives. With ``r_i = y - x_i``, ``z_i = |r_i|`` and the matrices ``B_i = kappa1(z_i) I + kappa2(z_i) r_i r_i^T``,
the condition ``sum_i kappa1(z_i) r_i = 0`` gives::

    H dy = sum_i B_i dx_i  +  sum_i kappa2(z_i) z_i^2 r_i dalpha / alpha,     H = sum_i B_i

No ``B_i`` is formed. The second part is the same for every penalty, since ``y(c x, c alpha) = c y(x, alpha)``.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from torchddn.functional._descent import NOISE, Descent, Local, descend
from torchddn.functional._handmade import Answer
from torchddn.functional._pseudo_inverse import pseudo_inverse
from torchddn.functional._scalar_pooling import ScalarPooling
from torchddn.penalties import Huber, Penalty
from torchddn.status import Status

__all__ = ["VectorPooling"]

_MAX_STEPS = 200
_NUM_POINT_STARTS = 8  # data points, more than alpha apart, from which to descend
_NUM_CANDIDATES = 4096  # data points whose objective is looked at
_BLOCK = 2**20  # numbers in a temporary on CPU: a few megabytes


@dataclasses.dataclass(frozen=True)
class VectorPooling:
    """The formula of ``y``, ``(R, m)``, from ``x``, ``(R, n, m)``, and ``alpha``, ``(R,)``; not for the quadratic.

    An item that is not finite has the answer NaN and derivatives of zero, which leave shared gradients alone.
    """

    penalty: Penalty

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``y``; status, steps and the residual ``|f_y|``, ``(R,)`` each."""
        x, alpha = inputs
        finite = x.sum(dim=(1, 2)).isfinite()  # an overflow of the sum is looked at again
        if not bool(finite.all()):
            finite = x.isfinite().flatten(1).all(dim=1)
            x = torch.where(finite.reshape(-1, 1, 1), x, 0)
        if x.shape[2] == 1:
            y, status, num_steps, residual = ScalarPooling(self.penalty).solve((x.squeeze(2), alpha))
            y = y.unsqueeze(1)
        else:
            y, _, status, num_steps, residual = self._descend(x, alpha)
        y = torch.where(finite.unsqueeze(1), y, torch.nan)
        status = torch.where(finite, status, int(Status.NON_FINITE))
        return y, status, num_steps, torch.where(finite, residual, torch.nan)

    def _descend(self, x: Tensor, alpha: Tensor) -> Descent:
        mean = x.mean(dim=1)
        if self.penalty.convex:
            return _descend_from(self.penalty, x, alpha, mean)
        starts = [mean, x.median(dim=1).values, _descend_from(Huber(), x, alpha, mean).y]
        starts = torch.cat([torch.stack(starts, dim=1), _best_points(self.penalty, x, alpha)], dim=1)
        num_starts = starts.shape[1]
        row = torch.arange(len(x), device=x.device).repeat_interleave(num_starts)
        found = _descend_from(self.penalty, x, alpha, starts.flatten(0, 1), row)
        best = _first_lowest(found.objective.unflatten(0, (-1, num_starts)))
        chosen = torch.arange(len(x), device=x.device) * num_starts + best
        return Descent(*(field[chosen] for field in found))

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        x, alpha = inputs
        sound, r, kappa1, kappa2, H = self._parts(y, x, alpha)
        w = _solve(H, v).unsqueeze(2)
        r_w = (r @ w).squeeze(2)
        dx = dalpha = None
        if needed[0]:
            dx = kappa1.unsqueeze(2) * w.mT + (kappa2 * r_w).unsqueeze(2) * r
            dx = torch.where(sound.reshape(-1, 1, 1), dx, 0)
        if needed[1]:
            dalpha = (kappa2 * r.square().sum(dim=2) * r_w).sum(dim=1) / alpha
            dalpha = torch.where(sound, dalpha, 0)
        return dx, dalpha

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        (x, alpha), (dx, dalpha) = inputs, tangents
        sound, r, kappa1, kappa2, H = self._parts(y, x, alpha)
        pushed = torch.zeros_like(y)
        if dx is not None:
            r_dx = kappa2 * (r * dx).sum(dim=2)
            pushed = pushed + (kappa1.unsqueeze(2) * dx + r_dx.unsqueeze(2) * r).sum(dim=1)
        if dalpha is not None:
            weights = kappa2 * r.square().sum(dim=2) * (dalpha / alpha).unsqueeze(1)
            pushed = pushed + (weights.unsqueeze(2) * r).sum(dim=1)
        return torch.where(sound.unsqueeze(1), _solve(H, pushed), 0)

    def _parts(self, y: Tensor, x: Tensor, alpha: Tensor) -> tuple[Tensor, ...]:
        """Which items are finite, ``r``, ``kappa1``, ``kappa2`` and ``H``; any numbers of others."""
        sound = ~y.isnan().any(dim=1)
        r = torch.where(sound.reshape(-1, 1, 1), y.unsqueeze(1) - x, 0)
        z = _length(r)
        kappa1, kappa2 = self.penalty.kappa1(z, alpha.unsqueeze(1)), self.penalty.kappa2(z, alpha.unsqueeze(1))
        H = torch.diag_embed(kappa1.sum(dim=1, keepdim=True).expand_as(y))
        if not self.penalty.isotropic:
            H = H + r.mT @ (kappa2.unsqueeze(2) * r)
        return sound, r, kappa1, kappa2, H


def _length(r: Tensor) -> Tensor:
    """``|r|`` over the last axis, with derivatives of every order that are finite, and zero at zero."""
    square = r.square().sum(dim=-1)
    zero = square == 0
    return torch.where(zero, 0, torch.where(zero, 1, square).sqrt())


def _solve(H: Tensor, v: Tensor) -> Tensor:
    """The minimum-norm solution of ``H w = v``, refined once with the true ``H``."""
    inverse = pseudo_inverse(H)
    w = _times(inverse, v)
    return w + _times(inverse, v - _times(H, w))


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _descend_from(penalty: Penalty, x: Tensor, alpha: Tensor, starts: Tensor, row: Tensor | None = None) -> Descent:
    """Descends from each start, in the item that ``row`` names, or its own; a block of starts at a time."""
    row = torch.arange(len(x), device=x.device) if row is None else row
    size = _rows(x.shape[1] * x.shape[2], x)

    def descend_block(row: Tensor, y: Tensor) -> Descent:
        def look(y: Tensor, items: Tensor) -> Local:
            return _look(penalty, x[row[items]], alpha[row[items]].unsqueeze(1), y)

        return descend(look, y, _MAX_STEPS)

    blocks = [descend_block(row, y) for row, y in zip(row.split(size), starts.split(size), strict=True)]
    return Descent(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def _look(penalty: Penalty, x: Tensor, alpha: Tensor, y: Tensor) -> Local:
    eps = torch.finfo(x.dtype).eps
    r = y.unsqueeze(1) - x
    z = torch.linalg.vector_norm(r, dim=2)
    objective = penalty.phi(z, alpha).sum(dim=1)
    kappa1 = penalty.kappa1(z, alpha)
    gradient, total = (kappa1.unsqueeze(1) @ r).squeeze(1), kappa1.sum(dim=1)
    slope, size = gradient.norm(dim=1), y.norm(dim=1)
    pull = (kappa1 * z).sum(dim=1)
    reweighted = newton = y - (penalty.weights(z, alpha).unsqueeze(1) @ r).squeeze(1)
    if not penalty.isotropic:
        H = r.mT @ (penalty.kappa2(z, alpha).unsqueeze(2) * r)
        H.diagonal(dim1=1, dim2=2).add_(total.unsqueeze(1))
        factor, info = torch.linalg.cholesky_ex(H)
        step = torch.cholesky_solve(gradient.unsqueeze(2), factor).squeeze(2)
        usable = (info == 0) & step.isfinite().all(dim=1)
        newton = torch.where(usable.unsqueeze(1), y - step, reweighted)
    return Local(
        objective,
        NOISE * eps * (objective + pull * size),
        slope,
        slope <= NOISE * eps * (pull + total * size),
        reweighted,
        newton,
    )


def _best_points(penalty: Penalty, x: Tensor, alpha: Tensor) -> Tensor:
    """The data points with the lowest objective, each more than alpha from the others, ``(R, k, m)``."""
    n, k = x.shape[1], min(x.shape[1], _NUM_POINT_STARTS)
    candidates = x[:, :: -(-n // _NUM_CANDIDATES)]
    objective = torch.cat(
        [
            _objective_at(penalty, x, alpha, candidates)
            for x, alpha, candidates in zip(*_by_item(x, alpha, candidates), strict=True)
        ]
    )
    chosen = []
    for _ in range(k):
        best = candidates[torch.arange(len(x), device=x.device), _first_lowest(objective)]
        chosen.append(best)
        near = torch.linalg.vector_norm(candidates - best.unsqueeze(1), dim=2) <= alpha.unsqueeze(1)
        objective = torch.where(near, torch.inf, objective)
    return torch.stack(chosen, dim=1)


def _first_lowest(objective: Tensor) -> Tensor:
    """The first of those that are lowest up to rounding, so that equals do not change places, ``(R,)``."""
    lowest = objective.amin(dim=1, keepdim=True)
    return (objective <= lowest * (1 + NOISE * torch.finfo(objective.dtype).eps)).to(torch.int8).argmax(dim=1)


def _by_item(x: Tensor, alpha: Tensor, candidates: Tensor) -> tuple[tuple[Tensor, ...], ...]:
    size = _rows(x.shape[1] * max(x.shape[2], candidates.shape[1]), x)
    return tuple(tensor.split(size) for tensor in (x, alpha, candidates))


def _objective_at(penalty: Penalty, x: Tensor, alpha: Tensor, y: Tensor) -> Tensor:
    """``f`` at several points of each item, ``(R, k)``.

    Distances come from a matrix product; it is taken of centered data in float64, since it subtracts squares.
    """
    center = x.median(dim=1, keepdim=True).values
    x, y, alpha = (x - center).double(), (y - center).double(), alpha.double().reshape(-1, 1, 1)
    z = torch.cdist(y, x, compute_mode="use_mm_for_euclid_dist")
    return penalty.phi(z, alpha).sum(dim=2)


def _rows(numbers_per_row: int, x: Tensor) -> int:
    return max(1, (_BLOCK if x.device.type == "cpu" else 64 * _BLOCK) // numbers_per_row)
