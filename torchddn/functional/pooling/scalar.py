r"""The robust mean of numbers: its global minimizer, and its derivatives.

Solves, for each row of x, with weights c (one each unless given)::

    y(x, alpha, c) = argmin_y  f(y) = sum_i c_i phi(y - x_i; alpha)

The solvers find a *global* minimizer; how, and how sure, stands in the file of each.

Derivatives. With ``r_i = y - x_i`` and ``S = sum_i c_i phi''(r_i)``, the condition ``sum_i c_i phi'(r_i) = 0`` gives::

    S dy = sum_i c_i phi''(r_i) dx_i  -  sum_i phi'(r_i) dc_i  +  sum_i c_i (r_i phi''(r_i) - phi'(r_i)) dalpha / alpha

The last part is the same for every penalty: ``phi(a z; a alpha) = a^k phi(z; alpha)`` with some k, so that
``y(a x, a alpha) = a y(x, alpha)``, and Euler's identity gives the derivative in ``alpha`` from those in ``x``.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from torchddn.functional.nodes.blocks import block_size, is_plain, part, uniform
from torchddn.functional.nodes.degeneracy import warn_undetermined
from torchddn.functional.nodes.found import Found
from torchddn.functional.nodes.handmade import Answer
from torchddn.functional.pooling.descent import NOISE
from torchddn.functional.pooling.kernel import kernel
from torchddn.functional.pooling.scalar_convex import curvature_, solve_convex, solve_huber
from torchddn.functional.pooling.scalar_truncated import solve_truncated
from torchddn.functional.pooling.scalar_welsch import solve_welsch
from torchddn.penalties import Huber, Penalty, TruncatedQuadratic
from torchddn.status import Status

__all__ = ["ScalarPooling"]

_NOT_ISOLATED = "the solution is not isolated there", "a larger alpha, or a smooth penalty, singles one out"


@dataclasses.dataclass(frozen=True)
class ScalarPooling:
    """The formula of ``y``, ``(R,)``, from ``x``, ``(R, n)``, ``alpha``, ``(R,)``, and maybe weights, ``(R, n)``.

    Not for the quadratic. Weights are finite and not negative. A row that is not finite, or whose weights are all zero,
    has the answer NaN and derivatives of zero, which leave shared gradients alone.
    """

    penalty: Penalty
    compile: bool = False

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``y``, status, steps and the residual ``|f_y|`` where last looked at, ``(R,)`` each."""
        x, alpha, *weights = inputs
        if not len(x):
            return tuple(torch.zeros_like(tensor) for tensor in self.outline(inputs))
        c = weights[0] if weights else None
        low, high = x.amin(dim=1), x.amax(dim=1)
        sound = low.isfinite() & high.isfinite()
        if c is not None:
            sound = sound & (c.amax(dim=1) > 0)
        if not bool(sound.all()):
            low, high = torch.where(sound, low, 0), torch.where(sound, high, 0)
            x = torch.where(sound.unsqueeze(1), x, 0)
            c = None if c is None else torch.where(sound.unsqueeze(1), c, 1)
        y, num_steps, converged, residual = self._minimize(x, alpha, c, low, high)
        y = torch.where(sound, y, torch.nan)
        status = torch.where(converged, int(Status.CONVERGED), int(Status.STALLED))
        status = torch.where(sound, status, int(Status.NON_FINITE))
        return y, status, num_steps, torch.where(sound, residual, torch.nan)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        x = inputs[0]
        rows = x.shape[:1]
        integers = x.new_empty(rows, dtype=torch.int64)
        return x.new_empty(rows), integers, torch.empty_like(integers), x.new_empty(rows)

    def _minimize(self, x: Tensor, alpha: Tensor, c: Tensor | None, low: Tensor, high: Tensor) -> Found:
        if isinstance(self.penalty, Huber):
            return solve_huber(self.penalty, x, uniform(alpha), c, low, high, self.compile)
        if self.penalty.convex:
            return solve_convex(self.penalty, x, uniform(alpha), c, low, high, self.compile)
        if isinstance(self.penalty, TruncatedQuadratic):
            return solve_truncated(x, alpha.unsqueeze(1), c)
        return solve_welsch(x, alpha.unsqueeze(1), c, low, high, self.compile)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        if is_plain(y, v, *inputs):
            return self._pull_kernel(y, v, inputs, needed) if self.compile else self._pull_blocks(y, v, inputs, needed)
        grads, flat = self._pull_rows(y, v, inputs, needed)
        warn_undetermined("robust_pool", flat, *_NOT_ISOLATED)
        return grads

    def _pull_kernel(
        self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """As ``_pull_rows``, in one pass."""
        only_x = needed[0] and not any(needed[1:])
        pull = ScalarPooling._pull_x if only_x else ScalarPooling._pull_rows
        grads, flat = kernel(pull, self, y, v, list(inputs), list(needed))
        warn_undetermined("robust_pool", flat, *_NOT_ISOLATED)
        return grads

    def _pull_x(
        self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]
    ) -> tuple[list[Tensor | None], Tensor]:
        """As ``_pull_rows``, by the cheaper formulas that the gradient in x alone allows."""
        x, alpha, *weights = inputs
        dead = y.isnan()
        r = torch.where(dead.unsqueeze(1), 0, y.unsqueeze(1) - x)
        phi_yy = curvature_(self.penalty, r, alpha.unsqueeze(1))
        if weights:
            phi_yy = phi_yy * weights[0]
        S = phi_yy.sum(dim=1)
        flat = self._flat(S, phi_yy) & ~dead
        factor = torch.where(flat | dead, 0, v / torch.where(flat, 1, S)).unsqueeze(1)
        dx = torch.where(dead.unsqueeze(1), 0, phi_yy * factor)
        return [dx, *[None] * (len(inputs) - 1)], flat

    def _pull_blocks(
        self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """As ``_pull_rows``, a block of rows at a time, which keeps temporaries in the cache."""
        grads = [torch.empty_like(x) if n else None for x, n in zip(inputs, needed, strict=True)]
        size = block_size(inputs[0].shape[1], y.device)
        x, alpha, *weights = inputs
        flat = torch.zeros_like(y, dtype=torch.bool)
        dead = y.isnan()
        only_x = needed[0] and not any(needed[1:])
        if only_x and bool(dead.any()):
            v, y, x = torch.where(dead, 0, v), torch.where(dead, 0, y), torch.where(dead.unsqueeze(1), 0, x)
        number, dx = uniform(alpha), grads[0]
        for start in range(0, len(y), size):
            rows = slice(start, start + size)
            if dx is not None and only_x:
                phi_yy = curvature_(self.penalty, y[rows].unsqueeze(1) - x[rows], part(number, rows))
                if weights:
                    phi_yy.mul_(weights[0][rows])
                S = phi_yy.sum(dim=1)
                flat[rows] = self._flat(S, phi_yy)
                factor = torch.where(flat[rows], 0, v[rows] / S)
                torch.mul(phi_yy, factor.unsqueeze(1), out=dx[rows])
            else:
                parts, flat[rows] = self._pull_rows(y[rows], v[rows], [x[rows] for x in inputs], needed)
                for grad, values in zip(grads, parts, strict=True):
                    if grad is not None and values is not None:
                        grad[rows] = values
        warn_undetermined("robust_pool", flat & ~dead, *_NOT_ISOLATED)
        return grads

    def _pull_rows(
        self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]
    ) -> tuple[list[Tensor | None], Tensor]:
        """The gradients, and which rows are flat."""
        x, alpha, *weights = inputs
        slope, phi_yy, S, flat = self._parts(y, inputs)
        scaled = torch.where(flat | y.isnan(), 0, v / torch.where(flat, 1, S)).unsqueeze(1)
        dead = y.isnan().unsqueeze(1)
        grads: list[Tensor | None] = [None] * len(inputs)
        c = weights[0] if weights else 1
        if needed[0]:
            grads[0] = torch.where(dead, 0, scaled * (c * phi_yy))
        if needed[1]:
            phi_ya = (c * ((y.unsqueeze(1) - x) * phi_yy - slope)).sum(dim=1) / alpha
            grads[1] = torch.where(y.isnan(), 0, scaled.squeeze(1) * phi_ya)
        if weights and needed[2]:
            grads[2] = torch.where(dead, 0, -scaled * slope)
        return grads, flat

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        x, alpha, *weights = inputs
        dx, dalpha, *dweights = tangents
        slope, phi_yy, S, flat = self._parts(y, inputs)
        warn_undetermined("robust_pool", flat, *_NOT_ISOLATED)
        c = weights[0] if weights else 1
        dy = torch.zeros_like(y)
        if dx is not None:
            dy = dy + (c * phi_yy * dx).sum(dim=1)
        if dalpha is not None:
            dy = dy + (c * ((y.unsqueeze(1) - x) * phi_yy - slope)).sum(dim=1) * (dalpha / alpha)
        if dweights and dweights[0] is not None:
            dy = dy - (slope * dweights[0]).sum(dim=1)
        return torch.where(flat | y.isnan(), 0, dy / torch.where(flat, 1, S))

    def _parts(self, y: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``phi'(r)``, ``phi''(r)``, ``S``, and where ``S`` is zero up to rounding: dy of minimum norm is zero."""
        x, alpha, *weights = inputs
        r, alpha = y.unsqueeze(1) - x, alpha.unsqueeze(1)
        slope, phi_yy = self.penalty.dphi(r, alpha), self.penalty.ddphi(r, alpha)
        weighted = phi_yy * weights[0] if weights else phi_yy
        S = weighted.sum(dim=1)
        return slope, phi_yy, S, self._flat(S, weighted) & ~y.isnan()

    def _flat(self, S: Tensor, phi_yy: Tensor) -> Tensor:
        """Whether ``S`` is zero up to rounding."""
        if self.penalty.convex or isinstance(self.penalty, TruncatedQuadratic):
            return S == 0
        return S.abs() <= NOISE * torch.finfo(S.dtype).eps * torch.linalg.vector_norm(phi_yy.detach(), 1, dim=1)
