r"""The case in which no gradient has to pass through the lower problem.

If ``y`` occurs in the upper objective only through the lower one, ``J(theta, y) = g(theta, f(y, theta))``, and the
lower problem has no constraints, then ``J_y = g_f f_y = 0`` at the solution and ``dJ/dtheta = J_theta``.

What is looked for is the sign of it: away from the solution ``J_y`` is a multiple of ``f_y``, for each follower its
own, and at the solution it is no larger than that multiple of what is left of ``f_y``. The second part alone makes the
answer safe, since the term that is left out is a product with ``J_y``; the first tells a zero from a small number.

References:
    Gould, Hartley, Campbell, Deep Declarative Networks: A New Hope, 2019, equation 10.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchddn.bilevel.pair import Bilevel
from torchddn.derivatives import gradient
from torchddn.problem import BatchedProblem

__all__ = ["is_only_term"]


def is_only_term(pair: Bilevel, theta: Any, y: Any, J_y: Sequence[Tensor]) -> bool:
    """Whether the lower objective is the only term of the upper one in ``y``, as far as gradients can tell.

    Args:
        pair: With a lower minimization without constraints.
        theta: Where.
        y: The lower solution.
        J_y: The upper objective's gradient there, for each tensor of ``y``.
    """
    largest = max(float(part.abs().max()) if part.numel() else 0.0 for part in J_y)
    if largest == 0.0:
        return True
    eps = torch.finfo(J_y[0].dtype).eps
    theta = pytree.tree_map(Tensor.detach, theta)
    away = pytree.tree_map(lambda leaf: _displaced(leaf.detach(), eps**0.25), y)
    J_away = _upper_gradient(pair, theta, away)
    if not largest <= eps**0.25 * max(float(part.abs().max()) for part in J_away):
        return False  # as almost every upper objective says, without a look at the lower one
    problem, x = pair.flat(theta)
    v, v_away = (_flat(problem, parts) for parts in (J_y, J_away))
    with torch.no_grad():
        f_y, f_away = (gradient(lambda y: problem.objective(y, x), problem.layout.flatten(at)) for at in (y, away))
    size = _length(f_away)
    multiple = (v_away * f_away).sum(1) / torch.where(size > 0, size, 1.0).square()
    parallel = _length(v_away - multiple[:, None] * f_away) <= eps**0.5 * _length(v_away)
    settled = _length(v) <= 4 * multiple.abs() * _length(f_y) + eps**0.625 * _length(v_away)
    return bool((parallel & settled).all())


def _displaced(y: Tensor, part: float) -> Tensor:
    """``y`` moved by a part of its size in a direction that no symmetry makes special."""
    place = torch.arange(1, y.numel() + 1, dtype=y.dtype, device=y.device).reshape(y.shape)
    return y + part * (1 + y.abs().amax()) * ((place * 0.6180339887498949).frac() - 0.5)


def _upper_gradient(pair: Bilevel, theta: Any, y: Any) -> list[Tensor]:
    with torch.enable_grad():
        y = pytree.tree_map(lambda leaf: leaf.requires_grad_(), y)
        value = pair.judge(theta, y)
    return list(torch.autograd.grad(value, pytree.tree_leaves(y), materialize_grads=True, allow_unused=True))


def _flat(problem: BatchedProblem, parts: Sequence[Tensor]) -> Tensor:
    return problem.layout.flatten(list(parts))


def _length(rows: Tensor) -> Tensor:
    return rows.square().sum(1).sqrt()
