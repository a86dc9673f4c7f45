"""Factors of small matrices written out, number by number, for the compiler.

A library of linear algebra is called once for each matrix of a batch, and is a place where the compiler has to stop:
for matrices of a few rows the call costs more than the arithmetic. Written out, the arithmetic runs over the batch, in
one loop with whatever is before and after.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

__all__ = ["write_out"]

# Rows up to which arithmetic without loops is cheaper than a call.
_MOST = 8


def write_out(graph: GraphModule, tensors: Sequence[Tensor]) -> GraphModule:
    """The same graph without calls for small matrices, for arguments like ``tensors``."""
    if any(node.target in _RULES for node in graph.graph.nodes):
        # No two arguments may be the same tensor, which the recorder would take for one.
        return make_fx(graph, decomposition_table=_RULES)(*(t.detach() for t in tensors))
    return graph


def _cholesky(A: Tensor, *, upper: bool = False, check_errors: bool = False) -> Any:
    """``L`` with ``L L' = A``, and the number of the first pivot that is not positive, from 1, or zero."""
    n = A.shape[-1]
    if upper or check_errors or not _is_small(A):
        return NotImplemented
    L: list[list[Tensor]] = []
    info = torch.zeros_like(A[..., 0, 0], dtype=torch.int32)
    for i in range(n):
        row: list[Tensor] = []
        for j in range(i + 1):
            rest = A[..., i, j]
            for k in range(j):
                rest = rest - row[k] * (L[j][k] if j < i else row[k])
            if j < i:
                row.append(rest / L[j][j])
                continue
            is_positive = rest > 0
            info = torch.where((info == 0) & ~is_positive, i + 1, info)
            row.append(torch.where(is_positive, rest, 1.0).sqrt())
        L.append(row)
    zero = torch.zeros_like(L[0][0])
    entries = [L[i][j] if j <= i else zero for i in range(n) for j in range(n)]
    return torch.stack(entries, dim=-1).reshape(A.shape), info


def _solve_triangular(A: Tensor, B: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Any:
    """``X`` with ``A X = B``."""
    if not left or not _is_small(A) or not B.numel():
        return NotImplemented
    n = A.shape[-1]
    rows: dict[int, Tensor] = {}
    for i in reversed(range(n)) if upper else range(n):
        rest = B[..., i, :]
        for j, row in rows.items():
            rest = rest - A[..., i, j, None] * row
        rows[i] = rest if unitriangular else rest / A[..., i, i, None]
    return torch.stack([rows[i] for i in range(n)], dim=-2)


def _cholesky_solve(B: Tensor, L: Tensor, upper: bool = False) -> Any:
    """``X`` with ``L L' X = B``."""
    if upper or not _is_small(L) or not B.numel():
        return NotImplemented
    return _solve_triangular(L.mT, _solve_triangular(L, B, upper=False), upper=True)


def _bmm(A: Tensor, B: Tensor) -> Any:
    """``A B``."""
    if not (_is_small(A) and _is_small(B)) or min(A.shape[-2], B.shape[-1]) == 1:  # a product with a vector is a loop
        return NotImplemented
    return sum(A[..., :, k, None] * B[..., None, k, :] for k in range(A.shape[-1]))


def _is_small(A: Tensor) -> bool:
    fits = 0 < min(A.shape[-2:]) <= max(A.shape[-2:]) <= _MOST
    return fits and A.dim() > 2 and A.dtype in (torch.float32, torch.float64)


_RULES: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.bmm.default: _bmm,
    torch.ops.aten.linalg_cholesky_ex.default: _cholesky,
    torch.ops.aten.linalg_solve_triangular.default: _solve_triangular,
    torch.ops.aten.cholesky_solve.default: _cholesky_solve,
}
