r"""Sinkhorn's iteration in its fast form: two products with the plan a step, no exponentials.

With ``K = exp(u_i + v_j - gamma M_ij)`` for fixed potentials, it scales columns and rows in turn::

    b = c / K^T a          a = r / K b

(with a penalty, ``b = (c exp(-kappa_c v) / K^T a)^(1 / (1 + kappa_c))``). When a scaling grows, it is absorbed into
the potentials and K is made again, so that nothing over- or underflows; K is made from true exponents at every such
time, also where it was clamped before.

An item leaves as soon as it is done, or as soon as its measured rate says that Newton's method is faster.

References:
    Cuturi, Sinkhorn Distances, 2013. Schmitzer, Stabilized Sparse Scaling Algorithms for Entropy Regularized Transport
    Problems, 2019, for absorption. Chizat, Peyre, Schmitzer, Vialard, Scaling Algorithms for Unbalanced Optimal
    Transport Problems, 2018.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.functional.transport.gibbs import Potentials, Transport, column_sums, plan, row_sums, start

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


def is_check(step: int) -> bool:
    """Whether to look at the error after this step: a look costs as much as a step."""
    return step % (2 if step < 8 else 4 if step < 16 else 8) == 0


def sinkhorn(problem: Transport, atol: float, max_steps: int) -> Scaled:
    """Scales until the error is ``atol``, or Newton's method is faster, or the steps are spent."""
    cost = problem.cost
    num_items, m, _ = cost.shape
    dtype, device = cost.dtype, cost.device
    u, v = start(problem)
    P = cost.new_empty(cost.shape)
    error = torch.full((num_items,), torch.inf, dtype=torch.float64, device=device)
    num_steps = torch.zeros(num_items, dtype=torch.int64, device=device)
    rate = torch.ones_like(error)

    items = torch.arange(num_items, device=device)
    here, at = problem, Potentials(u.clone(), v.clone())
    K = plan(here, at)
    r, c, zero_r, zero_c = _targets(here, at, dtype)
    a = torch.ones_like(r)
    last_error, last_step = error, 0
    for step in range(1, max_steps + 1):
        b = _scaling(c, column_sums(K, a) + zero_c, here.kappa_c, here.penalized)
        sums = row_sums(K, b)
        if is_check(step) or step == max_steps:
            wanted = r if not here.penalized else r * a.pow(-here.kappa_r.to(dtype).unsqueeze(1))
            now = (wanted - a * (sums + zero_r)).abs().sum(dim=1, dtype=torch.float64)
            settled = torch.maximum(_size(a), _size(b)) <= _DRIFT
            done = settled & (now <= atol)
            if len(items) == num_items and bool(done.all()):
                P = K.mul_(a.unsqueeze(2)).mul_(b.unsqueeze(1))
                absorbed = Potentials(at.u + a.double().log(), at.v + b.double().log())
                return Scaled(P, absorbed, now, torch.full_like(num_steps, step), rate)
            fall = (now / last_error).clamp(max=1.0).pow(1 / (step - last_step))
            slow = _is_slow(now, fall, atol, m) if step >= 4 else torch.zeros_like(done)
            leaves = done | ~now.isfinite() | (slow & torch.isfinite(last_error)) | (step == max_steps)
            out, moved = bool(leaves.any()), not bool(settled.all())
            absorbed = Potentials(at.u + a.double().log(), at.v + b.double().log())
            if out:
                if len(items) == num_items and bool(leaves.all()):
                    P = K.mul_(a.unsqueeze(2)).mul_(b.unsqueeze(1))
                    error = torch.where(settled, now, torch.inf)
                    return Scaled(P, absorbed, error, torch.full_like(num_steps, step), fall)
                which, stay = leaves.nonzero().squeeze(1), (~leaves).nonzero().squeeze(1)
                gone = items[which]
                P[gone] = (K[which] * a[which].unsqueeze(2)).mul_(b[which].unsqueeze(1))
                u[gone], v[gone] = absorbed[which]
                error[gone] = torch.where(settled[which], now[which], torch.inf)
                num_steps[gone], rate[gone] = step, fall[which]
                if not len(stay):
                    break
                items, here, at, absorbed = items[stay], here.select(stay), at[stay], absorbed[stay]
                r, c, zero_r, zero_c, a, sums, now = (t[stay] for t in (r, c, zero_r, zero_c, a, sums, now))
                K = K if moved else K[stay]
            if moved:
                at = absorbed
                K = plan(here, at)
                r, c, zero_r, zero_c = _targets(here, at, dtype)
                sums, a = row_sums(K, torch.ones_like(c)), torch.ones_like(r)
            last_error, last_step = now, step
        a = _scaling(r, sums + zero_r, here.kappa_r, here.penalized)
    return Scaled(P, Potentials(u, v), error, num_steps, rate)


def _targets(problem: Transport, at: Potentials, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """``r exp(-kappa_r u)``, ``c exp(-kappa_c v)`` with ones for zeros, and ones where these were zero."""
    r, c = problem.marginals(at)
    zero_r, zero_c = r == 0, c == 0
    return (r + zero_r).to(dtype), (c + zero_c).to(dtype), zero_r.to(dtype), zero_c.to(dtype)


def _scaling(target: Tensor, sums: Tensor, kappa: Tensor, penalized: bool) -> Tensor:
    scaling = (target / sums).clamp_(1 / _BIGGEST, _BIGGEST)
    return scaling.pow((1 / (1 + kappa)).to(scaling.dtype).unsqueeze(1)) if penalized else scaling


def _size(scaling: Tensor) -> Tensor:
    low, high = scaling.aminmax(dim=1)
    return torch.maximum(high.log(), -low.log())


def _is_slow(error: Tensor, rate: Tensor, atol: float, m: int) -> Tensor:
    """Whether the steps that are left cost more than those of Newton's method, in units of a step here."""
    left = (error / max(atol, 1e-300)).clamp(min=1.0).log() / -rate.clamp(1e-3, 1 - 1e-9).log()
    krylov = 8 + 6 / (1 - rate).clamp(min=1e-9).sqrt()
    return left > 3 * krylov.clamp(max=10 + 0.25 * m)
