r"""The robust mean of points, and its derivatives.

Solves, for each item of x, n points in R^m, with weights c (one each unless given)::

    y(x, alpha, c) = argmin_y  f(y) = sum_i c_i phi(|y - x_i|; alpha)

Derivatives. With ``r_i = y - x_i``, ``z_i = |r_i|`` and ``B_i = kappa1(z_i) I + kappa2(z_i) r_i r_i^T``, the condition
``sum_i c_i kappa1(z_i) r_i = 0`` gives::

    H dy = sum_i c_i B_i dx_i  -  sum_i kappa1(z_i) r_i dc_i  +  sum_i c_i kappa2(z_i) z_i^2 r_i dalpha / alpha

with ``H = sum_i c_i B_i``. No ``B_i`` is formed. The last part is the same for every penalty, since ``y(a x, a alpha) =
a y(x, alpha)``. A factor common to ``kappa1`` and ``kappa2`` of an item changes nothing, so that those of Welsch are
taken relative to the nearest point, and do not vanish however far away all points are.

``H w = v`` is solved by whatever is cheapest. Since kappa2 <= 0, with ``k = sum_i c_i kappa1(z_i)`` and the rows
``sqrt(-c_i kappa2) r_i`` of R::

    H = k I - R^T R,      w = (v + R^T M^-1 R v) / k,      M = k I - R R^T

which needs n x n in place of m x m numbers when n < m. In a backward pass that is not differentiated again, conjugate
gradients need neither.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.functional.nodes.blocks import block_size, is_plain
from torchddn.functional.nodes.degeneracy import warn_undetermined
from torchddn.functional.nodes.handmade import Answer
from torchddn.functional.pooling.conjugate_gradients import Hessian, conjugate_gradients, row_products
from torchddn.functional.pooling.kernel import points_kernel
from torchddn.functional.pooling.pseudo_inverse import pseudo_inverse
from torchddn.functional.pooling.scalar import ScalarPooling
from torchddn.functional.pooling.vector_descent import minimize
from torchddn.penalties import Penalty, Welsch
from torchddn.status import Status

__all__ = ["VectorPooling"]

_NOT_ISOLATED = "the solution is not isolated there", "a larger alpha, or a smooth penalty, singles one out"

_DENSE = 24  # up to so many coordinates a factorization of H is cheaper than products with it
_FACTOR_BLOCK = 2**17  # numbers in a block of items, for a factorization
_PRODUCTS_BLOCK = 2**21  # for products with H, which are short calls
_FARTHEST = 80.0  # exponent beyond which a point does not count beside the nearest


class _Parts(NamedTuple):
    """``r``, ``(R, n, m)``; its length, and ``kappa1`` and ``kappa2``, with the weights, ``(R, n)``."""

    r: Tensor
    z: Tensor
    kappa1: Tensor
    kappa2: Tensor


@dataclasses.dataclass(frozen=True)
class VectorPooling:
    """The formula of ``y``, ``(R, m)``, from ``x``, ``(R, n, m)``, ``alpha``, ``(R,)``, and maybe weights, ``(R, n)``.

    Not for the quadratic. Weights are finite and not negative. An item that is not finite, or whose weights are all
    zero, has the answer NaN and derivatives of zero, which leave shared gradients alone.
    """

    penalty: Penalty
    compile: bool = False

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``y``; status, steps and the residual ``|f_y|``, ``(R,)`` each."""
        x, alpha, *weights = inputs
        if not len(x):
            return tuple(torch.zeros_like(tensor) for tensor in self.outline(inputs))
        c = weights[0] if weights else None
        mean = x.mean(dim=1)
        sound = mean.isfinite().all(dim=1)  # an overflow of the sum is looked at again
        if not bool(sound.all()):
            sound = x.isfinite().flatten(1).all(dim=1)
            x = torch.where(sound.reshape(-1, 1, 1), x, 0)
            mean = x.mean(dim=1)
        if c is not None:
            sound = sound & (c.amax(dim=1) > 0)
            c = torch.where(sound.unsqueeze(1), c, 1)
        if x.shape[2] == 1:
            numbers = [x.squeeze(2), alpha] if c is None else [x.squeeze(2), alpha, c]
            y, status, num_steps, residual = ScalarPooling(self.penalty).solve(numbers)
            y = y.unsqueeze(1)
        else:
            y, _, status, num_steps, residual = minimize(self.penalty, x, alpha, c, mean, self.compile)
        y = torch.where(sound.unsqueeze(1), y, torch.nan)
        status = torch.where(sound, status, int(Status.NON_FINITE))
        return y, status, num_steps, torch.where(sound, residual, torch.nan)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        x = inputs[0]
        numbers, counts = x.new_empty(x.shape[:1]), x.new_empty(x.shape[:1], dtype=torch.int64)
        return x.new_empty(x.shape[0], x.shape[2]), counts, torch.empty_like(counts), numbers

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        sound = ~y.isnan().any(dim=1)
        if is_plain(y, v, *inputs):
            by_kernels = self.compile and y.shape[1] > _DENSE and not self.penalty.isotropic and bool(sound.all())
            grads = self._pull_kernels(y, v, inputs, needed) if by_kernels else None
            return self._pull_blocks(y, v, inputs, needed, sound) if grads is None else grads
        parts = self._parts(y, inputs, sound)
        w = self._solve(parts, v)
        along, dx = row_products(parts.r, w), None
        if needed[0]:
            turned = (parts.kappa2 * along).unsqueeze(2) * parts.r + parts.kappa1.unsqueeze(2) * w.unsqueeze(1)
            dx = torch.where(sound.reshape(-1, 1, 1), turned, 0)
        return [dx, *self._gradients(along, parts.z, parts.kappa2, inputs, needed, sound)]

    def _pull_kernels(
        self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]
    ) -> list[Tensor | None] | None:
        """As the formula, without keeping ``r``; None if conjugate gradients do not succeed."""
        x, *others = (t.contiguous() for t in inputs)
        z, kappa1, kappa2 = points_kernel(VectorPooling._scales, self, y, [x, *others])
        w, along, done = conjugate_gradients(Hessian(x, y, kappa1.sum(dim=1, keepdim=True), kappa2), v)
        if not bool(done.all()):
            return None
        dx = points_kernel(_turned, x, y, w, kappa1, kappa2 * along) if needed[0] else None
        return [dx, *self._gradients(along, z, kappa2, inputs, needed, None)]

    def _scales(self, y: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The length of ``r``, and ``kappa1`` and ``kappa2``, with the weights."""
        x, alpha, *weights = inputs
        z = (y.unsqueeze(1) - x).square().sum(dim=2).sqrt()
        kappa1, kappa2 = self._kappas(z, alpha, *weights)
        return (z, weights[0] * kappa1, weights[0] * kappa2) if weights else (z, kappa1, kappa2)

    def _pull_blocks(
        self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool], sound: Tensor
    ) -> list[Tensor | None]:
        """As the formula, a block of items at a time; ``r`` is formed where ``dx`` will be."""
        grads = [torch.empty_like(x) if n else None for x, n in zip(inputs, needed, strict=True)]
        x, dx = inputs[0], grads[0]
        size = block_size(x[:1].numel(), y.device, _PRODUCTS_BLOCK if x.shape[2] > _DENSE else _FACTOR_BLOCK)
        every = bool(sound.all())
        for start in range(0, len(y), size):
            at = slice(start, start + size)
            block, v_at = [x[at] for x in inputs], v[at]
            known = None if every else sound[at]
            parts = self._parts(y[at], block, known, out=None if dx is None else dx[at])
            if known is not None:
                v_at = torch.where(known.unsqueeze(1), v_at, 0)
            w, along = self._solve_plain(parts, v_at)
            for grad, values in zip(
                grads[1:], self._gradients(along, parts.z, parts.kappa2, block, needed, known), strict=True
            ):
                if grad is not None and values is not None:
                    grad[at] = values
            if dx is not None:
                r, factor = parts.r, (parts.kappa2 * along).unsqueeze(2)
                r = r.zero_() if self.penalty.isotropic else r.mul_(factor)
                r.addcmul_(parts.kappa1.unsqueeze(2), w.unsqueeze(1))
        return grads

    def _gradients(
        self,
        along: Tensor,
        z: Tensor,
        kappa2: Tensor,
        inputs: Sequence[Tensor],
        needed: Sequence[bool],
        sound: Tensor | None,
    ) -> list[Tensor | None]:
        """Those of ``alpha`` and the weights, from ``along = r.w``."""
        grads: list[Tensor | None] = [None] * (len(inputs) - 1)
        if needed[1]:
            dalpha = (kappa2 * z.square() * along).sum(dim=1) / inputs[1]
            grads[0] = dalpha if sound is None else torch.where(sound, dalpha, 0)
        if len(inputs) > 2 and needed[2]:
            kappa1, _ = self._kappas(z, inputs[1], inputs[2])
            dc = -kappa1 * along
            grads[1] = dc if sound is None else torch.where(sound.unsqueeze(1), dc, 0)
        return grads

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        dx, dalpha, *dweights = tangents
        sound = ~y.isnan().any(dim=1)
        parts = self._parts(y, inputs, sound)
        r, z, kappa1, kappa2 = parts
        pushed = torch.zeros_like(y)
        if dx is not None:
            along = kappa2 * (r * dx).sum(dim=2)
            pushed = pushed + (kappa1.unsqueeze(2) * dx + along.unsqueeze(2) * r).sum(dim=1)
        if dalpha is not None:
            weights = kappa2 * z.square() * (dalpha / inputs[1]).unsqueeze(1)
            pushed = pushed + (weights.unsqueeze(2) * r).sum(dim=1)
        if dweights and dweights[0] is not None:
            kappa1, _ = self._kappas(z, inputs[1], inputs[2])
            pushed = pushed - ((kappa1 * dweights[0]).unsqueeze(2) * r).sum(dim=1)
        return torch.where(sound.unsqueeze(1), self._solve(parts, pushed), 0)

    def _parts(self, y: Tensor, inputs: Sequence[Tensor], sound: Tensor | None, out: Tensor | None = None) -> _Parts:
        """At ``y``, ``r`` in ``out``; any finite numbers for items that are not sound, if there are such."""
        x, alpha, *weights = inputs
        r = torch.sub(y.unsqueeze(1), x, out=out)
        if sound is None:
            z = torch.linalg.vector_norm(r, dim=2)
        else:
            outside = ~sound.reshape(-1, 1, 1)
            r = r.masked_fill(outside, 0) if out is None else r.masked_fill_(outside, 0)
            z = _length(r)
        kappa1, kappa2 = self._kappas(z, alpha, *weights)
        if weights:
            c = weights[0] if sound is None else torch.where(sound.unsqueeze(1), weights[0], 1)
            kappa1, kappa2 = c * kappa1, c * kappa2
        return _Parts(r, z, kappa1, kappa2)

    def _kappas(self, z: Tensor, alpha: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``kappa1`` and ``kappa2`` up to a common factor for each item."""
        alpha = alpha.unsqueeze(1)
        if not isinstance(self.penalty, Welsch):
            return self.penalty.kappa1(z, alpha), self.penalty.kappa2(z, alpha)
        exponent = (z / alpha).square() / 2
        counting = exponent if c is None else torch.where(c > 0, exponent, torch.inf)
        nearest = counting.detach().amin(dim=1, keepdim=True)
        exponent = exponent - torch.where(nearest.isfinite(), nearest, 0)
        kappa1 = torch.where(exponent < _FARTHEST, torch.exp(-exponent.clamp(-_FARTHEST, _FARTHEST)), 0)
        return kappa1, -kappa1 / alpha / alpha

    def _solve(self, parts: _Parts, v: Tensor) -> Tensor:
        """The minimum-norm solution of ``H w = v``, refined once with the true ``H``; differentiable."""
        r, _, kappa1, kappa2 = parts
        (n, m), k = r.shape[1:], kappa1.sum(dim=1, keepdim=True)
        if self.penalty.isotropic:
            flat = (k == 0).squeeze(1)
            warn_undetermined("robust_vector_pool", flat, *_NOT_ISOLATED)
            return torch.where(flat.unsqueeze(1), 0, v / torch.where(k == 0, 1, k))
        if m <= n:
            H = torch.diag_embed(k.expand_as(v)) + r.mT @ (kappa2.unsqueeze(2) * r)
            inverse = pseudo_inverse(H)
            w = _times(inverse, v)
            return w + _times(inverse, v - _times(H, w))
        R = _root(-kappa2).unsqueeze(2) * r
        M = torch.diag_embed(k.expand(-1, n)) - R @ R.mT
        inverse = pseudo_inverse(M)
        total, k = k, torch.where(k == 0, 1, k)

        def solved(v: Tensor) -> Tensor:
            # Where M is singular, so is H, in the directions R^T p with M p = 0; they are taken out of w.
            p = _times(R, v)
            q = _times(inverse, p)
            q = q - (p - _times(M, q)) / k
            return (v + _times(R.mT, q)) / k

        w = solved(v)
        return w + solved(v - Hessian(r, None, total, kappa2).times(w)[0])

    def _solve_plain(self, parts: _Parts, v: Tensor) -> tuple[Tensor, Tensor]:
        """The same, by conjugate gradients where they are cheaper and succeed; and ``r.w``."""
        m = v.shape[1]
        if m <= _DENSE or self.penalty.isotropic:
            w = self._solve(parts, v)
            return w, row_products(parts.r, w)
        r, _, kappa1, kappa2 = parts
        w, along, done = conjugate_gradients(Hessian(r, None, kappa1.sum(dim=1, keepdim=True), kappa2), v)
        if bool(done.all()):
            return w, along
        rest = (~done).nonzero().squeeze(1)
        w = w.index_copy(0, rest, self._solve(_Parts(*(t[rest] for t in parts)), v[rest]))
        return w, row_products(parts.r, w)


def _turned(x: Tensor, y: Tensor, w: Tensor, kappa1: Tensor, factor: Tensor) -> Tensor:
    return factor.unsqueeze(2) * (y.unsqueeze(1) - x) + kappa1.unsqueeze(2) * w.unsqueeze(1)


def _root(square: Tensor) -> Tensor:
    """The square root, with derivatives of every order that are finite, and zero at zero."""
    zero = square == 0
    return torch.where(zero, 0, torch.where(zero, 1, square).sqrt())


def _length(r: Tensor) -> Tensor:
    """``|r|`` over the last axis, likewise."""
    return _root(r.square().sum(dim=-1))


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
