r"""The opaque part of a sparse quadratic program: from its numbers to the solution, or to a proof that there is none.

A solver of another library, one call per item, brings a point, and the active-set method makes it exact. What the
solver says of an item without solution is not believed. Two other programs, which always have a solution, prove it::

    min 1/2 |t|^2            subject to   A y - t = b,   G y - t <= h,   lower <= y <= upper
    min 1/2 |d|^2 + c'd      subject to   Q d = 0,   A d = 0,   G d <= 0,   d >= 0 or d <= 0 where y has limits

If t is not zero, then it is a combination of the rows that no y can satisfy (Farkas). If d is not zero, then the
objective falls for ever in that direction.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from torchddn.functional.nodes.handmade import Answer
from torchddn.functional.programs.sparse_data import SparseData
from torchddn.functional.programs.sparse_polish import Point, SparseItem, in_units, polish
from torchddn.functional.programs.sparse_saddle import Places
from torchddn.quadratic.backends import call_backend, work_through
from torchddn.status import Status

__all__ = ["SparseSolver"]

_EPS = float(np.finfo(np.float64).eps)
# Relative violations: of a point that is taken as it is, and of a proof.
_GOOD, _PROVED = 1e-8, _EPS**0.45
# A multiplier or a slack that counts as none.
_WEAK = _EPS**0.5


@dataclasses.dataclass(frozen=True)
class SparseSolver:
    """The formula of ``z``, ``(R, m + r)``, from the fields of ``SparseData``; without derivatives.

    Attributes:
        p: How many of the r rows are equalities.
        backend: Who solves first.
    """

    p: int
    backend: str

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``z``; the masks ``at_lower``, ``at_upper``, ``active`` and the weak ones of each; status, steps, error."""
        arrays = SparseData(*(tensor.cpu() for tensor in inputs))
        numbers = [part.double().numpy() for part in arrays.numbers]
        places = [part.numpy() for part in arrays.places]

        def work(i: int) -> _Found:
            Q, c, R, b, lower, upper = (part[i] for part in numbers)
            item = SparseItem(Q, c, R, b, lower, upper, Places(*(part[i] for part in places)), self.p)
            return _solve_item(self.backend, item)

        found = work_through(work, len(numbers[1]))
        like = inputs[1]
        m, r = like.shape[1], inputs[3].shape[1]
        sizes = m + r, m, m, r, m, m, r
        parts = [
            np.stack([answer.vectors[k] for answer in found]) if found else np.zeros((0, size), bool)
            for k, size in enumerate(sizes)
        ]
        z, *masks = (torch.as_tensor(part).to(like.device) for part in parts)
        counts = [[answer.status, answer.num_steps] for answer in found]
        status, num_steps = torch.tensor(counts, dtype=torch.int64, device=like.device).reshape(-1, 2).unbind(1)
        error = torch.tensor([answer.error for answer in found], dtype=like.dtype, device=like.device)
        return z.to(like.dtype), *masks, status, num_steps, error

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        """The shapes of the result."""
        c, b = inputs[1], inputs[3]
        none, rows = torch.empty_like(c, dtype=torch.bool), torch.empty_like(b, dtype=torch.bool)
        count = torch.empty_like(c[:, 0], dtype=torch.int64)
        masks = none, none.clone(), rows, none.clone(), none.clone(), rows.clone()
        return c.new_empty(c.shape[0], c.shape[1] + b.shape[1]), *masks, count, count.clone(), c[:, 0].clone()

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        raise AssertionError("called with inputs that carry no gradient")

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        raise AssertionError("called with inputs that carry no tangent")


@dataclasses.dataclass(frozen=True)
class _Found:
    """An item's answer: ``z``, the masks, and how it ended."""

    vectors: tuple[np.ndarray, ...]
    status: int
    num_steps: int
    error: float


def _solve_item(backend: str, item: SparseItem) -> _Found:
    (m, r), equality = (len(item.c), len(item.b)), item.equality
    sums = [part.sum() for part in (item.Q, item.c, item.R, item.b[equality])]
    limits = np.concatenate([item.b, -item.lower, item.upper])
    if not np.isfinite(sums).all() or np.isnan(limits).any() or (limits == -np.inf).any():
        nothing = [np.zeros(size, dtype=bool) for size in (m, m, r)]
        return _Found((np.full(m + r, np.nan), *nothing, *nothing), int(Status.NON_FINITE), 0, np.nan)
    scaled, units = in_units(item)
    status, point = Status.INFEASIBLE, _nowhere(scaled)
    if (item.lower <= item.upper).all():
        claim, point = _attempt(backend, scaled)
        status = claim if claim == Status.CONVERGED else _proof(backend, scaled) or claim
    y = np.where(point.at_lower, item.lower, np.where(point.at_upper, item.upper, point.y * units.y))
    z = np.concatenate([y, point.lam * units.lam])
    vectors = z, point.at_lower, point.at_upper, point.active, *_weak(scaled, point)
    return _Found(vectors, int(status), point.num_steps, point.error)


def _attempt(backend: str, item: SparseItem) -> tuple[Status, Point]:
    """How it ended and where: CONVERGED is what we have seen, anything else what the solver claims."""
    guess = call_backend(backend, item.matrices())
    y, lam, push = item.start(guess)
    exact = polish(item, y, lam, push)
    if exact is not None:
        return Status.CONVERGED, exact
    slack = item.b - item.sparse_R @ y
    active = item.equality | (np.isfinite(item.b) & (lam > slack))
    at_lower = np.isfinite(item.lower) & (-push > y - item.lower)
    at_upper = np.isfinite(item.upper) & (push > item.upper - y) & ~at_lower
    inside = np.clip(y, item.lower, item.upper)
    point = Point(inside, lam, at_lower, at_upper, active, _error(item, inside, lam), 0)
    claim = Status(guess.claim)
    if point.error <= _GOOD:
        return Status.CONVERGED, point
    return Status.STALLED if claim == Status.CONVERGED else claim, point


