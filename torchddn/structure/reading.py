"""Reading the numbers of a K whose structure is believed to be known, and the solver that suits it."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchddn.linear import (
    GMRES,
    LU,
    MINRES,
    BandedMatrix,
    DenseMatrix,
    MatrixFree,
    Operator,
    Saddle,
    SchurComplement,
    Solver,
    Zero,
    choose,
)
from torchddn.structure.memory import Belief
from torchddn.structure.system import System

__all__ = ["fits", "read", "read_dense", "suitable"]

# Numbers in a batch of matrices that are held: above, there are products only.
_NUMBERS = 2**28


def read(system: System, belief: Belief) -> Operator:
    """K as the belief says it looks."""
    H, A, m = belief.H, belief.A, system.m
    if H is None:
        return system.truth
    if belief.is_dense:
        return read_dense(system)
    if belief.probes is None:
        belief.probes = _probes(system, belief)
    products = system.multiply(belief.probes)
    if belief.whole:
        whole = H.operator(products, True)
        assert isinstance(whole, BandedMatrix)
        return BandedMatrix(whole.band, True, whole.order, m)
    if A is None:
        return H.operator(products, system.symmetric)
    num_H = len(H.probes(m, system.like))
    block = H.operator(products[:num_H, :, :m], system.symmetric)
    return Saddle(block, A.rows(products[num_H:, :, :m], system.num_rows), system.active)


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
    return B * r * (r + m) <= _NUMBERS


def suitable(operator: Operator, belief: Belief) -> Solver:
    """The solver to try."""
    if isinstance(operator, MatrixFree):
        # More steps than that cost more than forming K, where that is possible.
        affordable = operator.batch * operator.size**2 <= _NUMBERS
        max_steps = max(20, operator.size // 4) if affordable else None
        return MINRES(max_steps=max_steps) if operator.symmetric else GMRES(max_steps=max_steps)
    solver = choose(operator)
    if isinstance(solver, SchurComplement) and not belief.is_dense:
        if not belief.eliminates or isinstance(belief.H, Zero):
            return LU()
        return SchurComplement(redundant=belief.redundant)
    return solver


def _probes(system: System, belief: Belief) -> Tensor:
    H, A, m, r = belief.H, belief.A, system.m, system.num_rows
    assert H is not None
    if belief.whole:
        return H.probes(system.size, system.like)
    parts = [pad(H.probes(m, system.like), (0, r))]
    if A is not None:
        parts.append(pad(A.row_probes(r, system.like), (m, 0)))
    return torch.cat(parts)
