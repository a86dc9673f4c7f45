r"""Transport between point clouds without its matrix: blocks of the plan are made, used and dropped.

The cost is ``M_ij = |x_i - y_j|^2``. One pass over the plan makes a step of Sinkhorn's iteration: a block of rows is
scaled to its marginal and adds to the sums of the columns, which are scaled after the last block. gamma doubles after
each of the first steps. A last pass collects the cost and the barycentric images ``P y`` and ``P^T x``, which are all
that the gradient of the value needs, by the envelope theorem::

    dJ/dx_i = 2 (p_i x_i - (P y)_i)          dJ/dr = u / gamma
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.handmade import Answer
from torchddn.status import Status

__all__ = ["CloudSearch", "CloudValue"]

_BLOCK = 2**18  # numbers of the plan at once on CPU
_SMALLEST = -80.0
_GENTLE = 10.0  # gamma times the square of the distance across, where the path begins


class _Images(NamedTuple):
    """What a pass over the plan leaves, ``(R, ...)``."""

    row_sums: Tensor
    column_sums: Tensor
    cost: Tensor
    Py: Tensor
    Px: Tensor


@dataclasses.dataclass(frozen=True)
class CloudSearch:
    """Finds potentials and images, for inputs without a graph; its answer has no derivative."""

    atol: float
    max_steps: int

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``u, v, P 1, P^T 1, <P, M>, P y, P^T x``, float64; status, steps and error."""
        x, y, r, c, gamma = inputs
        dtype = x.dtype
        x, y, r, c, gamma = (tensor.double() for tensor in (x, y, r, c, gamma))
        sound = torch.cat([t.flatten(1) for t in (x, y, r, c, gamma.unsqueeze(1))], dim=1).isfinite().all(dim=1)
        x, y = (torch.where(sound.reshape(-1, 1, 1), points, 0) for points in (x, y))
        r = torch.where(sound.unsqueeze(1), r, 1 / r.shape[1])
        c = torch.where(sound.unsqueeze(1), c, 1 / c.shape[1])
        gamma = torch.where(sound, gamma, 1)
        mass = r.sum(dim=1, keepdim=True)
        center = y.mean(dim=1, keepdim=True)
        x, y = x - center, y - center
        spread = (x.square().sum(dim=2).amax(dim=1).sqrt() + y.square().sum(dim=2).amax(dim=1).sqrt()).square()
        current = torch.minimum(gamma, _GENTLE / spread.clamp(min=1e-300))
        log_r, log_c = _log(r / mass), _log(c / mass)
        u, v = log_r.clone(), log_c.clone()
        error = torch.full_like(gamma, torch.inf)
        num_steps = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        running = torch.ones_like(sound)
        for _ in range(self.max_steps):
            num_steps += running
            row = torch.empty_like(u)
            column = torch.zeros_like(v)
            for rows in _blocks(x, y):
                P = _plan(x[:, rows], y, u[:, rows], v, current, dtype)
                sums = P.sum(dim=2, dtype=torch.float64)
                change = _change(log_r[:, rows], sums)
                column += torch.bmm(change.exp().to(dtype).unsqueeze(1), P).squeeze(1)
                row[:, rows] = change
            # The columns were exact before this step: what the rows lacked is the error of the plan so far.
            now = (log_r.exp() * (1 - (-row).clamp(max=50).exp()).abs()).sum(dim=1)
            arrived = current >= gamma
            done = running & arrived & (now <= self.atol)
            error = torch.where(running & arrived, now, error)
            running = running & ~done & now.isfinite()
            if not bool(running.any()):
                break
            moving = running.unsqueeze(1)
            u = torch.where(moving, u + row, u)
            v = torch.where(moving, v + _change(log_c, column), v)
            following = torch.where(running, torch.minimum(2 * current, gamma), current)
            growth = (following / current).unsqueeze(1)
            u = log_r.clamp(min=-700) + (u - log_r.clamp(min=-700)) * growth
            v = log_c.clamp(min=-700) + (v - log_c.clamp(min=-700)) * growth
            current = following
        status = torch.where(running | (error > self.atol), int(Status.MAX_STEPS), int(Status.CONVERGED))
        status = torch.where(sound, status, int(Status.NON_FINITE))
        u = u + mass.log()
        images = _collect(x, y, u, v, gamma, dtype)
        # Back from the coordinates about the center.
        Py = images.Py + images.row_sums.unsqueeze(2) * center
        Px = images.Px + images.column_sums.unsqueeze(2) * center
        found = (u, v, images.row_sums, images.column_sums, images.cost, Py, Px, error)
        hidden = [torch.where(sound.reshape(-1, *[1] * (t.dim() - 1)), t, torch.nan) for t in found]
        return *hidden[:-1], status, num_steps, hidden[-1]

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        x, y, r, c, gamma = inputs
        double = torch.float64
        u, v, item = (t.new_empty(t.shape, dtype=double) for t in (r, c, gamma))
        integers = gamma.new_empty(gamma.shape, dtype=torch.int64)
        images = x.new_empty(x.shape, dtype=double), y.new_empty(y.shape, dtype=double)
        sums = torch.empty_like(u), torch.empty_like(v), torch.empty_like(item)
        return u, v, *sums, *images, integers, torch.empty_like(integers), item

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        return [None] * len(inputs)

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        return torch.zeros_like(y)


