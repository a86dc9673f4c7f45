"""What ``torch.compile`` leaves alone while it compiles the network around it."""

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

__all__ = ["uncompiled"]

_Call = TypeVar("_Call", bound=Callable[..., Any])


def uncompiled(function: _Call) -> _Call:
    """Returns ``function`` such that a compiled caller breaks its graph there and calls it as it is.

    Solvers loop until they are done, and read values to know. Not ``torch.compiler.disable``, which would import the
    compiler for everybody and double the time of ``import torchddn``.
    """
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:  # then nobody compiles
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    return cast(_Call, call)
