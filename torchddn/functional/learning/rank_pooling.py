r"""Rank pooling: a sequence described by the direction along which it evolves.

Solves, for each item with frames ``x_1, ..., x_T``::

    y = argmin_u  1/2 |u|^2 + C sum_t loss(t - u.x_t)

a support vector regression of the time on the frames, whose residuals up to epsilon cost nothing. ``tube.py`` has the
dual problem, whose answer ``a`` gives ``y = sum_t a_t x_t``.
"""

import math
import numbers
from typing import Literal, overload

import torch
from torch import Tensor

from torchddn.diagnostics import timed
from torchddn.errors import InvalidInputError
from torchddn.functional.learning.tube import Tube
from torchddn.functional.learning.tube_solver import TubeSolver
from torchddn.functional.nodes.arguments import (
    broadcast,
    check_choice,
    check_flag,
    check_floating,
    positive,
    wide,
)
from torchddn.functional.nodes.finite import are_finite
from torchddn.functional.nodes.handmade import solve
from torchddn.functional.nodes.outcome import conclude, solution_of
from torchddn.functional.nodes.reading import read
from torchddn.functional.pooling.weights import check_mask
from torchddn.linear.operators import check_count, check_number
from torchddn.status import Solution, Status, check_failure_policy

__all__ = ["rank_pooling"]

LOSSES = ("squared", "linear")
FRAMES = ("as given", "mean", "unit mean")


