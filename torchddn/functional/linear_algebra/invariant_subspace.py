r"""Invariant subspaces of symmetric matrices, with derivatives that see only the gap around them.

``Y``, ``(m, k)``, is an orthonormal basis of the eigenvectors of a chosen block of eigenvalues, ``X Y = Y L`` with
``L = Y^T X Y``. What X determines is the subspace, ``Y Y^T``, and not the basis. Of all bases that follow the subspace
the derivative takes the one that does not turn within it, ``Y^T dY = 0``, and this determines dY together with a
multiplier D::

    dY L - X dY + Y D = dX Y          Y^T dY = 0                                                                  (1)

Hence eigenvalues inside the block may coincide, and the derivative is that of every function of ``Y Y^T`` to every
order. With eigenvectors ``q_j`` outside of the block (1) has the solution ``sum_j q_j q_j^T dX y_i / (l_i - l_j)``.

X is given, or as ``C^T C`` by its factor C, which is then multiplied by twice: ``dX Z = dC^T (C Z) + C^T (dC Z)``.

Differentiated again, (1) with right-hand sides ``(G, H)`` gives the same system, with the right-hand sides
``dG - Z dL + dX Z - dY D`` and ``dH - dY^T Z``, so that one node whose derivatives call itself has all of them.

References:
    Edelman, Arias, Smith, The geometry of algorithms with orthogonality constraints, 1998: horizontal lifts.
    Magnus, On differentiating eigenvalues and eigenvectors, 1985, for k = 1.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.functional.nodes.degeneracy import warn_undetermined
from torchddn.functional.nodes.handmade import Answer, solve

__all__ = ["Spectrum", "Split", "inverse_gaps", "subspace"]

_CUTOFF = 10.0  # roundings within which two eigenvalues are equal


class Split(NamedTuple):
    """A basis ``Y``, ``(R, m, k)``, of the block, one of the rest, ``(R, m, m - k)``, and between them.

    ``inverse_gap``, ``(R, m - k, k)``, holds ``1 / (l_i - l_j)``, zero where the gap is closed; ``closed``, ``(R,)``,
    says where one is. It counts as a constant: what depends on it is differentiated through X.
    """

    Y: Tensor
    rest: Tensor
    inverse_gap: Tensor
    closed: Tensor


def inverse_gaps(gap: Tensor, rounding: Tensor) -> tuple[Tensor, Tensor]:
    """``1 / gap``, ``(R, ...)``, zero where it is within ``rounding``, ``(R,)``; and which items have such a gap."""
    within = gap.abs() <= rounding.reshape(-1, *[1] * (gap.dim() - 1))
    return torch.where(within, 0, gap.reciprocal()), within.flatten(1).any(dim=1)


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The :class:`Split` at the ``k`` largest, or smallest, eigenvalues of X, a constant to whoever differentiates."""

    k: int
    top: bool

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        (X,) = inputs
        m, k = X.shape[1], self.k
        values, vectors = torch.linalg.eigh(X)
        if self.top:
            values, vectors = values.flip(1), vectors.flip(2)
        Y, rest = vectors.split((k, m - k), dim=2)
        block, others = values.split((k, m - k), dim=1)
        rounding = _CUTOFF * max(m, 10) * torch.finfo(X.dtype).eps * values.abs().amax(dim=1)
        inverse_gap, closed = inverse_gaps(block.unsqueeze(1) - others.unsqueeze(2), rounding)
        return _signed(Y), rest.contiguous(), inverse_gap, closed

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        (X,), k = inputs, self.k
        R, m = X.shape[:2]
        gaps = X.new_empty(R, m - k, k)
        return X.new_empty(R, m, k), X.new_empty(R, m, m - k), gaps, X.new_empty(R, dtype=torch.bool)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        return (None,)

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        return torch.zeros_like(y)


def _signed(Y: Tensor) -> Tensor:
    """Columns turned so that the entry of largest modulus is positive, of equals up to rounding the first."""
    size = Y.abs()
    largest = size >= (1 - 1e3 * torch.finfo(Y.dtype).eps) * size.amax(dim=1, keepdim=True)
    leading = Y.gather(1, largest.to(torch.int8).argmax(dim=1, keepdim=True))
    return torch.where(leading < 0, -Y, Y)


