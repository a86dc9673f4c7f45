r"""Sinkhorn's iteration in its fast form: two products with the plan a step, no exponentials.

With ``K = exp(u_i + v_j - gamma M_ij)`` for fixed potentials, it scales columns and rows in turn::

    b = c / K^T a          a = r / K b

(with a penalty, ``b = (c exp(-kappa_c v) / K^T a)^(1 / (1 + kappa_c))``). When a scaling grows, it is absorbed into
the potentials and K is made again, so that nothing over- or underflows; K is made from true exponents at every such
time, also where it was clamped before.

An item stands still as soon as it is done, or as soon as its measured rate says that Newton's method is faster, and
leaves the batch together with half of it.

References:
    Cuturi, Sinkhorn Distances, 2013. Schmitzer, Stabilized Sparse Scaling Algorithms for Entropy Regularized Transport
    Problems, 2019, for absorption. Chizat, Peyre, Schmitzer, Vialard, Scaling Algorithms for Unbalanced Optimal
    Transport Problems, 2018.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.functional.transport.gibbs import Potentials, Transport, gentle_start, plan, start

__all__ = ["Scaled", "sinkhorn"]

_DRIFT = 12.0  # of log a and log b, after which they are absorbed
_BIGGEST = 1e30


class Scaled(NamedTuple):
    """Where the items are. Columns of the plan sum to what they must; rows to within ``error``.

    Attributes:
        P: ``(R, m, n)``.
        potentials: Of ``P``.
        error: ``|P 1 - r|_1``, ``(R,)``.
        num_steps: ``(R,)``.
        rate: By which the error fell per step at last, ``(R,)``.
    """

    P: Tensor
    potentials: Potentials
    error: Tensor
    num_steps: Tensor
    rate: Tensor

    def put(self, items: Tensor, found: "Scaled", which: Tensor) -> None:
        """Overwrites all of those items but the plans by ``which`` of the items that are ``found``."""
        self.potentials.u[items], self.potentials.v[items] = found.potentials[which]
        self.error[items], self.num_steps[items], self.rate[items] = (t[which] for t in found[2:])


def is_check(step: int) -> bool:
    """Whether to look at the error after this step: a look costs as much as a step."""
    return step == 3 or (step > 2 and step % (2 if step < 8 else 4 if step < 16 else 8) == 0)


def sinkhorn(problem: Transport, low: Tensor, atol: float, max_steps: int) -> Scaled:
    """Scales until the error is ``atol``, or Newton's method is faster, or the steps are spent.

    ``low``, ``(R,)``, is the least cost of each item.
    """
    num_items, m, _ = problem.cost.shape
    gentle = problem.gentle
    if gentle:
        at, K = gentle_start(problem, low)
    else:
        at = start(problem)
        K = plan(problem, at)
    r, c, zero_r, zero_c = _targets(problem, at)
    kappa_r, kappa_c = (kappa.to(K.dtype).reshape(-1, 1, 1) for kappa in (problem.kappa_r, problem.kappa_c))
    a = r if gentle else torch.ones_like(r)
    error = torch.full((num_items,), torch.inf, dtype=torch.float64, device=K.device)
    rate, num_steps = torch.ones_like(error), torch.zeros_like(error, dtype=torch.int64)
    over = torch.zeros_like(error, dtype=torch.bool)
    ended, items = None, num_steps  # all, once some have left, and who stays
    last_step = step = num_over = 0
    while True:
        step += 1
        b = _scaling(problem, c, torch.bmm(a, K), zero_c, kappa_c)
        sums = torch.bmm(b, K.mT)
        if is_check(step) or step == max_steps:
            wanted = r * a.pow(-kappa_r) if problem.penalized else r
            last_error, error = error, (wanted - a * (sums + zero_r)).abs().sum(dim=(1, 2), dtype=torch.float64)
            settled = _settled(problem, a, b)
            num_steps = torch.where(over, num_steps, step)
            leaves = over | (settled & (error <= atol))
            if not bool(leaves.all()):
                fall = (error / last_error).clamp(max=1.0).pow(1 / (step - last_step))
                rate = torch.where(over, rate, fall)
                leaves |= ~error.isfinite() | (step == max_steps)
                if step >= 4:
                    leaves |= _is_slow(error, fall, atol, m) & last_error.isfinite()
            over, num_over, last_step = leaves, int(leaves.sum()), step
            moved = not gentle and not bool(settled.all())
            if moved or 2 * num_over >= len(over):
                absorbed = Potentials(at.u + a.squeeze(1).double().log(), at.v + b.squeeze(1).double().log())
                if num_over:
                    found = Scaled(K, absorbed, torch.where(settled, error, torch.inf), num_steps, rate)
                    if ended is None and num_over == num_items:
                        K.mul_(a.mT).mul_(b)
                        return found
                    if ended is None:
                        # Those that leave stay in K, and the others take a copy along.
                        ended, items = found, torch.arange(num_items, device=K.device)
                    which, stay = over.nonzero().squeeze(1), (~over).nonzero().squeeze(1)
                    part = K.index_select(0, which).mul_(a[which].mT).mul_(b[which])
                    ended.P.index_copy_(0, items[which], part)
                    ended.put(items[which], found, which)
                    if not len(stay):
                        return ended
                    del part
                    K, at, absorbed = K.index_select(0, stay), at[stay], absorbed[stay]
                    vectors = items, r, c, zero_r, zero_c, kappa_r, kappa_c, a, sums, error, num_steps, rate, over
                    items, r, c, zero_r, zero_c, kappa_r, kappa_c, a, sums, error, num_steps, rate, over = (
                        vector[stay] for vector in vectors
                    )
                    num_over = 0
                if moved:
                    at, here = absorbed, problem if ended is None else problem.select(items)
                    K = plan(here, at, out=K)
                    r, c, zero_r, zero_c = _targets(here, at)
                    a = torch.ones_like(r)
                    sums = torch.bmm(torch.ones_like(c), K.mT)
        # Those that are over wait, as they are, until there are as many of them as of others.
        following = _scaling(problem, r, sums, zero_r, kappa_r)
        a = torch.where(over.reshape(-1, 1, 1), a, following) if num_over else following


def _targets(problem: Transport, at: Potentials) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows ``(R, 1, m)`` and ``(R, 1, n)`` of what to sum to: as ``problem.marginals`` says, in the dtype of the cost.

    With ones for zeros, and ones where these were zero.
    """
    dtype = problem.cost.dtype
    r, c = (marginal.to(dtype).unsqueeze(1) for marginal in problem.marginals(at))
    if not problem.masked:
        none = torch.zeros_like(r[:, :, :1])
        return r, c, none, none
    zero_r, zero_c = (r == 0).to(dtype), (c == 0).to(dtype)
    return r + zero_r, c + zero_c, zero_r, zero_c


