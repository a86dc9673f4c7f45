"""Functions of tensors, captured once for each kind of arguments and compiled into one kernel.

A node that is asked to be compiled calls the same few functions of its problem again and again, with tensors of the
same shapes: values and derivatives at a point, a step, a solve with its certificate. Run one operation of torch after
the other, a small problem pays for the calls and a large one for the memory traffic. Here the operations are recorded
at the first call, derivatives and all, replayed a few times, which is faster already since nobody differentiates, and
then handed to the compiler of torch, which makes one kernel of them.

What is recorded is a straight line of operations on the tensors that the function was *given*. Whatever else it depends
on (:func:`torchddn.capture.fingerprint`) belongs into the name under which it is kept.
"""

import threading
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from torchddn.errors import CompileWarning

__all__ = ["BoundKernels", "Kernels"]

Function = Callable[..., list[Tensor]]
_Thing = TypeVar("_Thing")

# Compiling takes seconds. Who needs more kernels than that has shapes or numbers that change from call to call.
_MOST = 64

# Calls that replay what was recorded: a function that is called a few times only is not worth the compiler's seconds.
_REPLAYS = 8

# With fewer operations a call of the kernel costs as much as they do.
_LEAST = 12


class Kernels:
    """The kernels of one node. A copy of it begins with none."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Any] = {}
        self._lock = threading.RLock()
        self._has_warned = False

    def __reduce__(self) -> tuple[type["Kernels"], tuple[()]]:
        return Kernels, ()

    def __len__(self) -> int:
        """How many kernels and facts there are."""
        return len(self._known)

    def recall(self, key: Hashable, kept: Sequence[Any], make: Callable[[], _Thing]) -> _Thing:
        """What ``make`` returned when it was first asked under that ``key``; ``kept`` stays alive with it."""
        known = self._known.get(key)
        if known is None:
            with self._lock:
                known = self._known.get(key)
                if known is None:
                    known = make(), kept
                    if len(self._known) < _MOST:
                        self._known[key] = known
                    else:
                        self.warn(f"shapes or constants have changed {_MOST} times: what is new runs without")
        return known[0]

    def make(self, function: Function, tensors: Sequence[Tensor]) -> Function:
        """The kernel; ``function`` itself if it cannot be recorded or there are too many."""
        if len(self._known) >= _MOST:
            return function
        try:
            graph = make_fx(function)(*tensors)
        except Exception as error:  # of any kind: whatever functions of a user do that cannot be recorded
            function(*tensors)  # raises what is not the recorder's fault
            self.warn(f"a function cannot be recorded, {type(error).__name__}: {error}")
            return function
        return graph if len(graph.graph.nodes) - len(tensors) < _LEAST else _Kernel(graph)

    def warn(self, reason: str) -> None:
        """Says once why there are no kernels."""
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(f"`DeclarativeNode(compile=True)`: {reason}.", CompileWarning, stacklevel=2)


class BoundKernels(NamedTuple):
    """The kernels of a node for functions of one state."""

    kernels: Kernels
    state: Hashable
    kept: Sequence[Any]

    def make(self, function: Function, tensors: Sequence[Tensor]) -> Function:
        """As :meth:`Kernels.make`."""
        return self.kernels.make(function, tensors)

    def recall(self, key: Hashable, make: Callable[[], _Thing]) -> _Thing:
        """What ``make`` returned when it was first asked under that ``key``."""
        return self.kernels.recall((self.state, key), self.kept, make)


class _Kernel:
    """What was recorded: replayed the first times, then compiled."""

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        self._run: Function = graph
        self._graph: torch.fx.GraphModule | None = graph
        self._replays = _REPLAYS
        self._lock = threading.Lock()

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        if self._graph is not None:
            self._count(tensors)
        return self._run(*tensors)

    def _count(self, tensors: Sequence[Tensor]) -> None:
        with self._lock:
            self._replays -= 1
            if self._graph is not None and self._replays < 0:
                self._run, self._graph = _compile(self._graph, tensors), None


def _compile(graph: torch.fx.GraphModule, tensors: Sequence[Tensor]) -> Function:
    """The kernel; where there is no compiler, the operations one after the other, without the calls between them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler's about itself
            # Not `torch.compile`, which would look at each call whether the graph is still the same.
            kernel = cast("Function", torch._inductor.compile(graph, list(tensors)))
            kernel(*tensors)
    except Exception:  # no compiler, or one that does not know an operation
        return graph
    return kernel