@dataclasses.dataclass(frozen=True)
class CloudValue:
    """The formula of the value, ``(R,)``, from x, ``(R, m, d)``, y, ``(R, n, d)``, ``r``, ``c`` and ``gamma``.

    What :class:`CloudSearch` has found are inputs too, after those, so that the backward pass reads it.
    """

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        gamma, u, v, p, q, cost = (t.double() for t in (*inputs[4:9], inputs[9]))
        # sum P (log P - 1) of P = exp(u + v - gamma M).
        live_u, live_v = (torch.where(z < -600, 0, z) for z in (u, v))
        entropy = (p * live_u).sum(dim=1) + (q * live_v).sum(dim=1) - gamma * cost - p.sum(dim=1)
        return ((cost + entropy / gamma).to(inputs[0].dtype),)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return (inputs[0].new_empty(inputs[0].shape[:1]),)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        weight = torch.where(y.isnan(), 0, v)
        grads = [_FirstOrder.apply(grad.to(x.dtype)) for grad, x in zip(_slopes(y, inputs), inputs, strict=False)]
        scaled = [weight.reshape(-1, *[1] * (grad.dim() - 1)) * grad for grad in grads]
        return [*scaled, *[None] * (len(inputs) - 5)]

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        pushed = torch.zeros_like(y)
        for grad, x, dx in zip(_slopes(y, inputs), inputs, tangents, strict=False):
            if dx is not None:
                pushed = pushed + (_FirstOrder.apply(grad.to(x.dtype)) * dx).reshape(len(y), -1).sum(dim=1)
        return pushed


def _slopes(value: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The derivative of the value in x, y, r, c and gamma; zero for an item that is NaN."""
    sound = ~value.isnan()
    x, y, r, c, gamma, u, v, p, q, cost, Py, Px = (
        torch.where(sound.reshape(-1, *[1] * (t.dim() - 1)), t.double(), 0) for t in inputs
    )
    gamma = torch.where(sound, gamma, 1)
    du, dv = (torch.where(z < -600, 0, z) / gamma.unsqueeze(1) for z in (u, v))
    shift = (du.sum(dim=1) - dv.sum(dim=1)).unsqueeze(1) / (r.shape[1] + c.shape[1])
    dgamma = (cost - torch.where(sound, value.double(), 0)) / gamma
    return (
        2 * (p.unsqueeze(2) * x - Py),
        2 * (q.unsqueeze(2) * y - Px),
        torch.where(r > 0, du - shift, 0),
        torch.where(c > 0, dv + shift, 0),
        torch.where(sound, dgamma, 0),
    )


def _log(weights: Tensor) -> Tensor:
    """The logarithm, about -700 for zero: such a point gets nothing, and stays finite."""
    return weights.clamp(min=1e-304).log()


def _change(target: Tensor, sums: Tensor) -> Tensor:
    """By which a potential must change; nothing at a point of weight zero."""
    return torch.where(target < -600, 0, target - sums.clamp(min=1e-300).log())


def _blocks(x: Tensor, y: Tensor) -> list[slice]:
    most = _BLOCK if x.device.type == "cpu" else 2**26
    size = max(1, most // max(len(x) * y.shape[1], 1))
    return [slice(first, first + size) for first in range(0, x.shape[1], size)]


def _plan(x: Tensor, y: Tensor, u: Tensor, v: Tensor, gamma: Tensor, dtype: torch.dtype) -> Tensor:
    """A block of rows of the plan. The exponent is a small difference of large numbers, and so in float64."""
    weight = gamma.unsqueeze(1)
    left = (u - weight * x.square().sum(dim=2)).unsqueeze(2)
    right = (v - weight * y.square().sum(dim=2)).unsqueeze(1)
    exponent = torch.baddbmm(right, x * (2 * weight).unsqueeze(2), y.mT).add_(left)
    return exponent.clamp_(_SMALLEST, -_SMALLEST).to(dtype).exp_()


def _collect(x: Tensor, y: Tensor, u: Tensor, v: Tensor, gamma: Tensor, dtype: torch.dtype) -> _Images:
    p, Py = torch.empty_like(u), torch.empty_like(x)
    q, Px = torch.zeros_like(v), torch.zeros_like(y)
    live_u, live_v = (u > -600).to(dtype), (v > -600).to(dtype)
    for rows in _blocks(x, y):
        P = _plan(x[:, rows], y, u[:, rows], v, gamma, dtype)
        P.mul_(live_u[:, rows].unsqueeze(2)).mul_(live_v.unsqueeze(1))
        p[:, rows] = P.sum(dim=2, dtype=torch.float64)
        q += P.sum(dim=1, dtype=torch.float64)
        Py[:, rows] = torch.bmm(P, y.to(dtype)).double()
        Px += torch.bmm(P.mT, x[:, rows].to(dtype)).double()
    cost = (p * x.square().sum(dim=2)).sum(dim=1) + (q * y.square().sum(dim=2)).sum(dim=1)
    return _Images(p, q, cost - 2 * (x * Py).sum(dim=(1, 2)), Py, Px)


class _FirstOrder(torch.autograd.Function):
    """The identity, for a derivative that must not be differentiated again: its plan is not there any more."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        raise InvalidInputError(_ONCE)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor) -> Tensor:
        raise InvalidInputError(_ONCE)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, int | None]:
        return _FirstOrder.apply(x), in_dims[0]


_ONCE = (
    "`transport_between` has derivatives of first order only, since it never holds the plan. Use `sinkhorn_divergence` "
    "or `transport_cost` on the matrix of costs."
)
