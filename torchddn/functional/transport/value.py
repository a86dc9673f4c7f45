r"""The value of entropic transport, with the gradient of the envelope theorem.

At the optimum of ``<P, M> + 1/gamma sum P (log P - 1)`` the plan's own response does not change the value::

    dJ/dM = P          dJ/dr = u / gamma          dJ/dgamma = -1/gamma^2 sum P (log P - 1)

No system is solved for these; the derivatives of P and u enter those of second order only.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from torchddn.functional.nodes.handmade import Answer
from torchddn.functional.transport.entropic import finite_cost, potentials

__all__ = ["Value", "entropy"]


@dataclasses.dataclass(frozen=True)
class Value:
    """The formula of the value, ``(R,)``, from the optimal ``P``, the cost, ``r``, ``c`` and ``gamma``.

    The potentials of P are inputs too, after those; they are constants.
    """

    call: str

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        P, cost, _, _, gamma = inputs[:5]
        return ((P * finite_cost(cost)).sum(dim=(1, 2)) + entropy(P) / gamma,)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return (inputs[0].new_empty(inputs[0].shape[:1]),)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        P, cost, r, c, gamma, *known = inputs
        sound = ~y.isnan()
        P, v = torch.where(sound.reshape(-1, 1, 1), P, 0), torch.where(sound, v, 0)
        dcost = dr = dc = dgamma = None
        if needed[1]:
            dcost = P * v.reshape(-1, 1, 1)
        if needed[2] or needed[3]:
            u, w = potentials(self.call, P, cost, gamma, (known[0], known[1]), told=True)
            dr, dc = ((v / gamma).unsqueeze(1) * z for z in (u, w))
            dr, dc = dr.to(r.dtype), dc.to(c.dtype)
        if needed[4]:
            dgamma = -v * entropy(P) / gamma.square()
        return None, dcost, dr, dc, dgamma, None, None

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        P, cost, _, _, gamma, *known = inputs
        _, dcost, dr, dc, dgamma, *_ = tangents
        sound = ~y.isnan()
        P = torch.where(sound.reshape(-1, 1, 1), P, 0)
        dy = torch.zeros_like(y)
        if dcost is not None:
            dy = dy + (P * dcost).sum(dim=(1, 2))
        if dr is not None or dc is not None:
            u, w = potentials(self.call, P, cost, gamma, (known[0], known[1]), told=True)
            for z, dmarginal in ((u, dr), (w, dc)):
                if dmarginal is not None:
                    dy = dy + (z * dmarginal).sum(dim=1).to(y.dtype) / gamma
        if dgamma is not None:
            dy = dy - dgamma * entropy(P) / gamma.square()
        return dy


def entropy(P: Tensor) -> Tensor:
    """``sum P (log P - 1)``, ``(R,)``."""
    return (torch.special.xlogy(P, torch.where(P > 0, P, 1)) - P).sum(dim=(1, 2))
