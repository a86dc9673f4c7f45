r"""Newton's method on the dual of entropic transport, along a path of growing gamma.

The columns are balanced at any time: v is a function of u. What is left is concave in u, with the gradient
``r - P 1`` and the Hessian ``-S`` of ``balance.py``. A step of Newton's method that is longer than
a few units in the exponents is cut; one after which the slope along it has not fallen enough, or has turned, is
shortened by the secant rule.

Where gamma times the range of the costs is large, the path starts at a smaller gamma. With ``u / gamma`` held, gamma
doubles after each step that leaves a moderate error. It starts where the range of the exponents is ``_GENTLE``.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.functional.transport.balance import conjugate_gradients, factored, size, work_of_factoring
from torchddn.functional.transport.gibbs import Potentials, Transport, column_sums, plan

__all__ = ["Ended", "newton"]

_FACTOR = 2.0  # of gamma, from one stage to the next
_NEAR = 0.1  # error at which to go to the next stage
_LONGEST = 8.0  # change of a potential in one step, at first
_LARGE, _MOST_TRIES = 15.0, 4  # change of a column's potential that is done again, and how often
_GENTLE = 10.0  # gamma times the range of costs where the path starts


class Ended(NamedTuple):
    """As :class:`torchddn.functional.transport.sinkhorn.Scaled`, without a rate."""

    P: Tensor
    potentials: Potentials
    error: Tensor
    num_steps: Tensor


def newton(
    problem: Transport, begin: Potentials, error: Tensor, rate: Tensor, atol: float, floor: Tensor, max_steps: int
) -> Ended:
    """Steps from ``begin`` until the error is ``atol``, or below ``floor``, ``(R,)``, and does not fall any more.

    The path starts at a small gamma where ``error``, ``(R,)``, is large; ``rate`` is that of Sinkhorn's iteration.
    """
    cost, device = problem.cost, problem.cost.device
    num_items, m, _ = cost.shape
    gamma_0 = _first_gamma(problem, begin, error)
    ratio = (gamma_0 / problem.gamma).unsqueeze(1)
    P_end = cost.new_empty(cost.shape)
    u_end, v_end = begin.u.clone(), begin.v.clone()
    error_end = torch.full_like(error, torch.inf)
    steps_end = torch.zeros(num_items, dtype=torch.int64, device=device)

    items, target = torch.arange(num_items, device=device), problem
    here = problem.at(gamma_0)
    u, v = begin.u * ratio, begin.v * ratio
    du, slope_0, error_0 = torch.zeros_like(u), torch.full_like(error, torch.inf), torch.full_like(error, torch.inf)
    length, longest = torch.ones_like(error), torch.full_like(error, _LONGEST)
    quick = (6 / (1 - rate).clamp(min=1e-9).sqrt() < 0.7 * work_of_factoring(m)) & (error <= _NEAR)
    noise = torch.finfo(cost.dtype).eps
    for step in range(1, max_steps + 1):
        trial = u + length.unsqueeze(1) * du
        P, v = _balanced(here, Potentials(trial, v))
        marginal = here.marginals(Potentials(trial, v))
        residual = marginal.r - P.sum(dim=2, dtype=torch.float64)
        now = residual.abs().sum(dim=1)
        slope = (residual * du).sum(dim=1)
        accepted = (slope.abs() <= 0.9 * slope_0) | (now < error_0) | (now <= floor) | (length < 1e-3)
        arrived = here.gamma >= target.gamma
        done = arrived & accepted & ((now <= atol) | ((now <= floor) & (now > 0.1 * error_0)))
        leaves = done | ~now.isfinite() | (step == max_steps)
        if bool(leaves.any()):
            which, stay = leaves.nonzero().squeeze(1), (~leaves).nonzero().squeeze(1)
            gone = items[which]
            P_end[gone] = P[which]
            u_end[gone], v_end[gone], steps_end[gone] = trial[which], v[which], step
            error_end[gone] = torch.where(arrived[which], now[which], torch.inf)
            if not len(stay):
                break
            items, target, here, P = items[stay], target.select(stay), here.select(stay), P[stay]
            u, v, du, trial, residual = u[stay], v[stay], du[stay], trial[stay], residual[stay]
            slope, slope_0, error_0, length = slope[stay], slope_0[stay], error_0[stay], length[stay]
            now, accepted, arrived, quick, longest = (t[stay] for t in (now, accepted, arrived, quick, longest))
            floor = floor[stay]
            marginal = here.marginals(Potentials(trial, v))
        e, f = _penalties(here, marginal.r, marginal.c)
        ridge = noise * marginal.r  # below it the residual is rounding, and so would the step be
        e = ridge if e is None else e + ridge
        step_u, quick = _direction(here, P, marginal.r - residual, marginal.c, e, f, residual, quick)
        reach = step_u.amax(dim=1) - step_u.amin(dim=1)
        # The slope that a step leaves as it was says that the step could have been longer.
        longest = torch.where(accepted & (slope > 0.5 * slope_0), 2 * longest, longest)
        longest = torch.where(accepted & (slope <= 0.5 * slope_0), _LONGEST, longest)
        cut = (longest / reach.clamp(min=1e-30)).clamp(max=1.0)
        step_u = step_u * cut.unsqueeze(1)
        ahead = accepted & ~arrived & (now <= _NEAR)
        gamma = torch.where(ahead, torch.minimum(_FACTOR * here.gamma, target.gamma), here.gamma)
        growth = (gamma / here.gamma).unsqueeze(1)
        # An item that goes to its next gamma takes the step first.
        step_v = -column_sums(P, step_u.to(P.dtype)) / (marginal.c + (marginal.c == 0))
        u = torch.where(accepted.unsqueeze(1), torch.where(ahead.unsqueeze(1), (trial + step_u) * growth, trial), u)
        v = torch.where(ahead.unsqueeze(1), (v + step_v) * growth, v)
        du = torch.where(accepted.unsqueeze(1), torch.where(ahead.unsqueeze(1), 0, step_u), du)
        slope_next = torch.where(ahead, torch.inf, (residual * step_u).sum(dim=1))
        secant = (slope_0 / (slope_0 - slope)).clamp(0.05, 0.5)
        length = torch.where(accepted, 1.0, length * secant)
        slope_0 = torch.where(accepted, slope_next, slope_0)
        error_0 = torch.where(accepted, torch.where(ahead, torch.inf, now), error_0)
        here = target.at(gamma)
    return Ended(P_end, Potentials(u_end, v_end), error_end, steps_end)


def _first_gamma(problem: Transport, begin: Potentials, error: Tensor) -> Tensor:
    """Where the path starts: at the end of it, if that is near or the problem is not sharp."""
    cost = problem.cost
    if problem.masked:
        blank = torch.where(cost.isinf(), 0, cost)
        low, high = blank.amin(dim=(1, 2)), blank.amax(dim=(1, 2))
    else:
        low, high = cost.amin(dim=(1, 2)), cost.amax(dim=(1, 2))
    spread = (high.double() - low.double()).clamp(min=1e-300)
    gentle = torch.minimum(problem.gamma, _GENTLE / spread)
    return torch.where(error <= 0.05, problem.gamma, gentle)


def _balanced(problem: Transport, potentials: Potentials) -> tuple[Tensor, Tensor]:
    """The plan whose columns sum to what they must, and the ``v`` that makes them."""
    u, v = potentials
    zero = problem.c == 0
    num_tries = 0
    while True:
        P = plan(problem, Potentials(u, v))
        target = problem.marginals(Potentials(u, v)).c + zero
        change = (target / (P.sum(dim=1, dtype=torch.float64) + zero)).log()
        if problem.penalized:
            change = change / (1 + problem.kappa_c).unsqueeze(1)
        v = v + change
        num_tries += 1
        # Entries that were clamped, or that a large change brings back, need their true exponents.
        if num_tries == _MOST_TRIES or not bool((change.abs() > _LARGE).any()):
            return P.mul_(change.exp().to(P.dtype).unsqueeze(1)), v


def _penalties(problem: Transport, r: Tensor, c: Tensor) -> tuple[Tensor | None, Tensor | None]:
    if not problem.penalized:
        return None, None
    return problem.kappa_r.unsqueeze(1) * r, problem.kappa_c.unsqueeze(1) * c


def _direction(
    problem: Transport, P: Tensor, p: Tensor, q: Tensor, e: Tensor, f: Tensor | None, residual: Tensor, quick: Tensor
) -> tuple[Tensor, Tensor]:
    """Newton's step, and for which items conjugate gradients are still the quick way to it."""
    d1, d2 = (p + e).clamp(min=1e-300), (q if f is None else q + f) + (q == 0)
    grounded = (problem.kappa_r == 0) & (problem.kappa_c == 0)
    x = torch.zeros_like(residual)
    if bool(quick.any()):
        items = quick.nonzero().squeeze(1)
        part = P if len(items) == len(P) else P[items]
        rhs, weight = residual[items], d1[items]
        x[items], done = conjugate_gradients(
            part, weight, d2[items], rhs, size(rhs, weight).clamp_(min=1e-300), 1e-3, work_of_factoring(P.shape[1])
        )
        quick = quick.scatter(0, items, done)
    if not bool(quick.all()):
        items = (~quick).nonzero().squeeze(1)
        part = P if len(items) == len(P) else P[items]
        x[items] = factored(
            part, d2[items], e[items], None if f is None else f[items], residual[items], grounded[items]
        )
    return x, quick
