r"""Finding the analytic center: a point inside, and damped Newton's method from there.

With the projection P onto ``{w : A w = 0}`` and ``d = 1 / (h - G y)``, a step solves ``(P H P + I - P) w = -P G'd``,
where ``H = G' diag(d^2) G``. The decrement ``r = (w'H w)^(1/2)`` says all: below one there is a center, and steps of
``1 / (1 + r)`` lead there; it never falls below one where there is none.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.functional.nodes.handmade import Answer
from torchddn.functional.programs.solver import QuadraticSolver
from torchddn.quadratic.backends import OWN
from torchddn.solvers.base import RUNNING, iterate
from torchddn.solvers.vectors import times
from torchddn.status import Status

__all__ = ["CenterSolver"]

# A point whose least slack, in units of its face, is below this counts as on the boundary.
_INSIDE = 1e-9
# Least of the multipliers that prove a set to be bounded, relative to the largest.
_POSITIVE = 1e-9


class _State(NamedTuple):
    y: Tensor  # (B, m)
    step: Tensor  # (B, m): Newton's, not damped
    decrement: Tensor  # (B,)
    before: Tensor  # (B,): the decrement one step ago


class _Sets(NamedTuple):
    """Polyhedra whose equalities hold at the points looked at: G, h and the projection P."""

    G: Tensor  # (B, q, m); faces that do not count are 0 y <= 1
    h: Tensor  # (B, q)
    P: Tensor  # (B, m, m)

    def select(self, x: Sequence[Tensor], items: Tensor) -> tuple["_Sets", Sequence[Tensor]]:
        return _Sets(*(part[items] for part in self)), x

    def judge(self, y: Tensor, before: Tensor) -> _State:
        """What is known at ``y``."""
        d = 1 / (self.h - times(self.G, y))
        scaled = d.unsqueeze(2) * (self.G @ self.P)
        slope = scaled.sum(1)
        H = scaled.mT @ scaled
        size = H.diagonal(dim1=1, dim2=2).amax(1)[:, None, None]
        # Directions without faces are left alone by the tiny shift, and those off the equalities by the large one.
        eye = torch.eye(H.shape[1], dtype=H.dtype, device=H.device)
        L, info = torch.linalg.cholesky_ex(H + size * (eye - self.P) + 4 * torch.finfo(H.dtype).eps * size * eye)
        step = -times(self.P, torch.cholesky_solve(slope.unsqueeze(2), L).squeeze(2))
        decrement = times(scaled, step).square().sum(1).sqrt()
        return _State(y, step, torch.where(info == 0, decrement, torch.nan), before)


@dataclasses.dataclass(frozen=True)
class _Newton:
    """The method, for :func:`torchddn.solvers.base.iterate`."""

    max_steps: int

    def init(self, problem: _Sets, x: Sequence[Tensor], y: Tensor) -> _State:
        return problem.judge(y, torch.full_like(y[:, 0], torch.inf))

    def step(self, problem: _Sets, x: Sequence[Tensor], state: _State) -> _State:
        # A quarter is where the undamped step converges quadratically.
        length = torch.where(state.decrement < 0.25, 1.0, self._length(problem, state))
        return problem.judge(state.y + length.unsqueeze(1) * state.step, state.decrement)

    def _length(self, problem: _Sets, state: _State) -> Tensor:
        """The best of the damped length and longer ones that stay inside."""
        slack = problem.h - times(problem.G, state.y)
        loss = times(problem.G, state.step) / slack
        wall = 1 / loss.amax(1).clamp(min=1e-12)
        damped = 1 / (1 + state.decrement)
        tried = torch.stack([damped, *(share * wall for share in (0.5, 0.8, 0.9, 0.99))])
        tried = torch.minimum(tried.maximum(damped), 1e3 * damped)
        inside = (1 - tried.unsqueeze(2) * loss).clamp(min=1e-300)
        return tried.gather(0, inside.log().sum(2).argmax(0, keepdim=True)).squeeze(0)

    def status(self, problem: _Sets, x: Sequence[Tensor], state: _State) -> Tensor:
        # Once convergence is quadratic, what does not fall any more is rounding.
        small = (state.decrement < 1e-6) & (state.decrement >= 0.25 * state.before)
        status = torch.where(small | (state.decrement < 1e-13), int(Status.CONVERGED), RUNNING)
        return torch.where(state.decrement.isfinite(), status, int(Status.STALLED))


@dataclasses.dataclass(frozen=True)
class CenterSolver:
    """The formula of ``z = (y, nu)``, ``(R, m + p)``, from G, h, A, b; without derivatives.

    Attributes:
        max_steps: Most steps for an item.
    """

    max_steps: int

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``z``; status, steps, and Newton's decrement."""
        dtype = inputs[0].dtype
        G, h, A, b = (part.double() for part in inputs)
        sound = G.sum((1, 2)).isfinite() & A.sum((1, 2)).isfinite() & b.sum(1).isfinite()
        sound = sound & ~(h.isnan() | (h == -torch.inf)).any(1)
        column = sound.unsqueeze(1)
        counts = (h != torch.inf) & column
        size = torch.linalg.vector_norm(G, dim=2)
        size = torch.where(counts & (size > 0), size, 1)
        # In units of the faces; the logarithms change by a constant.
        G = torch.where(counts.unsqueeze(2), G, 0) / size.unsqueeze(2)
        h = torch.where(counts, h, 1) / size
        A, b = torch.where(column.unsqueeze(2), A, 0), torch.where(column, b, 0)
        y, P, fits = _least(A, b)
        status = torch.where(fits, RUNNING, int(Status.INFEASIBLE))
        outside = (fits & ((h - times(G, y)).amin(1) <= _INSIDE * (1 + h.abs().amax(1)))).nonzero().squeeze(1)
        if len(outside):
            deep, found = self._deep(*(part[outside] for part in (G, h, A, b)))
            y, status = y.index_copy(0, outside, deep), status.index_copy(0, outside, found)
        items = (status == RUNNING).nonzero().squeeze(1)
        num_steps, decrement = torch.zeros_like(status), torch.full_like(y[:, 0], torch.inf)
        if len(items):
            state, ended, steps = iterate(_Newton(self.max_steps), _Sets(G[items], h[items], P[items]), (), y[items])
            unsure = (ended != int(Status.CONVERGED)).nonzero().squeeze(1)
            if len(unsure):
                open_sets = self._unbounded(G[items[unsure]], A[items[unsure]])
                ended[unsure] = torch.where(open_sets, int(Status.UNBOUNDED), ended[unsure])
            y, status = y.index_copy(0, items, state.y), status.index_copy(0, items, ended)
            num_steps = num_steps.index_copy(0, items, steps)
            decrement = decrement.index_copy(0, items, state.decrement)
        nu = _multipliers(G, h, A, y)
        lost = (status == int(Status.INFEASIBLE)) | (status == int(Status.UNBOUNDED)) | ~sound
        z = torch.where(lost.unsqueeze(1), torch.nan, torch.cat([y, nu], dim=1))
        status = torch.where(sound, status, int(Status.NON_FINITE))
        decrement = torch.where(sound, decrement, torch.nan)
        return z.to(dtype), status, num_steps, decrement.to(dtype)

    def _deep(self, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """A point with a large least slack, and RUNNING; or why there is none.

        The linear program ``max t`` under ``G y + t <= h``, ``A y = b`` and ``t <= cap``: the cap keeps it bounded.
        """
        B, _, m = G.shape
        cap = 1 + h.abs().amax(1)
        rows = torch.cat(
            [
                torch.cat([A, A.new_zeros(B, A.shape[1], 1)], dim=2),
                torch.cat([G, (torch.linalg.vector_norm(G, dim=2, keepdim=True) > 0).to(G.dtype)], dim=2),
            ],
            dim=1,
        )
        c = torch.cat([G.new_zeros(B, m), -G.new_ones(B, 1)], dim=1)
        limits = torch.full_like(c, torch.inf)
        upper = torch.cat([limits[:, :m], cap.unsqueeze(1)], dim=1)
        program = QuadraticSolver(A.shape[1], True, self.max_steps, OWN)
        Q = torch.zeros_like(rows[:, :1]).mT @ rows[:, :1]
        answer = program.solve((Q, c, rows, torch.cat([b, h], dim=1), -limits, upper))
        z, status = answer[0], answer[7]
        y = z[:, :m]
        inside = (h - times(G, y)).amin(1) > _INSIDE * cap
        known = (status == int(Status.CONVERGED)) | (status == int(Status.INFEASIBLE))
        why = torch.where(known, int(Status.INFEASIBLE), status)
        return y, torch.where(inside, RUNNING, why)

    def _unbounded(self, G: Tensor, A: Tensor) -> Tensor:
        """Which sets reach to infinity, ``(B,)``.

        There is no direction with ``G d <= 0``, some of them strict, and ``A d = 0``, if and only if there are positive
        multipliers with ``G'lam + A'nu = 0`` (Stiemke): the largest least one of those up to one is looked for.
        """
        B, q, m = G.shape
        p = A.shape[1]
        there = (torch.linalg.vector_norm(G, dim=2) > 0).to(G.dtype)
        # Variables lam, nu, t; rows G'lam + A'nu = 0 and t - lam <= 0.
        rows = torch.cat(
            [
                torch.cat([G.mT, A.mT, G.new_zeros(B, m, 1)], dim=2),
                torch.cat([-torch.diag_embed(there), G.new_zeros(B, q, p), there.unsqueeze(2)], dim=2),
            ],
            dim=1,
        )
        lower = torch.cat([G.new_zeros(B, q), G.new_full((B, p), -torch.inf), G.new_zeros(B, 1)], dim=1)
        upper = torch.cat([G.new_ones(B, q), G.new_full((B, p), torch.inf), G.new_ones(B, 1)], dim=1)
        c = torch.cat([G.new_zeros(B, q + p), -G.new_ones(B, 1)], dim=1)
        Q = torch.zeros_like(rows[:, :1]).mT @ rows[:, :1]
        program = QuadraticSolver(m, True, self.max_steps, OWN)
        answer = program.solve((Q, c, rows, G.new_zeros(B, m + q), lower, upper))
        least, status = answer[0][:, q + p], answer[7]
        return (status == int(Status.CONVERGED)) & (least <= _POSITIVE)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        """The shapes of the result."""
        G, _, A, _ = inputs
        count = G.new_empty(G.shape[0], dtype=torch.int64)
        return G.new_empty(G.shape[0], G.shape[2] + A.shape[1]), count, count.clone(), G.new_empty(G.shape[0])

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        raise AssertionError("called with inputs that carry no gradient")

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        raise AssertionError("called with inputs that carry no tangent")


def _least(A: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The shortest y with ``A y = b``, the projection onto ``A d = 0``, and whether such a y exists."""
    B, p, m = A.shape
    eye = torch.eye(m, dtype=A.dtype, device=A.device)
    if not p:
        return A.new_zeros(B, m), eye.expand(B, m, m), torch.ones(B, dtype=torch.bool, device=A.device)
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    kept = max(p, m) * torch.finfo(A.dtype).eps * S[:, :1] < S
    y = times(Vh.mT, torch.where(kept, times(U.mT, b) / torch.where(kept, S, 1), 0))
    basis = torch.where(kept.unsqueeze(2), Vh, 0)
    off = torch.linalg.vector_norm(times(A, y) - b, dim=1)
    return y, eye - basis.mT @ basis, off <= 1e-10 * (torch.linalg.vector_norm(b, dim=1) + S[:, 0])


def _multipliers(G: Tensor, h: Tensor, A: Tensor, y: Tensor) -> Tensor:
    """The shortest ``nu`` with ``A'nu = -G'd``, ``(B, p)``."""
    if not A.shape[1]:
        return A.new_zeros(A.shape[0], 0)
    slope = times(G.mT, 1 / (h - times(G, y)))
    return -times(torch.linalg.pinv(A.mT), slope)
