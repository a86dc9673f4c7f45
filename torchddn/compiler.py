"""What ``torch.compile`` leaves alone while it compiles the network around it."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

__all__ = ["uncompiled"]

_Call = TypeVar("_Call", bound=Callable[..., Any])


def uncompiled(function: _Call) -> _Call:
    """Returns ``function`` such that a compiled caller breaks its graph there and calls it as it is.

    Solvers loop until they are done, and read values to know. ``torch.compiler.disable`` does the same, but imports
    the compiler at once and doubles the time of ``import torchddn``; this waits for the first call.
    """
    return cast(_Call, torch._disable_dynamo(function))  # pyright: ignore[reportPrivateImportUsage]
