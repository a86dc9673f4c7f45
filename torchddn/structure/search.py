"""Finding the structure of a problem at its first backward pass.

A hypothesis is an answer to "what would H be, if it was diagonal?": a declaration reads it with a few products, and one
more with a generic vector tells whether it is. Where K is small enough to be formed anyway it is formed first, and the
hypotheses cost no product at all.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchddn.linear import (
    Banded,
    BandedMatrix,
    BlockDiagonal,
    Declaration,
    Dense,
    Diagonal,
    DiagonalMatrix,
    LowRank,
    Operator,
    RowDeclaration,
    Saddle,
    SchurComplement,
    Sparse,
    SparseRows,
    Zero,
)
from torchddn.problem import BatchedProblem
from torchddn.structure.memory import Belief
from torchddn.structure.ordering import narrowest
from torchddn.structure.places import Placed, place
from torchddn.structure.system import System, generic

__all__ = ["guess_curvature", "is_formed", "look"]

# Up to so many unknowns without structure K is formed, unless that would touch more numbers than this; above, a Krylov
# method has the first try.
_DENSE_SIZE = 128
_DENSE_WORK = 2**22

# Up to so many variables or rows a pattern is looked at entry by entry, unless that would touch more numbers than this.
# Without a pattern of H there are still the Krylov methods, without one of A only a dense complement.
_LOOKED_AT = 2048
_LOOK_WORK_H, _LOOK_WORK_A = 2**25, 2**28

# Numbers in a batch of matrices H that are formed to be looked at.
_FORMED_NUMBERS = 2**24

# What is guessed at: the widest band, the highest rank and the largest groups that are read on the chance.
_WIDEST_GUESS = 4
_HIGHEST_RANK = 4
_MOST_IN_A_BLOCK = 32

# What is used: bands up to this width, of which elimination takes so many numbers of work for each square of the width;
# colored dense matrices up to this size; rows that need no more colors than that.
_WIDEST = 64
_BAND_WORK = 8
_LARGEST_SPARSE = 512
_MOST_COLORS = 8

# How many probes a look takes together, unless their products are more numbers than this, and how many items it samples
# for dependent rows.
_CHUNK = 64
_CHUNK_NUMBERS = 2**22
_SAMPLE = 4


def is_formed(system: System) -> bool:
    """Whether a K without structure is formed, rather than multiplied with."""
    return system.size <= _DENSE_SIZE and system.m * system.work <= _DENSE_WORK


def look(problem: BatchedProblem, system: System, declared: Any) -> Belief | None:
    """What is declared, completed by what is found; None where there is nothing to see."""
    H, A = declared if isinstance(declared, tuple) else (None if declared == "auto" else declared, None)
    said = H is not None or A is not None
    view = _View(system)
    if H is None or (isinstance(H, Sparse) and H.pattern is None):
        if view.is_blind:
            return None
        H = view.find_H(_blocks(problem)) if H is None else Sparse(view.pattern_H())
    if H is None:
        return Belief(None)
    if not system.num_rows:
        return Belief(H, declared=said)
    if A is None and isinstance(H, Dense):
        A = Dense()  # the columns of H are read with those of A below them
    elif A is None or (isinstance(A, Sparse) and A.pattern is None):
        A = view.find_A(A is not None)
    belief = Belief(H, A, redundant=view.redundant, declared=said)
    return belief if said else view.banded_whole(belief)


def guess_curvature(problem: BatchedProblem, system: System) -> Declaration | None:
    """The structure of H, if it is one of those that a few products tell."""
    view = _View(system)
    return None if view.is_blind else view.guess_H(_blocks(problem))


def _blocks(problem: BatchedProblem) -> list[BlockDiagonal]:
    """Groups of variables that the shape of the decision suggests: the last axes, the first ones, equal tensors."""
    shapes, m = problem.layout.shapes, problem.m
    groups: list[Tensor] = []
    if len(shapes) == 1:
        variable = torch.arange(m).view(shapes[0])
        for axis in range(1, variable.ndim):
            group = variable.flatten(axis).flatten(0, axis - 1)
            groups += [group, group.mT]
    elif len({shape.numel() for shape in shapes}) == 1:
        groups.append(torch.arange(m).view(len(shapes), -1).mT)
    found = []
    for group in groups:
        if 1 < group.shape[1] <= _MOST_IN_A_BLOCK and group.shape[0] > 1:
            order = tuple(group.flatten().tolist())
            found.append(BlockDiagonal(group.shape[1], None if order == tuple(range(m)) else order))
    return found


class _View:
    """A look at the K without masks of one batch. Items with numbers that are not finite say nothing."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._z = generic(system.m, system.like)
        self.redundant = False

    @property
    def is_blind(self) -> bool:
        """Whether no item says anything."""
        return not bool(self._finite.any())

    def guess_H(self, blocks: Sequence[BlockDiagonal]) -> Declaration | None:
        """The structure of H by a few products, if they tell."""
        m = self._system.m
        if self._explains(Diagonal()):
            return Diagonal()
        for declaration in blocks:
            if self._explains(declaration):
                return declaration
        if m > 2 * (2 * _WIDEST_GUESS + 1) and self._explains(Banded(_WIDEST_GUESS)):
            return Banded(self._width(Banded(_WIDEST_GUESS)))
        if self._system.symmetric:
            for rank in range(1, _HIGHEST_RANK + 1):
                if m >= 12 * rank and self._explains(LowRank(rank)):
                    return LowRank(rank)
        return None

    def find_H(self, blocks: Sequence[BlockDiagonal]) -> Declaration | None:
        """The structure of H; None where only products are to be used."""
        system = self._system
        m = system.m
        guess = self.guess_H(blocks)
        if guess is not None:
            return guess
        otherwise = Dense() if is_formed(system) else None
        if m > _LOOKED_AT or m * system.work > _LOOK_WORK_H:
            return otherwise
        pattern = self.pattern_H()
        order, width = narrowest(pattern)
        if 0 < width < m / 5 and width <= _WIDEST:
            return Banded(width, order)
        sparse = Sparse(pattern)
        if 2 * sparse.num_colors < m and m <= _LARGEST_SPARSE:
            return sparse
        return otherwise

    def find_A(self, sparse: bool) -> RowDeclaration:
        """The structure of the rows; ``sparse`` says that somebody declared that they are."""
        system = self._system
        r, like = system.num_rows, system.like
        # Entries may be zero in some items: generic weights make one matrix of all that is zero where all are.
        weights = torch.where(self._finite, 1 + generic(system.batch, like).abs(), 0)

        def multiply(w: Tensor) -> Tensor:
            products = (system.multiply_rows(part).nan_to_num(0.0, 0.0, 0.0) for part in self._parts(w.to(like)))
            return torch.cat([torch.einsum("kbm,b->km", part, weights) for part in products]).cpu()

        found = place(multiply, r, r if sparse else min(_MOST_COLORS, r - 1))
        if found is not None and not found.num_colors:
            return Zero()
        if found is not None and (sparse or self._explains_rows(found.to(like.device))):
            found = found.to(like.device)
            self.redundant = self._is_redundant(found)
            return found
        if r <= _LOOKED_AT and r * system.work <= _LOOK_WORK_A:
            self.redundant = self._is_redundant(Dense())
        return Dense()

    def pattern_H(self) -> Tensor:
        """Where H is not zero in some item, boolean ``(m, m)``."""
        eye = torch.eye(self._system.m, dtype=self._system.like.dtype, device=self._system.like.device)
        rows = []
        for probes in self._parts(eye):
            products = self._multiply_H(probes)
            rows.append((products.abs() > _eps(products) * self._scale.unsqueeze(1)).any(1).cpu())
        pattern = torch.cat(rows).mT  # a product is a column
        return pattern | pattern.mT

    def banded_whole(self, belief: Belief) -> Belief:
        """The belief that takes K as one banded matrix, where that is cheaper than what there is, or all there is."""
        system, H, A = self._system, belief.H, belief.A
        if H is None or not isinstance(A, Placed) or system.size > _LOOKED_AT:
            return belief
        within, m, s = H.occupied(system.m), system.m, system.size
        if within is None:
            return belief
        pattern = torch.zeros(s, s, dtype=torch.bool)
        pattern[:m, :m], pattern[m:, :m] = within, A.pattern()
        pattern[:m, m:] = pattern[m:, :m].mT
        order, width = narrowest(pattern)
        singular = self._is_singular(H)
        by_rows = s**3 / 3 if singular else system.num_rows**3 / 3 + system.num_rows * m
        if 0 < width <= _WIDEST and _BAND_WORK * s * width**2 < by_rows:
            return Belief(Banded(width, order), whole=True)
        return dataclasses.replace(belief, eliminates=not singular)

    @functools.cached_property
    def _H_z(self) -> Tensor:
        return self._multiply_H(self._z[None])[0]

    @functools.cached_property
    def _finite(self) -> Tensor:
        """Which items say something, ``(B,)``."""
        return self._H_z.isfinite().all(1)

    @functools.cached_property
    def _scale(self) -> Tensor:
        """The size of the entries of each H, ``(B,)``."""
        return torch.where(self._finite, self._H_z.abs().amax(1), 0)

    @functools.cached_property
    def _formed(self) -> Tensor | None:
        """H as ``(m, B, m)``, where it is small enough to be formed."""
        system = self._system
        if not is_formed(system) or system.batch * system.m**2 > _FORMED_NUMBERS:
            return None
        return system.multiply_H(torch.eye(system.m, dtype=system.like.dtype, device=system.like.device))

    def _parts(self, probes: Tensor) -> tuple[Tensor, ...]:
        """Probes whose products are held together."""
        return probes.split(max(1, min(_CHUNK, _CHUNK_NUMBERS // (self._system.batch * self._system.m))))

    def _multiply_H(self, probes: Tensor) -> Tensor:
        if self._formed is None:
            return self._system.multiply_H(probes)
        return torch.tensordot(probes, self._formed, 1)

    def _is_singular(self, H: Declaration) -> bool:
        """Whether H, read as declared, has a zero on its diagonal: elimination would fail."""
        return bool((self._read(H).diagonal()[self._finite] == 0).any())

    def _is_redundant(self, declaration: RowDeclaration) -> bool:
        """Whether the rows that count in a few items, read as declared, are dependent."""
        system = self._system
        items = self._finite.nonzero().flatten()[:_SAMPLE]
        probes = declaration.row_probes(system.num_rows, system.like)
        products = [system.multiply_rows(part)[:, items] for part in self._parts(probes)]
        A = declaration.rows(torch.cat(products), system.num_rows)
        active = None if system.active is None else system.active[items]
        size = Saddle(DiagonalMatrix(system.like.new_ones(len(items), system.m)), A, active).size_A().unsqueeze(1)
        # Of the size of A, so that the factorization judges A A' and not the units.
        H = DiagonalMatrix(torch.where(size > 0, size, 1).expand(-1, system.m))
        solver = SchurComplement()
        return not bool(solver.sound(solver.init(Saddle(H, A, active))).all())

    def _explains_rows(self, declaration: Placed) -> bool:
        """Whether the rows, read as declared, give a product with a generic vector."""
        system = self._system
        w = generic(system.num_rows, system.like)
        probes = declaration.row_probes(system.num_rows, system.like)
        products = system.multiply_rows(torch.cat([probes, w[None]]))
        A = declaration.rows(products[:-1], system.num_rows)
        assert isinstance(A, SparseRows)
        believed = A.rmatvec(w.expand(system.batch, -1))
        return self._fits(products[-1], believed)

    def _explains(self, declaration: Declaration) -> bool:
        believed = self._read(declaration).matvec(self._z.expand(self._system.batch, -1).contiguous())
        return self._fits(self._H_z, believed)

    def _fits(self, true: Tensor, believed: Tensor) -> bool:
        """Whether two products agree, ``(B, m)``, up to what refinement takes care of."""
        difference, eps = (true - believed).abs(), _eps(believed)
        fits = difference <= eps**0.6 * true.abs() + eps**0.75 * true.abs().amax(1, keepdim=True)
        return bool((fits.all(1) | ~self._finite).all())

    def _read(self, declaration: Declaration) -> Operator:
        system = self._system
        return declaration.operator(self._multiply_H(declaration.probes(system.m, system.like)), system.symmetric)

    def _width(self, declaration: Banded) -> int:
        """The bandwidth without the outer diagonals that are zero in every item."""
        matrix = self._read(declaration)
        assert isinstance(matrix, BandedMatrix)
        present = (matrix.band.abs() > _eps(matrix.band) * self._scale[:, None, None]).any(2).any(0)
        offsets = torch.arange(-declaration.bandwidth, declaration.bandwidth + 1, device=present.device).abs()
        return max(1, int((offsets * present).max()))


def _eps(like: Tensor) -> float:
    return torch.finfo(like.dtype).eps
