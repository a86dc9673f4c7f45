"""Functions of a problem that a compiled node runs as one kernel."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor

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
        tensors: list[Tensor] = []
        given = _take_apart(args, tensors)
        tensors = [tensor.detach().contiguous() for tensor in tensors]

        def make() -> tuple[Callable[..., list[Tensor]], list[Any]]:
            made: list[Any] = [None]
            plain = problem.without_kernels()

            def flat(*tensors: Tensor) -> list[Tensor]:
                outputs: list[Tensor] = []
                made[0] = _take_apart(function(plain, *_put_together(given, iter(tensors))), outputs)
                return outputs

            assert problem.kernels is not None
            return problem.kernels.make(flat, tensors), made

        kernel, made = problem.kernels.recall((function, given), make)
        outputs = kernel(*tensors)
        return _put_together(made[0], iter(outputs))

    return cast(_Call, call)


def is_fused(problem: BatchedProblem) -> bool:
    """Whether functions of the problem run as kernels: the node is compiled, and nobody differentiates them."""
    if problem.kernels is None:
        return False
    return not torch.is_grad_enabled() and not inside_transform() and fwAD._current_level < 0


class _Place(NamedTuple):
    """Where a tensor was."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def _take_apart(thing: Any, tensors: list[Tensor]) -> Any:
    """The tree with a place for each tensor, which is hashable; the tensors are appended to ``tensors``."""
    if isinstance(thing, Tensor):
        tensors.append(thing)
        return _Place(thing.shape, thing.dtype, thing.device)
    if isinstance(thing, tuple | list):
        return type(thing), tuple(_take_apart(part, tensors) for part in thing)
    return thing


def _put_together(made: Any, tensors: Iterator[Tensor]) -> Any:
    """The tree again, with the next of ``tensors`` at each place."""
    if isinstance(made, _Place):
        return next(tensors)
    if isinstance(made, tuple):
        kind, parts = made
        parts = [_put_together(part, tensors) for part in parts]
        return kind(parts) if kind in (tuple, list) else kind(*parts)
    return made
