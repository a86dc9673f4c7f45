r"""Solvers of the regression of ``tube.py``, which is the file to read first.

With softness the problem of u is smooth. Its gradient is ::

    u - X'a,   a = psi(tau - X u),   psi(r) = sign(r) min(max(|r| - epsilon, 0) / softness, C)

and Newton's method, with a search along its direction, has the exact answer once it knows which frames are on which
piece of psi, after a handful of steps. The frames X may be any that have the same kernels: with more features than
frames, a triangle. Without softness, or where that takes too long, it is a quadratic program in 2 T variables.
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
from torchddn.solvers.vectors import back_substitute, identity_like, largest, times
from torchddn.status import Status

__all__ = ["TubeSolver"]

_SHORTEST = 2.0**-12


class _State(NamedTuple):
    u: Tensor  # (B, D)
    X_u: Tensor  # (B, T)
    a: Tensor  # (B, T)
    piece: Tensor  # (B, T): of psi, 0 for the flat ones
    slope: Tensor  # (B, D): the gradient
    exact: Tensor  # (B,): whether the last step was Newton's own, from the pieces on which it ends


class _Regressions(NamedTuple):
    """The data of a batch, of which a part can be taken."""

    X: Tensor
    tau: Tensor
    epsilon: Tensor
    softness: Tensor
    C: Tensor

    def select(self, x: Sequence[Tensor], items: Tensor) -> tuple["_Regressions", Sequence[Tensor]]:
        return _Regressions(*(part[items] for part in self)), x

    def judge(self, u: Tensor, before: Tensor, whole: Tensor) -> _State:
        """What is known at ``u``, to which a step led from the pieces ``before``; if ``whole``, Newton's own."""
        X_u = times(self.X, u)
        r = self.tau - X_u
        over = (r.abs() - self.epsilon).clamp(min=0) / self.softness
        a = r.sign() * torch.minimum(over, self.C)
        piece = r.sign() * (over > 0) * torch.where(over < self.C, 1, 2)
        exact = whole & (piece == before).all(1)
        return _State(u, X_u, a, piece, u - times(self.X.mT, a), exact)

    def objective(self, u: Tensor, X_u: Tensor) -> Tensor:
        """``(k, B)``, at ``u``, ``(k, B, D)``."""
        over = ((self.tau - X_u).abs() - self.epsilon).clamp(min=0)
        slope = torch.minimum(over / self.softness, self.C)
        return 0.5 * u.square().sum(-1) + (slope * over - 0.5 * self.softness * slope.square()).sum(-1)


@dataclasses.dataclass(frozen=True)
class _Newton:
    """The method, for :func:`torchddn.solvers.base.iterate`."""

    max_steps: int

    def init(self, problem: _Regressions, x: Sequence[Tensor], y: Tensor) -> _State:
        never = torch.zeros_like(y[:, 0], dtype=torch.bool)
        return problem.judge(y, torch.zeros_like(problem.tau), never)

    def step(self, problem: _Regressions, x: Sequence[Tensor], state: _State) -> _State:
        X = problem.X
        curved = torch.where(state.piece.abs() == 1, 1 / problem.softness, 0)
        H = torch.baddbmm(identity_like(X), (X * curved.unsqueeze(2)).mT, X)
        du = -back_substitute(torch.linalg.cholesky_ex(H)[0], state.slope)
        X_du = times(X, du)
        # Lengths 1, 1/2, 1/4, ...: all at once, since the products with X are there.
        lengths = _SHORTEST ** torch.linspace(0, 1, 13, dtype=X.dtype, device=X.device)
        share = lengths[:, None, None]
        tried = problem.objective(state.u + share * du, state.X_u + share * X_du)
        tried = tried.nan_to_num(nan=torch.inf)
        # The longest of those that are as good up to rounding.
        least = tried.amin(0)
        best = (tried <= least + 64 * torch.finfo(X.dtype).eps * least.abs()).to(torch.int8).argmax(0)
        return problem.judge(state.u + lengths[best].unsqueeze(1) * du, state.piece, best == 0)

    def status(self, problem: _Regressions, x: Sequence[Tensor], state: _State) -> Tensor:
        """CONVERGED where Newton's step was exact, or the gradient is the rounding of its parts."""
        parts = times(problem.X.mT.abs(), state.a.abs())
        small = largest(state.slope) <= 8 * torch.finfo(state.u.dtype).eps * largest(parts)
        return torch.where(state.exact | small, int(Status.CONVERGED), RUNNING)


@dataclasses.dataclass(frozen=True)
class TubeSolver:
    """The opaque part: ``a``, ``(R, T)``, from X, ``(R, T, D)``, ``tau``, ``epsilon``, ``softness`` and C, ``(R, T)``.

    Attributes:
        soft: Whether all softness is positive.
        max_steps: Most steps for an item.
    """

    soft: bool
    max_steps: int

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``a``; the sign of the frames that are free or at a limit, else 0; which are free; status, steps, error."""
        if not self.soft or not len(inputs[0]):
            return self._program(inputs)
        X, *rest = inputs
        if X.shape[2] > X.shape[1]:
            X = torch.linalg.qr(X.mT).R.mT
        problem = _Regressions(X, *rest)
        state, status, num_steps = iterate(_Newton(self.max_steps), problem, (), torch.zeros_like(X[:, 0]))
        whole = (state.a, state.piece.sign(), state.piece.abs() == 1, status, num_steps, largest(state.slope))
        left = (status != int(Status.CONVERGED)).nonzero().squeeze(1)
        if not len(left):
            return whole
        part = self._program([x[left] for x in inputs])
        return tuple(x.index_copy(0, left, y) for x, y in zip(whole, part, strict=True))

    def _program(self, inputs: Sequence[Tensor]) -> Answer:
        """With ``a = gain - loss``, both between 0 and C."""
        X, tau, epsilon, softness, C = inputs
        K, T = X @ X.mT, tau.shape[1]
        soft = K + torch.diag_embed(softness)
        Q = torch.cat([torch.cat([soft, -soft], dim=2), torch.cat([-soft, soft], dim=2)], dim=1)
        c = torch.cat([epsilon - tau, epsilon + tau], dim=1)
        rows, right, zeros = K.new_zeros(len(K), 0, 2 * T), K.new_zeros(len(K), 0), torch.zeros_like(c)
        program = QuadraticSolver(0, True, self.max_steps, OWN)
        answer = program.solve((Q, c, rows, right, zeros, C.repeat(1, 2)))
        z, at_zero, at_most, _, _, _, _, status, num_steps, error, *_ = answer
        z = torch.where(at_zero, 0, z)
        a = z[:, :T] - z[:, T:]
        # One frame may gain and lose what cancels, where there is no tube.
        both = ~at_zero[:, :T] & ~at_zero[:, T:]
        free = torch.where(both, ~at_most[:, :T] | ~at_most[:, T:], ~at_zero[:, :T] | ~at_zero[:, T:])
        held = (at_most[:, :T] | at_most[:, T:]) & (a.abs() >= C)
        sign = torch.where(free, torch.where(at_zero[:, :T], -1, 1), 0).to(K.dtype)
        return torch.where(held, sign * C, a), sign, free & ~held, status, num_steps, error

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        """The shapes of the result."""
        tau = inputs[1]
        count = tau.new_empty(tau.shape[0], dtype=torch.int64)
        a = tau.new_empty(tau.shape)
        return a, a.clone(), a.new_empty(a.shape, dtype=torch.bool), count, count.clone(), tau.new_empty(tau.shape[0])

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        raise AssertionError("called with inputs that carry no gradient")

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        raise AssertionError("called with inputs that carry no tangent")
