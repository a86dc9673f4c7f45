r"""Problems: what a user writes, and the same thing for a whole batch in flat letters.

A :class:`Problem` states, for ONE item, ::

    y(x) = argmin_y f(y, x)   subject to   h(y, x) = 0

A :class:`BatchedProblem` is that problem bound to a batch: ``y`` is ``(B, m)``, ``x`` is one tuple of tensors
(the inputs, then every parameter and captured tensor that the functions use), and ``f``, ``h`` map them to
``(B,)`` and ``(B, p)``. Solvers and adjoints see only the latter.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchddn._shapes import Layout
from torchddn.capture import live_tensors, rebuild
from torchddn.errors import InvalidInputError

__all__ = ["BatchedProblem", "FixedPoint", "LeastSquares", "Problem", "Root", "bind", "mend"]


class Problem(nn.Module):
    r"""An optimization problem whose solution is a layer's output.

    ::

        y(x) = argmin_y f(y, x)   subject to   h(y, x) = 0

    Subclass it and write ``objective``, optionally ``equality``, and either ``initial`` or ``solve``. Every
    function but ``solve`` is written for one item, without a batch axis, and receives the decision first and
    then the inputs as the node was given them; the node batches them with ``torch.func.vmap``. It is an
    ``nn.Module``: its parameters receive gradients as any layer's do.

    Attributes:
        batched: Set to True on a class whose functions cannot be vmapped (data-dependent branches, opaque
            libraries): they then take and return a leading batch axis themselves.

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
    kind: str = "minimize"

    def objective(self, y: Any, *x: Any) -> Tensor:
        """``f(y, x)``, a scalar. A problem without one asks for any point that satisfies its constraints."""
        raise NotImplementedError

    def equality(self, y: Any, *x: Any) -> Tensor:
        """``h(y, x)``, zero at a feasible point: a scalar or ``(p,)``."""
        raise NotImplementedError

    def inequality(self, y: Any, *x: Any) -> Tensor:
        """``g(y, x)``, not positive at a feasible point. Not solved by this version: nodes refuse it."""
        raise NotImplementedError

    def bounds(self, *x: Any) -> tuple[Any, Any]:
        """``(lower, upper)`` limits of ``y``. Not solved by this version: nodes refuse it."""
        raise NotImplementedError

    def initial(self, *x: Any) -> Any:
        """Where solvers start; gives ``y`` its shape: a tensor, or a tuple, list or dict of tensors."""
        raise NotImplementedError

    def solve(self, *x: Any) -> Any:
        """Your own solver or closed form: BATCHED inputs to a batched ``y``; runs without gradients.

        What it returns is checked against the optimality conditions of the problem, not trusted.
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
            inequality: ``g(y, *x)``; refused by nodes of this version.
            bounds: ``(lower, upper)``; refused by nodes of this version.
            initial: A function of one item's inputs, or a tensor (or tree of tensors) that has one item's shape
                or a leading batch axis.

        Raises:
            InvalidInputError: If a function is not callable, or there is neither objective nor equality.

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
                "`Problem.from_functions` needs `objective`, `equality` or both: nothing was given to solve."
            )
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
        call: Name that opens messages.
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
    call: str

    @property
    def m(self) -> int:
        return self.layout.size

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
        if self.template.function("equality") is None:
            return y.new_zeros(y.shape[0], 0)
        value = self._evaluate("equality", y, x)
        if value.dim() > 2:
            raise InvalidInputError(
                f"`{self.call}`: `equality` must return a scalar or a vector for each item, got shape "
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
        return self._call("initial", None, x)

    def solve(self, x: Sequence[Tensor]) -> Any:
        """The user's own batched solver; a tree of ``(B, ...)``."""
        instance, inputs = self._instance(x), self._inputs(x)
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
        """The same problem for ``size`` items."""
        return dataclasses.replace(self, size=size, batched=self.batched if batched is None else batched)

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

    def _inputs(self, x: Sequence[Tensor]) -> Any:
        return pytree.tree_unflatten(list(x[: self.input_spec.num_leaves]), self.input_spec)

    def _instance(self, x: Sequence[Tensor]) -> Problem:
        if not self.placeholders:
            return self.template
        first = self.input_spec.num_leaves
        tensors = x[first : first + len(self.placeholders)]
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
        value = self._call(name, y, x)
        for leaf in pytree.tree_leaves(value):
            if leaf.dtype != y.dtype:
                raise InvalidInputError(
                    f"`{self.call}`: `{name}` must compute in the dtype of its arguments, {y.dtype}, got "
                    f"{leaf.dtype}. Create constants with `y.new_tensor(...)` or keep them as buffers."
                )
        return value

    def _call(self, name: str, y: Tensor | None, x: Sequence[Tensor]) -> Any:
        """The function ``name`` on the whole batch; ``y`` None for a function of the inputs alone."""

        def item(y: Tensor | None, *x: Tensor) -> Any:
            function = self._instance(x).function(name)
            decision = () if y is None else (self.layout.unflatten(y),)
            value = function(*decision, *self._inputs(x))
            return pytree.tree_map(lambda leaf: self._as_tensor(name, leaf, x[0] if y is None else y), value)

        if self.template.batched:
            return item(y, *x)
        in_dims = tuple(0 if batched else None for batched in self.batched)
        if y is None:
            return torch.func.vmap(functools.partial(item, None), in_dims)(*x)
        return torch.func.vmap(item, (0, *in_dims))(y, *x)


def mend(tensor: Tensor, sound: Tensor) -> Tensor:
    """``tensor``, ``(B, ...)``, with the first sound row (no gradient flows to it) in place of each unsound one."""
    donor = tensor.detach().index_select(0, sound.to(torch.int8).argmax()[None])
    mask = sound.reshape(-1, *[1] * (tensor.dim() - 1))
    return torch.where(mask, tensor, donor.nan_to_num(0.0, 0.0, 0.0))  # finite even if no item is sound


def _plain(shapes: Sequence[torch.Size]) -> str:
    return ", ".join(str(tuple(shape)) for shape in shapes)


def bind(
    call: str, problem: Problem, inputs: tuple[Any, ...], leaves: Sequence[Tensor], size: int
) -> tuple[BatchedProblem, tuple[Tensor, ...]]:
    """Returns the problem bound to a batch (``layout`` and ``p`` still empty) and its ``x``.

    Args:
        call: Name that opens messages.
        problem: What the user wrote. It is copied as far as needed: later changes do not reach the result.
        inputs: The trees of inputs, for their structure.
        leaves: The tensors of ``inputs``, checked, each with the batch axis.
        size: ``B``.
    """
    captured = live_tensors(problem)
    stand_ins = {id(tensor): torch.empty(0) for tensor in captured}
    template = rebuild(problem, lambda tensor: stand_ins.get(id(tensor), tensor))
    _, spec = pytree.tree_flatten(inputs)
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
        call=call,
    )
    return batched, (*leaves, *captured)
