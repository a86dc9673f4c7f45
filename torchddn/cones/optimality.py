r"""The optimality conditions of cone programs as equations, and Newton's method that ends on them.

::

    min_x  1/2 x'P x + q'x   subject to   A x + s = b,  s in K

With ``w = s - z``, of which s is the projection onto K (:mod:`torchddn.cones.product`), x is a solution with
multipliers z where

::

    P x + A'z + q = 0,   A x + s - b = 0                                                                          (1)

The derivative of these equations in (x, w) is the matrix J of :mod:`torchddn.cones.system`, with the derivative D of
the projection.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.cones.product import ProductCone
from torchddn.cones.semidefinite import Lyapunov, lyapunov
from torchddn.cones.system import System, refine

__all__ = ["ConeData", "errors", "linearize", "polish", "residual"]

_MAX_STEPS = 8
# Errors at which rounding ends all progress.
_SETTLED = 1e-15


class ConeData(NamedTuple):
    """Programs of one structure, ``(R, ...)``: the entries of P and A that may differ from zero, and where they are."""

    P: Tensor  # (R, number of entries), both triangles
    q: Tensor  # (R, n)
    A: Tensor
    b: Tensor  # (R, m)
    P_rows: Tensor
    P_columns: Tensor
    A_rows: Tensor
    A_columns: Tensor


def residual(data: ConeData, x: Tensor, w: Tensor, s: Tensor) -> Tensor:
    """The left-hand sides of (1), ``(R, n + m)``."""
    z = s - w
    P_x = torch.zeros_like(x).scatter_add(1, data.P_rows, data.P * x.gather(1, data.P_columns))
    A_z = torch.zeros_like(x).scatter_add(1, data.A_columns, data.A * z.gather(1, data.A_rows))
    A_x = torch.zeros_like(w).scatter_add(1, data.A_rows, data.A * x.gather(1, data.A_columns))
    return torch.cat([P_x + A_z + data.q, A_x + s - data.b], dim=1)


def linearize(cone: ProductCone, data: ConeData, w: Tensor, s: Tensor, solve: Lyapunov = lyapunov) -> System:
    """The derivative of (1), itself differentiable in the data, and in w and s if ``solve`` is."""
    D, D_rows, D_columns = cone.slope(w, s, solve)
    n, m = data.q.shape[1], data.b.shape[1]
    return System._make([data.P, data.A, D, *data[4:], D_rows, D_columns, n, m])


def errors(data: ConeData, x: Tensor, w: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Stationarity and feasibility, ``(R,)`` each: the largest residuals in units of the terms they are made of."""
    n = x.shape[1]
    left = residual(data, x, w, s).abs()
    z = (s - w).abs()
    pull = torch.zeros_like(x).scatter_add(1, data.A_columns, data.A.abs() * z.gather(1, data.A_rows))
    force = _largest(torch.cat([pull, data.q.abs()], dim=1))
    length = _largest(torch.cat([s.abs(), data.b.abs()], dim=1))
    return _largest(left[:, :n]) / (1 + force), _largest(left[:, n:]) / (1 + length)


def polish(cone: ProductCone, data: ConeData, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``x`` and ``w`` after the Newton steps that make the errors smaller; the error left, and the steps taken."""
    error = torch.stack(errors(data, x, w, cone.project(w))).amax(0)
    num_steps = torch.zeros_like(error, dtype=torch.int64)
    items = (error > _SETTLED).nonzero().flatten()
    for _ in range(_MAX_STEPS):
        if not items.numel():
            break
        part, x_part, w_part = ConeData(*(field[items] for field in data)), x[items], w[items]
        s = cone.project(w_part)
        # What a step misses, the next one finds.
        step, _ = refine(linearize(cone, part, w_part, s), -residual(part, x_part, w_part, s), max_refinements=0)
        x_part, w_part = x_part + step[:, : x.shape[1]], w_part + step[:, x.shape[1] :]
        after = torch.stack(errors(part, x_part, w_part, cone.project(w_part))).amax(0)
        better = after < error[items]
        # Less than half of the error is rounding, or no longer Newton's method.
        goes_on = (after < 0.5 * error[items]) & (after > _SETTLED)
        chosen = items[better]
        x, w = x.index_copy(0, chosen, x_part[better]), w.index_copy(0, chosen, w_part[better])
        error = error.index_copy(0, chosen, after[better])
        num_steps = num_steps.index_add(0, items, torch.ones_like(items))
        items = items[goes_on]
    return x, w, error, num_steps


def _largest(values: Tensor) -> Tensor:
    return values.amax(1) if values.shape[1] else values.new_zeros(values.shape[0])
