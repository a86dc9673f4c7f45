r"""The formula of total least squares.

Solves, for each item, with ``C = [A, b]`` of m + k columns::

    minimize over E, y   |E|_F^2   subject to   (C + E) [y; -I] = 0

``[y; -I]`` spans the right singular vectors ``V = [V_1; V_2]`` of the k smallest singular values, an invariant subspace
of ``C^T C``, and ``y = -V_1 V_2^-1`` does not depend on its basis. ``C^T C`` is never formed: only gaps between
singular values, as ``(s_i - s_j) (s_i + s_j)``, are ever squared.

References:
    Golub and Van Loan, An analysis of the total least squares problem, 1980. Van Huffel and Vandewalle, The Total Least
    Squares Problem, 1991, sections 2 and 3.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.functional.linear_algebra.invariant_subspace import Split, inverse_gaps, subspace
from torchddn.functional.nodes.handmade import Answer, solve

__all__ = ["TotalFit", "total_fit"]

_CUTOFF = 10.0  # roundings within which two singular values are equal, or a last component zero


class TotalFit(NamedTuple):
    """``y``, ``(R, m, k)``, differentiable, of any value where none ``exists``; the objective, ``(R,)``."""

    y: Tensor
    objective: Tensor
    exists: Tensor


def total_fit(call: str, A: Tensor, b: Tensor, told: Tensor) -> TotalFit:
    """The solution for ``A``, ``(R, n, m)``, and ``b``, ``(R, n, k)``; a warning counts the items that are ``told``."""
    m, k = A.shape[2], b.shape[2]
    C = torch.cat([A, b], dim=2)
    Y, rest, inverse_gap, closed, objective, exists = solve(_SmallestBlock(k), C.detach())
    V = subspace(call, C, Split(Y, rest, inverse_gap, closed & told & exists), factored=True)
    identity = torch.eye(k, dtype=V.dtype, device=V.device)
    (inverse,) = solve(_Inverse(), torch.where(exists.reshape(-1, 1, 1), V[:, m:], identity))
    return TotalFit(-V[:, :m] @ inverse, objective, exists)


@dataclasses.dataclass(frozen=True)
class _SmallestBlock:
    """The :class:`Split` of ``C^T C`` at the k smallest singular values of C, a constant to whoever differentiates.

    Beside it the sum of their squares and whether a solution exists, ``(R,)`` each.
    """

    k: int

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        (C,) = inputs
        k, p = self.k, C.shape[2]
        # The singular values of C are those of R, which is square; C may be one to k rows short.
        R = torch.linalg.qr(C, mode="r").R
        R = torch.cat([R, R.new_zeros(len(R), p - R.shape[1], p)], dim=1)
        _, sigma, Vh = torch.linalg.svd(R)
        rest, Y = Vh.mT.split((p - k, k), dim=2)
        others, block = sigma.split((p - k, k), dim=1)
        eps = torch.finfo(C.dtype).eps
        rounding = _CUTOFF * p * eps * sigma[:, 0]
        gap = block.unsqueeze(1) - others.unsqueeze(2)
        within, closed = inverse_gaps(gap, rounding)
        if k == 1:
            # Of equal vectors the one with the largest last component gives the shortest y.
            equal = torch.cat([(within == 0).squeeze(2), torch.ones_like(sigma[:, :1], dtype=torch.bool)], dim=1)
            last = torch.where(equal, Vh[:, :, -1], 0)
            length = torch.linalg.vector_norm(last, dim=1, keepdim=True)
            last = torch.where(length > 0, last / torch.where(length > 0, length, 1), 0)
            Y = torch.where(closed.reshape(-1, 1, 1) & (length > 0).unsqueeze(2), Vh.mT @ last.unsqueeze(2), Y)
        total = block.unsqueeze(1) + others.unsqueeze(2)
        inverse_gap = torch.where(within == 0, 0, within / torch.where(total > 0, total, 1))
        exists = torch.linalg.svdvals(Y[:, -k:])[:, -1] > _CUTOFF * p * eps
        return Y.contiguous(), rest.contiguous(), inverse_gap, closed, block.square().sum(dim=1), exists

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        (C,) = inputs
        R, p, k = C.shape[0], C.shape[2], self.k
        flags = C.new_empty(R, dtype=torch.bool)
        return (
            C.new_empty(R, p, k),
            C.new_empty(R, p, p - k),
            C.new_empty(R, p - k, k),
            flags,
            C.new_empty(R),
            torch.empty_like(flags),
        )

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        return (None,)

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        return torch.zeros_like(y)


@dataclasses.dataclass(frozen=True)
class _Inverse:
    """The inverse of regular matrices, ``(R, k, k)``, whose derivatives are right in nested forward mode too."""

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        return (torch.linalg.inv(inputs[0]),)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return (torch.empty_like(inputs[0]),)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        return (-y.mT @ v @ y.mT,)

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        return torch.zeros_like(y) if tangents[0] is None else -y @ tangents[0] @ y
