r"""Partial transport: a given mass is moved, and no row or column gives or takes more than it has.

Solves ::

    min_P  <P, M> + 1/gamma sum P (log P - 1)   subject to   P 1 <= r,  P^T 1 <= c,  sum P = s

so ``P_ij = exp(u_i + v_j + t - gamma M_ij)``, ``u, v <= 0``, with ``u_i = 0`` where a row is not full. The dual is
ascended a block at a time (rows, columns, total), exactly each; between two rounds a step of Newton's method for those
that are full is tried, and kept where it lowers the error. gamma grows as in ``dual_newton.py``.

With the full rows and columns held, the derivatives are those of balanced transport with one more unknown, the t of
the total: a fit of potentials that are zero elsewhere, which a large penalty makes them.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from torchddn.functional.nodes.handmade import Answer
from torchddn.functional.transport.balance import balance
from torchddn.functional.transport.entropic import finite_cost
from torchddn.functional.transport.feasibility import blocked
from torchddn.functional.transport.gibbs import Potentials, Transport, plan
from torchddn.functional.transport.response import respond
from torchddn.status import Status

__all__ = ["PartialPlan"]

_HELD = 1e30  # penalty that makes a potential zero
_GENTLE = 10.0


@dataclasses.dataclass(frozen=True)
class PartialPlan:
    """The formula of ``P``, ``(R, m, n)``, from the cost, ``r``, ``c``, ``gamma`` and the mass ``s``."""

    call: str
    atol: float
    max_steps: int
    exact: bool

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``P``; status, steps and error, ``(R,)`` each."""
        cost, r, c, gamma, s = inputs
        m, n = cost.shape[1:]
        r, c, gamma, s = r.double(), c.double(), gamma.double(), s.double()
        numbers = torch.cat([r, c, gamma.unsqueeze(1), s.unsqueeze(1)], dim=1)
        sound = numbers.isfinite().all(dim=1) & (cost > -torch.inf).all(dim=2).all(dim=1)
        if not bool(sound.all()):
            cost = torch.where(sound.reshape(-1, 1, 1), cost, 0)
            r, c = torch.where(sound.unsqueeze(1), r, 1 / m), torch.where(sound.unsqueeze(1), c, 1 / n)
            gamma, s = torch.where(sound, gamma, 1), torch.where(sound, s, 0.5)
        P, u, error, num_steps = self._ascend(cost, r / s.unsqueeze(1), c / s.unsqueeze(1), gamma)
        status = torch.where(error <= self.atol, int(Status.CONVERGED), int(Status.MAX_STEPS))
        items = ((status != Status.CONVERGED) & cost.isinf().any(dim=2).any(dim=1)).nonzero().squeeze(1)
        if len(items):
            proven = items[blocked(cost[items], r[items], c[items], s[items], u[items])]
            status[proven] = int(Status.INFEASIBLE)
            P[proven] = torch.nan
        P = P.mul_(s.to(P.dtype).reshape(-1, 1, 1))
        P = torch.where(sound.reshape(-1, 1, 1), P, torch.nan)
        status = torch.where(sound, status, int(Status.NON_FINITE))
        return P, status, num_steps, torch.where(sound, error, torch.nan)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        cost, gamma = inputs[0], inputs[3]
        integers = gamma.new_empty(gamma.shape, dtype=torch.int64)
        return (
            cost.new_empty(cost.shape),
            integers,
            torch.empty_like(integers),
            gamma.new_empty(gamma.shape, dtype=torch.float64),
        )

    def _ascend(self, cost: Tensor, r: Tensor, c: Tensor, goal: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The plan of mass one, the potentials of the rows where it ended, its error and the steps."""
        finite = finite_cost(cost)
        spread = (finite.amax(dim=(1, 2)) - finite.amin(dim=(1, 2))).double().clamp(min=1e-300)
        none = torch.zeros_like(goal)
        masked = bool(cost.isinf().any()) or bool((r == 0).any()) or bool((c == 0).any())
        gamma = torch.minimum(goal, _GENTLE / spread)
        u, v = torch.zeros_like(r), torch.zeros_like(c)
        t = gamma * finite.amin(dim=(1, 2)).double()
        stuck = torch.full_like(goal, torch.inf)
        best, steps = stuck.clone(), torch.zeros_like(goal, dtype=torch.int64)
        P_end = torch.zeros_like(cost, memory_format=torch.contiguous_format)
        running = torch.ones_like(goal, dtype=torch.bool)
        for _ in range(self.max_steps):
            problem = Transport(cost, None, r, c, gamma, none, none, masked, penalized=False, gentle=False)
            P, u, v, t = _round(problem, u, v, t)
            now = _error(P, u, v, r, c)
            steps += running
            at_end = gamma >= goal
            better = running & at_end & (now < best)
            best = torch.where(better, now, best)
            P_end[better] = P[better]
            running = running & ~(at_end & (now <= self.atol)) & now.isfinite()
            if not bool(running.any()):
                break
            tried = _newton(P, u, v, t, r, c)
            P_tried, *after = _round(problem, *tried)
            improved = _error(P_tried, after[0], after[1], r, c) < now
            u = torch.where(improved.unsqueeze(1), after[0], u)
            v = torch.where(improved.unsqueeze(1), after[1], v)
            t = torch.where(improved, after[2], t)
            ahead = ~at_end & (now <= 0.1)
            gamma_next = torch.where(ahead, torch.minimum(2 * gamma, goal), gamma)
            growth = gamma_next / gamma
            u, v, t, gamma = u * growth.unsqueeze(1), v * growth.unsqueeze(1), t * growth, gamma_next
        return P_end, u, best, steps

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        cost, r, c, gamma, s = inputs
        sound = ~y[:, :1, :1].isnan()
        P, v = torch.where(sound, y, 0), torch.where(sound, v, 0)
        none_r, none_c = torch.zeros_like(r, dtype=torch.float64), torch.zeros_like(c, dtype=torch.float64)
        grads: list[Tensor | None] = [torch.zeros_like(t) if w else None for t, w in zip(inputs, needed, strict=True)]
        misfit = v
        if self.exact:
            none = none_r, none_c, torch.zeros_like(s, dtype=torch.float64)
            x, z, t = _fit(self.call, needed[1] or needed[2], P, v, *none, *self._full(P, inputs))
            misfit = v - x.unsqueeze(2) - z.unsqueeze(1) - t.reshape(-1, 1, 1)
            grads[1], grads[2], grads[4] = x.to(r.dtype), z.to(c.dtype), t.to(s.dtype)
        dE = (misfit * P).to(P.dtype).neg()
        if needed[0]:
            grads[0] = dE * gamma.reshape(-1, 1, 1)
        if needed[3]:
            grads[3] = (dE * finite_cost(cost)).sum(dim=(1, 2))
        return grads

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        cost, r, c, gamma, s = inputs
        dcost, dr, dc, dgamma, ds = tangents
        P = torch.where(y[:, :1, :1].isnan(), 0, y)
        w = torch.zeros_like(P)
        if dcost is not None:
            w = w + gamma.reshape(-1, 1, 1) * dcost
        if dgamma is not None:
            w = w + finite_cost(cost) * dgamma.reshape(-1, 1, 1)
        if not self.exact:
            return -P * w
        g, h, k = ((torch.zeros_like(t) if d is None else d).double() for t, d in ((r, dr), (c, dc), (s, ds)))
        x, z, t = _fit(self.call, dr is not None or dc is not None, P, w, g, h, k, *self._full(P, inputs))
        return ((x.unsqueeze(2) + z.unsqueeze(1) + t.reshape(-1, 1, 1) - w) * P).to(y.dtype)

    def _full(self, P: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Which rows, ``(R, m)``, and columns, ``(R, n)``, move all that they have, to the precision of the plan."""
        _, r, c, _, s = (tensor.detach() for tensor in inputs)
        slack = 4 * self.atol * s.unsqueeze(1)
        noise = 1 - 16 * torch.finfo(P.dtype).eps
        plain = P.detach()
        return plain.sum(dim=2) >= r * noise - slack, plain.sum(dim=1) >= c * noise - slack


def _fit(
    call: str, unique: bool, P: Tensor, v: Tensor, g: Tensor, h: Tensor, k: Tensor, full_r: Tensor, full_c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted fit of ``v`` by ``x_i + y_j + t``, x and y zero where not full, with the right-hand side g, h, k."""
    e, f = torch.where(full_r, 0.0, _HELD).double(), torch.where(full_c, 0.0, _HELD).double()
    asked = torch.where(full_r, g, 0), torch.where(full_c, h, 0)
    x_v, y_v = respond(P, v, *asked, e, f, call=call, unique=unique)
    ones = torch.ones((), dtype=P.dtype, device=P.device).expand_as(P)
    x_1, y_1 = respond(P, ones, torch.zeros_like(g), torch.zeros_like(h), e, f, call=call, unique=unique, told=False)
    rest = (P * (v - x_v.unsqueeze(2) - y_v.unsqueeze(1))).sum(dim=(1, 2)) + k
    slack = (P * (1 - x_1.unsqueeze(2) - y_1.unsqueeze(1))).sum(dim=(1, 2))
    # If every row or every column is full, the total follows from these.
    told = slack > 1e-6 * P.detach().sum(dim=(1, 2))
    t = torch.where(told, rest / torch.where(told, slack, 1), 0)
    return x_v - t.unsqueeze(1) * x_1, y_v - t.unsqueeze(1) * y_1, t


def _round(problem: Transport, u: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One exact ascent in each block, the total last."""
    P = plan(problem, Potentials(u + t.unsqueeze(1), v))
    p = P.sum(dim=2, dtype=torch.float64)
    du = torch.minimum((problem.r / p.clamp(min=1e-300)).clamp(min=1e-300).log(), -u)
    P.mul_(du.exp().to(P.dtype).unsqueeze(2))
    q = P.sum(dim=1, dtype=torch.float64)
    dv = torch.minimum((problem.c / q.clamp(min=1e-300)).clamp(min=1e-300).log(), -v)
    P.mul_(dv.exp().to(P.dtype).unsqueeze(1))
    dt = -P.sum(dim=(1, 2), dtype=torch.float64).clamp(min=1e-300).log()
    empty_r, empty_c = problem.r == 0, problem.c == 0
    u, v = torch.where(empty_r, 0, u + du), torch.where(empty_c, 0, v + dv)
    return P.mul_(dt.exp().to(P.dtype).reshape(-1, 1, 1)), u, v, t + dt


def _error(P: Tensor, u: Tensor, v: Tensor, r: Tensor, c: Tensor) -> Tensor:
    """How much rows and columns have too much, and how much full ones lack."""
    parts = []
    for sums, target, z in ((P.sum(dim=2, dtype=torch.float64), r, u), (P.sum(dim=1, dtype=torch.float64), c, v)):
        gap = sums - target
        parts.append(torch.where(z < 0, gap.abs(), gap.clamp(min=0)).sum(dim=1))
    return parts[0] + parts[1]


def _newton(P: Tensor, u: Tensor, v: Tensor, t: Tensor, r: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A step for the potentials of full rows and columns and the total, cut where these would be positive."""
    p, q = P.sum(dim=2, dtype=torch.float64), P.sum(dim=1, dtype=torch.float64)
    full_r, full_c = (u < 0) | (p > r), (v < 0) | (q > c)
    e, f = torch.where(full_r, 0.0, _HELD).double(), torch.where(full_c, 0.0, _HELD).double()
    rtol = 16 * torch.finfo(P.dtype).eps
    x_v, y_v, *_ = balance(P, e, f, torch.where(full_r, r - p, 0), torch.where(full_c, c - q, 0), rtol)
    x_1, y_1, *_ = balance(P, e, f, torch.where(full_r, p, 0), torch.where(full_c, q, 0), rtol)
    total = p.sum(dim=1)
    slack = total - (p * x_1).sum(dim=1) - (q * y_1).sum(dim=1)
    rest = 1 - total - (p * x_v).sum(dim=1) - (q * y_v).sum(dim=1)
    told = slack > 1e-6 * total
    dt = torch.where(told, rest / torch.where(told, slack, 1), 0).clamp(-5, 5)
    du, dv = (x_v - dt.unsqueeze(1) * x_1).clamp(-5, 5), (y_v - dt.unsqueeze(1) * y_1).clamp(-5, 5)
    return torch.where(full_r, (u + du).clamp(max=0), u), torch.where(full_c, (v + dv).clamp(max=0), v), t + dt
