"""The door of sparse quadratic programs: numbers and places of what a user passes, or an error that helps."""

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.reading import read
from torchddn.functional.programs.data import check_given, check_limits
from torchddn.functional.programs.sparse_data import Entries, SparseData, entries
from torchddn.functional.programs.sparse_saddle import scipy_sparse

__all__ = ["is_sparse", "prepare_sparse"]

_MATRICES, _VECTORS = ("Q", "A", "G"), ("q", "b", "h", "lower", "upper")


def is_sparse(*matrices: object) -> bool:
    """Whether one of them is a sparse tensor."""
    return any(isinstance(matrix, Tensor) and matrix.layout != torch.strided for matrix in matrices)


def prepare_sparse(
    call: str, given: dict[str, Tensor | float | None], smoothing: float, check: bool
) -> tuple[SparseData, torch.Size, int, bool]:
    """The data, the batch shape, how many rows are equalities, and whether there are bounds."""
    tensors = check_given(call, given)
    for name in _VECTORS:
        if name in tensors and tensors[name].layout != torch.strided:
            raise InvalidInputError(
                f"`{call}({name}=...)` must be dense, got {tensors[name].layout}. Use `.to_dense()`."
            )
    q = tensors["q"]
    m = q.shape[-1]
    parts = {name: entries(call, name, tensors[name]) for name in _MATRICES if name in tensors}
    none = torch.zeros(0, dtype=torch.int64, device=q.device)
    empty = Entries(q.new_zeros(0), none, none)
    Q, A, G = (parts.get(name, empty) for name in _MATRICES)
    vectors = {name: tensors[name] for name in _VECTORS if name in tensors}
    batch = torch.broadcast_shapes(*(part.shape[:-1] for part in vectors.values()))
    R = batch.numel()
    flat = {name: part.expand(*batch, -1).reshape(R, part.shape[-1]) for name, part in vectors.items()}
    q = flat["q"]
    limits = flat.get("lower", torch.full_like(q, -torch.inf)), flat.get("upper", torch.full_like(q, torch.inf))
    if check:
        check_limits(call, *limits)
        _check_curvature(call, Q, m)
    if smoothing:
        diagonal = torch.arange(m, device=q.device)
        more = torch.cat([Q.rows, diagonal]), torch.cat([Q.columns, diagonal])
        Q = Entries(torch.cat([Q.values, Q.values.new_full((m,), smoothing)]), *more)
    p = tensors["A"].shape[0] if "A" in tensors else 0
    rows = Entries(torch.cat([A.values, G.values]), torch.cat([A.rows, p + G.rows]), torch.cat([A.columns, G.columns]))
    right = torch.cat([flat[name] for name in ("b", "h") if name in flat] or [q.new_zeros(R, 0)], dim=1)
    parts = Q.values, rows.values, Q.rows, Q.columns, rows.rows, rows.columns
    Q_values, rows_values, *places = (part.expand(R, -1) for part in parts)
    data = SparseData(Q_values, q, rows_values, right, *limits, *places)
    return data, batch, p, "lower" in flat or "upper" in flat


def _check_curvature(call: str, Q: Entries, m: int) -> None:
    """Raises for a Q that is not symmetric positive semidefinite."""

    def look(values: Tensor, rows: Tensor, columns: Tensor) -> None:
        numbers, i, j = (part.cpu().numpy() for part in (values, rows, columns))
        if not np.isfinite(numbers).all():
            return
        tolerance = torch.finfo(values.dtype).eps ** 0.5
        sparse = scipy_sparse()
        matrix = sparse.csc_array((numbers.astype(np.float64), (i, j)), shape=(m, m))
        size = np.abs(matrix.diagonal()).max(initial=0.0)
        skew = abs(matrix - matrix.T).max() if len(numbers) else 0.0
        if skew > tolerance * max(size, skew * tolerance):
            raise InvalidInputError(
                f"`{call}(Q=...)` must be symmetric, got one that differs from its transpose by {skew:.2e}. Pass "
                f"`0.5 * (Q + Q.mT)`, which is the same objective."
            )
        if _has_negative_curvature(matrix, tolerance * size + np.finfo(np.float64).tiny ** 0.5):
            raise InvalidInputError(
                f"`{call}(Q=...)` must be positive semidefinite, got one with a negative eigenvalue. Use `argmin` for "
                f"a problem that is not convex."
            )

    read(look, Q.values, Q.rows, Q.columns)


def _has_negative_curvature(matrix: Any, shift: float) -> bool:
    """Whether ``matrix + shift I`` has a negative pivot: as many as negative eigenvalues (Sylvester)."""
    linalg = importlib.import_module("scipy.sparse.linalg")
    shifted = (matrix + scipy_sparse().diags_array(np.full(matrix.shape[0], shift))).tocsc()
    try:
        lu = linalg.splu(shifted, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    except RuntimeError:  # a pivot of zero, which a positive definite matrix does not have
        return True
    return bool((lu.U.diagonal() < 0).any()) or not np.array_equal(lu.perm_r, lu.perm_c)
