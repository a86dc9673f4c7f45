r"""Ridge regression on few examples, in closed form.

Solves, for each item with examples X, ``(n, m)``, targets T, ``(n, k)``, and ``f(x) = W x``::

    minimize over W   sum_i |W x_i - t_i|^2 + penalty |W|^2

::

    W^T = (X^T X + penalty I)^-1 X^T T = X^T A,     A = (X X^T + penalty I)^-1 T          (Woodbury)

The smaller of the two matrices is factored. The right side knows the examples by their kernels only.
"""

import dataclasses
from typing import Literal, overload

import torch
from torch import Tensor

from torchddn.diagnostics import timed
from torchddn.errors import InvalidInputError
from torchddn.functional.learning.kernels import Examples, KernelMachine
from torchddn.functional.linear_algebra.symmetric import solve_symmetric
from torchddn.functional.nodes.arguments import check_flag, check_floating, positive, wide
from torchddn.functional.nodes.finite import are_finite
from torchddn.functional.nodes.outcome import conclude, solution_of
from torchddn.status import Solution, Status, check_failure_policy

__all__ = ["ridge_head"]


@overload
def ridge_head(
    support: Tensor,
    targets: Tensor,
    penalty: float | Tensor = ...,
    *,
    kernel: str = ...,
    gamma: float | Tensor | None = ...,
    on_failure: str = ...,
    solution: Literal[False] = ...,
) -> KernelMachine: ...
@overload
def ridge_head(
    support: Tensor,
    targets: Tensor,
    penalty: float | Tensor = ...,
    *,
    kernel: str = ...,
    gamma: float | Tensor | None = ...,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
def ridge_head(
    support: Tensor,
    targets: Tensor,
    penalty: float | Tensor = 1.0,
    *,
    kernel: str = "linear",
    gamma: float | Tensor | None = None,
    on_failure: str = "warn",
    solution: bool = False,
) -> KernelMachine | Solution:
    r"""Returns the linear function nearest to targets at examples, with a penalty on its weights.

    minimize sum_i \|W x_i - t_i\|^2 + penalty \|W\|^2, without intercept, by a Cholesky factor of the smaller of
    ``X X^T + penalty I`` and ``X^T X + penalty I``: O(n m min(n, m)) per item. The condition of these matrices is the
    square of that of X; :func:`weighted_least_squares` works on X itself, and costs more where examples are few.

    Args:
        support: Features of the examples, ``(*B, n, m)``; their kernels, ``(*B, n, n)``, if ``kernel="precomputed"``.
        targets: What the function should be there, ``(*B, n, k)``: for a classifier, rows of the identity.
        penalty: Positive, a number or broadcastable to ``(*B,)``.
        kernel: As of :func:`support_vector_machine`.
        gamma: As of :func:`support_vector_machine`.
        on_failure: What to do about items with a number that is not finite: ``"warn"``, ``"raise"``, ``"nan"`` or
            ``"ignore"``. Their answer is NaN in any case; they do not disturb others.
        solution: Whether to return a :class:`torchddn.Solution`, with the function as its ``y``; its fields are
            ``(*B,)``, and ``stationarity`` is the largest entry of ``(K + penalty I) A - T``.

    Returns:
        A named tuple with ``coefficients``, ``(*B, n, k)``, and for the linear kernel ``weights``, ``(*B, k, m)``, of
        the dtype of ``support`` (half precision computes in float32). Its ``predict(query)`` has the values,
        ``(*B, q, k)``, at queries ``(*B, q, m)``.

    Raises:
        InvalidInputError: If an argument is wrong, or given kernels are not symmetric positive semidefinite.
        SolveError: If an item fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the item contains NaN or infinity, or its answer overflows.

    Gradients:
        Exact in ``support``, ``targets``, ``penalty`` and ``gamma``, of every order and in every mode. An item that is
        not finite has gradient zero.

    Example:
        >>> X = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
        >>> head = ridge_head(X, torch.eye(2), penalty=1.0)
        >>> head.weights
        tensor([[0.5000, 0.0000, 0.0000],
                [0.0000, 0.4000, 0.0000]])

    References:
        Bertinetto, Henriques, Torr, Vedaldi, Meta-learning with differentiable closed-form solvers, 2019.
    """
    call = "ridge_head"
    examples = Examples.enter(call, support, kernel, gamma)
    R, n, m = examples.support.shape
    T = _targets(call, targets, support)
    strength = positive(call, "penalty", penalty, examples.batch, examples.support).reshape(R, 1, 1)
    check_failure_policy(call, on_failure)
    check_flag(call, "solution", solution)
    examples = examples._replace(finite=examples.finite & are_finite(T, (1, 2)))
    T = torch.where(examples.finite.reshape(-1, 1, 1), T, 0)
    X = examples.support
    with timed() as file:
        if kernel == "linear" and m < n:
            W = _solve(call, X.mT @ X, strength, X.mT @ T)
            A = (T - X @ W) / strength
        else:
            A = _solve(call, examples.gram(), strength, T)
        with torch.no_grad():
            pull = X @ (X.mT @ A) if kernel == "linear" else examples.gram() @ A
            slope = (pull + strength * A - T).abs().amax((1, 2))
            finite = examples.finite & slope.isfinite()
            objective = (strength * A * T).sum((1, 2))  # what the objective is at its least
        status = torch.where(finite, int(Status.CONVERGED), int(Status.NON_FINITE))
        steps = torch.zeros_like(status)
        A = conclude(call, A, status, slope, on_failure, num_steps=steps, solver="Cholesky", file=file)
    machine = examples._replace(finite=finite).machine(A)
    if not solution:
        return machine
    objective, status, steps, slope = (x.reshape(examples.batch) for x in (objective, status, steps, slope))
    return dataclasses.replace(solution_of(A, objective, status, steps, slope, "Cholesky"), y=machine)


def _solve(call: str, gram: Tensor, strength: Tensor, right: Tensor) -> Tensor:
    shifted = gram + strength * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    return solve_symmetric(call, shifted, right, "the penalty is lost in rounding", "a larger one singles one out")


def _targets(call: str, targets: object, support: Tensor) -> Tensor:
    """``(R, n, k)``."""
    check_floating(call, "targets", targets, "(*B, n, k)", 2)
    assert isinstance(targets, Tensor)
    if targets.dtype != support.dtype or targets.device != support.device:
        raise InvalidInputError(
            f"`{call}(targets=...)` must have the dtype and device of `support`, {support.dtype} on {support.device}, "
            f"got {targets.dtype} on {targets.device}. Use `.to(support)`."
        )
    shape = (*support.shape[:-1], targets.shape[-1])
    fits = targets.dim() <= support.dim() and all(
        size in (1, wanted) for size, wanted in zip(reversed(targets.shape[:-2]), reversed(shape[:-2]), strict=False)
    )
    if not fits or targets.shape[-2] != shape[-2] or targets.shape[-1] == 0:
        raise InvalidInputError(
            f"`{call}(targets=...)` must have shape {shape[:-1]} with k outputs behind it, got {tuple(targets.shape)}."
        )
    rows = support.shape[:-2].numel()
    return wide(targets).expand(shape).reshape(rows, *shape[-2:])
