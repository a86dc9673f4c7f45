r"""How much of a hypergradient is the lower solution's error.

A ``y`` with the residual ``r = f_y(y, theta)`` is the exact solution of the tilted problem ``f - r . y``, so what was
computed is ``P(theta, r)`` with ``P(theta, 0)`` meant. Derivatives commute::

    P(theta, r) - P(theta, 0) = d/dtheta [ J_r . r ] + O(|r|^2)

which is the node, differentiated twice.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchddn.adjoint import Adjoint
from torchddn.bilevel.pair import Bilevel
from torchddn.derivatives import gradient
from torchddn.node import DeclarativeNode
from torchddn.problem import Problem

__all__ = ["Errors", "estimate_errors"]


class Errors(NamedTuple):
    """Of an upper value, and the largest of an entry of its hypergradient."""

    value: float
    gradient: float


class _Tilted(Problem):
    """A lower problem whose solution is known, with a linear term: functions take ``(y, r, theta, *data)``."""

    def __init__(self, problem: Problem, y: Any) -> None:
        super().__init__()
        self.problem, self.y = problem, y
        self.batched, self.structure = problem.batched, problem.structure

    def objective(self, y: Any, *x: Any) -> Tensor:
        """``f - r . y``."""
        r, *others = x
        axes = 1 if self.batched else 0
        pairs = zip(pytree.tree_leaves(r), pytree.tree_leaves(y), strict=True)
        terms = [(part * leaf).flatten(axes).sum(-1) for part, leaf in pairs]
        return self.problem.function("objective")(y, *others) - torch.stack(terms).sum(0)

    def solve(self, *x: Any) -> Any:
        """What is known."""
        return self.y


def estimate_errors(pair: Bilevel, theta: Any, y: Any, adjoint: Adjoint) -> Errors:
    """What the residual of ``y`` makes of value and hypergradient, to first order.

    Args:
        pair: With a lower minimization without constraints.
        theta: Where.
        y: The lower solution, ``(B, ...)``, that the hypergradient was computed at.
        adjoint: An exact one.
    """
    assert pair.problem is not None
    problem, x = pair.flat(theta)
    y = pytree.tree_map(Tensor.detach, y)
    with torch.no_grad():
        f_y = gradient(lambda y: problem.objective(y, x), problem.layout.flatten(y))
    residual = pytree.tree_leaves(problem.layout.unflatten(f_y))
    with torch.enable_grad():
        theta = pytree.tree_map(lambda leaf: leaf.detach().requires_grad_(), theta)
        r = pytree.tree_map(lambda leaf: torch.zeros_like(leaf, requires_grad=True), y)
        node = DeclarativeNode(_Tilted(pair.problem, y), adjoint=adjoint, on_failure="ignore")
        value = pair.judge(theta, node(r, pair.spread(theta), *pair.data))
        J_r = torch.autograd.grad(
            value, pytree.tree_leaves(r), create_graph=True, materialize_grads=True, allow_unused=True
        )
        error = torch.stack([(a * b).sum() for a, b in zip(J_r, residual, strict=True)]).sum()
    leaves = pytree.tree_leaves(theta)
    if not error.requires_grad:
        return Errors(abs(float(error.detach())), 0.0)
    found = torch.autograd.grad(error, leaves, materialize_grads=True, allow_unused=True)
    return Errors(abs(float(error.detach())), max(float(part.abs().max()) for part in found if part.numel()))
