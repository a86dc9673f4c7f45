r"""Problems: what a user writes, and the same thing for a whole batch in flat letters.

A :class:`Problem` states, for ONE item, ::

    y(x) = argmin_y f(y, x)   subject to   h(y, x) = 0,   g(y, x) <= 0,   lower(x) <= y <= upper(x)

A :class:`BatchedProblem` is that problem bound to a batch: ``y`` is ``(B, m)``, ``x`` is one tuple of tensors
(the inputs, then every parameter and captured tensor that the functions use, then the bounds), and ``f``, ``h``,
``g`` map them to ``(B,)``, ``(B, p)`` and ``(B, q)``. Solvers and adjoints see only the latter.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchddn._shapes import Layout
from torchddn.capture import fingerprint, live_tensors, rebuild
from torchddn.errors import InvalidInputError
from torchddn.kernels import BoundKernels, Kernels

__all__ = ["BatchedProblem", "FixedPoint", "LeastSquares", "Problem", "Root", "bind", "check_bounds", "mend"]


class Problem(nn.Module):
    r"""An optimization problem whose solution is a layer's output.

    ::

        y(x) = argmin_y f(y, x)   subject to   h(y, x) = 0,   g(y, x) <= 0,   lower(x) <= y <= upper(x)

    Subclass it and write ``objective``, whichever of ``equality``, ``inequality`` and ``bounds`` there are, and
    either ``initial`` or ``solve``. Every function but ``solve`` is written for one item, without a batch axis, and
    receives the decision first (``bounds`` and ``initial`` do not) and then the inputs as the node was given them;
    the node batches them with ``torch.func.vmap``. It is an ``nn.Module``: its parameters receive gradients as any
    layer's do.

    Attributes:
        batched: Set to True on a class whose functions cannot be vmapped (data-dependent branches, opaque
            libraries): they then take and return a leading batch axis themselves.
        structure: What the Hessian of the Lagrangian looks like, if you know: a declaration such as
            ``torchddn.linear.Diagonal()``, or what else :class:`torchddn.Implicit` takes as ``structure``.

    Example:
        >>> class Mean(Problem):
        ...     def objective(self, y, x):
        ...         return 0.5 * (y - x).square().sum()
        ...     def initial(self, x):
        ...         return x.new_zeros(())
        >>> import torchddn as ddn
        >>> ddn.DeclarativeNode(Mean())(torch.tensor([[1.0, 2.0, 6.0]]))
        tensor([3.])

    References:
        Gould, Hartley, Campbell, Deep Declarative Networks: A New Hope, 2019, equations 11 and 12.
    """

    batched: bool = False
    structure: Any = "auto"
    kind: str = "minimize"

    def objective(self, y: Any, *x: Any) -> Tensor:
        """``f(y, x)``, a scalar. A problem without one asks for any point that satisfies its constraints."""
        raise NotImplementedError

    def equality(self, y: Any, *x: Any) -> Tensor:
        """``h(y, x)``, zero at a feasible point: a scalar or ``(p,)``."""
        raise NotImplementedError

    def inequality(self, y: Any, *x: Any) -> Tensor:
        """``g(y, x)``, not positive at a feasible point: a scalar or ``(q,)``."""
        raise NotImplementedError

    def bounds(self, *x: Any) -> tuple[Any, Any]:
        """``(lower, upper)`` of ``y``: each None, a number, a tensor that broadcasts to ``y``, or a tree of them.

        Cheaper than the same limits as rows of ``inequality``: an active bound removes a variable. Infinite entries
        are no limit; equal ones fix a variable. Gradients reach whatever the limits are made of.
        """
        raise NotImplementedError

    def initial(self, *x: Any) -> Any:
        """Where solvers start; gives ``y`` its shape: a tensor, or a tuple, list or dict of tensors."""
        raise NotImplementedError

    def solve(self, *x: Any) -> Any:
        """Your own solver or closed form: BATCHED inputs to a batched ``y``; runs without gradients.

        It may return a :class:`torchddn.PrimalDual`, with multipliers. What it returns is polished and checked
        against the optimality conditions of the problem, not trusted.
        """
        raise NotImplementedError

    @staticmethod
    def from_functions(
        objective: Callable[..., Tensor] | None = None,
        equality: Callable[..., Tensor] | None = None,
        inequality: Callable[..., Tensor] | None = None,
        bounds: Any = None,
        initial: Any = None,
    ) -> "Problem":
        """Returns the problem made of the given item-level functions.

        Args:
            objective: ``f(y, *x)``, a scalar; None for a feasibility problem.
            equality: ``h(y, *x)``, a scalar or ``(p,)``.
            inequality: ``g(y, *x)``, a scalar or ``(q,)``, not positive at a feasible point.
            bounds: ``(lower, upper)``, or a function of one item's inputs that returns them; see :meth:`bounds`.
            initial: A function of one item's inputs, or a tensor (or tree of tensors) that has one item's shape
                or a leading batch axis.

        Raises:
            InvalidInputError: If a function is not callable, ``bounds`` is not a pair, or there is neither an
                objective nor a constraint.

        Example:
            >>> problem = Problem.from_functions(lambda y, x: (y - x).square().sum(), initial=lambda x: x)
        """
        functions = {"objective": objective, "equality": equality, "inequality": inequality}
        for name, function in functions.items():
            if function is not None and not callable(function):
                raise InvalidInputError(
                    f"`Problem.from_functions({name}=...)` must be a function of (y, *x), got {function!r}."
                )
        if objective is None and equality is None and inequality is None:
            raise InvalidInputError(
                "`Problem.from_functions` needs `objective`, `equality` or `inequality`: nothing was given to solve."
            )
        check_bounds("Problem.from_functions", bounds)
        problem = Problem()
        problem._assign({**functions, "bounds": bounds, "initial": initial})
        return problem

    def _assign(self, functions: dict[str, Any]) -> None:
        # A start is where to begin and not an input: no gradient reaches it.
        initial = pytree.tree_map_only(Tensor, Tensor.detach, functions.get("initial"))
        given = {**functions, "initial": initial}
        self._functions = {name: function for name, function in given.items() if function is not None}
        owned = [function for function in self._functions.values() if isinstance(function, nn.Module)]
        self._owned = nn.ModuleList(owned)  # their parameters are the problem's

    def function(self, name: str) -> Any:
        """What the problem declares under ``name``, or None."""
        given = self.__dict__.get("_functions", {})
        if name in given:
            return given[name]
        if getattr(type(self), name, None) is getattr(Problem, name, None):
            return None
        return getattr(self, name)


class LeastSquares(Problem):
    r"""``y(x) = argmin_y 1/2 |r(y, x)|^2``: write ``residual(y, *x)``, which returns ``(r,)``, and ``initial``.

    Solvers that know the residual (``GaussNewton``, ``LevenbergMarquardt``) use it; the gradient is the exact
    one of the objective, curvature of ``r`` included.
    """

    def residual(self, y: Any, *x: Any) -> Tensor:
        """``r(y, x)``, a vector."""
        raise NotImplementedError

    def objective(self, y: Any, *x: Any) -> Tensor:
        axes = 1 if self.batched else 0
        return 0.5 * self.residual(y, *x).square().flatten(axes).sum(-1)


class Root(Problem):
    """``y(x)`` with ``F(y, x) = 0``, as many equations as unknowns."""

    kind = "root"

    def __init__(self, F: Callable[..., Any], initial: Any) -> None:
        super().__init__()
        self._assign({"residual": F, "initial": initial})


class FixedPoint(Problem):
    """``y(x)`` with ``y = T(y, x)``; its residual is ``T(y, x) - y``."""

    kind = "fixed_point"

    def __init__(self, T: Callable[..., Any], initial: Any) -> None:
        super().__init__()
        self._assign({"residual": T, "initial": initial})


@dataclasses.dataclass(frozen=True)
class BatchedProblem:
    """A problem bound to a batch: functions of flat ``y``, ``(B, m)``, and of ``x``, one tuple of tensors.

    Attributes:
        template: Private copy of the problem in which placeholders stand for its live tensors.
        placeholders: These stand-ins, in the order in which ``x`` carries the tensors, after the inputs. What
            follows in ``x`` (a node appends the start) is not the functions' business.
        kind: ``"minimize"``, ``"root"`` or ``"fixed_point"``.
        has_residual: Whether :meth:`residual` is there.
        layout: How an item's ``y`` lies in ``m`` numbers.
        input_spec: Tree of the inputs.
        batched: For each tensor of ``x`` whether it has the batch axis or is shared by the items.
        size: ``B``.
        p: Equality rows.
        q: Inequality rows.
        has_bounds: Whether the last two tensors of ``x`` before the start are the bounds.
        call: Name that opens messages.
        kernels: Those of a compiled node.
        structure: What is said of the structure of its adjoint, which a solver may look up; None if nobody may.
    """

    template: Problem
    placeholders: tuple[Tensor, ...]
    kind: str
    has_residual: bool
    layout: Layout
    input_spec: pytree.TreeSpec
    batched: tuple[bool, ...]
    size: int
    p: int
    q: int
    has_bounds: bool
    call: str
    kernels: BoundKernels | None = None
    structure: Any = None

    @property
    def m(self) -> int:
        return self.layout.size

    @property
    def is_inequality_constrained(self) -> bool:
        """Whether there are inequalities or bounds, so that there is an active set."""
        return self.q > 0 or self.has_bounds

    def objective(self, y: Tensor, x: Sequence[Tensor]) -> Tensor:
        """``f``, ``(B,)``; zeros for a feasibility problem."""
        if self.template.function("objective") is None:
            return y.new_zeros(y.shape[0])
        value = self._evaluate("objective", y, x)
        if value.shape != (self.size,):
            raise InvalidInputError(
                f"`{self.call}`: `objective` must return a scalar for each item, got shape "
                f"{tuple(value.shape[1:])}. Reduce it with `.sum()`."
            )
        return value

    def equality(self, y: Tensor, x: Sequence[Tensor]) -> Tensor:
        """``h``, ``(B, p)``."""
        return self._rows("equality", y, x)

    def inequality(self, y: Tensor, x: Sequence[Tensor]) -> Tensor:
        """``g``, ``(B, q)``."""
        return self._rows("inequality", y, x)

    def constraints(self, y: Tensor, x: Sequence[Tensor]) -> Tensor:
        """``c = (h, g)``, ``(B, p + q)``: the rows that have multipliers, in the order of ``dual``."""
        if not self.q:
            return self.equality(y, x)
        if not self.p:
            return self.inequality(y, x)
        return torch.cat([self.equality(y, x), self.inequality(y, x)], dim=1)

    def values(self, y: Tensor, x: Sequence[Tensor]) -> Tensor:
        """``(f, h, g)``, ``(B, 1 + p + q)``: all that a minimization knows of a point, cheaper than one by one."""
        if self.template.batched:
            return torch.cat([self.objective(y, x)[:, None], self.constraints(y, x)], dim=1)

        def item(y: Tensor, *x: Tensor) -> Tensor:
            instance, decision, inputs = self.instance(x), self.layout.unflatten(y), self._inputs(x)
            functions = [instance.function(name) for name in ("objective", "equality", "inequality")]
            parts = [self._as_tensor("", f(decision, *inputs), y).reshape(-1) for f in functions if f is not None]
            return torch.cat(parts if functions[0] is not None else [y.new_zeros(1), *parts])

        return torch.func.vmap(item, (0, *(0 if batched else None for batched in self.batched)))(y, *x)

    def bounds(self, x: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """``lower`` and ``upper``, ``(B, m)``; infinite where there is none."""
        if self.has_bounds:
            first = self._num_arguments
            return x[first], x[first + 1]
        none = x[-1].new_full((self.size, self.m), torch.inf)
        return -none, none

    def _rows(self, name: str, y: Tensor, x: Sequence[Tensor]) -> Tensor:
        if self.template.function(name) is None:
            return y.new_zeros(y.shape[0], 0)
        value = self._evaluate(name, y, x)
        if value.dim() > 2:
            raise InvalidInputError(
                f"`{self.call}`: `{name}` must return a scalar or a vector for each item, got shape "
                f"{tuple(value.shape[1:])}. Flatten it with `.flatten()`."
            )
        return value[:, None] if value.dim() == 1 else value

    def residual(self, y: Tensor, x: Sequence[Tensor]) -> Tensor:
        """``(B, r)``: ``F(y, x)``, ``T(y, x) - y``, or the vector whose squares an objective sums."""
        tree = self._evaluate_tree("residual", y, x)
        leaves = pytree.tree_leaves(tree)
        if self.kind != "minimize":
            shapes = tuple(leaf.shape[1:] for leaf in leaves)
            if shapes != self.layout.shapes:
                function = "F" if self.kind == "root" else "T"
                raise InvalidInputError(
                    f"`{self.call}`: `{function}(y, x)` must be shaped as `y`, {_plain(self.layout.shapes)}, "
                    f"got {_plain(shapes)}."
                )
        value = torch.cat([leaf.reshape(self.size, -1) for leaf in leaves], dim=1)
        return value - y if self.kind == "fixed_point" else value

    def initial(self, x: Sequence[Tensor]) -> Any:
        """The start as the problem states it, a tree of ``(B, ...)``."""
        return self.call_with_inputs("initial", x, lambda value: self._as_tensors("initial", value, x[0]))

    def call_with_inputs(self, name: str, x: Sequence[Tensor], read: Callable[[Any], Any]) -> Any:
        """What ``read`` makes of the function ``name``, which takes no ``y``, for the whole batch."""
        return self._call(name, None, x, read)

    def solve(self, x: Sequence[Tensor]) -> Any:
        """The user's own batched solver; a tree of ``(B, ...)``."""
        instance, inputs = self.instance(x), self._inputs(x)
        return instance.function("solve")(*inputs)

    def mend(self, x: Sequence[Tensor], sound: Tensor) -> tuple[Tensor, ...]:
        """``x`` in which the data of a sound item replace those of each that is not.

        A product of zero and NaN is NaN: the only way to keep an item out of what its batch shares is to keep
        its numbers out of the computation.
        """
        return tuple(mend(t, sound) if batched else t for t, batched in zip(x, self.batched, strict=True))

    def work(self, x: Sequence[Tensor]) -> int:
        """How many numbers one evaluation touches."""
        return sum(tensor.numel() for tensor in x)

    def select(self, x: Sequence[Tensor], index: Tensor) -> tuple["BatchedProblem", tuple[Tensor, ...]]:
        """The sub-batch of the items in ``index``."""
        return self.rebatched(len(index)), tuple(
            tensor[index] if batched else tensor for tensor, batched in zip(x, self.batched, strict=True)
        )

    def repeat(self, x: Sequence[Tensor], times: int) -> tuple["BatchedProblem", tuple[Tensor, ...]]:
        """Every item ``times`` in a row."""
        return self.rebatched(self.size * times), tuple(
            tensor.repeat_interleave(times, dim=0) if batched else tensor
            for tensor, batched in zip(x, self.batched, strict=True)
        )

    def rebatched(self, size: int, batched: tuple[bool, ...] | None = None) -> "BatchedProblem":
        """The same problem for ``size`` items; for another number of them there are no kernels."""
        kernels = self.kernels if size == self.size else None
        batched = self.batched if batched is None else batched
        return dataclasses.replace(self, size=size, batched=batched, kernels=kernels)

    def without_kernels(self) -> "BatchedProblem":
        """The same problem, each of whose functions runs as it is written."""
        return dataclasses.replace(self, kernels=None)

    def _as_tensors(self, name: str, value: Any, like: Tensor) -> Any:
        return pytree.tree_map(lambda leaf: self._as_tensor(name, leaf, like), value)

    def _as_tensor(self, name: str, value: Any, like: Tensor) -> Tensor:
        """A value of the function ``name``: a number is as good as a tensor."""
        if isinstance(value, Tensor):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return like.new_full((), value)
        raise InvalidInputError(
            f"`{self.call}`: `{name}` must return a tensor, got {type(value).__name__}. "
            f"Build it with operations of torch from what the function is given."
        )

    @property
    def _num_arguments(self) -> int:
        """How many tensors of ``x`` the functions of the problem use."""
        return self.input_spec.num_leaves + len(self.placeholders)

    def _inputs(self, x: Sequence[Tensor]) -> Any:
        return pytree.tree_unflatten(list(x[: self.input_spec.num_leaves]), self.input_spec)

    def instance(self, x: Sequence[Tensor]) -> Problem:
        """The problem with the tensors of ``x`` in place of the placeholders."""
        if not self.placeholders:
            return self.template
        tensors = x[self.input_spec.num_leaves : self._num_arguments]
        actual = {id(stand_in): tensor for stand_in, tensor in zip(self.placeholders, tensors, strict=True)}
        return rebuild(self.template, lambda tensor: actual.get(id(tensor), tensor))

    def _evaluate(self, name: str, y: Tensor, x: Sequence[Tensor]) -> Tensor:
        value = self._evaluate_tree(name, y, x)
        if not isinstance(value, Tensor):
            raise InvalidInputError(
                f"`{self.call}`: `{name}` must return a tensor, got {type(value).__name__}. "
                f"Stack or concatenate its parts."
            )
        return value

    def _evaluate_tree(self, name: str, y: Tensor, x: Sequence[Tensor]) -> Any:
        value = self._call(name, y, x, lambda value: self._as_tensors(name, value, y))
        for leaf in pytree.tree_leaves(value):
            if leaf.dtype != y.dtype:
                raise InvalidInputError(
                    f"`{self.call}`: `{name}` must compute in the dtype of its arguments, {y.dtype}, got "
                    f"{leaf.dtype}. Create constants with `y.new_tensor(...)` or keep them as buffers."
                )
        return value

    def _call(self, name: str, y: Tensor | None, x: Sequence[Tensor], read: Callable[[Any], Any]) -> Any:
        """What ``read`` makes of the function ``name`` on each item; ``y`` None for a function of the inputs alone."""

        def item(y: Tensor | None, *x: Tensor) -> Any:
            function = self.instance(x).function(name)
            decision = () if y is None else (self.layout.unflatten(y),)
            return read(function(*decision, *self._inputs(x)))

        if self.template.batched:
            return item(y, *x)
        in_dims = tuple(0 if batched else None for batched in self.batched)
        if y is None:
            return torch.func.vmap(functools.partial(item, None), in_dims)(*x)
        return torch.func.vmap(item, (0, *in_dims))(y, *x)