def _scaling(problem: Transport, target: Tensor, sums: Tensor, zero: Tensor, kappa: Tensor) -> Tensor:
    if problem.gentle:
        return target / sums
    scaling = (target / (sums + zero)).clamp_(1 / _BIGGEST, _BIGGEST)
    return scaling.pow(1 / (1 + kappa)) if problem.penalized else scaling


def _settled(problem: Transport, a: Tensor, b: Tensor) -> Tensor:
    """Whether the scalings are small, ``(R,)``. Those of a gentle problem cannot grow."""
    if problem.gentle:
        return torch.ones(len(a), dtype=torch.bool, device=a.device)
    extremes = torch.cat([a.amax(dim=2), b.amax(dim=2), 1 / a.amin(dim=2), 1 / b.amin(dim=2)], dim=1)
    return extremes.amax(dim=1) <= math.exp(_DRIFT)


def _is_slow(error: Tensor, rate: Tensor, atol: float, m: int) -> Tensor:
    """Whether the steps that are left cost more than those of Newton's method, in units of a step here."""
    left = (error / max(atol, 1e-300)).clamp(min=1.0).log() / -rate.clamp(1e-3, 1 - 1e-9).log()
    krylov = 8 + 6 / (1 - rate).clamp(min=1e-9).sqrt()
    return left > 3 * krylov.clamp(max=10 + 0.25 * m)
