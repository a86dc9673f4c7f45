r"""Cone programs as nodes: their solutions as functions of the data.

::

    min_x  1/2 x'P x + q'x   subject to   A x + s = b,  s in K

The unknowns are ``y = (x, w)`` with ``w = s - z``, slacks and multipliers in one (:mod:`torchddn.cones`). The equations
of :mod:`torchddn.cones.optimality` have the derivative J in y, and ``J'u = v`` with the solution itself gives every
gradient. The solve is certified. All parts are nodes whose derivatives are made of nodes, so that derivatives of every
order follow.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.cones import (
    ConeData,
    ProductCone,
    Settings,
    System,
    gather_products,
    linearize,
    lyapunov,
    operator,
    polish,
    refine,
    solve_programs,
)
from torchddn.functional.nodes.degeneracy import warn_undetermined
from torchddn.functional.nodes.handmade import Answer, solve
from torchddn.linear import default_rtol, solve_certified
from torchddn.status import Status

__all__ = ["ConePoint", "Ended", "cone_program", "slack"]

_WHAT = ("feas", "gap_abs", "gap_rel")

# Errors, in units of the data, at which an answer is a solution whatever the solver says of it, and at which it is not.
_SOLVED, _ROUGH = 1e-9, 1e-6

# Where s and z are both near zero, Clarabel's tolerance of 1e-8 for s'z leaves each of them known to 1e-4 only, and
# Newton's method does not know which to drop. Of these items we want more; what is less than that is not called solved.
_TIGHT: Settings = tuple(
    sorted(
        {f"{prefix}tol_{what}": value for prefix, value in (("", 1e-11), ("reduced_", 1e-8)) for what in _WHAT}.items()
    )
)


@dataclasses.dataclass(frozen=True)
class Ended:
    """What is known of each item, ``(R, ...)``; x and w are differentiable."""

    x: Tensor
    w: Tensor
    status: Tensor
    num_steps: Tensor
    error: Tensor


def cone_program(call: str, cone: ProductCone, data: ConeData, settings: Settings, num_workers: int | None) -> Ended:
    """The solutions, NaN where there is none, with gradients of zero."""
    solver = ConeSolver(cone, settings, num_workers)
    y, status, num_steps, error = solve(solver, *(part.detach() for part in data))
    sound = ~y.isnan().any(dim=1, keepdim=True)
    P, q, A, b = (torch.where(sound, part, 0) for part in data[:4])
    data = data._replace(P=P, q=q, A=A, b=b)
    y = solve(ConePoint(call, cone), *data, y)[0]
    n = data.q.shape[1]
    return Ended(y[:, :n], y[:, n:], status, num_steps, error)


def slack(cone: ProductCone, w: Tensor) -> Tensor:
    """The projection of ``w``, ``(R, m)``, onto the cone, differentiable."""
    return solve(_Slack(cone), w)[0]


@dataclasses.dataclass(frozen=True)
class ConeSolver:
    """The opaque part: ``y``, ``(R, n + m)``, from the data, without derivatives.

    Attributes:
        cone: What the slacks lie in.
        settings: Options of Clarabel.
        num_workers: Threads; None for as many as torch uses.
    """

    cone: ProductCone
    settings: Settings
    num_workers: int | None

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``y``, status, steps and error."""
        data = ConeData(*inputs)
        answer = self._attempt(data, self.settings)
        rest = (answer.error > _SOLVED).nonzero().flatten()
        if rest.numel() and not self.settings:
            again = self._attempt(ConeData(*(part[rest] for part in data)), _TIGHT)
            again = again._replace(num_steps=again.num_steps + answer.num_steps[rest])
            better = again.error < answer.error[rest]
            rest, again = rest[better], _Attempt(*(part[better] for part in again))
            answer = _Attempt(*(a.index_copy(0, rest, b) for a, b in zip(answer, again, strict=True)))
        y, claim, num_steps, error = answer
        gave_up = (claim == Status.MAX_STEPS) | (claim == Status.STALLED)
        status = torch.where(gave_up & (error <= _SOLVED), int(Status.CONVERGED), claim)
        status = torch.where((claim == Status.CONVERGED) & (error > _ROUGH), int(Status.STALLED), status)
        return y, status, num_steps, error

    def _attempt(self, data: ConeData, settings: Settings) -> "_Attempt":
        """What Clarabel finds, and the Newton steps from there; items without a point keep NaN."""
        x, w, status, num_steps = solve_programs(self.cone, data, settings, self.num_workers)
        error = torch.full_like(x[:, 0], torch.nan)
        items = (~x.isnan().any(1)).nonzero().flatten()
        if items.numel():
            part = ConeData(*(field[items] for field in data))
            parts = polish(self.cone, part, x[items], w[items])
            wholes = (x, w, error, torch.zeros_like(num_steps))
            x, w, error, more = (a.index_copy(0, items, b) for a, b in zip(wholes, parts, strict=True))
            num_steps = num_steps + more
        return _Attempt(torch.cat([x, w], dim=1), status, num_steps, error)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        q, b = inputs[1], inputs[3]
        count = torch.empty_like(q[:, 0], dtype=torch.int64)
        y = q.new_empty(q.shape[0], q.shape[1] + b.shape[1])
        return y, count, count.clone(), torch.empty_like(q[:, 0])

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        raise AssertionError("called with inputs that carry no gradient")

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        raise AssertionError("called with inputs that carry no tangent")


