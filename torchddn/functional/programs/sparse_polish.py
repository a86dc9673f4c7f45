r"""One sparse quadratic program for NumPy, in units of its own, and the active-set method from near its solution.

What :mod:`torchddn.quadratic.polish` does for a batch of dense programs. The bounds of a variable are not rows here:
a variable at a bound is held there and left out of the system.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from torchddn.functional.programs.sparse_saddle import Places, assemble, factor, scipy_sparse
from torchddn.quadratic.backends import Guess, Matrices

__all__ = ["Point", "SparseItem", "in_units", "polish"]

_EPS = float(np.finfo(np.float64).eps)
_MOST_CHANGES = 30
_MOST_CORRECTIONS = 10
_MOST_PASSES = 10


class Point(NamedTuple):
    """A point with the rows and bounds that hold there, the worst violation of a condition, and the systems solved."""

    y: np.ndarray
    lam: np.ndarray
    at_lower: np.ndarray
    at_upper: np.ndarray
    active: np.ndarray
    error: float
    num_steps: int


@dataclasses.dataclass(frozen=True)
class SparseItem:
    """The numbers of one program; ``b`` is infinite for an inequality that does not count."""

    Q: np.ndarray
    c: np.ndarray
    R: np.ndarray
    b: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    places: Places
    p: int

    @property
    def equality(self) -> np.ndarray:
        return np.arange(len(self.b)) < self.p

    @property
    def sparse_Q(self) -> Any:
        """The symmetric part."""
        m, places = len(self.c), self.places
        Q = scipy_sparse().csc_array((self.Q, (places.Q_rows, places.Q_columns)), shape=(m, m))
        return (0.5 * (Q + Q.T)).tocsc()

    @property
    def sparse_R(self) -> Any:
        shape = len(self.b), len(self.c)
        return scipy_sparse().csr_array((self.R, (self.places.rows_rows, self.places.rows_columns)), shape=shape)

    def matrices(self) -> Matrices:
        """As solvers want it, with the rows that count."""
        R, p, there = self.sparse_R, self.p, np.isfinite(self.b) & ~self.equality
        bounded = np.isfinite(self.lower).any(), np.isfinite(self.upper).any()
        return Matrices(
            _csc_matrix(self.sparse_Q),
            self.c,
            _csc_matrix(R[:p]) if p else None,
            self.b[:p] if p else None,
            _csc_matrix(R[there]) if there.any() else None,
            self.b[there] if there.any() else None,
            self.lower if bounded[0] else None,
            self.upper if bounded[1] else None,
        )

    def start(self, guess: Guess) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``y``, ``lam`` of all rows, and the multipliers of bounds, positive at the upper ones."""
        lam = np.zeros(len(self.b))
        lam[: self.p] = guess.nu
        lam[np.isfinite(self.b) & ~self.equality] = np.maximum(guess.lam, 0.0)
        return guess.y, lam, guess.bounds


class Units(NamedTuple):
    """What one is, in the user's units: of variables, and of the multipliers of rows."""

    y: np.ndarray
    lam: np.ndarray


def in_units(item: SparseItem) -> tuple[SparseItem, Units]:
    """The program in units in which rows, columns, limits and forces are of order one (see ``quadratic.scaling``)."""
    places, (m, r) = item.places, (len(item.c), len(item.b))
    D, E, Q, R = np.ones(m), np.ones(r), np.abs(item.Q), np.abs(item.R)
    for _ in range(_MOST_PASSES):
        column, row = np.zeros(m), np.zeros(r)
        np.maximum.at(column, places.Q_rows, Q)
        np.maximum.at(column, places.Q_columns, Q)
        np.maximum.at(column, places.rows_columns, R)
        np.maximum.at(row, places.rows_rows, R)
        column, row = (np.where(size > 0, size, 1.0) for size in (column, row))
        sizes = np.concatenate([column, row])
        if sizes.max() <= 4 and sizes.min() >= 0.25:
            break
        column, row = 1 / np.sqrt(column), 1 / np.sqrt(row)
        Q = Q * column[places.Q_rows] * column[places.Q_columns]
        R = R * row[places.rows_rows] * column[places.rows_columns]
        D, E = D * column, E * row
    limits = np.abs(np.concatenate([item.b * E, item.lower / D, item.upper / D]))
    limits = limits[np.isfinite(limits) & (limits > 0)]
    length = float(np.clip(1.0, limits.min(), limits.max())) if len(limits) else 1.0
    forces = np.concatenate([np.abs(item.c * D), Q * length])
    force = float(forces.max(initial=0.0)) or 1.0
    scaled = SparseItem(
        item.Q * D[places.Q_rows] * D[places.Q_columns] * (length / force),
        item.c * D / force,
        item.R * E[places.rows_rows] * D[places.rows_columns],
        item.b * E / length,
        item.lower / (D * length),
        item.upper / (D * length),
        places,
        item.p,
    )
    return scaled, Units(length * D, force * E)


