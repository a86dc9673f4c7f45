r"""The formula of the multiclass support vector machine of Crammer and Singer.

Solves, for each item, over coefficients ``a``, ``(n, k)``, with the kernels K, ``(n, n)``, and rows ``e_i`` of the
identity for the classes::

    a = argmin_a  1/2 <a, K a> - <e, a>   subject to   sum_k a_ik = 0,   a_ik <= C_i e_ik

What a class has for an example it takes from the others, its own class at most C. As a program in the n (k - 1) amounts
taken, which are not negative, it has no equalities, and goes to the solver of quadratic programs. Derivatives have the
same shape: let E be the exchanges between entries below their limits, one of which, the pivot, gains what each other
loses. Then ::

    da = d - E (E'K E)^-1 E'(K d + dK a)

where ``d`` moves the held entries with C, and the free ones so that the sums stay zero. One Cholesky factor, and no
gradient of ``K (x) I``, which has k^2 as many numbers as that of K.

References:
    Crammer and Singer, On the algorithmic implementation of multiclass kernel-based vector machines, 2001.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from torchddn.functional.linear_algebra.symmetric import solve_symmetric
from torchddn.functional.nodes.handmade import Answer
from torchddn.functional.programs.solver import QuadraticSolver
from torchddn.quadratic.backends import OWN

__all__ = ["CrammerSinger", "CrammerSingerSolver"]


@dataclasses.dataclass(frozen=True)
class CrammerSingerSolver:
    """The opaque part: ``a``, ``(R, n, k)``, and what holds there, from K, C, ``(R, n)``, and the classes ``e``.

    Attributes:
        max_steps: Most steps for an item.
    """

    max_steps: int

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``a``; the free entries; status, steps, error."""
        K, C, own = inputs
        (R, n, k), dtype = own.shape, K.dtype
        m = n * (k - 1)
        others, give = _exchanges(own, dtype)  # the own class takes
        rows = torch.kron(torch.eye(n, dtype=dtype, device=K.device), K.new_ones(1, k - 1)).repeat(R, 1, 1)
        none = K.new_zeros(R, m)
        program = QuadraticSolver(0, True, self.max_steps, OWN)
        z, nothing, _, takes, _, _, _, status, num_steps, error, *_ = program.solve(
            (_between(K, give), none - 1, rows, C, none, none + torch.inf)
        )
        a = (give @ z[:, :m].reshape(R, n, k - 1, 1)).squeeze(3)
        # Where nothing more can be taken the own class is held at C, and one that gives nothing at zero.
        a = torch.where(own & takes.unsqueeze(2), C.unsqueeze(2), a)
        gives = ~nothing.reshape(R, n, k - 1)
        free = torch.zeros_like(own).scatter(2, others, gives) | (own & ~takes.unsqueeze(2))
        # Each example has one free entry at least, which makes its sum zero.
        least = _rows_of_identity(a.argmin(2), k)
        free = torch.where(free.any(2, keepdim=True), free, least)
        return a, free, status, num_steps, error

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        """The shapes of the result."""
        K, C, own = inputs
        count = C.new_empty(C.shape[0], dtype=torch.int64)
        return K.new_empty(own.shape), torch.empty_like(own), count, count.clone(), K.new_empty(K.shape[0])

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        raise AssertionError("called with inputs that carry no gradient")

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        raise AssertionError("called with inputs that carry no tangent")


@dataclasses.dataclass(frozen=True)
class CrammerSinger:
    """The formula of ``a``, ``(R, n, k)``, from K, ``(R, n, n)``, C, ``(R, n)``, ``a`` itself, ``e``, the free entries.

    Attributes:
        call: Who asks, for warnings.
    """

    call: str

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``a``, which is known."""
        return (inputs[2].clone(),)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        """``a``."""
        return (torch.empty_like(inputs[2]),)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        K, _, _, own, free = inputs
        w = self._respond(K, free, v)
        dK = dC = None
        if needed[0]:
            product = w @ y.mT
            dK = -0.5 * (product + product.mT)
        if needed[1]:
            # The transpose of `moved`.
            left = v - K @ w
            held = own & ~free
            dC = (held * left).sum(2) - held.any(2) * _mean(free, left)
        return dK, dC, None, None, None

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        K, _, _, own, free = inputs
        dK, dC = tangents[:2]
        moved = pulled = torch.zeros_like(y)
        if dC is not None:
            held = (own & ~free) * dC.unsqueeze(2)
            moved = held - free * (held.sum(2) / free.sum(2)).unsqueeze(2)
            pulled = K @ moved
        if dK is not None:
            pulled = pulled + 0.5 * (dK + dK.mT) @ y
        return moved - self._respond(K, free, pulled)

    def _respond(self, K: Tensor, free: Tensor, v: Tensor) -> Tensor:
        """``E (E'K E)^-1 E'v``, with the free exchanges in the columns of E."""
        R, n, k = v.shape
        pivot = _rows_of_identity(free.to(torch.int8).argmax(2), k)
        others, exchange = _exchanges(pivot, v.dtype)
        counts = free.gather(2, others)
        exchange = exchange * counts.unsqueeze(2)
        M = _between(K, exchange) + torch.diag_embed((~counts).to(v.dtype).reshape(R, n * (k - 1)))
        w = solve_symmetric(
            self.call,
            M,
            (exchange * v.unsqueeze(3)).sum(2).reshape(R, n * (k - 1), 1),
            "the examples that support the classes are linearly dependent",
            "more features, or a smaller C, single one out",
        )
        return (exchange * w.reshape(R, n, 1, k - 1)).sum(3)


def _exchanges(pivot: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The other classes, ``(R, n, k - 1)``, and what the pivot gains and they lose, ``(R, n, k, k - 1)``.

    Args:
        pivot: One class of each example, boolean ``(R, n, k)``.
        dtype: Of the exchanges.
    """
    k = pivot.shape[2]
    others = torch.argsort(pivot.to(torch.int8), dim=2, stable=True)[..., : k - 1]
    return others, pivot.unsqueeze(3).to(dtype) - _rows_of_identity(others, k).mT.to(dtype)


def _rows_of_identity(index: Tensor, k: int) -> Tensor:
    """Boolean, with an axis of k behind; `one_hot`, which reads its argument, cannot be mapped."""
    return index.unsqueeze(-1) == torch.arange(k, device=index.device)


def _between(K: Tensor, exchange: Tensor) -> Tensor:
    """``E'(K x I) E``, ``(R, n (k - 1), n (k - 1))``: kernels between exchanges."""
    R, n, k, size = exchange.shape
    E = exchange.transpose(2, 3).reshape(R, n * size, k)
    pairs = (E @ E.mT).reshape(R, n, size, n, size)
    return (K[:, :, None, :, None] * pairs).reshape(R, n * size, n * size)


def _mean(free: Tensor, v: Tensor) -> Tensor:
    """Mean of the free entries of each example, ``(R, n)``."""
    return (free * v).sum(2) / free.sum(2)
