r"""Newton's method on the dual of entropic transport, along a path of growing gamma.

The columns are balanced at any time: v is a function of u. What is left is concave in u, with the gradient
``r - P 1`` and the Hessian ``-S`` of ``balance.py``. A step of Newton's method that is longer than
a few units in the exponents is cut; one after which the slope along it has not fallen enough, or has turned, is
shortened by the secant rule.

Where gamma times the range of the costs is large, the path starts at a smaller gamma. With ``u / gamma`` held, gamma
doubles after each step that leaves a moderate error. It starts where the range of the exponents is ``_GENTLE``.
"""

import torch
from torch import Tensor

from torchddn.functional.transport.balance import conjugate_gradients, factored, size, work_of_factoring
from torchddn.functional.transport.gibbs import Potentials, Transport, column_sums, plan
from torchddn.functional.transport.sinkhorn import Scaled

__all__ = ["newton"]

_FACTOR = 2.0  # of gamma, from one stage to the next
_NEAR = 0.1  # error at which to go to the next stage
_LONGEST = 8.0  # change of a potential in one step, at first
_LARGE, _MOST_TRIES = 15.0, 4  # change of a column's potential that is done again, and how often
_GENTLE = 10.0  # gamma times the range of costs where the path starts


def newton(problem: Transport, found: Scaled, items: Tensor, atol: float, floor: Tensor, max_steps: int) -> None:
    """Goes on with those items of what is ``found``, and overwrites them there.

    Each steps until its error is ``atol``, or below ``floor``, ``(R,)``, and does not fall any more, or until
    ``max_steps`` are spent. The path starts at a small gamma where the error is large.
    """
    target, others = problem.select(items), torch.ones_like(found.error, dtype=torch.bool).index_fill_(0, items, False)
    # Plans that are on their way come first, in this order; that needs no second memory for them.
    order = torch.cat([items, others.nonzero().squeeze(1)])
    found.P.copy_(found.P.index_select(0, order))
    P = found.P[: len(items)]
    begin, error, rate, floor = found.potentials[items], found.error[items], found.rate[items], floor[items]
    gamma_0, steps_0 = _first_gamma(target, error), found.num_steps[items]
    ratio = (gamma_0 / target.gamma).unsqueeze(1)
    here = target.at(gamma_0)
    u, v = begin.u * ratio, begin.v * ratio
    du, slope_0, error_0 = torch.zeros_like(u), torch.full_like(error, torch.inf), torch.full_like(error, torch.inf)
    length, longest = torch.ones_like(error), torch.full_like(error, _LONGEST)
    quick = (6 / (1 - rate).clamp(min=1e-9).sqrt() < 0.7 * work_of_factoring(P.shape[1])) & (error <= _NEAR)
    noise, most = torch.finfo(P.dtype).eps, max_steps - int(steps_0.min())
    for step in range(1, most + 1):
        trial = u + length.unsqueeze(1) * du
        v = _balanced(here, Potentials(trial, v), P)
        marginal = here.marginals(Potentials(trial, v))
        residual = marginal.r - P.sum(dim=2, dtype=torch.float64)
        now = residual.abs().sum(dim=1)
        slope = (residual * du).sum(dim=1)
        accepted = (slope.abs() <= 0.9 * slope_0) | (now < error_0) | (now <= floor) | (length < 1e-3)
        arrived = here.gamma >= target.gamma
        done = arrived & accepted & ((now <= atol) | ((now <= floor) & (now > 0.1 * error_0)))
        leaves = done | ~now.isfinite() | (step == most)
        if bool(leaves.any()):
            which, stay = leaves.nonzero().squeeze(1), (~leaves).nonzero().squeeze(1)
            ended = Scaled(P, Potentials(trial, v), torch.where(arrived, now, torch.inf), steps_0 + step, rate)
            found.put(items[which], ended, which)
            if not len(stay):
                break
            following = torch.cat([stay, which])
            order[: len(P)] = order[: len(P)][following]
            P.copy_(P.index_select(0, following))
            P = P[: len(stay)]
            target, here = target.select(stay), here.select(stay)
            u, v, du, trial, residual = u[stay], v[stay], du[stay], trial[stay], residual[stay]
            slope, slope_0, error_0, length = slope[stay], slope_0[stay], error_0[stay], length[stay]
            now, accepted, arrived, quick, longest = (t[stay] for t in (now, accepted, arrived, quick, longest))
            items, floor, steps_0, rate = items[stay], floor[stay], steps_0[stay], rate[stay]
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
    found.P.copy_(found.P.index_select(0, order.argsort()))


def _first_gamma(problem: Transport, error: Tensor) -> Tensor:
    """Where the path starts: at the end of it, if that is near or the problem is not sharp."""
    cost = problem.cost
    if problem.masked:
        cost = torch.where(cost.isinf(), 0, cost)
    spread = (cost.amax(dim=(1, 2)).double() - cost.amin(dim=(1, 2))).clamp(min=1e-300)
    spread = spread if problem.items is None else spread[problem.items]
    return torch.where(error <= 0.05, problem.gamma, torch.minimum(problem.gamma, _GENTLE / spread))


def _balanced(problem: Transport, potentials: Potentials, P: Tensor) -> Tensor:
    """Overwrites ``P`` by the plan whose columns sum to what they must, and returns the ``v`` that makes them."""
    u, v = potentials
    zero = problem.c == 0
    num_tries = 0
    while True:
        plan(problem, Potentials(u, v), out=P)
        target = problem.marginals(Potentials(u, v)).c + zero
        change = (target / (P.sum(dim=1, dtype=torch.float64) + zero)).log()
        if problem.penalized:
            change = change / (1 + problem.kappa_c).unsqueeze(1)
        v = v + change
        num_tries += 1
        # Entries that were clamped, or that a large change brings back, need their true exponents.
        if num_tries == _MOST_TRIES or not bool((change.abs() > _LARGE).any()):
            P.mul_(change.exp().to(P.dtype).unsqueeze(1))
            return v


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
        factored(P, d2, e, f, residual, grounded, (~quick).nonzero().squeeze(1), out=x)
    return x, quick
