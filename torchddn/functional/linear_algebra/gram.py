r"""The pseudo-inverse of ``M = A^T W A + diag(ridge)`` applied to vectors, without forming M.

``P`` and ``Q`` come with a factorization of ``S = [W^(1/2) A; diag(ridge)^(1/2)]``, and M = S^T S::

    G = M^+ = P P^T          N = I - M^+ M = I - Q Q^T  (zero where S has full column rank)

From a QR factorization ``P = R^-1``, from singular values ``P = V / sigma``. Either way the condition number of S and
not its square is what errors grow with, and one factorization serves the answer and derivatives of every order.

Derivatives, where the rank is constant nearby. With ``dM = dA^T W A + A^T W dA + A^T dW A + diag(dridge)``::

    dG = -G dM G + G^2 dM N + N dM G^2          dN = -G dM N - N dM G

and, since ``S N = 0``, ``dM N = A^T W dA N``: what vanishes there is left out below.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.functional.nodes.handmade import Answer, solve

__all__ = ["Factor", "Gram"]


class Factor(NamedTuple):
    """``P`` and ``Q``, ``(R, m, r)``, and ``short``, ``(R,)``: one where S has a null space, else zero, as Q then is.

    It counts as a constant: what the products depend on is differentiated through A, w and ridge.
    """

    P: Tensor
    Q: Tensor
    short: Tensor


class Gram(NamedTuple):
    """The matrices ``M`` of a batch: ``A``, ``(R, n, m)``, ``w``, ``(R, n)``, ``ridge``, ``(R, m)``.

    ``regular`` is the promise that S has full column rank whatever the numbers, so that N is zero.
    """

    A: Tensor
    w: Tensor
    ridge: Tensor
    factor: Factor
    regular: bool

    def inverse(self, v: Tensor) -> Tensor:
        """``G v`` for columns ``v``, ``(R, m, k)``; differentiable in A, w, ridge and v."""
        return solve(_Inverse(self.regular), v, self.A, self.w, self.ridge, *self.factor)[0]

    def null(self, v: Tensor) -> Tensor:
        """``N v``, likewise."""
        return solve(_Null(self.regular), v, self.A, self.w, self.ridge, *self.factor)[0]

    def weighted(self, v: Tensor) -> Tensor:
        """``W A v``, ``(R, n, k)``."""
        return self.w.unsqueeze(2) * (self.A @ v)

    def changed(self, change: "Change", v: Tensor) -> Tensor:
        """``dM v``."""
        result = torch.zeros_like(v)
        if change.A is not None:
            result = result + change.A.mT @ self.weighted(v) + self.A.mT @ (self.w.unsqueeze(2) * (change.A @ v))
        if change.w is not None:
            result = result + self.A.mT @ (change.w.unsqueeze(2) * (self.A @ v))
        if change.ridge is not None:
            result = result + change.ridge.unsqueeze(2) * v
        return result


class Change(NamedTuple):
    """``dA``, ``dw`` and ``dridge``; None stands for zeros."""

    A: Tensor | None
    w: Tensor | None
    ridge: Tensor | None


@dataclasses.dataclass(frozen=True)
class _Inverse:
    """The formula of ``u = G v``, ``(R, m, k)``."""

    regular: bool

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        v, _, _, _, P, *_ = inputs
        return (P @ (P.mT @ v),)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return (torch.empty_like(inputs[0], memory_format=torch.contiguous_format),)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        u, gram = y, _gram(inputs, self.regular)
        q = gram.inverse(v)
        Au, Aq = (gram.A @ torch.cat([u, q], dim=2)).split(u.shape[2], dim=2)
        dA = dw = dridge = None
        if needed[1]:
            left, right = [-Au, -Aq], [q, u]
            if not self.regular:
                left += (gram.A @ gram.inverse(torch.cat([q, u], dim=2))).split(u.shape[2], dim=2)
                right += gram.null(torch.cat([inputs[0], v], dim=2)).split(u.shape[2], dim=2)
            dA = gram.w.unsqueeze(2) * (torch.cat(left, dim=2) @ torch.cat(right, dim=2).mT)
        if needed[2]:
            dw = -(Au * Aq).sum(dim=2)
        if needed[3]:
            dridge = -(u * q).sum(dim=2)
        return q, dA, dw, dridge, None, None, None

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        gram, dv, change = _gram(inputs, self.regular), tangents[0], Change(*tangents[1:4])
        u = y
        rate = -gram.changed(change, u)
        du = gram.inverse(rate if dv is None else rate + dv)
        if self.regular or change.A is None:
            return du
        bent = gram.A.mT @ (gram.w.unsqueeze(2) * (change.A @ gram.null(inputs[0])))
        turned = change.A.mT @ gram.weighted(gram.inverse(u))
        return du + gram.inverse(gram.inverse(bent)) + gram.null(turned)


@dataclasses.dataclass(frozen=True)
class _Null:
    """The formula of ``z = N v``, ``(R, m, k)``."""

    regular: bool

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        v, _, _, _, _, Q, short = inputs
        return (short.reshape(-1, 1, 1) * v - Q @ (Q.mT @ v),)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return (torch.empty_like(inputs[0], memory_format=torch.contiguous_format),)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        z, gram, k = y, _gram(inputs, self.regular), y.shape[2]
        f = gram.null(v)
        dA = None
        if needed[1]:
            q, u = gram.inverse(torch.cat([v, inputs[0]], dim=2)).split(k, dim=2)
            dA = -gram.weighted(torch.cat([q, u], dim=2)) @ torch.cat([z, f], dim=2).mT
        return f, dA, *[None] * 5

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        z, gram, dv, dA = y, _gram(inputs, self.regular), tangents[0], tangents[1]
        dz = torch.zeros_like(z) if dv is None else gram.null(dv)
        if dA is None:
            return dz
        bent = gram.A.mT @ (gram.w.unsqueeze(2) * (dA @ z))
        return dz - gram.inverse(bent) - gram.null(dA.mT @ gram.weighted(gram.inverse(inputs[0])))


def _gram(inputs: Sequence[Tensor], regular: bool) -> Gram:
    _, A, w, ridge, *factor = inputs
    return Gram(A, w, ridge, Factor(*factor), regular)