def polish(item: SparseItem, y: np.ndarray, lam: np.ndarray, push: np.ndarray) -> Point | None:
    """The solution, found from a point with multipliers of rows and bounds; None if it is not near enough."""
    Q, R, equality = item.sparse_Q, item.sparse_R, item.equality
    active = equality | (np.isfinite(item.b) & (lam > item.b - R @ y))
    at_lower = np.isfinite(item.lower) & (-push > y - item.lower)
    at_upper = np.isfinite(item.upper) & (push > item.upper - y) & ~at_lower
    fixed = item.lower == item.upper
    none = _EPS**0.75
    for k in range(_MOST_CHANGES):
        at_lower |= fixed & ~at_upper
        y, lam, error, force, length = _solve(item, Q, R, y, lam, at_lower, at_upper, active)
        if not np.isfinite(error):
            return None
        pull, slack = Q @ y + item.c + R.T @ lam, item.b - R @ y
        row = np.where(active, ~equality & (lam < -none * force), slack < -none * length)
        off_lower, off_upper = at_lower & (pull < -none * force), at_upper & (pull > none * force)
        free = ~(at_lower | at_upper)
        to_lower = free & (y < item.lower - none * length) | off_upper & fixed
        to_upper = free & (y > item.upper + none * length) | off_lower & fixed
        wrong = row.any() or off_lower.any() or off_upper.any() or to_lower.any() or to_upper.any()
        if not wrong:
            exact = Point(y, lam, at_lower, at_upper, active, error, k + 1)
            return exact if error <= _EPS**0.7 else None
        active = active ^ row
        at_lower, at_upper = at_lower & ~off_lower | to_lower, at_upper & ~off_upper | to_upper
    return None


def _solve(
    item: SparseItem,
    Q: Any,
    R: Any,
    y: np.ndarray,
    lam: np.ndarray,
    at_lower: np.ndarray,
    at_upper: np.ndarray,
    active: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, float, float, float]:
    """The point with these rows as equations, found by corrections; its error; the sizes of forces and lengths."""
    free = ~(at_lower | at_upper)
    y = np.where(at_lower, item.lower, np.where(at_upper, item.upper, y))
    lam = np.where(active, lam, 0.0)
    num_free, kept = int(free.sum()), np.concatenate([free, active])
    try:
        system = factor(assemble(item.Q, item.R, item.places, free, active), num_free) if kept.any() else None
    except RuntimeError:  # SuperLU's for a pivot of zero
        return y, lam, np.inf, 1.0, 1.0
    before, error, force, length = np.inf, np.inf, 1.0, 1.0
    for _ in range(_MOST_CORRECTIONS):
        Q_y = Q @ y
        pull, slack = (Q_y + item.c + R.T @ lam)[free], (item.b - R @ y)[active]
        force = 1 + max(_largest(item.c), _largest(Q_y), _largest(lam))
        length = 1 + max(_largest(item.b[np.isfinite(item.b)]), _largest(y))
        error = max(_largest(pull) / force, _largest(slack) / length)
        if system is None or error <= _EPS or not error <= 0.5 * before:
            break
        before = error
        step = system.approximate(np.concatenate([-pull, slack]))
        y, lam = y.copy(), lam.copy()
        y[free] += step[:num_free]
        lam[active] += step[num_free:]
    return y, lam, error, force, length


def _largest(vector: np.ndarray) -> float:
    return float(np.abs(vector).max(initial=0.0))


def _csc_matrix(matrix: Any) -> Any:
    """A matrix, not an array, which is what qpsolvers looks for, with indices that all solvers take."""
    return scipy_sparse().csc_matrix(matrix)
