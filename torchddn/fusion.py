"""Functions of a problem that a compiled node runs as one kernel."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.autograd.forward_ad as fwAD

from torchddn.derivatives import inside_transform
from torchddn.problem import BatchedProblem

__all__ = ["fused", "is_fused"]

_Call = TypeVar("_Call", bound=Callable[..., Any])


def fused(function: _Call) -> _Call:
    """Returns ``function(problem, *args)`` such that for a compiled node it is one kernel.

    It must be a straight line of operations on the tensors in ``args`` (trees of tuples, lists and named tuples, with
    None, numbers and flags, which choose the kernel), read none of their values, and return such a tree. Its result has
    no graph; where one is asked for, it runs as it is written.
    """

    @functools.wraps(function)
    def call(problem: BatchedProblem, *args: Any) -> Any:
        if not is_fused(problem):
            return function(problem, *args)
        assert problem.kernels is not None
        return problem.kernels.call(function, lambda *args: function(problem.without_kernels(), *args), args)

    return cast(_Call, call)


def is_fused(problem: BatchedProblem) -> bool:
    """Whether functions of the problem run as kernels: the node is compiled, and nobody differentiates them."""
    if problem.kernels is None:
        return False
    return not torch.is_grad_enabled() and not inside_transform() and fwAD._current_level < 0
