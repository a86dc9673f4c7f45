r"""A sparse symmetric saddle system, factored by SciPy, and as a node that can be differentiated again.

::

    [ F Q F + N   F R'a ] [ u ]   [ F v ]          F, N: which variables are free, which are held
    [   a R F    -(1-a) ] [ w ] = [  r  ]          a:    which rows count

Only the free variables and the rows that count are put into a matrix. Its diagonal gets a small positive number for
variables and a small negative one for rows: it then has a factor whether or not rows depend on each other and
whether or not Q is singular. Refinement with the true matrix takes that away. As each step is one of the proximal
method of multipliers, it ends with the solution of least norm where there are many; where there is none, what is left
is the part of the right-hand side that cannot be had, and without it there is.
"""

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchddn.functional.nodes.degeneracy import warn_undetermined
from torchddn.functional.nodes.handmade import Answer, solve
from torchddn.functional.programs.sparse_data import multiply, multiply_symmetric
from torchddn.quadratic.backends import work_through

__all__ = ["Factor", "Places", "SparseSaddle", "assemble", "factor", "scipy_sparse"]

_EPS = float(np.finfo(np.float64).eps)
_DELTA = _EPS**0.5
_MOST_REFINEMENTS = 30
# Rows and columns whose largest entries are within this factor of one are left alone.
_NEAR = 100.0
_MOST_PASSES = 10


class Places(NamedTuple):
    """Where the numbers of Q and of the rows are, for NumPy."""

    Q_rows: np.ndarray
    Q_columns: np.ndarray
    rows_rows: np.ndarray
    rows_columns: np.ndarray


