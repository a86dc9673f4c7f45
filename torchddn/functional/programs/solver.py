"""The opaque part of a quadratic program: from its data to the solution and the rows that hold with equality there."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from torchddn.functional.nodes.handmade import Answer
from torchddn.quadratic import Data, Program, solve_program
from torchddn.status import Status

__all__ = ["QuadraticSolver"]


@dataclasses.dataclass(frozen=True)
class QuadraticSolver:
    """The formula of ``z``, ``(R, m + r)``, from ``Q, c, R, b, lower, upper``; without derivatives.

    Attributes:
        p: How many of the r rows are equalities.
        bounded: Whether ``lower`` and ``upper`` say anything.
        max_steps: Most steps for an item.
        backend: Who solves first.
    """

    p: int
    bounded: bool
    max_steps: int
    backend: str

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``z``; the masks ``at_lower``, ``at_upper``, ``active`` and the weak ones of each; status, steps, error.

        Behind these the factor of :class:`~torchddn.functional.programs.conditions.KnownFactor`.
        """
        Q, c, R, b, lower, upper = inputs
        m, r = c.shape[1], b.shape[1]
        right = torch.cat([b, -lower, upper], dim=1) if self.bounded else b
        sound = Q.sum((1, 2)).isfinite() & c.sum(1).isfinite() & R.sum((1, 2)).isfinite()
        sound = sound & b[:, : self.p].sum(1).isfinite() & ~(right.isnan() | (right == -torch.inf)).any(1)
        if not bool(sound.all()):
            column, matrix = sound.unsqueeze(1), sound.reshape(-1, 1, 1)
            Q, c, R = torch.where(matrix, Q, 0), torch.where(column, c, 0), torch.where(matrix, R, 0)
            right = torch.where(column, right, 0)
        Q = 0.5 * (Q + Q.mT)
        present = right.isfinite()
        data = Data(Q, c, R, torch.where(present, right, 0), present)
        if not data.b.shape[1]:  # a row that does not exist, so that no maximum is over nothing
            none = torch.zeros_like(c[:, :1])
            data = data._replace(R=torch.zeros_like(Q[:, :1]), b=none, present=none > 0)
        program = Program(m, self.p, data.R.shape[1] - self.p, self.bounded)
        found = solve_program(program, data, self.max_steps, self.backend)
        y, lam = found.y, found.z[:, :r]
        at_lower, at_upper, weak_lower, weak_upper = (
            (torch.zeros_like(c, dtype=torch.bool),) * 4
            if not self.bounded
            else (*found.active[:, r:].chunk(2, dim=1), *found.weak[:, r:].chunk(2, dim=1))
        )
        solved = (found.status == Status.CONVERGED).unsqueeze(1)
        y = torch.where(solved & at_lower, lower, torch.where(solved & at_upper, upper, y))
        z = torch.where(sound.unsqueeze(1), torch.cat([y, lam], dim=1), torch.nan)
        status = torch.where(sound, found.status, int(Status.NON_FINITE))
        error = torch.where(sound, found.error, torch.nan)
        masks = (at_lower, at_upper, found.active[:, :r], weak_lower, weak_upper, found.weak[:, :r])
        return z, *masks, status, found.num_steps, error, found.L, found.w[:, :r], found.regular & sound

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        """The shapes of the result."""
        Q, c, _, b, _, _ = inputs
        none = torch.empty_like(c, dtype=torch.bool)
        rows = torch.empty_like(b, dtype=torch.bool)
        count = torch.empty_like(c[:, 0], dtype=torch.int64)
        z = c.new_empty(c.shape[0], c.shape[1] + b.shape[1])
        return (
            z,
            none,
            none.clone(),
            rows,
            none.clone(),
            none.clone(),
            rows.clone(),
            count,
            count.clone(),
            c[:, 0].clone(),
            torch.empty_like(Q),
            torch.empty_like(b),
            none[:, 0].clone(),
        )

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        raise AssertionError("called with inputs that carry no gradient")

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        raise AssertionError("called with inputs that carry no tangent")
