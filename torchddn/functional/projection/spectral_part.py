r"""The positive part of symmetric matrices, with derivatives of every order.

``f(X) = Q max(L, 0) Q^T`` for ``X = Q L Q^T``. Call an eigenvalue ``l_i`` *in* if it is not negative, else *out*. In
the basis Q the derivative multiplies by the divided differences of max(l, 0)::

    (Df(X) H)_ij = h_ij                        i, j in
                 = h_ij l_i / (l_i - l_j)      i in, j out, and likewise with i and j exchanged
                 = 0                           i, j out

which never divide by the difference of two eigenvalues of one kind: these may repeat. Nor does the derivative of the
sign of X, ``R = Q sign(L) Q^T``, which is ``DR(X) H = 2 G(H)``, where G divides entries between in and out by
``|l_i - l_j|`` and makes the others zero. The second derivatives are products of the same numbers. With the modulus
``A = R X``, and the part ``H_d`` of H between eigenvectors of one kind::

    D^2 f(X)[H, V] = M + M^T,     M = G(H) A G(V) + G(H_d G(V) A + A G(H) V_d)                                     (1)
    DG(X)[V] H     = N + N^T,     N = -R G(H) G(V) - G(H_d R G(V) + G(H) R V_d)                                    (2)

f, R and their derivatives are nodes, and the derivatives of these are made of the same nodes: there are those of every
order. All of them are symmetric, and transposes of themselves.

References:
    Daleckii, Krein, Integration and Differentiation of Functions of Hermitian Operators, 1965. Malick, Sendov, Clarke
    Generalized Jacobian of the Projection onto the Cone of Positive Semidefinite Matrices, 2006.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.functional.nodes.handmade import Answer, solve

__all__ = ["positive_part"]

_CUTOFF = 10.0  # roundings within which an eigenvalue is zero, and in


def positive_part(X: Tensor) -> Tensor:
    """``f(X)``, ``(R, m, m)``, for X symmetric and finite."""
    return _function(False, X, _Basis(*solve(_Eigenvectors(), X.detach())))


class _Basis(NamedTuple):
    """``Q``, ``(R, m, m)``, and ``l``, ``(R, m)``: constants, whose dependence on X the nodes know."""

    Q: Tensor
    values: Tensor

    def is_in(self) -> Tensor:
        eps = torch.finfo(self.values.dtype).eps
        size = self.values.abs().amax(dim=1, keepdim=True)
        return self.values >= -_CUTOFF * max(self.values.shape[1], 10) * eps * size


@dataclasses.dataclass(frozen=True)
class _Eigenvectors:
    """The formula of a basis from X; nobody asks for its derivative."""

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        values, Q = torch.linalg.eigh(inputs[0])
        return Q, values

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        (X,) = inputs
        return torch.empty_like(X), X.new_empty(X.shape[:2])

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        return (None,)

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        return torch.zeros_like(y)


@dataclasses.dataclass(frozen=True)
class _Function:
    """The formula of ``f``, or of the sign ``R``, from X and a basis."""

    sign: bool

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        _, Q, values = inputs
        kind = _Basis(Q, values).is_in()
        image = torch.where(kind, 1.0, -1.0).to(Q.dtype) if self.sign else torch.where(kind, values.clamp(min=0), 0)
        return ((Q * image.unsqueeze(1)) @ Q.mT,)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return (torch.empty_like(inputs[0]),)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        return self.push(y, inputs, (v,)), None, None

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        X, *basis = inputs
        return torch.zeros_like(y) if tangents[0] is None else _slope(self.sign, tangents[0], X, _Basis(*basis))


@dataclasses.dataclass(frozen=True)
class _Slope:
    """The formula of ``Df(X) H``, or of ``DR(X) H``, from H, X and a basis, for the symmetric part of H."""

    sign: bool

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        H, _, Q, values = inputs
        kind = _Basis(Q, values).is_in()
        image = torch.where(kind, values.clamp(min=0), 0)
        differ = kind.unsqueeze(2) != kind.unsqueeze(1)
        gap = torch.where(differ, (values.unsqueeze(2) - values.unsqueeze(1)).abs(), 1)
        if self.sign:
            weights = torch.where(differ, 2 / gap, 0)
        else:
            both = kind.unsqueeze(2) & kind.unsqueeze(1)
            weights = torch.where(differ, (image.unsqueeze(2) + image.unsqueeze(1)) / gap, both.to(Q.dtype))
        return (Q @ (weights * (Q.mT @ _symmetric(H) @ Q)) @ Q.mT,)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return (torch.empty_like(inputs[0]),)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        H, X, *basis = inputs
        dX = _curvature(self.sign, H, v, X, _Basis(*basis)) if needed[1] else None
        return _slope(self.sign, v, X, _Basis(*basis)), dX, None, None

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        H, X, *basis = inputs
        dH, dX = tangents[:2]
        change = torch.zeros_like(y) if dH is None else _slope(self.sign, dH, X, _Basis(*basis))
        return change if dX is None else change + _curvature(self.sign, H, dX, X, _Basis(*basis))


def _function(sign: bool, X: Tensor, basis: _Basis) -> Tensor:
    return solve(_Function(sign), X, *basis)[0]


def _slope(sign: bool, H: Tensor, X: Tensor, basis: _Basis) -> Tensor:
    return solve(_Slope(sign), H, X, *basis)[0]


def _curvature(sign: bool, H: Tensor, V: Tensor, X: Tensor, basis: _Basis) -> Tensor:
    """The second derivative in the directions H and V: (1), or twice (2)."""
    H, V, R = _symmetric(H), _symmetric(V), _function(True, X, basis)

    def divided(H: Tensor) -> Tensor:
        return _slope(True, H, X, basis) / 2

    H_g, V_g = divided(H), divided(V)
    H_d, V_d = ((T + R @ T @ R) / 2 for T in (H, V))
    if sign:
        N = -R @ H_g @ V_g - divided(H_d @ R @ V_g + H_g @ R @ V_d)
        return 2 * (N + N.mT)
    A = 2 * _function(False, X, basis) - X
    M = H_g @ A @ V_g + divided(H_d @ V_g @ A + A @ H_g @ V_d)
    return M + M.mT


def _symmetric(H: Tensor) -> Tensor:
    return (H + H.mT) / 2
