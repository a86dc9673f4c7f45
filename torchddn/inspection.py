"""What people's tools look at: one item of a node, and its answer in the flat letters of the problem."""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchddn._shapes import flatten_tree
from torchddn.door import Prepared, prepare
from torchddn.errors import InvalidInputError
from torchddn.node import DeclarativeNode
from torchddn.problem import BatchedProblem, Problem
from torchddn.status import Solution

__all__ = ["flat_solution", "one_item"]


def one_item(
    call: str, node: DeclarativeNode, x: tuple[Any, ...], item: object
) -> tuple[DeclarativeNode, tuple[Any, ...]]:
    """Returns a node for one item, which reports failures instead of raising, and the item's inputs, a batch of one.

    Args:
        call: Name that opens messages.
        node: The node.
        x: Inputs of a batch, as the node takes them.
        item: Which of them.

    Raises:
        InvalidInputError: If the inputs do not fit the node, or there is no such item.
    """
    leaves, spec = flatten_tree(call, "x", x)
    with torch.no_grad():
        whole = prepare(call, node.problem, x, "auto")
    size = whole.problem.size
    if not size:
        raise InvalidInputError(f"`{call}(x=...)` must have at least one item, got an empty batch.")
    if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item < size:
        raise InvalidInputError(f"`{call}(item=...)` must be an item of the batch, 0 to {size - 1}, got {item!r}.")
    # A solver that remembers must not remember this.
    solver = copy.deepcopy(node.solver)
    problem = _of_one_item(node.problem, whole, item)
    alone = DeclarativeNode(problem, solver=solver, adjoint=node.adjoint, on_failure="ignore")
    return alone, pytree.tree_unflatten([leaf[item : item + 1].detach().clone() for leaf in leaves], spec)


def flat_solution(problem: BatchedProblem, solution: Solution, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``y``, ``(B, m)``, and ``dual``, ``(B, p + q)``, without a graph and in the dtype of ``like``."""
    y = problem.layout.flatten(solution.y).to(like)
    given = (solution.equality_multipliers, solution.inequality_multipliers)
    dual = torch.cat([y.new_zeros(problem.size, 0), *(part.to(like) for part in given if part is not None)], dim=1)
    return y.detach(), dual.detach()


def _of_one_item(problem: Problem, whole: Prepared, item: int) -> Problem:
    """The problem with this item's start and limits, where they were given for a batch."""
    batched, x = whole.problem, whole.x
    tensors = pytree.tree_leaves([problem.function("initial"), problem.function("bounds")])
    if batched.size == 1 or not any(isinstance(tensor, Tensor) for tensor in tensors):
        return problem
    chosen = slice(item, item + 1) if problem.batched else item
    start, *limits = (batched.layout.unflatten(t[chosen].detach()) for t in (x[-1], *batched.bounds(x)))
    given = {"initial": lambda *_: start, "bounds": lambda *_: tuple(limits)}
    alone = copy.copy(problem)
    kept = {name: made for name, made in given.items() if _is_given(problem.function(name))}
    alone.__dict__["_functions"] = {**problem.__dict__.get("_functions", {}), **kept}
    return alone


def _is_given(declared: Any) -> bool:
    """Whether a start or a pair of limits is there as it is, and not as a function."""
    return declared is not None and not callable(declared)
