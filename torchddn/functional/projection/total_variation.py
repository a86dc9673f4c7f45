r"""One-dimensional total variation as a node.

Solves, for each row of x and s >= 0::

    y(x, s) = argmin_y  1/2 |y - x|^2 + sum_i s_i |y_{i+1} - y_i|

y is constant on segments. With the mean of x over a segment of k numbers and the sign e_i of each jump
``y_{i+1} - y_i``, the segment from i to j has the level ``mean + (e_j s_j - e_{i-1} s_{i-1}) / k``. So derivatives are
means over segments: the incoming gradient v gives ``dx = mean v`` and ``ds_i = -e_i (dx_{i+1} - dx_i)``.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, overload

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchddn.functional.nodes.handmade import Answer, solve
from torchddn.functional.projection.levels import cut_at_levels
from torchddn.functional.projection.segments import segment_means, segments
from torchddn.functional.projection.vectors import (
    Vectors,
    answer_of,
    broadcast,
    check_legal,
    finite_rows,
    nan_unless,
    outline_of,
)
from torchddn.status import Solution

__all__ = ["total_variation"]


@overload
def total_variation(
    x: Tensor,
    strength: float | Tensor = ...,
    dim: int = ...,
    *,
    on_failure: str = ...,
    solution: Literal[False] = ...,
) -> Tensor: ...
@overload
def total_variation(
    x: Tensor,
    strength: float | Tensor = ...,
    dim: int = ...,
    *,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
def total_variation(
    x: Tensor,
    strength: float | Tensor = 1.0,
    dim: int = -1,
    *,
    on_failure: str = "warn",
    solution: bool = False,
) -> Tensor | Solution:
    r"""Returns the piecewise constant vector that total variation makes of each vector of ``x``.

    y(x, s) = argmin_y 1/2 |y - x|^2 + sum_i s_i |y_{i+1} - y_i|: denoising that keeps jumps, the fused lasso. Exact, by
    cuts at levels, all segments of all vectors at once: about log2 of the number of segments rounds, each linear in m.

    Args:
        x: Vectors along ``dim``, ``(*B, m)`` for the last axis.
        strength: ``s``, non-negative: a number, or a tensor that broadcasts to the differences ``x.diff(dim=dim)``,
            ``(*B, m - 1)``; one strength per vector is shaped ``(*B, 1)``.
        dim: Axis of the vectors.
        on_failure: What to do about vectors with a number that is not finite: ``"warn"``, ``"raise"``, ``"nan"`` or
            ``"ignore"``. Their answer is NaN in any case; they do not disturb others.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``y``; its fields are ``(*B,)``, and
            ``stationarity`` is the largest violation of the conditions of optimality.

    Returns:
        ``y``, shaped as ``x`` and of its dtype (half precision computes in float32). A strength of zero leaves a
        difference alone; very large ones give the mean.

    Raises:
        InvalidInputError: If an argument is wrong, or the vectors have no coordinates.
        SolveError: If a vector fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the vector contains NaN or infinity.

    Gradients:
        Exact in ``x`` and ``strength``, in every mode. The answer is piecewise linear in both: higher derivatives are
        zero. Where a segment is about to fall apart, or two have the same level, there is a kink, and they count as
        one.

    Example:
        >>> total_variation(torch.tensor([1.0, 3.0, 2.0, 9.0, 8.0]), strength=1.0)
        tensor([2.0000, 2.5000, 2.5000, 8.0000, 8.0000])

    References:
        Rudin, Osher, Fatemi, Nonlinear Total Variation Based Noise Removal Algorithms, 1992. Tibshirani, Saunders,
        Rosset, Zhu, Knight, Sparsity and Smoothness via the Fused Lasso, 2005. The usual method for one vector, the
        taut string (Davies, Kovac, 2001; Condat, 2013), takes its steps one after the other.
    """
    call = "total_variation"
    vectors = Vectors.enter(call, x, dim, on_failure, solution)
    num_rows, m = vectors.rows.shape
    check_legal(call, "strength", strength, "non-negative and finite", x.device)
    shape = list(vectors.batch)
    shape.insert(vectors.axis, m - 1)
    s = broadcast(call, "strength", strength, torch.Size(shape), vectors.rows)
    s = s.movedim(vectors.axis, -1).reshape(num_rows, m - 1)

    def details(y: Tensor) -> Mapping[str, Tensor]:
        plain, rows, bound = y.detach(), vectors.rows.detach(), s.detach()
        jump = plain.diff(dim=1)
        # Forces between neighbors: y - x = p_i - p_{i-1}, with p_i = s_i where y rises, -s_i where it falls.
        force = (plain - rows).cumsum(dim=1)
        excess = torch.where(jump == 0, (force[:, :-1].abs() - bound).clamp(min=0), force[:, :-1] - jump.sign() * bound)
        return {
            "objective": (plain - rows).square().sum(dim=1) / 2 + (bound * jump.abs()).sum(dim=1),
            "stationarity": torch.cat([excess, force[:, -1:]], dim=1).abs().amax(dim=1),
        }

    return vectors.leave(lambda: solve(TotalVariation(), vectors.rows, s), "level cuts", details)


@dataclasses.dataclass(frozen=True)
class TotalVariation:
    """The formula of ``y`` from ``x``, ``(R, m)``, and ``s``, ``(R, m - 1)``."""

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``y``, status, steps, violation."""
        x, s = inputs
        finite = finite_rows(x)
        rows = x if finite is None else torch.where(finite, x, 0)
        # Centered and with the digits of float64, sums of many numbers still tell where a segment falls apart.
        offset = rows.mean(dim=1, keepdim=True)
        y, num_steps = cut_at_levels((rows - offset).double(), s.double())
        return answer_of(nan_unless(finite, y.to(x.dtype) + offset), finite, num_steps)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return outline_of(inputs[0])

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        sound, segment, sign = _parts(y)
        dx = segment_means(torch.where(sound, v, 0), segment)
        return dx, -sign * dx.diff(dim=1)

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        sound, segment, sign = _parts(y)
        dx, ds = tangents
        rate = torch.zeros_like(y) if dx is None else torch.where(sound, dx, 0)
        if ds is not None:
            rate = rate + pad(sign * ds, (1, 1)).diff(dim=1)
        return segment_means(rate, segment)


def _parts(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows have an answer, ``(R, 1)``; the segments; and the signs of the jumps, ``(R, m - 1)``."""
    y = y.detach()
    sound = ~y[:, :1].isnan()
    return sound, segments(y), torch.where(sound, y.diff(dim=1), 0).sign()
