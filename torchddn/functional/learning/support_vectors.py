r"""Multiclass support vector machines as a node.

Solves, for each item with examples ``x_i`` of classes ``c_i``::

    minimize over w, xi   1/2 sum_k |w_k|^2 + sum_i C_i xi_i
    subject to            w_{c_i}.x_i - w_k.x_i >= 1 - xi_i   for k != c_i,   xi >= 0

by its dual problem, which knows the examples by their kernels only: ``crammer_singer.py``.
"""

import dataclasses
from typing import Literal, overload

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor  # pyright: ignore[reportAttributeAccessIssue]

from torchddn.diagnostics import timed
from torchddn.errors import InvalidInputError
from torchddn.functional.learning.crammer_singer import CrammerSinger, CrammerSingerSolver
from torchddn.functional.learning.kernels import Examples, KernelMachine
from torchddn.functional.nodes.arguments import check_flag, positive
from torchddn.functional.nodes.handmade import solve
from torchddn.functional.nodes.outcome import conclude, solution_of
from torchddn.functional.nodes.reading import read
from torchddn.linear.operators import check_count
from torchddn.status import Solution, Status, check_failure_policy

__all__ = ["support_vector_machine"]

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@overload
def support_vector_machine(
    support: Tensor,
    labels: Tensor,
    C: float | Tensor = ...,
    *,
    num_classes: int | None = ...,
    kernel: str = ...,
    gamma: float | Tensor | None = ...,
    max_steps: int = ...,
    on_failure: str = ...,
    solution: Literal[False] = ...,
) -> KernelMachine: ...
@overload
def support_vector_machine(
    support: Tensor,
    labels: Tensor,
    C: float | Tensor = ...,
    *,
    num_classes: int | None = ...,
    kernel: str = ...,
    gamma: float | Tensor | None = ...,
    max_steps: int = ...,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
def support_vector_machine(
    support: Tensor,
    labels: Tensor,
    C: float | Tensor = 0.1,
    *,
    num_classes: int | None = None,
    kernel: str = "linear",
    gamma: float | Tensor | None = None,
    max_steps: int = 60,
    on_failure: str = "warn",
    solution: bool = False,
) -> KernelMachine | Solution:
    r"""Returns the classifier that separates labeled examples with the largest margin.

    minimize 1/2 sum_k |w_k|^2 + sum_i C_i max_k (1[k != c_i] + w_k . x_i - w_{c_i} . x_i) over the weights w_k of the
    classes: the machine of Crammer and Singer, without intercepts. A quadratic program in n (k - 1) variables finds
    the coefficients of its dual problem, and one Cholesky factor of n k of them their derivatives.

    Args:
        support: Features of the examples, ``(*B, n, m)``; their kernels, ``(*B, n, n)``, if ``kernel="precomputed"``.
        labels: Classes from 0 on, integers ``(*B, n)`` or ``(n,)`` for all.
        C: What an example that is on the wrong side by one costs: positive, a number or broadcastable to ``(*B, n)``.
            A tensor with one for each item has shape ``(*B, 1)``.
        num_classes: k; one more than the largest label unless given. Where labels have no values to read, as in
            ``torch.compile``, it must be.
        kernel: ``"linear"``; ``"rbf"``, for exp(-gamma \|x - z\|^2); or ``"precomputed"``.
        gamma: Of the kernel ``"rbf"``: positive, a number or broadcastable to ``(*B,)``; 1 / m unless given.
        max_steps: Most steps for an item.
        on_failure: What to do about items that fail: ``"warn"``, ``"raise"``, ``"nan"`` or ``"ignore"``.
        solution: Whether to return a :class:`torchddn.Solution`, with the classifier as its ``y``; its fields are
            ``(*B,)``. The objective is that of the dual problem, to be minimized: the one above, negated.

    Returns:
        A named tuple with ``coefficients``, ``(*B, n, k)``, and for the linear kernel ``weights``, ``(*B, k, m)``, of
        the dtype of ``support`` (half precision computes in float32). Its ``predict(query)`` has the logits,
        ``(*B, q, k)``, of queries ``(*B, q, m)``.

    Raises:
        InvalidInputError: If an argument is wrong, or given kernels are not symmetric positive semidefinite.
        SolveError: If an item fails and ``on_failure="raise"``.

    Status:
        MAX_STEPS, STALLED: the quadratic program is not solved; check the scale of the features, or use float64.
        NON_FINITE: the item contains NaN or infinity. The answer is NaN, its gradient zero.

    Gradients:
        Exact in ``support``, ``C`` and ``gamma``, of every order and in every mode. Where an example is on the margin
        and yet has coefficient zero there is a kink; the gradient is that of an example which stays on the margin. If
        examples on the margins are linearly dependent, the coefficients are many; then the gradient is that of
        minimum norm, with a DegenerateGradientWarning if the logits depend on which.

    Example:
        >>> X = torch.tensor([[0.0, 1.0], [0.0, 3.0], [2.0, 0.0], [4.0, 1.0]])
        >>> machine = support_vector_machine(X, torch.tensor([0, 0, 1, 1]), C=10.0)
        >>> machine.predict(torch.tensor([[1.0, 3.0], [3.0, 1.0]])).argmax(-1)
        tensor([0, 1])

    References:
        Crammer and Singer, On the algorithmic implementation of multiclass kernel-based vector machines, 2001. Lee,
        Maji, Ravichandran, Soatto, Meta-learning with differentiable convex optimization, 2019, where it is the head of
        a few-shot network; they add 1 to the diagonal of K, which here is left as it is.
    """
    call = "support_vector_machine"
    examples = Examples.enter(call, support, kernel, gamma)
    R, n, _ = examples.support.shape
    own = _classes(call, labels, num_classes, examples)
    price = positive(call, "C", C, torch.Size([*examples.batch, n]), examples.support).reshape(R, n)
    check_count(f"{call}(max_steps=...)", max_steps)
    check_failure_policy(call, on_failure)
    check_flag(call, "solution", solution)
    K = examples.gram()
    with timed() as file:
        a, free, status, num_steps, error = solve(CrammerSingerSolver(max_steps), K.detach(), price.detach(), own)
        a = solve(CrammerSinger(call), K, price, a, own, free)[0]
        status = torch.where(examples.finite, status, int(Status.NON_FINITE))
        a = conclude(call, a, status, error, on_failure, num_steps=num_steps, solver="PrimalDual", file=file)
    machine = examples.machine(a)
    if not solution:
        return machine
    with torch.no_grad():
        slope = K @ a - own.to(a.dtype)
        objective = (0.5 * a * (slope - own.to(a.dtype))).sum((1, 2))
        sums = a.sum(2).abs().amax(1)
    objective, status, num_steps, error, sums = (
        x.reshape(examples.batch) for x in (objective, status, num_steps, error, sums)
    )
    found = solution_of(a, objective, status, num_steps, error, "PrimalDual", feasibility=sums)
    return dataclasses.replace(found, y=machine)


def _classes(call: str, labels: object, num_classes: int | None, examples: Examples) -> Tensor:
    """Whose class is which, boolean ``(R, n, k)``."""
    R, n, _ = examples.support.shape
    shape = (*examples.batch, n)
    if not isinstance(labels, Tensor) or labels.dtype not in _INTEGERS:
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise InvalidInputError(f"`{call}(labels=...)` must be a tensor of integers, got {got}. Use `.long()`.")
    if labels.device != examples.support.device or tuple(labels.shape) not in (shape, (n,)):
        raise InvalidInputError(
            f"`{call}(labels=...)` must have shape {shape} or {(n,)}, on the device of `support`, got "
            f"{tuple(labels.shape)} on {labels.device}."
        )
    if num_classes is None:
        num_classes = _num_classes(call, labels)
    check_count(f"{call}(num_classes=...)", num_classes, least=2)
    most = num_classes

    def look(labels: Tensor) -> None:
        wrong = (labels < 0) | (labels >= most)
        if bool(wrong.any()):
            raise InvalidInputError(
                f"`{call}(labels=...)` must be classes from 0 to {most - 1}, got {int(labels[wrong][0])} among them."
            )

    read(look, labels)
    classes = torch.arange(num_classes, device=labels.device)
    return (labels.unsqueeze(-1) == classes).expand(*shape, num_classes).reshape(R, n, num_classes)


def _num_classes(call: str, labels: Tensor) -> int:
    if torch.compiler.is_compiling() or is_batchedtensor(labels):
        raise InvalidInputError(
            f"`{call}(num_classes=...)` must be given here: labels have no values while a graph is made or mapped."
        )
    return max(2, int(labels.max()) + 1) if labels.numel() else 2
