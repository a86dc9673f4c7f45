"""What ``torch.compile`` leaves alone, and is told, while it compiles the network around it."""

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

__all__ = ["break_graph", "constant", "settled_by_the_compiler", "uncompiled", "under_transform"]

_Call = TypeVar("_Call", bound=Callable[..., Any])


def uncompiled(function: _Call) -> _Call:
    """Returns ``function`` such that a compiled caller breaks its graph there and calls it as it is.

    Solvers loop until they are done, and read values to know. ``torch.compiler.disable`` does the same, but imports
    the compiler, for seconds; here it is imported by those who use it.
    """
    disabled = torch._disable_dynamo(function)  # pyright: ignore[reportPrivateImportUsage]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # Once the compiler is there it may follow calls from compiled code, those of autograd too.
        if torch.compiler.is_compiling() or "torch._dynamo" in sys.modules:
            return disabled(*args, **kwargs)
        return function(*args, **kwargs)

    return cast(_Call, call)


def settled_by_the_compiler(function: _Call) -> _Call:
    """Returns ``function`` such that a compiled caller calls it once, while it is traced, and keeps the result.

    What ``torch.compiler.assume_constant_result`` does, which imports the compiler at once.
    """
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function


def constant(value: Any) -> Any:
    """Returns ``value``, such that a compiled caller is compiled again for another number.

    Without it, the compiler makes a symbol of a number that has changed from call to call, which cannot choose a
    branch of a formula or name an operation.
    """
    if torch.compiler.is_compiling() and isinstance(value, int | float) and not isinstance(value, bool):
        return torch.fx.experimental.symbolic_shapes.guard_scalar(value)  # pyright: ignore[reportAttributeAccessIssue]
    return value


def break_graph(reason: str) -> None:
    """Lets a compiled caller break its graph here; one that must not raises an error with the reason."""
    torch._dynamo.graph_break(msg=reason)


@settled_by_the_compiler
def under_transform() -> bool:
    """Whether a transform of ``torch.func`` is on its way."""
    return torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]
