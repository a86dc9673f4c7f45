r"""The entropic transport plan as a node: which method solves it, and its derivatives.

Derivatives. With ``P = exp(u_i + v_j - gamma M_ij)``, the marginals ``p = P 1 = r exp(-kappa_r u)`` and the fit z of
``response.py``::

    dP = -P o (w - z(w)),      w = gamma dM + M dgamma,      where the fit has the right-hand side ds
    ds = p dr / r - p log(p / r) (dgamma / gamma + drho / rho)

and the same for columns, and ``e = kappa_r p``. With a constraint ``kappa_r = 0``, ``p = r`` and ``ds = dr``. In the
other direction, with the incoming v and ``z = (x, y)``::

    dJ/dM = -gamma P o (v - x_i - y_j)          dJ/dr = x p / r
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from torchddn.functional.nodes.handmade import Answer
from torchddn.functional.transport.dual_newton import newton
from torchddn.functional.transport.feasibility import blocked
from torchddn.functional.transport.gibbs import Transport
from torchddn.functional.transport.response import respond
from torchddn.functional.transport.sinkhorn import Scaled, sinkhorn
from torchddn.status import Status

__all__ = ["EntropicPlan", "finite_cost", "potentials"]

_GENTLE = 30.0  # exponents that float32 rounds to 2e-6
_SMALL_SHARE = 1e-12  # of the mass: a smaller marginal makes a plan that float32 cannot hold
_SMALLEST = 1e-30  # entries of the plan, of mass one, below which they are zero


@dataclasses.dataclass(frozen=True)
class EntropicPlan:
    """The formula of ``P``, ``(R, m, n)``, from the cost, ``r``, ``c``, ``gamma``, and two penalties if ``penalized``.

    An item that is not finite, or that has certainly no plan, has the answer NaN and derivatives of zero.
    """

    call: str
    atol: float
    max_steps: int
    exact: bool
    penalized: bool

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``P``; status, steps and the error of the marginals, ``(R,)`` each; potentials of rows and columns."""
        cost, r, c, gamma = inputs[:4]
        rho = inputs[4:] if self.penalized else (torch.full_like(gamma, torch.inf),) * 2
        if cost.shape[1] > cost.shape[2]:
            P, *others, v, u = self._solve(cost.mT, c, r, gamma, rho[1], rho[0])
            return P.mT.contiguous(), *others, u, v
        return self._solve(cost, r, c, gamma, *rho)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        cost, r, c, gamma = inputs[:4]
        integers = gamma.new_empty(gamma.shape, dtype=torch.int64)
        error, u, v = (t.new_empty(t.shape, dtype=torch.float64) for t in (gamma, r, c))
        return cost.new_empty(cost.shape), integers, torch.empty_like(integers), error, u, v

    def _solve(self, cost: Tensor, r: Tensor, c: Tensor, gamma: Tensor, rho_r: Tensor, rho_c: Tensor) -> Answer:
        num_items, m, n = cost.shape
        if not cost.numel():
            integers = torch.zeros(num_items, dtype=torch.int64, device=cost.device)
            return (
                cost.clone(),
                integers,
                integers.clone(),
                integers.double(),
                *(torch.zeros_like(z, dtype=torch.float64) for z in (r, c)),
            )
        r, c, gamma = r.double(), c.double(), gamma.double()
        low, high = cost.amin(dim=(1, 2)), cost.amax(dim=(1, 2))
        mass_r, mass_c = r.sum(dim=1, keepdim=True), c.sum(dim=1, keepdim=True)
        mass = (mass_r * mass_c).sqrt().squeeze(1)
        if not self.penalized:
            # Mostly there is nothing to set aside, which one look tells: what is not finite fails here.
            share_r, share_c = r / mass_r, c / mass_c
            reach, least = gamma * (high.double() - low), torch.minimum(share_r.amin(dim=1), share_c.amin(dim=1))
            gentle = bool(((reach <= _GENTLE) & (least >= _SMALL_SHARE)).all())
            if gentle or bool(((reach < torch.inf) & (least > 0)).all()):
                none = torch.zeros_like(gamma)
                problem = Transport(
                    cost, None, share_r, share_c, gamma, none, none, masked=False, penalized=False, gentle=gentle
                )
                return self._answer(problem, low, high, mass)
        rho_r, rho_c = rho_r.double(), rho_c.double()
        numbers = torch.cat([r, c, gamma.unsqueeze(1), rho_r.nan_to_num(posinf=1).unsqueeze(1)], dim=1)
        finite = numbers.isfinite().all(dim=1) & rho_c.nan_to_num(nan=-torch.inf).ne(-torch.inf)
        finite &= (low > -torch.inf) & ~high.isnan()
        masked = bool((~high.isfinite()).any()) or bool(((r == 0).any(dim=1) | (c == 0).any(dim=1)).any())
        filled = finite
        if masked:
            allowed = cost < torch.inf
            bare_r = ((allowed & (c > 0).unsqueeze(1)).sum(dim=2) == 0) & (r > 0)
            bare_c = ((allowed & (r > 0).unsqueeze(2)).sum(dim=1) == 0) & (c > 0)
            del allowed
            filled = finite & ~((bare_r.any(dim=1) & rho_r.isinf()) | (bare_c.any(dim=1) & rho_c.isinf()))
            # Where a penalty allows it, such a row moves nothing.
            r, c = r.masked_fill(bare_r, 0), c.masked_fill(bare_c, 0)
            mass = (r.sum(dim=1) * c.sum(dim=1)).sqrt()
        empty = filled & (mass == 0)
        sound = filled & ~empty
        status = torch.where(finite, int(Status.INFEASIBLE), int(Status.NON_FINITE))
        status = torch.where(filled, int(Status.CONVERGED), status)
        num_steps = torch.zeros_like(status)
        if not bool(sound.all()):
            # The others are solved; these wait.
            items = sound.nonzero().squeeze(1)
            P = torch.where(empty.reshape(-1, 1, 1), cost.new_zeros(()), torch.nan).repeat(1, m, n)
            error = torch.where(empty, 0.0, torch.nan).double()
            u, v = torch.zeros_like(r), torch.zeros_like(c)
            if len(items):
                chosen = (tensor[items] for tensor in (cost, r, c, gamma, rho_r, rho_c))
                found = self._solve(*chosen)
                for all_items, some in zip((P, status, num_steps, error, u, v), found, strict=True):
                    all_items[items] = some
            return P, status, num_steps, error, u, v
        kappa_r, kappa_c = 1 / (gamma * rho_r), 1 / (gamma * rho_c)
        if self.penalized:
            h = 0.5 * mass.log().unsqueeze(1)
            r, c = r * (-kappa_r.unsqueeze(1) * h).exp(), c * (-kappa_c.unsqueeze(1) * h).exp()
            r, c = r / mass.unsqueeze(1), c / mass.unsqueeze(1)
        else:
            r, c = r / r.sum(dim=1, keepdim=True), c / c.sum(dim=1, keepdim=True)
        problem = Transport(cost, None, r, c, gamma, kappa_r, kappa_c, masked, self.penalized, gentle=False)
        return self._answer(problem, low, high, mass)

    def _answer(self, problem: Transport, low: Tensor, high: Tensor, mass: Tensor) -> Answer:
        """The answer of items that are finite, and that no single row or column makes infeasible."""
        found = sinkhorn(problem, low, self.atol, self.max_steps)
        P, (u, v), error, num_steps, _ = found
        status = torch.zeros_like(num_steps)
        if not bool((error <= self.atol).all()):
            status = self._go_on(problem, found, low, high)
        if not problem.gentle:
            torch.threshold_(P, _SMALLEST, 0)
        u = u + mass.log().unsqueeze(1)
        if problem.masked:
            u, v = u.masked_fill(problem.r == 0, 0), v.masked_fill(problem.c == 0, 0)
        return P.mul_(mass.to(P.dtype).reshape(-1, 1, 1)), status, num_steps, error, u, v

    def _go_on(self, problem: Transport, found: Scaled, low: Tensor, high: Tensor) -> Tensor:
        """Takes items that are not done to the end by Newton's method, in place, and returns the status of all."""
        # The rounding of float64 potentials, where they are large, is an error of the marginals that no step removes.
        largest = torch.maximum(torch.where(high.isinf(), low, high).abs(), low.abs()).double()
        goal = (8 * torch.finfo(torch.float64).eps * problem.gamma * largest).clamp(min=self.atol)
        left = ((found.error > goal) | ~found.error.isfinite()) & (found.num_steps < self.max_steps)
        if bool(left.any()):
            newton(problem, found, left.nonzero().squeeze(1), self.atol, goal, self.max_steps)
        P, (u, _), error, _, _ = found
        status = torch.where(error <= goal, int(Status.CONVERGED), int(Status.MAX_STEPS))
        if not problem.masked:
            return status
        failed = (status != Status.CONVERGED) & high.isinf() & (problem.kappa_r == 0) & (problem.kappa_c == 0)
        if bool(failed.any()):
            items = failed.nonzero().squeeze(1)
            cost, r, c = (tensor[items] for tensor in (problem.cost, problem.r, problem.c))
            proven = items[blocked(cost, r, c, torch.ones_like(error[items]), u[items])]
            status[proven] = int(Status.INFEASIBLE)
            P[proven] = torch.nan
        return status

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        cost, r, c, gamma = inputs[:4]
        x = y_ = p = q = None
        if self.exact:
            P = torch.where(y[:, :1, :1].isnan(), 0, y) if self.penalized else y
            p, q, e, f = self._marginals(P, inputs)
            unique = needed[1] or needed[2]
            x, y_ = respond(y, v, torch.zeros_like(p), torch.zeros_like(q), e, f, call=self.call, unique=unique)
        dcost = _slope(y, v, x, y_, gamma)
        grads: list[Tensor | None] = [None] * len(inputs)
        if needed[0]:
            grads[0] = dcost
        if needed[3]:
            grads[3] = (dcost * finite_cost(cost)).sum(dim=(1, 2)) / gamma
        if x is None or y_ is None or p is None or q is None:
            return [
                torch.zeros_like(t) if g is None and w else g for g, w, t in zip(grads, needed, inputs, strict=True)
            ]
        if not self.penalized:
            grads[1], grads[2] = x.to(r.dtype), y_.to(c.dtype)
            return grads
        ratio_r, log_r = _ratio(p, r)
        ratio_c, log_c = _ratio(q, c)
        grads[1], grads[2] = (x * ratio_r).to(r.dtype), (y_ * ratio_c).to(c.dtype)
        along_r, along_c = -(x * p * log_r).sum(dim=1), -(y_ * q * log_c).sum(dim=1)
        if grads[3] is not None:
            grads[3] = grads[3] + ((along_r + along_c) / gamma).to(gamma.dtype)
        grads[4], grads[5] = (along_r / inputs[4]).to(gamma.dtype), (along_c / inputs[5]).to(gamma.dtype)
        return grads

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        cost, r, c, gamma = inputs[:4]
        dcost, dr, dc, dgamma = tangents[:4]
        P = torch.where(y[:, :1, :1].isnan(), 0, y)
        p, q, e, f = self._marginals(P, inputs)
        w = torch.zeros_like(P)
        if dcost is not None:
            w = w + gamma.reshape(-1, 1, 1) * dcost
        if dgamma is not None:
            w = w + finite_cost(cost) * dgamma.reshape(-1, 1, 1)
        if not self.exact:
            return -P * w
        ds, dt = torch.zeros_like(p), torch.zeros_like(q)
        if self.penalized:
            ratio_r, log_r = _ratio(p, r)
            ratio_c, log_c = _ratio(q, c)
            ds = ds if dr is None else ds + ratio_r * dr
            dt = dt if dc is None else dt + ratio_c * dc
            relative = torch.zeros_like(p[:, 0]) if dgamma is None else dgamma / gamma
            drho_r, drho_c = tangents[4:]
            along_r = relative if drho_r is None else relative + drho_r / inputs[4]
            along_c = relative if drho_c is None else relative + drho_c / inputs[5]
            ds, dt = ds - p * log_r * along_r.unsqueeze(1), dt - q * log_c * along_c.unsqueeze(1)
        else:
            ds = ds if dr is None else ds + dr
            dt = dt if dc is None else dt + dc
        x, z = respond(P, w, ds, dt, e, f, call=self.call, unique=dr is not None or dc is not None)
        return (x.to(w.dtype).unsqueeze(2) + z.to(w.dtype).unsqueeze(1) - w) * P

    def _marginals(self, P: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The sums of the plan, and ``kappa`` times them, empty without penalties."""
        if not self.penalized:  # nothing of them is needed but the shapes
            p, q = (torch.zeros_like(z, dtype=torch.float64) for z in inputs[1:3])
            return p, q, p[:, :0], q[:, :0]
        p, q = P.sum(dim=2, dtype=torch.float64), P.sum(dim=1, dtype=torch.float64)
        gamma, rho_r, rho_c = (tensor.double().unsqueeze(1) for tensor in inputs[3:])
        return p, q, p * rho_r.reciprocal() / gamma, q * rho_c.reciprocal() / gamma


def _slope(P: Tensor, v: Tensor, x: Tensor | None, y: Tensor | None, gamma: Tensor) -> Tensor:
    """``-gamma P o (v - x_i - y_j)``, zero for items that are NaN; in place where nobody differentiates it."""
    unsound, gamma = P[:, :1, :1].isnan(), gamma.reshape(-1, 1, 1)
    if torch.is_grad_enabled():
        P, v = torch.where(unsound, 0, P), torch.where(unsound, 0, v)
        if x is not None and y is not None:
            v = v - x.to(v.dtype).unsqueeze(2) - y.to(v.dtype).unsqueeze(1)
        return -gamma * (v * P)
    if x is None or y is None:
        slope = v * -gamma
    else:
        x, y = (gamma * x.unsqueeze(2)).to(v.dtype), (gamma * y.unsqueeze(1)).to(v.dtype)
        slope = torch.addcmul(y, v, -gamma).add_(x)
    slope.mul_(P)
    if bool(unsound.any()):
        slope.masked_fill_(unsound, 0)
    return slope


def potentials(
    call: str, P: Tensor, cost: Tensor, gamma: Tensor, known: tuple[Tensor, Tensor], *, told: bool
) -> tuple[Tensor, Tensor]:
    """``u`` and ``v`` of ``log P + gamma M = u_i + v_j``, float64, differentiable, made of least norm by one constant.

    Their values are the ``known`` ones, since a plan does not tell them where its entries are zero to rounding; the
    derivatives are those of a fit. With ``told``, ``call`` warns where these are some of many.
    """
    P = torch.where(P[:, :1, :1].isnan(), 0, P)
    present = P > 0
    exponent = torch.where(present, torch.where(present, P, 1).log() + gamma.reshape(-1, 1, 1) * finite_cost(cost), 0)
    none = exponent.new_zeros(exponent.shape[:2], dtype=torch.float64)
    nothing = exponent[:, 0].double() * 0
    right = none, nothing, none[:, :0], nothing[:, :0]
    x, y = respond(P.detach(), exponent, *right, call=call, unique=True, told=told)
    live_u, live_v = present.any(dim=2), present.any(dim=1)
    u, v = torch.where(live_u, known[0], 0), torch.where(live_v, known[1], 0)
    count = (live_u.sum(dim=1) + live_v.sum(dim=1)).clamp(min=1)
    shift = ((u.sum(dim=1) - v.sum(dim=1)) / count).unsqueeze(1)
    u, v = torch.where(live_u, u - shift, 0), torch.where(live_v, v + shift, 0)
    return x + (u - x).detach(), y + (v - y).detach()


def finite_cost(cost: Tensor) -> Tensor:
    """``cost`` with zeros where the plan must be zero, so that their product is."""
    return torch.where(cost.isfinite(), cost, 0)


def _ratio(sums: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """``p / r`` and its logarithm; zero where r is zero."""
    positive = (target > 0) & (sums > 0)
    ratio = torch.where(positive, sums, 1) / torch.where(positive, target.double(), 1)
    return torch.where(positive, ratio, 0), ratio.log()
