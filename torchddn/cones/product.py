"""Products of cones: what a vector of slacks lies in, its projection, and the derivative of that.

By Moreau, ``w = s - z`` with ``s`` the projection of w onto the cone and ``z`` that of -w onto its dual, at right
angles. So one vector w holds the slacks and the multipliers of a cone program.
"""

import dataclasses
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.cones import exponential, power, second_order, semidefinite
from torchddn.cones.semidefinite import Lyapunov, lyapunov

__all__ = ["ProductCone"]

# A slack within so much of its size is zero: its row counts as active.
_ROUNDING = 1e-12


class _Block(NamedTuple):
    """Cones of one kind and size, one after the other."""

    kind: str
    start: int
    count: int
    length: int
    exponents: tuple[tuple[float, ...], ...] = ()

    @property
    def stop(self) -> int:
        return self.start + self.count * self.length


@dataclasses.dataclass(frozen=True)
class ProductCone:
    """A product of cones, in this order.

    Attributes:
        zero: Entries that are zero.
        nonnegative: Entries that are not negative.
        second_order: Lengths of second-order cones.
        semidefinite: Orders of semidefinite matrices, held as :mod:`torchddn.cones.semidefinite` says.
        exponential: How many exponential cones.
        power: Exponents of each power cone.
    """

    zero: int = 0
    nonnegative: int = 0
    second_order: tuple[int, ...] = ()
    semidefinite: tuple[int, ...] = ()
    exponential: int = 0
    power: tuple[tuple[float, ...], ...] = ()

    @property
    def size(self) -> int:
        """Entries in all."""
        return max((block.stop for block in self._blocks()), default=0)

    @property
    def is_polyhedral(self) -> bool:
        """Whether linear equalities and inequalities are all there is."""
        return not (self.second_order or self.semidefinite or self.exponential or self.power)

    def project(self, w: Tensor) -> Tensor:
        """The nearest points of the cone to ``w``, ``(R, size)``."""
        parts = [w[:, :0]]
        for block in self._blocks():
            part = w[:, block.start : block.stop].unflatten(1, (block.count, block.length))
            parts.append(_project(block, part).flatten(1))
        return torch.cat(parts, dim=1)

    def slope(self, w: Tensor, s: Tensor, solve: Lyapunov = lyapunov) -> tuple[Tensor, Tensor, Tensor]:
        """The derivative of the projection ``s`` of ``w``, symmetric and block-diagonal: entries, rows and columns.

        ``(R, number of entries)`` each. Differentiable in both if ``solve`` is, which solves Lyapunov equations. At a
        kink one of several: a slack that is zero stays zero.
        """
        rounding = _ROUNDING * (1 + w.detach().abs().sum(1, keepdim=True))
        nowhere = torch.zeros(0, dtype=torch.int64, device=w.device)
        values, rows, columns = [w[:, :0]], [nowhere], [nowhere]
        for block in self._blocks():
            if block.kind == "zero":
                continue
            part, image = w[:, block.start : block.stop], s[:, block.start : block.stop]
            at = torch.arange(block.start, block.stop, device=w.device)
            if block.kind == "nonnegative":
                values.append((part.detach() > rounding).to(w.dtype))
                rows.append(at)
                columns.append(at)
                continue
            shape = (block.count, block.length)
            values.append(_slope(block, part.unflatten(1, shape), image.unflatten(1, shape), solve).flatten(1))
            square = (*shape, block.length)
            rows.append(at.reshape(shape).unsqueeze(2).expand(square).flatten())
            columns.append(at.reshape(shape).unsqueeze(1).expand(square).flatten())
        R = w.shape[0]
        return torch.cat(values, dim=1), torch.cat(rows).expand(R, -1), torch.cat(columns).expand(R, -1)

    def _blocks(self) -> Iterator[_Block]:
        """Never empty ones."""
        start = 0
        lengths = [order * (order + 1) // 2 for order in self.semidefinite]
        for kind, sizes in (
            ("zero", [1] * self.zero),
            ("nonnegative", [1] * self.nonnegative),
            ("second_order", self.second_order),
            ("semidefinite", lengths),
            ("exponential", [3] * self.exponential),
        ):
            for length, run in groupby(sizes):
                count = len(list(run))
                yield _Block(kind, start, count, length)
                start += count * length
        for length, run in groupby(self.power, key=lambda exponents: len(exponents) + 1):
            exponents = tuple(run)
            yield _Block("power", start, len(exponents), length, exponents)
            start += len(exponents) * length


def _project(block: _Block, w: Tensor) -> Tensor:
    match block.kind:
        case "zero":
            return torch.zeros_like(w)
        case "nonnegative":
            return w.clamp(min=0)
        case "second_order":
            return second_order.project(w)
        case "semidefinite":
            return semidefinite.project(w)
        case "exponential":
            return exponential.project(w)
        case _:
            return power.project(w, w.new_tensor(block.exponents))


def _slope(block: _Block, w: Tensor, s: Tensor, solve: Lyapunov) -> Tensor:
    match block.kind:
        case "second_order":
            return second_order.slope(w)
        case "semidefinite":
            return semidefinite.slope(w, s, solve)
        case "exponential":
            return exponential.slope(w, s)
        case _:
            return power.slope(w, s, w.new_tensor(block.exponents))