@overload
def rank_pooling(
    sequence: Tensor,
    C: float | Tensor = ...,
    epsilon: float | Tensor = ...,
    *,
    loss: str = ...,
    smoothing: float = ...,
    frames: str = ...,
    mask: Tensor | None = ...,
    max_steps: int = ...,
    on_failure: str = ...,
    solution: Literal[False] = ...,
) -> Tensor: ...
@overload
def rank_pooling(
    sequence: Tensor,
    C: float | Tensor = ...,
    epsilon: float | Tensor = ...,
    *,
    loss: str = ...,
    smoothing: float = ...,
    frames: str = ...,
    mask: Tensor | None = ...,
    max_steps: int = ...,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
def rank_pooling(
    sequence: Tensor,
    C: float | Tensor = 1.0,
    epsilon: float | Tensor = 0.1,
    *,
    loss: str = "squared",
    smoothing: float = 0.0,
    frames: str = "as given",
    mask: Tensor | None = None,
    max_steps: int = 60,
    on_failure: str = "warn",
    solution: bool = False,
) -> Tensor | Solution:
    r"""Returns the direction along which a sequence evolves: the frames in order have growing products with it.

    minimize 1/2 \|u\|^2 + C sum_t loss(t - u . x_t), with times t = 1, 2, ..., of the T frames. By Newton's method
    where the loss is smooth, O(T D min(T, D)) per step and item, else as a quadratic program in 2 T variables. The
    derivatives cost one Cholesky factor of T numbers square.

    Args:
        sequence: Frames x_t, ``(*B, T, D)``.
        C: What a residual costs: positive, a number or broadcastable to ``(*B,)``.
        epsilon: Not negative, a number or broadcastable to ``(*B,)``: residuals up to it cost nothing.
        loss: What a residual r beyond costs: ``"squared"``, (\|r\| - epsilon)^2 / 2, or ``"linear"``, \|r\| - epsilon.
        smoothing: Of the linear loss: its first part, so long, is a parabola, which leaves no kink. Not negative.
        frames: ``"as given"``; ``"mean"``: the mean of all frames up to each one stands for it, which takes away noise;
            ``"unit mean"``: that, divided by its length.
        mask: Which frames count, boolean, broadcastable to ``(*B, T)``; all unless given. Others may hold NaN, and
            time does not pass in them, so that sequences of different lengths fit one batch.
        max_steps: Most steps for an item.
        on_failure: What to do about items that fail: ``"warn"``, ``"raise"``, ``"nan"`` or ``"ignore"``.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``y``; its fields are ``(*B,)``, and the
            multipliers of ``r_t = t - u . x_t``, the coefficients of the frames, ``(*B, T)``.

    Returns:
        ``y``, ``(*B, D)``, of the dtype of ``sequence`` (half precision computes in float32); zeros where no frame
        counts.

    Raises:
        InvalidInputError: If an argument is wrong, or there are no frames or no features.
        SolveError: If an item fails and ``on_failure="raise"``.

    Status:
        MAX_STEPS, STALLED: The problem is not solved; check the scale of the frames, or use float64.
        NON_FINITE: A frame that counts contains NaN or infinity. The answer is NaN, its gradient zero.

    Gradients:
        Exact in ``sequence``, ``C`` and ``epsilon``, of every order and in every mode. Where a residual is exactly
        epsilon, or the loss turns from a parabola into a line, the gradient has a kink; it is that of one side. A mean
        of zero has no direction: ``"unit mean"`` leaves it zero, with gradient zero.

    Example:
        >>> rank_pooling(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), epsilon=0.0)
        tensor([0.5000, 1.0000])

    References:
        Fernando and Gould, Learning end-to-end video classification with rank-pooling, 2016, has the squared loss.
        Fernando et al., Modeling video evolution for action recognition, 2015. Smola and Schoelkopf, A tutorial on
        support vector regression, 2004.
    """
    call = "rank_pooling"
    check_floating(call, "sequence", sequence, "(*B, T, D)", 2)
    *sizes, T, D = sequence.shape
    if T == 0 or D == 0:
        raise InvalidInputError(
            f"`{call}(sequence=...)` must have frames and features, got shape {tuple(sequence.shape)}."
        )
    batch = torch.Size(sizes)
    check_choice(call, "loss", loss, LOSSES)
    check_choice(call, "frames", frames, FRAMES)
    check_number(f"{call}(smoothing=...)", smoothing)
    if smoothing and loss == "squared":
        raise InvalidInputError(
            f"`{call}(smoothing=...)` belongs to `loss='linear'`: the squared loss is smooth. Got {smoothing}."
        )
    check_count(f"{call}(max_steps=...)", max_steps)
    check_failure_policy(call, on_failure)
    check_flag(call, "solution", solution)
    counts = check_mask(call, mask, sequence.shape[:-1], sequence)
    x = wide(sequence).reshape(batch.numel(), T, D)
    counts = torch.ones_like(x[..., 0], dtype=torch.bool) if counts is None else counts.reshape(x.shape[:2])
    x = torch.where(counts.unsqueeze(2), x, 0)
    finite = are_finite(x, (1, 2))
    x = _preprocessed(torch.where(finite.reshape(-1, 1, 1), x, 0), counts, frames)
    price = positive(call, "C", C, batch, x).reshape(-1, 1)
    width = _not_negative(call, "epsilon", epsilon, batch, x).reshape(-1, 1).expand(x.shape[:2])
    times = counts.cumsum(1).to(x.dtype) * counts
    if loss == "squared":
        softness, most = (1 / price).expand_as(width), torch.where(counts, torch.inf, 0)
    else:
        softness, most = (smoothing / price).expand_as(width), torch.where(counts, price, 0)
    K = x @ x.mT
    data = (K, times, width, softness, most.to(x.dtype))
    with timed() as file:
        solver = TubeSolver(loss == "squared" or smoothing > 0, max_steps)
        a, sign, free, status, num_steps, error = solve(solver, x.detach(), *(part.detach() for part in data[1:]))
        a = solve(Tube(call), *data, a, sign, free)[0]
        status = torch.where(finite, status, int(Status.NON_FINITE))
        y = torch.where(finite.unsqueeze(1), (a.unsqueeze(1) @ x).squeeze(1), torch.nan)
        name = "Newton" if solver.soft else "PrimalDual"
        y = conclude(call, y, status, error, on_failure, num_steps=num_steps, solver=name, file=file)
    y = y.reshape(*batch, D).to(sequence.dtype)
    if not solution:
        return y
    with torch.no_grad():
        over = ((times - (K @ a.unsqueeze(2)).squeeze(2)).abs() - width).clamp(min=0)
        slope = torch.minimum(over / softness, most) if solver.soft else most
        cost = torch.where(over > 0, slope * over - 0.5 * softness * slope.square(), 0).sum(1)
        objective = 0.5 * (a * (K @ a.unsqueeze(2)).squeeze(2)).sum(1) + cost
    objective, status, num_steps, error = (x.reshape(batch) for x in (objective, status, num_steps, error))
    multipliers = a.reshape(*batch, T).to(sequence.dtype)
    return solution_of(y, objective, status, num_steps, error, name, equality_multipliers=multipliers)


def _preprocessed(x: Tensor, counts: Tensor, frames: str) -> Tensor:
    """The frames to rank, ``(R, T, D)``; zeros where they do not count."""
    if frames == "as given":
        return x
    mean = x.cumsum(1) / counts.cumsum(1).clamp(min=1).unsqueeze(2)
    if frames == "unit mean":
        size = mean.square().sum(2, keepdim=True)
        mean = mean * torch.where(size > 0, size, torch.inf).rsqrt()
    return mean * counts.unsqueeze(2)


def _not_negative(call: str, name: str, value: float | Tensor, shape: torch.Size, like: Tensor) -> Tensor:
    """``value``, checked, with ``shape``."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        if not 0 <= float(value) < math.inf:
            raise InvalidInputError(f"`{call}({name}=...)` must be finite and not negative, got {value}.")
        return broadcast(call, name, float(value), shape, like)
    check_floating(call, name, value, f"broadcastable to {tuple(shape)}", 0)
    assert isinstance(value, Tensor)

    def look(value: Tensor) -> None:
        wrong = ~((value >= 0) & value.isfinite())
        if bool(wrong.any()):
            raise InvalidInputError(
                f"`{call}({name}=...)` must be finite and not negative, got {value[wrong][0].item()} among its entries."
            )

    read(look, value)
    return broadcast(call, name, value, shape, like)
