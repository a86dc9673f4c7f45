r"""How potentials respond: the one linear solve in every derivative of transport.

Solves, for a plan P and numbers v_ij::

    z(P, v, g, h, e, f) = argmin_(x, y)  1/2 sum_ij P_ij (v_ij - x_i - y_j)^2 - g.x - h.y + 1/2 (e.x^2 + f.y^2)

a weighted least-squares fit of v by potentials, in float64 whatever the data. Its normal equations are those of
``balance.py``. Both the derivative of a plan and the derivative of this fit are such fits again.
"""

import dataclasses
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from torchddn.errors import DegenerateGradientWarning
from torchddn.functional.nodes.blocks import is_plain
from torchddn.functional.nodes.degeneracy import warn_undetermined
from torchddn.functional.nodes.handmade import Answer, solve
from torchddn.functional.transport.balance import balance
from torchddn.linear import default_rtol

__all__ = ["respond"]


def respond(
    P: Tensor, v: Tensor, g: Tensor, h: Tensor, e: Tensor, f: Tensor, *, call: str, unique: bool, told: bool = True
) -> tuple[Tensor, Tensor]:
    """``x``, ``(R, m)``, and ``y``, ``(R, n)``, float64. A plan with NaN has zeros. ``e`` and ``f`` may be empty.

    Args:
        P: ``(R, m, n)``.
        v: ``(R, m, n)``, or expanded to that.
        g: ``(R, m)``, float64, and so is the rest.
        h: ``(R, n)``.
        e: ``(R, m)``; ``(R, 0)`` for no penalty on either side.
        f: ``(R, n)`` or ``(R, 0)``.
        call: Who asks, for warnings.
        unique: Whether x and y themselves are of use, not only ``P_ij (x_i + y_j)``: the answer is that of least norm.
        told: Whether to warn where that is one of many.
    """
    inputs = P, v, g, h, e, f
    formula = Response(call, e.shape[1] > 0, unique, told)
    z, _ = formula.solve(inputs) if is_plain(*inputs) else solve(formula, *inputs)
    return z[:, : P.shape[1]], z[:, P.shape[1] :]


@dataclasses.dataclass(frozen=True)
class Response:
    """The formula of ``z``, ``(R, m + n)``, and its relative residual, ``(R,)``."""

    call: str
    penalized: bool
    unique: bool
    told: bool

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        P, v, g, h, e, f = inputs
        unsound = P[:, 0, :1].isnan()
        spoiled = bool(unsound.any())
        if spoiled:
            P = torch.where(unsound.unsqueeze(2), 0, P)
        weighted = P * v
        g, h = g + weighted.sum(dim=2), h + weighted.sum(dim=1)
        del weighted
        if spoiled:
            g, h = (t.masked_fill_(unsound, 0) for t in (g, h))
        rtol = 4 * torch.finfo(P.dtype).eps
        penalties = (e, f) if self.penalized else (None, None)
        found = balance(P, *penalties, g, h, rtol, unique=self.unique)
        if self.told and self.unique:
            warn_undetermined(
                self.call,
                found.undetermined & ~unsound.flatten(),
                "marginals of zero, or parts of the plan that no mass links, leave the response to r and c free",
                "positive marginals, and a plan that links all rows and columns, determine it",
            )
        failed = ~(found.residual <= default_rtol(P.dtype))
        if bool(failed.any()):
            self._report(found.residual, failed & torch.cat([g, h], dim=1).isfinite().all(dim=1))
        return torch.cat([found.x, found.y], dim=1), found.residual

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        P, _, g, h, _, _ = inputs
        return g.new_empty((len(P), g.shape[1] + h.shape[1])), g.new_empty((len(P),))

    def _report(self, residual: Tensor, failed: Tensor) -> None:
        items = failed.nonzero().flatten().tolist()
        if items:
            shown = ", ".join(map(str, items[:8])) + (", ..." if len(items) > 8 else "")
            warnings.warn(
                f"`{self.call}`: the linear system of the derivatives of {len(items)} of {len(failed)} items is solved "
                f"to a relative residual of {float(residual[failed].max()):.1e} only (items {shown}). Use float64, or "
                f"a smaller gamma.",
                DegenerateGradientWarning,
                stacklevel=2,
            )

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        P, values, _, _, e, f = inputs
        m = P.shape[1]
        nothing = P.new_zeros(()).expand_as(P)
        v = v.double()
        wx, wy = self._again(P, nothing, v[:, :m], v[:, m:], e, f)
        w = (wx.unsqueeze(2) + wy.unsqueeze(1)).to(P.dtype)
        dP = dvalues = de = df = None
        if needed[0]:
            dP = w * _misfit(values, y[:, :m], y[:, m:])
        if needed[1]:
            dvalues = _clean(P) * w
        if needed[4]:
            de = -wx * y[:, :m] if self.penalized else torch.zeros_like(e)
        if needed[5]:
            df = -wy * y[:, m:] if self.penalized else torch.zeros_like(f)
        return dP, dvalues, wx, wy, de, df

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        P, values, g, h, e, f = inputs
        dP, dvalues, dg, dh, de, df = tangents
        m = P.shape[1]
        x, z = y[:, :m], y[:, m:]
        dg = torch.zeros_like(g) if dg is None else dg
        dh = torch.zeros_like(h) if dh is None else dh
        if self.penalized:
            dg = dg if de is None else dg - de * x
            dh = dh if df is None else dh - df * z
        if dP is not None:
            moved = dP * _misfit(values, x, z)
            dg, dh = dg + moved.sum(dim=2, dtype=torch.float64), dh + moved.sum(dim=1, dtype=torch.float64)
        dvalues = P.new_zeros(()).expand_as(P) if dvalues is None else dvalues
        return torch.cat(self._again(P, dvalues, dg, dh, e, f), dim=1)

    def _again(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return respond(*inputs, call=self.call, unique=self.unique, told=self.told)


def _misfit(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return (values - x.unsqueeze(2) - y.unsqueeze(1)).to(values.dtype)


def _clean(P: Tensor) -> Tensor:
    return torch.where(P[:, :1, :1].isnan(), 0, P)