class _Attempt(NamedTuple):
    """Where an attempt ended, ``(R, ...)``: ``y = (x, w)``, what the solver says, and the error that is left."""

    y: Tensor
    status: Tensor
    num_steps: Tensor
    error: Tensor


@dataclasses.dataclass(frozen=True)
class ConePoint:
    """The formula of ``y`` from the data and ``y`` itself, which is known.

    An item with NaN has derivatives of zero.

    Attributes:
        call: Who asks, for warnings.
        cone: What the slacks lie in.
    """

    call: str
    cone: ProductCone

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        return (inputs[-1].clone(),)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return (torch.empty_like(inputs[-1]),)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        data = ConeData(*inputs[:-1])
        n = data.q.shape[1]
        sound = ~y.isnan().any(dim=1, keepdim=True)
        y, v = torch.where(sound, y, 0), torch.where(sound, v, 0)
        x, z, system = self._linearize(y, data)
        u = solve(_Linear(self.call, n, True), *system[:9], v)[0]
        along, rows = -u[:, :n], -u[:, n:]
        d_P = d_A = None
        if needed[0]:
            d_P = along.gather(1, data.P_rows) * x.gather(1, data.P_columns)
        if needed[2]:
            d_A = z.gather(1, data.A_rows) * along.gather(1, data.A_columns)
            d_A = d_A + rows.gather(1, data.A_rows) * x.gather(1, data.A_columns)
        return d_P, along, d_A, -rows, *[None] * 5

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        data = ConeData(*inputs[:-1])
        n = data.q.shape[1]
        y = torch.where(y.isnan().any(dim=1, keepdim=True), 0, y)
        x, z, system = self._linearize(y, data)
        d_P, d_q, d_A, d_b = tangents[:4]
        force, rest = torch.zeros_like(data.q), torch.zeros_like(data.b)
        if d_P is not None:
            force = force.scatter_add(1, data.P_rows, d_P * x.gather(1, data.P_columns))
        if d_q is not None:
            force = force + d_q
        if d_A is not None:
            force = force.scatter_add(1, data.A_columns, d_A * z.gather(1, data.A_rows))
            rest = rest.scatter_add(1, data.A_rows, d_A * x.gather(1, data.A_columns))
        if d_b is not None:
            rest = rest - d_b
        return solve(_Linear(self.call, n, False), *system[:9], -torch.cat([force, rest], dim=1))[0]

    def _linearize(self, y: Tensor, data: ConeData) -> tuple[Tensor, Tensor, System]:
        """``x``, ``z`` and the derivative of the equations in y."""
        n = data.q.shape[1]
        x, w = y[:, :n], y[:, n:]
        s = slack(self.cone, w)
        return x, s - w, linearize(self.cone, data, w, s, _solve_lyapunov)


