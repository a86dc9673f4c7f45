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
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from torchddn.errors import CompileWarning
from torchddn.kernel_layout import lay_out
from torchddn.small_matrices import write_out

__all__ = ["BoundKernels", "Kernels"]

Function = Callable[..., list[Tensor]]
_Thing = TypeVar("_Thing")

# Compiling takes seconds. Who needs more kernels than that has shapes or numbers that change from call to call.
_MOST = 128

_MISSING: Any = object()

_BRANCHES = (tuple, list)

# A kernel is called with the shapes for which it was made.
_OPTIONS = {"size_asserts": False, "alignment_asserts": False}

# Calls that replay what was recorded: a function that is called a few times only is not worth the compiler's seconds.
_REPLAYS = 8


class Kernels:
    """The kernels of one node. A copy of it begins with none.

    Args:
        call: What was asked to be compiled; it opens messages.
        least: A function of fewer operations is recorded only.
    """

    def __init__(self, call: str, least: int = 12) -> None:
        self._call, self._least = call, least
        self._known: dict[Hashable, Any] = {}
        self._states: dict[Hashable, tuple[int, Sequence[Any]]] = {}
        self._lock = threading.RLock()
        self._has_warned = False

    def __reduce__(self) -> tuple[type["Kernels"], tuple[str, int]]:
        return Kernels, (self._call, self._least)

    def __len__(self) -> int:
        """How many kernels and facts there are."""
        return len(self._known)

    def bind(self, state: Hashable, kept: Sequence[Any] = ()) -> "BoundKernels | None":
        """The kernels of functions with that ``state``, which may know objects by identity: ``kept`` stays alive.

        None if there are too many states.
        """
        known = self._states.get(state)
        if known is None:
            with self._lock:
                if len(self._states) >= _MOST:
                    self._warn_of_many()
                    return None
                known = self._states.setdefault(state, (len(self._states), kept))
        # A number in place of the state, which may be long to hash.
        return BoundKernels(self, known[0])

    def recall(self, key: Hashable, make: Callable[[], _Thing]) -> _Thing:
        """What ``make`` returned when it was first asked under that ``key``."""
        known = self._known.get(key, _MISSING)
        if known is _MISSING:
            with self._lock:
                known = self._known.get(key, _MISSING)
                if known is _MISSING:
                    known = make()
                    if len(self._known) < _MOST:
                        self._known[key] = known
                    else:
                        self._warn_of_many()
        return known

    def make(self, function: Function, tensors: Sequence[Tensor]) -> Function:
        """The kernel; ``function`` itself if it cannot be recorded or there are too many."""
        if len(self._known) >= _MOST:
            return function
        try:
            # The recorder knows tensors by identity, and would take two arguments that are one tensor for the same.
            graph = make_fx(function)(*(t.detach() for t in tensors))
        except Exception as error:  # of any kind: whatever functions of a user do that cannot be recorded
            function(*tensors)  # raises what is not the recorder's fault
            self._warn(f"a function cannot be recorded, {type(error).__name__}: {error}")
            return function
        return graph if len(graph.graph.nodes) - len(tensors) < self._least else _Kernel(graph)

    def _warn_of_many(self) -> None:
        self._warn(f"shapes or constants have changed {_MOST} times: what is new runs without")

    def _warn(self, reason: str) -> None:
        """Says once why there are no kernels."""
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(f"`{self._call}(compile=True)`: {reason}.", CompileWarning, stacklevel=2)


class BoundKernels(NamedTuple):
    """The kernels of a node for functions of one state."""

    kernels: Kernels
    state: int

    def call(self, key: Hashable, function: Callable[..., Any], args: Sequence[Any]) -> Any:
        """What ``function(*args)`` returns, by the kernel for that ``key`` and arguments of that kind.

        Arguments and results are trees of tuples, lists and named tuples, with tensors, None, numbers and flags, which
        choose the kernel. What is returned has no graph.
        """
        given_tensors: list[Tensor] = []
        given = _take_apart(tuple(args), given_tensors)
        kinds = tuple([(t.shape, t.dtype, t.device) for t in given_tensors])
        tensors = _as_numbers(given_tensors)

        def make() -> tuple[Function, list[Any]]:
            made: list[Any] = [None]

            def flat(*tensors: Tensor) -> list[Tensor]:
                outputs: list[Tensor] = []
                read = (t != 0 if kind[1] == torch.bool else t for t, kind in zip(tensors, kinds, strict=True))
                made[0] = _take_apart(function(*_put_together(given, read)), outputs)
                return outputs

            return self.kernels.make(flat, tensors), made

        kernel, made = self.recall((key, given, kinds), make)
        outputs = kernel(*tensors)
        return _put_together(made[0], iter(outputs))

    def recall(self, key: Hashable, make: Callable[[], _Thing]) -> _Thing:
        """What ``make`` returned when it was first asked under that ``key``."""
        return self.kernels.recall((self.state, key), make)


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
            written = write_out(graph, tensors)
            lay_out(written, tensors)
            # Not `torch.compile`, which would look at each call whether the graph is still the same.
            kernel = cast("Function", torch._inductor.compile(written, list(tensors), options=_OPTIONS))
            kernel(*tensors)
    except Exception:  # no compiler, or one that does not know an operation
        return graph
    return kernel


def _as_numbers(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors without a graph, one number after the other; flags as numbers, by which a loop chooses faster."""
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    return [
        t.to(dtype).contiguous()
        if t.dtype == torch.bool
        else t.detach().contiguous()
        if t.requires_grad or not t.is_contiguous()
        else t
        for t in tensors
    ]


class _Place:
    """Where a tensor was."""


_PLACE = _Place()


def _take_apart(thing: Any, tensors: list[Tensor]) -> Any:
    """The tree with a place for each tensor, which is hashable; the tensors are appended to ``tensors``."""
    if isinstance(thing, Tensor):
        tensors.append(thing)
        return _PLACE
    if isinstance(thing, _BRANCHES):
        return type(thing), tuple([_take_apart(part, tensors) for part in thing])
    return thing


def _put_together(made: Any, tensors: Iterator[Tensor]) -> Any:
    """The tree again, with the next of ``tensors`` at each place."""
    if made is _PLACE:
        return next(tensors)
    if isinstance(made, tuple):
        kind, parts = made
        parts = [_put_together(part, tensors) for part in parts]
        return kind(parts) if kind in _BRANCHES else kind(*parts)
    return made