def check_bounds(call: str, bounds: Any) -> None:
    """Raises unless ``bounds`` is None, a function or a pair."""
    if bounds is None or callable(bounds) or (isinstance(bounds, (tuple, list)) and len(bounds) == 2):
        return
    raise InvalidInputError(
        f"`{call}(bounds=...)` must be a pair (lower, upper), or a function of one item's inputs that returns one, got "
        f"{bounds!r}."
    )


def mend(tensor: Tensor, sound: Tensor) -> Tensor:
    """``tensor``, ``(B, ...)``, with the first sound row (no gradient flows to it) in place of each unsound one."""
    donor = tensor.detach().index_select(0, sound.to(torch.int8).argmax()[None])
    mask = sound.reshape(-1, *[1] * (tensor.dim() - 1))
    # A number even if no item is sound; only bounds are infinite in a sound item.
    return torch.where(mask, tensor, donor.nan_to_num(0.0, torch.inf, -torch.inf))


def _plain(shapes: Sequence[torch.Size]) -> str:
    return ", ".join(str(tuple(shape)) for shape in shapes)


def bind(
    call: str,
    problem: Problem,
    spec: pytree.TreeSpec,
    leaves: Sequence[Tensor],
    size: int,
    kernels: Kernels | None = None,
) -> tuple[BatchedProblem, tuple[Tensor, ...]]:
    """Returns the problem bound to a batch (``layout`` and ``p`` still empty) and its ``x``.

    Args:
        call: Name that opens messages.
        problem: What the user wrote. It is copied as far as needed: later changes do not reach the result.
        spec: The tree of the inputs.
        leaves: Its tensors, checked, each with the batch axis.
        size: ``B``.
        kernels: Those of a compiled node.
    """
    bound = None
    if kernels is None:
        captured = live_tensors(problem)
    else:
        state, kept, captured = fingerprint(problem)
        bound = kernels.bind((state, spec, torch.get_default_dtype()), kept)
    stand_ins = {id(tensor): torch.empty(0) for tensor in captured}
    template = rebuild(problem, lambda tensor: stand_ins.get(id(tensor), tensor)) if captured else problem
    batched = BatchedProblem(
        template=template,
        placeholders=tuple(stand_ins.values()),
        kind=problem.kind,
        has_residual=problem.kind != "minimize" or isinstance(problem, LeastSquares),
        layout=Layout(spec, (), 0),
        input_spec=spec,
        batched=(True,) * len(leaves) + (False,) * len(captured),
        size=size,
        p=0,
        q=0,
        has_bounds=False,
        call=call,
        kernels=bound,
    )
    return batched, (*leaves, *captured)