class Factor(NamedTuple):
    """A factored matrix ``K``, ``(n, n)``."""

    units: np.ndarray  # (n,): U K U has entries of order one
    scaled: Any  # U K U
    shift: np.ndarray  # (n,): what its diagonal got
    lu: Any  # of U K U with that

    def approximate(self, v: np.ndarray) -> np.ndarray:
        """The solution, ``(n,)``, with the diagonal as it was factored."""
        return self.units * self.lu.solve(self.units * v)

    def solve(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The solution of least norm, ``(n, k)``, for each of several right-hand sides; and which have none, ``(k,)``.

        These get what has the smallest residual; norms are those of the units that the matrix was given.
        """
        v = self.units[:, None] * v
        x, rest = self._refined(np.zeros_like(v), v)
        impossible = _largest(rest) > _EPS**0.5 * _largest(v)
        if impossible.any():
            v = np.where(impossible, self._kept(v), v)
            x, _ = self._refined(np.zeros_like(v), v)
        # Rounding errors where the matrix is zero, of which no residual tells, and what else goes with them.
        x = self._kept(x)
        x = x + self.lu.solve(self._kept(v - self.scaled @ x))
        return self.units[:, None] * x, impossible

    def _kept(self, v: np.ndarray) -> np.ndarray:
        """Each column without the part of which the matrix makes zero."""
        for _ in range(2):  # the second time for the rounding errors of the first
            lost, least = v, np.full(v.shape[1], np.inf)
            for _ in range(_MOST_REFINEMENTS):
                # What a solve divides by the shift stays, the rest becomes small.
                candidate = self.shift[:, None] * self.lu.solve(lost)
                change = _largest(candidate - lost)
                better = change < 0.5 * least
                lost, least = np.where(better, candidate, lost), np.where(better, change, least)
                if not (better & (change > _EPS * _largest(v))).any():
                    break
            v = v - lost
        return v

    def _refined(self, x: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A solution, from near it, and what is left of the right-hand side."""
        rest, enough = v - self.scaled @ x, _EPS * _largest(v)
        least = np.full(v.shape[1], np.inf)
        for _ in range(_MOST_REFINEMENTS):
            candidate = x + self.lu.solve(rest)
            left = v - self.scaled @ candidate
            # What cannot be had stays, so the change of what is left says how far it goes.
            change = _largest(left - rest)
            better = change < 0.5 * least
            x, rest = np.where(better, candidate, x), np.where(better, left, rest)
            if not (better & (change > enough)).any():
                break
            least = np.where(better, change, least)
        return x, rest


def _largest(columns: np.ndarray) -> np.ndarray:
    return np.abs(columns).max(0, initial=0.0)


def factor(K: Any, num_variables: int) -> Factor:
    """Factors a matrix whose first rows are those of variables; raises RuntimeError if that fails."""
    sparse = scipy_sparse()
    n = K.shape[0]
    units = np.ones(n)
    scaled = K
    for _ in range(_MOST_PASSES):
        size = np.asarray(abs(scaled).max(axis=1).todense()).ravel() if n else np.ones(0)
        size = np.where(size > 0, size, 1.0)
        if ((size <= _NEAR) & (size >= 1 / _NEAR)).all():
            break
        units /= np.sqrt(size)
        U = sparse.diags_array(units)
        scaled = U @ K @ U
    # Curvature that is small beside the rows would drown in the shift.
    curvature = float(abs(scaled.tocsc()[:num_variables, :num_variables]).max()) if num_variables else 0.0
    if curvature and not 1 / _NEAR <= curvature <= _NEAR:
        units[:num_variables] /= curvature**0.5
        units[num_variables:] *= curvature**0.5
        U = sparse.diags_array(units)
        scaled = U @ K @ U
    shift = np.where(np.arange(n) < num_variables, _DELTA, -_DELTA)
    shifted = (scaled + sparse.diags_array(shift)).tocsc()
    lu = importlib.import_module("scipy.sparse.linalg").splu(shifted)
    return Factor(units, scaled.tocsr(), shift, lu)


def assemble(Q: np.ndarray, R: np.ndarray, places: Places, free: np.ndarray, active: np.ndarray) -> Any:
    """The matrix of the free variables and the active rows, as SciPy's; of Q the symmetric part."""
    num_free = int(free.sum())
    variable, row = np.cumsum(free) - 1, num_free + np.cumsum(active) - 1
    kept = free[places.Q_rows] & free[places.Q_columns]
    i, j, q = variable[places.Q_rows[kept]], variable[places.Q_columns[kept]], 0.5 * Q[kept]
    kept = active[places.rows_rows] & free[places.rows_columns]
    a, b, r = row[places.rows_rows[kept]], variable[places.rows_columns[kept]], R[kept]
    n = num_free + int(active.sum())
    where = np.concatenate([i, j, a, b]), np.concatenate([j, i, b, a])
    return scipy_sparse().coo_array((np.concatenate([q, q, r, r]), where), shape=(n, n)).tocsc()


@dataclasses.dataclass(frozen=True)
class SparseSaddle:
    """The formula of ``(u, w)``, ``(R, m + r)``, from the numbers of Q and R, the right-hand side, masks and places.

    Attributes:
        call: Who asks, for warnings.
    """

    call: str

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``(u, w)``; one factor for the items that have the same matrix."""
        Q, R, v, free, active = (_array(tensor) for tensor in inputs[:5])
        m = free.shape[1]
        places = [_array(tensor) for tensor in inputs[5:]]
        groups: dict[bytes, list[int]] = {}
        for i in range(len(v)):
            key = b"".join(part[i].tobytes() for part in (Q, R, free, active, *places))
            groups.setdefault(key, []).append(i)
        members = list(groups.values())
        found = np.concatenate([np.zeros(free.shape), np.where(active, 0.0, -v[:, m:])], axis=1)
        degenerate = np.zeros(len(v), dtype=bool)

        def work(group: int) -> None:
            items = members[group]
            first = items[0]
            kept = np.concatenate([free[first], active[first]])
            if not kept.any():
                return
            K = assemble(Q[first], R[first], Places(*(part[first] for part in places)), free[first], active[first])
            x, impossible = factor(K, int(free[first].sum())).solve(v[items][:, kept].T)
            found[np.array(items)[:, None], kept.nonzero()[0]] = x.T
            degenerate[items] = impossible

        work_through(work, len(members))
        warn_undetermined(
            self.call,
            torch.as_tensor(degenerate),
            "the solution is not isolated there",
            "curvature or another constraint singles one out",
        )
        return (torch.as_tensor(found).to(inputs[2]),)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        """``(u, w)``."""
        return (torch.empty_like(inputs[2]),)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        Q, R, _, free, active, *places = inputs
        Q_rows, Q_columns, rows_rows, rows_columns = places
        m = free.shape[1]
        back = solve(self, Q, R, v, free, active, *places)[0]
        d_Q = d_R = d_rhs = None
        u, w = y[:, :m] * free, y[:, m:] * active
        u_back, w_back = back[:, :m] * free, back[:, m:] * active
        if needed[0]:
            there = u_back.gather(1, Q_rows) * u.gather(1, Q_columns)
            d_Q = -0.5 * (there + u_back.gather(1, Q_columns) * u.gather(1, Q_rows))
        if needed[1]:
            d_R = -(w.gather(1, rows_rows) * u_back.gather(1, rows_columns))
            d_R = d_R - w_back.gather(1, rows_rows) * u.gather(1, rows_columns)
        if needed[2]:
            d_rhs = torch.cat([u_back, back[:, m:]], dim=1)
        return d_Q, d_R, d_rhs, *[None] * 6

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        Q, R, rhs, free, active, *places = inputs
        Q_rows, Q_columns, rows_rows, rows_columns = places
        m, r = free.shape[1], active.shape[1]
        d_Q, d_R, d_rhs = tangents[:3]
        u, w = y[:, :m] * free, y[:, m:] * active
        change = torch.zeros_like(rhs) if d_rhs is None else d_rhs
        if d_Q is not None:
            force = multiply_symmetric(d_Q, Q_rows, Q_columns, u)
            change = change - torch.cat([force, torch.zeros_like(y[:, m:])], dim=1)
        if d_R is not None:
            force, rest = multiply(d_R, rows_columns, rows_rows, w, m), multiply(d_R, rows_rows, rows_columns, u, r)
            change = change - torch.cat([force, rest * active], dim=1)
        return solve(self, Q, R, change, free, active, *places)[0]


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def scipy_sparse() -> Any:
    """Imported on use: it is an extra."""
    try:
        return importlib.import_module("scipy.sparse")
    except ImportError as error:
        raise ImportError("Sparse quadratic programs need SciPy: pip install torchddn[qp].") from error
