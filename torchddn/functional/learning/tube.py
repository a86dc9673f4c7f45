r"""The formula of support vector regression: a linear function whose values lie in a tube around targets.

Solves, for each item with frames ``x_t``, targets ``tau_t`` and the kernels K of the frames::

    a = argmin_a  1/2 a'K a + softness/2 |a|^2 - tau.a + epsilon |a|_1   subject to   -C_t <= a_t <= C_t

the dual problem of ``min_u 1/2 |u|^2 + sum_t C_t loss(tau_t - u.x_t)``, with ``u = sum_t a_t x_t``. Without softness
the loss is what the residual exceeds epsilon by; with softness, and no limit C, its square over ``2 softness``; with
both, the square first and then straight on.

The coefficient of a frame is zero (inside the tube), at a limit, or free, and then ``(K a)_t + softness a_t - tau_t +-
epsilon = 0``: these equations on the free frames give every derivative.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from torchddn.functional.linear_algebra.symmetric import solve_symmetric
from torchddn.functional.nodes.handmade import Answer

__all__ = ["Tube"]


@dataclasses.dataclass(frozen=True)
class Tube:
    """The formula of ``a`` from the same, ``a`` itself, the signs, and which frames are free.

    ``softness`` may be differentiated where it is positive.

    Attributes:
        call: Who asks, for warnings.
    """

    call: str

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``a``, which is known."""
        return (inputs[5].clone(),)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        """``a``."""
        return (torch.empty_like(inputs[5]),)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        K, _, _, softness, _, _, sign, free = inputs
        w = self._respond(K, softness, free, v)
        dK = dC = None
        if needed[0]:
            product = w.unsqueeze(2) * y.unsqueeze(1)
            dK = -0.5 * (product + product.mT)
        if needed[4]:
            dC = sign * ~free * (v - (K @ w.unsqueeze(2)).squeeze(2))
        return dK, w, -sign * w, -y * w, dC, None, None, None

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        K, _, _, softness, _, _, sign, free = inputs
        dK, dtau, depsilon, dsoftness, dC = tangents[:5]
        moved = torch.zeros_like(y) if dC is None else sign * ~free * dC
        force = (K @ moved.unsqueeze(2)).squeeze(2)
        if dK is not None:
            force = force + (0.5 * (dK + dK.mT) @ y.unsqueeze(2)).squeeze(2)
        if dtau is not None:
            force = force - dtau
        if depsilon is not None:
            force = force + sign * depsilon
        if dsoftness is not None:
            force = force + y * dsoftness
        return moved - self._respond(K, softness, free, force)

    def _respond(self, K: Tensor, softness: Tensor, free: Tensor, v: Tensor) -> Tensor:
        """``F (F (K + softness) F + I - F)^-1 F v``."""
        f = free.to(v.dtype)
        M = K * (f.unsqueeze(2) * f.unsqueeze(1)) + torch.diag_embed(torch.where(free, softness, 1))
        w = solve_symmetric(
            self.call,
            M,
            (f * v).unsqueeze(2),
            "the frames on the edge of the tube are linearly dependent",
            "`loss='squared'`, or some smoothing, singles one out",
        )
        return f * w.squeeze(2)