@dataclasses.dataclass(frozen=True)
class _Slack:
    """The formula of the projection onto the cone."""

    cone: ProductCone

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        (w,) = inputs
        finite = ~w.isnan().any(dim=1, keepdim=True)
        return (torch.where(finite, self.cone.project(torch.where(finite, w, 0)), torch.nan),)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return (torch.empty_like(inputs[0]),)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        return (self._along(y, v, inputs[0]),)

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        dw = tangents[0]
        return torch.zeros_like(y) if dw is None else self._along(y, dw, inputs[0])

    def _along(self, s: Tensor, v: Tensor, w: Tensor) -> Tensor:
        """The derivative, which is symmetric, times ``v``; zero for an item with NaN."""
        sound = ~w.isnan().any(dim=1, keepdim=True)
        s, v, w = (torch.where(sound, part, 0) for part in (s, v, w))
        D, rows, columns = self.cone.slope(w, s, _solve_lyapunov)
        return torch.zeros_like(v).scatter_add(1, rows, D * v.gather(1, columns))


@dataclasses.dataclass(frozen=True)
class _Linear:
    """The formula of ``u`` with ``J u = v`` or ``J'u = v``, from the parts of a :class:`System` and v; certified.

    Attributes:
        call: Who asks, for warnings.
        n: Length of x.
        transposed: Which of the two.
    """

    call: str
    n: int
    transposed: bool

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        system, v = self._system(inputs), inputs[-1]
        u, residual = refine(system, v, self.transposed)
        rest = (~(residual <= default_rtol(v.dtype))).nonzero().flatten()
        asked = torch.zeros_like(residual, dtype=torch.bool)
        if rest.numel():
            certified = solve_certified(operator(system.select(rest), self.transposed), v[rest])
            u = u.index_copy(0, rest, certified.solution)
            # What v asks for may be determined although not everything is: then the system has a solution.
            undetermined = certified.degenerate & (certified.residual > torch.finfo(v.dtype).eps ** 0.5)
            asked = asked.index_copy(0, rest, undetermined)
        warn_undetermined(self.call, asked, "the solution is not isolated", "a strictly convex term singles one out")
        return (u,)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return (torch.empty_like(inputs[-1]),)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        back = solve(dataclasses.replace(self, transposed=not self.transposed), *inputs[:-1], v)[0]
        if not any(needed[:3]):
            return *[None] * 9, back
        left, right = (y, back) if self.transposed else (back, y)
        return *(-part for part in gather_products(self._system(inputs), left, right)), *[None] * 6, back

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        change = torch.zeros_like(y) if tangents[-1] is None else tangents[-1]
        if any(tangent is not None for tangent in tangents[:3]):
            # The product is not linear in the parts of the matrix, and so its derivative is that of the gradient.
            change = change - self._moved(y, inputs, tangents[:3])
        return solve(self, *inputs[:-1], change)[0]

    def _moved(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        """The derivative of the product with y along changes of P, A and D."""
        system = self._system(inputs)
        P, A, D = (
            torch.zeros_like(part) if change is None else change
            for part, change in zip(inputs[:3], tangents, strict=True)
        )
        n, m = system.n, system.m
        x, w = y.split((n, m), dim=1)
        changed = system._replace(P=P, A=A, D=D)
        dP_x, dD_w = changed.times("P", x), changed.times("D", w)
        if self.transposed:
            slopes = changed.times("D", system.times("A", x)) + system.times("D", changed.times("A", x))
            upper, lower = dP_x + changed.times("A", w, True), dD_w - changed.times("A", x) + slopes
        else:
            kept = w - system.times("D", w)
            upper = dP_x - changed.times("A", kept, True) + system.times("A", dD_w, True)
            lower = changed.times("A", x) + dD_w
        return torch.cat([upper, lower], dim=1)

    def _system(self, inputs: Sequence[Tensor]) -> System:
        return System._make([*inputs[:9], self.n, inputs[-1].shape[1] - self.n])


@dataclasses.dataclass(frozen=True)
class _Lyapunov:
    """The formula of ``e`` with ``a e + e a = h``, ``(R, N, k, k)``, for symmetric a, ``(R, k, k)``, and h."""

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        return (lyapunov(*inputs),)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return (torch.empty_like(inputs[1]),)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        back = _solve_lyapunov(inputs[0], v)
        return -(back @ y + y @ back).sum(dim=1) if needed[0] else None, back

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        da, dh = tangents
        change = torch.zeros_like(y) if dh is None else dh
        if da is not None:
            change = change - (da.unsqueeze(1) @ y + y @ da.unsqueeze(1))
        return _solve_lyapunov(inputs[0], change)


def _solve_lyapunov(a: Tensor, h: Tensor) -> Tensor:
    return solve(_Lyapunov(), a, h)[0]
