r"""Whether a point is a minimum, judged without anything of the library's own solvers.

At ``y`` the multipliers are chosen that make what is left of the optimality conditions smallest, ::

    min over nu, lam >= 0  | f_y + h_y' nu + g_y' lam |^2 + | lam g |^2

with the bounds among the rows of ``g`` and every row divided by the size of its gradient. It is a non-negative least
squares problem, which decides what is active with no threshold; no multipliers can do better than the ones it finds.
"""

import dataclasses
import importlib
import math

import numpy as np

from torchddn.testing.item import Item

__all__ = ["Verdict", "judge"]

# How close to its limit a row counts as active for the second-order condition.
_ACTIVE = 1e-6


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How far a point is from a minimum; infinite where the point or a function there is not finite.

    Attributes:
        objective: Its objective.
        violation: Largest violated row, as a distance relative to ``1 + |y|``.
        stationarity: Largest entry of the Lagrangian's gradient, relative to the objective's.
        complementarity: Largest ``|lam g|``, likewise.
        curvature: Lowest curvature of the Lagrangian along the active rows, relative to its largest entry: 0 where
            nothing can be moved along.
        equality_multipliers: ``nu``, ``(p,)``.
        inequality_multipliers: ``lam``, ``(q,)``.
        smallest_multiplier: Of the active rows, relative to the largest: 0 for a weakly active one, 1 without any.
        independence: Smallest singular value of the active rows, each of norm about one: 0 where they are dependent.
    """

    objective: float
    violation: float
    stationarity: float
    complementarity: float
    curvature: float
    equality_multipliers: np.ndarray
    inequality_multipliers: np.ndarray
    smallest_multiplier: float
    independence: float

    @property
    def residual(self) -> float:
        """The largest of the first-order measures."""
        return max(self.violation, self.stationarity, self.complementarity)

    def is_minimum(self, tolerance: float = 1e-8) -> bool:
        """Whether the residual is within the tolerance and no feasible direction curves down."""
        return self.residual <= tolerance and self.curvature >= -_ACTIVE


def judge(item: Item, y: np.ndarray) -> Verdict:
    """Returns how far ``y`` is from a minimum of the item.

    Args:
        item: The problem at its data.
        y: The point, ``(m,)``.

    Raises:
        ImportError: If SciPy is not installed: ``pip install torchddn[convex]``.

    Example:
        >>> from torchddn.testing import collection
        >>> example = collection("HS 35")[0]
        >>> item = Item(example.problem, example.x()[0])
        >>> verdict = judge(item, np.array([4 / 3, 7 / 9, 4 / 9]))
        >>> verdict.is_minimum(), round(float(verdict.inequality_multipliers[0]), 6)
        (True, 0.222222)
        >>> judge(item, item.start).is_minimum()
        False

    References:
        Lawson, Hanson, Solving Least Squares Problems, 1974, chapter 23 (NNLS).
    """
    y = np.asarray(y, dtype=np.float64)
    with np.errstate(all="ignore"):
        f, f_y = item.objective(y), item.gradient(y)
        rows, values, num_equalities = _rows(item, y)
    if not all(np.isfinite(part).all() for part in (y, f, f_y, rows, values)):
        nothing = np.full(item.p, np.nan), np.full(item.q, np.nan)
        return Verdict(f, math.inf, math.inf, math.inf, -math.inf, *nothing, 0.0, 0.0)

    size = np.array([_size(*pair) for pair in zip(rows, _rows(item, item.start)[0], strict=True)])
    # A start may be flat: how the objective bends tells its scale as well.
    bend = item.hessian(y, np.zeros(item.p + item.q))
    weight = _size(f_y, np.concatenate((item.gradient(item.start)[None], bend)))
    rows, values = rows / size[:, None], values / size
    h, g = values[:num_equalities], values[num_equalities:]
    reach = 1 + float(np.abs(y).max())
    dual, stationarity, complementarity = _multipliers(f_y / weight, rows, g)

    active = np.concatenate((np.ones(len(h), dtype=bool), np.abs(g) <= _ACTIVE * reach))
    lam = dual[len(h) :][active[len(h) :]]
    along, independence = _tangents(rows[active])
    # Rows lie as equalities, fixed variables, inequalities, bounds.
    inequalities = slice(num_equalities, num_equalities + item.q)
    actual = weight * dual / size
    nu_lam = actual[: item.p], actual[inequalities]
    L_yy = item.hessian(y, np.concatenate(nu_lam))
    largest = np.abs(L_yy).max()
    bent = along.shape[1] > 0 and largest > 1e-12 * np.abs(bend).max()
    return Verdict(
        f,
        float(max((0.0, *np.abs(h), *g))) / reach,
        stationarity,
        complementarity,
        float(np.linalg.eigvalsh(along.T @ L_yy @ along)[0] / largest) if bent else 0.0,
        *nu_lam,
        float(lam.min() / max(1.0, lam.max())) if len(lam) else 1.0,
        independence,
    )


def _rows(item: Item, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Gradients and values of all rows, bounds among them, and how many of them are equalities."""
    identity = np.eye(len(y))
    fixed = item.lower == item.upper
    lower, upper = np.isfinite(item.lower) & ~fixed, np.isfinite(item.upper) & ~fixed
    a, c = item.jacobian(y), item.constraints(y)
    rows = (a[: item.p], identity[fixed], a[item.p :], -identity[lower], identity[upper])
    values = (
        c[: item.p],
        (y - item.lower)[fixed],
        c[item.p :],
        (item.lower - y)[lower],
        (y - item.upper)[upper],
    )
    return np.concatenate(rows), np.concatenate(values), item.p + int(fixed.sum())


def _size(row: np.ndarray, elsewhere: np.ndarray) -> float:
    """What a gradient is measured by: its size, or, where it vanishes, its size elsewhere, at most 1."""
    usual = np.abs(elsewhere).max()
    size = max(np.abs(row).max(), min(1.0, usual) if np.isfinite(usual) else 1.0)
    return float(size) if size > 0 else 1.0


def _multipliers(f_y: np.ndarray, rows: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The best multipliers, with the largest entries of what they leave of stationarity and complementarity."""
    free = len(rows) - len(g)
    matrix = np.zeros((len(f_y) + len(g), free + len(rows)))
    matrix[: len(f_y)] = np.concatenate((rows.T, -rows[:free].T), axis=1)
    matrix[len(f_y) :, free : free + len(g)] = np.diag(g)
    target = np.concatenate((-f_y, np.zeros(len(g))))
    found = _nnls()(matrix, target)[0] if matrix.shape[1] else np.zeros(0)
    left = matrix @ found - target
    dual = found[: len(rows)].copy()
    dual[:free] -= found[len(rows) :]
    complementarity = np.abs(left[len(f_y) :]).max() if len(g) else 0.0
    return dual, float(np.abs(left[: len(f_y)]).max()), float(complementarity)


def _tangents(rows: np.ndarray) -> tuple[np.ndarray, float]:
    """A basis of the directions along which no row changes, ``(m, k)``, and the rows' smallest singular value."""
    if not len(rows):
        return np.eye(rows.shape[1]), 1.0
    values, right = np.linalg.svd(rows, full_matrices=True)[1:]
    rank = int((values > 1e-7 * max(1.0, values[0])).sum())
    return right[rank:].T, float(values[-1]) if len(values) == len(rows) else 0.0


def _nnls():
    try:
        return importlib.import_module("scipy.optimize").nnls
    except ImportError as error:
        raise ImportError("`judge` needs SciPy: pip install 'torchddn[convex]'.") from error