def subspace(call: str, X: Tensor, split: Split, *, factored: bool = False) -> Tensor:
    """``Y``, differentiable in the symmetric ``X``, ``(R, m, m)``, or in its factor ``C``, ``(R, n, m)``."""
    return solve(_Basis(call, factored), X, *split)[0]


def _changed(factored: bool, X: Tensor, dX: Tensor, Z: Tensor) -> Tensor:
    """``dX Z`` for the change ``dX`` of X, or of its factor."""
    return dX.mT @ (X @ Z) + X.mT @ (dX @ Z) if factored else dX @ Z


def _pulled(factored: bool, X: Tensor, W: Tensor, Z: Tensor) -> Tensor:
    """The gradient, in X or in its factor, of ``tr(W^T X Z)``."""
    if not factored:
        return W @ Z.mT
    XW, XZ = (X @ torch.cat([W, Z], dim=2)).split(W.shape[2], dim=2)
    return XW @ Z.mT + XZ @ W.mT


@dataclasses.dataclass(frozen=True)
class _Basis:
    """The formula of ``Y`` from ``X``; the :class:`Split` is handed over."""

    call: str
    factored: bool

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        return (inputs[1].clone(),)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return (torch.empty_like(inputs[1]),)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        return _pulled(self.factored, inputs[0], self._tangent(y, v, inputs), y), *[None] * 4

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        X, dX = inputs[0], tangents[0]
        return torch.zeros_like(y) if dX is None else self._tangent(y, _changed(self.factored, X, dX, y), inputs)

    def _tangent(self, Y: Tensor, G: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """``dY`` of (1) for the right-hand side ``G``."""
        X, _, rest, inverse_gap, closed = inputs
        warn_undetermined(
            self.call,
            closed,
            "an eigenvalue inside the chosen block equals one outside",
            "choose k so that such eigenvalues stay together",
        )
        XY = X @ Y
        L = XY.mT @ XY if self.factored else Y.mT @ XY
        Z, _ = _bordered(self.factored, G, torch.zeros_like(L), X, Y, L, rest, inverse_gap)
        return Z


def _bordered(
    factored: bool, G: Tensor, H: Tensor, X: Tensor, Y: Tensor, L: Tensor, rest: Tensor, inverse_gap: Tensor
) -> tuple[Tensor, Tensor]:
    """``Z``, ``(R, m, k)``, and ``D``, ``(R, k, k)``, with ``Z L - X Z + Y D = G`` and ``Y^T Z = H``."""
    (stacked,) = solve(_Bordered(factored), G, H, X, Y, L, rest, inverse_gap)
    Z, D = stacked.split((G.shape[1], H.shape[1]), dim=1)
    return Z, D


@dataclasses.dataclass(frozen=True)
class _Bordered:
    """The formula of ``Z`` above ``D``, ``(R, m + k, k)``; the matrix of the system is symmetric."""

    factored: bool

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        G, H, _, Y, L, rest, inverse_gap = inputs
        Z = Y @ H + rest @ (inverse_gap * (rest.mT @ G))
        return (torch.cat([Z, Y.mT @ G - H @ L + L @ H], dim=1),)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        G, H = inputs[:2]
        return (G.new_empty(G.shape[0], G.shape[1] + H.shape[1], G.shape[2]),)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        (Z, D), (A, E) = self._halves(y, inputs), self._halves(v, inputs)
        W, M = _bordered(self.factored, A, E, *inputs[2:])
        dX, dY, dL = _pulled(self.factored, inputs[2], W, Z), -W @ D.mT - Z @ M.mT, -Z.mT @ W
        return W, M, dX, dY, dL, None, None

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        Z, D = self._halves(y, inputs)
        dG, dH, dX, dY, dL, *_ = tangents
        G, H = torch.zeros_like(Z) if dG is None else dG, torch.zeros_like(D) if dH is None else dH
        if dX is not None:
            G = G + _changed(self.factored, inputs[2], dX, Z)
        if dY is not None:
            G, H = G - dY @ D, H - dY.mT @ Z
        if dL is not None:
            G = G - Z @ dL
        return torch.cat(_bordered(self.factored, G, H, *inputs[2:]), dim=1)

    def _halves(self, stacked: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        m = inputs[0].shape[1]
        return stacked[:, :m], stacked[:, m:]
