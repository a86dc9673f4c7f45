"""Reading the numbers of a K whose structure is believed to be known, and the solver that suits it."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchddn.linear import (
    GMRES,
    LU,
    MINRES,
    Banded,
    BandedMatrix,
    BlockDiagonal,
    DenseMatrix,
    Diagonal,
    LowRank,
    MatrixFree,
    Operator,
    Saddle,
    SchurComplement,
    Solver,
    Sparse,
    SparseRows,
    Zero,
    choose,
)
from torchddn.linear.krylov import UNASKED_STEPS
from torchddn.linear.pinning import pin
from torchddn.structure.memory import Belief
from torchddn.structure.places import Placed
from torchddn.structure.system import System

__all__ = ["fits", "is_learning", "read", "suitable"]

# Numbers in a batch of matrices that are held: above, there are products only.
_NUMBERS = 2**28


def read(system: System, belief: Belief, remembers: bool = True) -> Operator:
    """K as the belief says it looks; what never changes is not read again if it ``remembers``."""
    H, A, m = belief.H, belief.A, system.m
    if H is None:
        return system.truth
    if belief.is_dense:
        return read_dense(system)
    if not belief.probes:
        belief.probes = _probes(system, belief)
    if belief.whole:
        whole = H.operator(system.multiply(belief.probes[0]), True)
        assert isinstance(whole, BandedMatrix)
        return BandedMatrix(whole.band, True, whole.order, m)
    # Of H and of the rows, what is remembered is not read.
    constants = belief.constants if A is not None else belief.constants[:1]
    known = [remembers and constant.is_known for constant in constants]
    products = iter(_products(system, [p for p, k in zip(belief.probes, known, strict=True) if not k]))
    parts = [
        constant.recall(system.batch) if k else next(products) for constant, k in zip(constants, known, strict=True)
    ]
    if remembers:
        _learn(system, belief, parts)
    block = H.operator(parts[0], system.symmetric)
    if known[0] and system.free is not None:
        block = pin(block, system.free, system.like.new_ones(()))
    if A is None:
        return block
    rows = A.rows(parts[1], system.num_rows)
    rows = _without_columns(rows, system.free) if known[1] else system.without_noise(rows)
    return Saddle(block, rows, system.active)


def read_dense(system: System) -> Operator:
    """K with nothing believed."""
    first, m = system.first_columns(), system.m
    block = DenseMatrix(first[:, :m], system.symmetric)
    return Saddle(block, first[:, m:], system.active) if system.num_rows else block


def fits(system: System, belief: Belief) -> bool:
    """Whether the matrices that a solve would hold fit in memory."""
    B, m, r = system.batch, system.m, system.num_rows
    if belief.H is None or belief.whole:
        return True
    if belief.is_dense or not belief.eliminates:
        return B * system.size**2 <= _NUMBERS
    if isinstance(belief.H, Diagonal) and isinstance(belief.A, Placed | Sparse):
        return B * (r**2 + belief.A.num_colors * m) <= _NUMBERS  # eliminated without forming its rows
    return B * r * (r + m) <= _NUMBERS


def suitable(operator: Operator, belief: Belief) -> Solver:
    """The solver to try."""
    if isinstance(operator, MatrixFree):
        # More steps than that cost more than forming K, where that is possible.
        affordable = operator.batch * operator.size**2 <= _NUMBERS
        max_steps = max(20, operator.size // 4) if affordable else UNASKED_STEPS
        return MINRES(max_steps=max_steps) if operator.symmetric else GMRES(max_steps=max_steps)
    solver = choose(operator)
    if isinstance(solver, SchurComplement) and not belief.is_dense:
        if not belief.eliminates or isinstance(belief.H, Zero):
            return LU()
        return SchurComplement(redundant=belief.redundant)
    return solver


# Structures of H of which the rows and columns of variables at a bound are known without a product.
_MASKABLE = (Banded, BlockDiagonal, Diagonal, LowRank)


def _products(system: System, probes: list[Tensor]) -> list[Tensor]:
    """The upper part of the products with several groups of vectors, taken together, ``(k, B, m)`` each."""
    if not probes:
        return []
    products = system.multiply(torch.cat(probes) if len(probes) > 1 else probes[0])[:, :, : system.m]
    return list(products.split([len(group) for group in probes]))


def is_learning(belief: Belief, has_bounds: bool) -> bool:
    """Whether the next reading may find out whether a part never changes."""
    if belief.H is None or belief.is_dense or belief.whole:
        return False
    constants = belief.constants if belief.A is not None else belief.constants[:1]
    return any(
        not (constant.is_known or constant.varies) and _is_remembered(i, belief, has_bounds)
        for i, constant in enumerate(constants)
    )


def _is_remembered(i: int, belief: Belief, has_bounds: bool) -> bool:
    """Whether a part, H or the rows, may be remembered: it must be known how the masks change it."""
    return i > 0 or not has_bounds or isinstance(belief.H, _MASKABLE)


def _learn(system: System, belief: Belief, parts: list[Tensor]) -> None:
    """Looks whether the products of a pass, without masks, are those of the last one."""
    for i, (part, probes, constant) in enumerate(zip(parts, belief.probes, belief.constants, strict=False)):
        if constant.is_known or constant.varies or not _is_remembered(i, belief, system.free is not None):
            continue
        if not system.is_masked:
            constant.learn(part)
        elif i:
            constant.learn(system.multiply_rows(probes[:, system.m :]))
        else:
            constant.learn(system.multiply_H(probes[:, : system.m]))


def _without_columns(A: Tensor | SparseRows, free: Tensor | None) -> Tensor | SparseRows:
    if free is None:
        return A
    return A.masked(None, free) if isinstance(A, SparseRows) else torch.where(free.unsqueeze(1), A, 0)


def _probes(system: System, belief: Belief) -> tuple[Tensor, ...]:
    H, A, m, r = belief.H, belief.A, system.m, system.num_rows
    assert H is not None
    if belief.whole:
        return (H.probes(system.size, system.like),)
    probes_H = pad(H.probes(m, system.like), (0, r))
    return (probes_H,) if A is None else (probes_H, pad(A.row_probes(r, system.like), (m, 0)))
