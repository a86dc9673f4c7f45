"""What is known of the structure of problems that have been seen, or was said of them."""

import dataclasses
import functools
import threading
from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor, nn

from torchddn.linear import Declaration, Dense, RowDeclaration
from torchddn.problem import BatchedProblem, Problem
from torchddn.structure.constant import Constant

__all__ = ["Belief", "forget", "known", "recall"]

_MOST = 256


@dataclasses.dataclass(eq=False)
class Belief:
    """What is known of one problem; it learns.

    Attributes:
        H: The structure of H, or of all of K (``whole``); None where only products are to be used.
        A: The structure of the rows; None where H is, and without rows.
        whole: Whether ``H`` describes K, rows and all.
        redundant: Whether rows have been linearly dependent.
        declared: Whether a person said so.
        is_examined: Whether what was said has been compared with a true product.
        eliminates: Whether H can be eliminated.
        num_resigned: Forward solves in a row to which it was of no use.
        notes: What a person should know of it.
        probes: The vectors that read H, or K as a whole, and the rows, ``(k, m + r)`` each, made when first needed.
        constant_H: H, if it never changes.
        constant_A: The rows, if they never change.
    """

    H: Declaration | None
    A: RowDeclaration | None = None
    whole: bool = False
    redundant: bool = False
    declared: bool = False
    is_examined: bool = False
    eliminates: bool = True
    num_resigned: int = 0
    notes: tuple[str, ...] = ()
    probes: tuple[Tensor, ...] = ()
    constant_H: Constant = dataclasses.field(default_factory=Constant)
    constant_A: Constant = dataclasses.field(default_factory=Constant)

    @property
    def is_dense(self) -> bool:
        """Whether there is no structure at all."""
        return isinstance(self.H, Dense) and (self.A is None or isinstance(self.A, Dense))

    @property
    def name(self) -> str:
        """The belief in words; empty for no structure."""
        if self.H is None:
            return "matrix-free"
        if self.whole:
            return f"{self.H.name} with rows"
        if self.is_dense:
            return ""
        return self.H.name if self.A is None else f"{self.H.name}, rows {self.A.name}"

    @property
    def state(self) -> Hashable:
        """Changes whenever the belief does, but for what it learns of constants."""
        known = tuple(constant.is_known for constant in self.constants)
        return self, id(self.H), id(self.A), self.whole, self.redundant, self.eliminates, known

    @property
    def constants(self) -> tuple[Constant, Constant]:
        """What may never change, in the order of the probes."""
        return self.constant_H, self.constant_A

    def abandon(self, formed: bool, note: str) -> None:
        """Believes in nothing from now on, and says why; ``formed`` says whether K is to be formed."""
        self.H, self.A = (Dense(), Dense()) if formed else (None, None)
        self.whole, self.probes, self.notes = False, (), (note,)


_beliefs: dict[Any, Belief] = {}
_lock = threading.Lock()


def known(problem: BatchedProblem, like: Tensor, symmetric: bool, declared: Any) -> Belief | None:
    """What is known of the problem from before; ``like`` is shaped as the right-hand side, ``(B, s)``."""
    return _beliefs.get(_key(problem, like, symmetric, declared))


def recall(
    problem: BatchedProblem, like: Tensor, symmetric: bool, declared: Any, look: Callable[[], Belief | None]
) -> Belief | None:
    """As :func:`known`, or what ``look`` finds now, which is kept unless it is None."""
    key = _key(problem, like, symmetric, declared)
    belief = _beliefs.get(key)
    if belief is not None:
        return belief
    belief = look()
    if belief is not None:
        with _lock:
            while len(_beliefs) >= _MOST:
                _beliefs.pop(next(iter(_beliefs)))
            _beliefs[key] = belief
    return belief


def forget() -> None:
    """Empties the memory."""
    with _lock:
        _beliefs.clear()


def _key(problem: BatchedProblem, like: Tensor, symmetric: bool, declared: Any) -> Any:
    sizes = (problem.layout.shapes, like.shape[1], like.dtype, like.device, symmetric)
    if problem.kernels is None:
        return (*_code(problem.template), sizes, declared)
    # The kernels are those of one state of the problem's functions, which therefore are not read again.
    return (*problem.kernels.recall("code", lambda: _code(problem.template)), sizes, declared)


def _code(template: Problem) -> tuple[Any, ...]:
    """What makes a problem the same in another call."""
    code = tuple(_identity(template.function(name)) for name in ("objective", "equality", "inequality", "residual"))
    # An option of a problem, such as which terms its objective has, may change what its derivatives look like.
    options = tuple((name, value) for name, value in vars(template).items() if isinstance(value, (bool, int, str)))
    return type(template), options, code


def _identity(function: Any, depth: int = 2) -> Any:
    """What makes a function the same in another call: its code and that of the functions it closes over."""
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, nn.Module):
        return type(function)
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is None:
        return type(function)
    if not depth or not function.__closure__:
        return code
    inner = [_contents(cell) for cell in function.__closure__]
    return code, *(_identity(each, depth - 1) for each in inner if callable(each))


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that is not assigned yet
        return None