def _error(item: SparseItem, y: np.ndarray, lam: np.ndarray) -> float:
    """The worst violation of an optimality condition at a point inside the bounds, with the best multipliers of these.

    A force on a variable is allowed as far as a bound is near in that direction.
    """
    Q_y, slack = item.sparse_Q @ y, item.b - item.sparse_R @ y
    pull = Q_y + item.c + item.sparse_R.T @ lam
    force = 1 + max(_largest(item.c), _largest(Q_y), _largest(lam))
    length = 1 + max(_largest(item.b[np.isfinite(item.b)]), _largest(y))
    blocked = np.minimum(np.maximum(pull / force, (y - item.upper) / length), (y - item.lower) / length)
    rows = np.where(item.equality, np.abs(slack) / length, np.minimum(lam / force, slack / length))
    return max(_largest(blocked), _largest(rows))


def _proof(backend: str, item: SparseItem) -> Status | None:
    """INFEASIBLE or UNBOUNDED if that is proved, else None."""
    if _is_infeasible(backend, item):
        return Status.INFEASIBLE
    return Status.UNBOUNDED if _is_unbounded(backend, item) else None


def _is_infeasible(backend: str, item: SparseItem) -> bool:
    (m, r), places = (len(item.c), len(item.b)), item.places
    last, more = np.arange(r), np.full(r, np.inf)
    softened = SparseItem(
        np.ones(r),
        np.zeros(m + r),
        np.concatenate([item.R, -np.ones(r)]),
        item.b,
        np.concatenate([item.lower, -more]),
        np.concatenate([item.upper, more]),
        Places(
            m + last,
            m + last,
            np.concatenate([places.rows_rows, last]),
            np.concatenate([places.rows_columns, m + last]),
        ),
        item.p,
    )
    _, point = _attempt(backend, softened)
    lam = np.where(item.equality, point.lam, np.maximum(point.lam, 0.0))
    lam = np.where(np.isfinite(item.b), lam, 0.0)
    pull = item.sparse_R.T @ lam
    # A bound takes up what pulls towards it; where there is none, something is left.
    at = np.where(pull > 0, item.lower, item.upper)
    rise = float(np.where(np.isfinite(at), at * pull, 0.0).sum() - np.where(lam == 0, 0.0, lam * item.b).sum())
    left = _largest(np.where(np.isfinite(at), 0.0, pull))
    return _largest(lam) > _PROVED and rise > _PROVED * _largest(lam) and left <= _PROVED * rise


def _is_unbounded(backend: str, item: SparseItem) -> bool:
    m, r, places = len(item.c), len(item.b), item.places
    present, one = np.isfinite(item.b), np.arange(m)
    # The rows of Q come first, as equalities; its symmetric part is half of it and half of its transpose.
    direction = SparseItem(
        np.ones(m),
        item.c,
        np.concatenate([0.5 * item.Q, 0.5 * item.Q, item.R]),
        np.where(np.concatenate([np.ones(m, dtype=bool), present]), 0.0, np.inf),
        np.where(np.isfinite(item.lower), 0.0, -np.inf),
        np.where(np.isfinite(item.upper), 0.0, np.inf),
        Places(
            one,
            one,
            np.concatenate([places.Q_rows, places.Q_columns, m + places.rows_rows]),
            np.concatenate([places.Q_columns, places.Q_rows, places.rows_columns]),
        ),
        m + item.p,
    )
    _, point = _attempt(backend, direction)
    d = np.clip(point.y, direction.lower, direction.upper)
    fall, along = -float(item.c @ d), item.sparse_R @ d
    away = np.where(item.equality, np.abs(along), np.where(present, np.maximum(along, 0.0), 0.0)) if r else np.zeros(0)
    left = max(_largest(item.sparse_Q @ d), _largest(away))
    return _largest(d) > _PROVED and fall > _PROVED * _largest(d) and left <= _PROVED * fall


def _nowhere(item: SparseItem) -> Point:
    m, r = len(item.c), len(item.b)
    none = np.zeros(m, dtype=bool)
    return Point(np.zeros(m), np.zeros(r), none, none.copy(), item.equality, np.inf, 0)


def _weak(item: SparseItem, point: Point) -> tuple[np.ndarray, ...]:
    """The bounds and rows with neither multiplier nor slack."""
    y, lam = point.y, point.lam
    slack, pull = item.b - item.sparse_R @ y, item.sparse_Q @ y + item.c + item.sparse_R.T @ lam
    force = 1 + max(_largest(lam), _largest(pull))
    length = 1 + max(_largest(item.b[np.isfinite(item.b)]), _largest(y))
    rows = ~item.equality & (np.abs(lam) <= _WEAK * force) & (np.abs(slack) <= _WEAK * length)
    still = (np.abs(pull) <= _WEAK * force) & (item.lower < item.upper)
    return still & (y - item.lower <= _WEAK * length), still & (item.upper - y <= _WEAK * length), rows


def _largest(vector: np.ndarray) -> float:
    return float(np.abs(vector).max(initial=0.0))
