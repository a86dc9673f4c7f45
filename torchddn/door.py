"""The door: what a user passes becomes a checked batched problem with its start, or an error that helps.

Everything here looks at shapes, types and graphs; the numbers themselves are read once, by the forward pass.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchddn._shapes import Layout, check_floating, flatten_tree, layout_of, tree_names
from torchddn.bounds import evaluate_bounds
from torchddn.derivatives import inside_transform, private_graph
from torchddn.errors import DDNError, InvalidInputError
from torchddn.fusion import fused, is_fused
from torchddn.kernels import Kernels
from torchddn.problem import BatchedProblem, Problem, bind
from torchddn.status import PrimalDual

__all__ = ["START_WORDS", "Prepared", "flat_start", "prepare"]

START_WORDS = ("auto", "item", "batch")

# What torch says where a function reads values: a branch or `.item()` under vmap, `.numpy()`.
_CANNOT_BATCH = ("vmap", "data-dependent", "data pointer")


class Prepared(NamedTuple):
    """A checked call.

    Attributes:
        problem: The batched problem.
        x: Its inputs, which end with the start, ``(B, m)``.
        dtype: That of the answer.
        own_answer: What the problem's own ``solve`` returned, if it had to be asked for the shape of ``y``.
    """

    problem: BatchedProblem
    x: tuple[Tensor, ...]
    dtype: torch.dtype
    own_answer: Any


def prepare(
    call: str, problem: Problem, inputs: tuple[Any, ...], start: str, kernels: Kernels | None = None
) -> Prepared:
    """Returns the call made ready to solve.

    Args:
        call: Name that opens messages.
        problem: As the user wrote it.
        inputs: As the user passed them, trees of tensors with one leading batch axis.
        start: How to read a start that was given as tensors, one of ``START_WORDS``.
        kernels: Those of a compiled node.

    Raises:
        InvalidInputError: If anything about them does not fit.
    """
    leaves, spec = flatten_tree(call, "x", inputs)
    size = _batch_size(call, inputs, leaves, problem)
    batched, x = bind(call, problem, spec, leaves, size, kernels)
    num_parameters = len(batched.placeholders)
    check_floating(call, x, lambda: tree_names("x", inputs) + ["a parameter of the problem"] * num_parameters)
    dtype = x[0].dtype if x else torch.get_default_dtype()
    if dtype.itemsize < 4:
        x = tuple(tensor.float() for tensor in x)
    x = tuple(tensor.clone() if tensor.is_inference() else tensor for tensor in x)
    if not size:
        # Shapes are all that an empty batch needs, and one made-up item shows them.
        sample = tuple(t.new_ones(1, *t.shape[1:]) if b else t for t, b in zip(x, batched.batched, strict=True))
        batched, *_ = _complete(batched.rebatched(1), sample, problem, start)
        return Prepared(batched.rebatched(0), x, dtype, None)
    batched, x, own_answer = _complete(batched, x, problem, start)
    return Prepared(batched, x, dtype, own_answer)


def _complete(
    batched: BatchedProblem, x: tuple[Tensor, ...], problem: Problem, start: str
) -> tuple[BatchedProblem, tuple[Tensor, ...], Any]:
    """The problem with its layout and the number of its rows; ``x`` with the bounds, if any, and the start.

    And, third, the answer of the problem's own ``solve``, if that had to be asked for a start.
    """
    frozen = tuple(tensor.detach() for tensor in x)
    with torch.no_grad(), _explained(batched.call):
        own_answer = _own_answer(batched, frozen, problem) if problem.function("initial") is None else None
        layout, y_0 = _start(batched, frozen, problem, start, own_answer)
        if not layout.size:
            raise InvalidInputError(f"`{batched.call}`: the decision `y` has no entries. Start it with at least one.")
        p, q = 0, 0
        if batched.kind == "minimize":
            p, q = _once("sizes", batched, (*frozen, y_0), lambda: _num_rows(batched, layout, y_0, frozen))
    bounds = ()
    if problem.function("bounds") is not None:
        with _explained(batched.call):
            made = evaluate_bounds(dataclasses.replace(batched, layout=layout), x, y_0)
        bounds = tuple(bound.contiguous() for bound in made)  # one number for all would be spread out again and again
    flags = (*batched.batched, *(True for _ in bounds), True)
    batched = dataclasses.replace(batched, layout=layout, p=p, q=q, has_bounds=bool(bounds), batched=flags)
    everything = (*frozen, *(bound.detach() for bound in bounds), y_0)
    with _explained(batched.call):
        _once("checked", batched, everything, lambda: _check_functions(batched, y_0, everything))
    return batched, (*x, *bounds, y_0), own_answer


def _once(what: str, batched: BatchedProblem, tensors: Sequence[Tensor], find: Callable[[], Any]) -> Any:
    """What ``find`` returns; for a compiled node what it returned for functions and shapes of the same kind."""
    if batched.kernels is None or inside_transform():
        return find()
    shapes = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
    return batched.kernels.recall((what, torch.is_grad_enabled(), shapes), find)


def _num_rows(batched: BatchedProblem, layout: Layout, y: Tensor, x: Sequence[Tensor]) -> tuple[int, int]:
    """How many equality and inequality rows there are."""
    batched = dataclasses.replace(batched, layout=layout)
    return batched.equality(y, x).shape[1], batched.inequality(y, x).shape[1]


def _own_answer(batched: BatchedProblem, x: tuple[Tensor, ...], problem: Problem) -> Any:
    """What the problem's own ``solve`` returns, where nothing else says which shape ``y`` has."""
    if problem.function("solve") is None:
        raise InvalidInputError(
            f"`{batched.call}`: the problem needs `initial(*x)`, where solvers start and which gives `y` its "
            f"shape, or its own `solve(*x)`."
        )
    if inside_transform():
        raise InvalidInputError(
            f"`{batched.call}`: inside a `torch.func` transform a problem with its own `solve` needs `initial` "
            f"as well, since the shape of `y` must be known before solving."
        )
    return batched.solve(x)


def _start(
    batched: BatchedProblem, x: tuple[Tensor, ...], problem: Problem, start: str, own_answer: Any
) -> tuple[Layout, Tensor]:
    declared = problem.function("initial")
    if declared is None:
        return flat_start(batched, own_answer.y if isinstance(own_answer, PrimalDual) else own_answer)
    if callable(declared):
        if not is_fused(batched):
            return _made_start(batched, x)
        return _once("layout", batched, x, lambda: _made_start(batched, x)[0]), _flat_made_start(batched, x)
    return _given_start(batched, x, declared, start)


def _made_start(batched: BatchedProblem, x: Sequence[Tensor]) -> tuple[Layout, Tensor]:
    """Layout and flat form of the start that the problem makes of its inputs."""
    made = batched.initial(x)
    _start_leaves(batched.call, made)
    like = x[0].dtype  # `torch.zeros(3)` is as good a start as `x.new_zeros(3)`
    return flat_start(batched, pytree.tree_map(lambda leaf: leaf.to(like), made))


@fused
def _flat_made_start(batched: BatchedProblem, x: Sequence[Tensor]) -> Tensor:
    return _made_start(batched, x)[1]


def flat_start(batched: BatchedProblem, tree: Any) -> tuple[Layout, Tensor]:
    """Layout and flat form of a start with batch axis that a function of the problem made."""
    leaves = _start_leaves(batched.call, tree)
    for leaf in leaves:
        if leaf.dim() < 1 or leaf.shape[0] != batched.size:
            raise InvalidInputError(
                f"`{batched.call}`: what `solve` returns must have the batch axis, {batched.size} items first, got "
                f"shape {tuple(leaf.shape)}."
            )
    layout = Layout(
        pytree.tree_structure(tree), tuple(leaf.shape[1:] for leaf in leaves), sum(leaf[:1].numel() for leaf in leaves)
    )
    flat = layout.flatten(tree)
    return layout, flat


def _given_start(batched: BatchedProblem, x: tuple[Tensor, ...], tree: Any, start: str) -> tuple[Layout, Tensor]:
    """Layout and flat form of a start that was given as tensors, of one item or of the batch."""
    leaves = _start_leaves(batched.call, tree)
    if x:
        check_floating(batched.call, [x[0], *leaves], lambda: ["x", *tree_names("y0", tree)])
    leaves = [leaf.detach() for leaf in leaves]
    leaves = [leaf.float() if leaf.dtype.itemsize < 4 else leaf for leaf in leaves]
    tree = pytree.tree_unflatten(leaves, pytree.tree_structure(tree))
    may_be_batch = all(leaf.dim() > 0 and leaf.shape[0] == batched.size for leaf in leaves)
    readings = {
        "item": ["item"],
        "batch": ["batch"],
        "auto": _readings(leaves, batched) if may_be_batch else ["item"],
    }[start]
    if "batch" in readings and not may_be_batch:
        raise InvalidInputError(
            f"`{batched.call}`: a batch of starts needs {batched.size} items first, got shapes "
            f"{[tuple(leaf.shape) for leaf in leaves]}. Pass one start per item, or `start='item'`."
        )
    for reading in readings[:-1]:
        layout, flat = _read_start(batched, tree, reading)
        if _fits(dataclasses.replace(batched, layout=layout), flat, x):
            return layout, flat
    return _read_start(batched, tree, readings[-1])


def _readings(leaves: Sequence[Tensor], batched: BatchedProblem) -> list[str]:
    if not batched.input_spec.num_leaves:
        return ["batch"]
    vectors = all(leaf.dim() == 1 for leaf in leaves)
    preferred, other = ("item", "batch") if vectors else ("batch", "item")
    return [preferred, other, preferred]  # if neither fits, the preferred one says what is wrong


def _read_start(batched: BatchedProblem, tree: Any, reading: str) -> tuple[Layout, Tensor]:
    if reading == "batch":
        return flat_start(batched, tree)
    layout = layout_of(tree)
    flat = layout.flatten(pytree.tree_map(lambda leaf: leaf[None], tree))
    return layout, flat.expand(batched.size, -1).contiguous()


def _fits(batched: BatchedProblem, y: Tensor, x: Sequence[Tensor]) -> bool:
    """Whether the functions of the problem accept ``y``."""
    try:
        _evaluate_all(batched, y, x)
    except (RuntimeError, ValueError, IndexError):
        return False
    return True


def _evaluate_all(batched: BatchedProblem, y: Tensor, x: Sequence[Tensor]) -> list[Tensor]:
    if batched.kind != "minimize":
        return [batched.residual(y, x)]
    return [batched.objective(y, x), batched.equality(y, x), batched.inequality(y, x)]


def _check_functions(batched: BatchedProblem, y: Tensor, x: tuple[Tensor, ...]) -> None:
    """Raises if the functions of the problem cannot be batched, leave ``y`` out, or hide a differentiable tensor."""
    if inside_transform():
        _evaluate_all(batched, y, x)
        return
    with torch.enable_grad(), private_graph():
        y = y.detach().requires_grad_()
        values = _evaluate_all(batched, y, x)
    leaves = [leaf for value in values for leaf in _leaves(value)]
    if batched.kind == "minimize" and not any(leaf is y for leaf in leaves):
        raise InvalidInputError(
            f"`{batched.call}`: no function of the problem depends on `y` in a way that torch can differentiate. "
            f"Look for `.detach()`, `.item()`, NumPy, or a function that forgets its first argument."
        )
    if torch.is_grad_enabled() and any(leaf is not y for leaf in leaves):
        raise InvalidInputError(
            f"`{batched.call}`: a function of the problem uses a tensor that requires grad and is hidden in an object "
            f"where it cannot be found, so it would get no gradient. Pass it as an input, make it a parameter of the "
            f"Problem, or `.detach()` it."
        )


def _leaves(value: Tensor) -> list[Tensor]:
    """The leaf tensors in the graph of ``value``."""
    found, seen, ahead = [], set(), [value.grad_fn]
    while ahead:
        step = ahead.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        variable = getattr(step, "variable", None)
        if variable is not None:
            found.append(variable)
        ahead.extend(parent for parent, _ in step.next_functions)
    return found


@contextlib.contextmanager
def _explained(call: str) -> Iterator[None]:
    """Turns what torch says of a function that cannot be batched into what to do about it."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, DDNError) or not any(word in str(error) for word in _CANNOT_BATCH):
            raise
        raise InvalidInputError(
            f"`{call}`: `torch.func.vmap` cannot batch a function of the problem ({error}). Use operations of torch "
            f"throughout and `torch.where` for branches on values, or write the functions for a whole batch and set "
            f"`batched = True` on the Problem."
        ) from error


def _start_leaves(call: str, tree: Any) -> list[Tensor]:
    leaves, _ = flatten_tree(call, "initial", tree)
    if not leaves:
        raise InvalidInputError(f"`{call}`: `initial` must be a tensor or a tree of tensors, got {tree!r}.")
    check_floating(call, leaves, lambda: tree_names("initial", tree))
    return leaves


def _batch_size(call: str, inputs: tuple[Any, ...], leaves: Sequence[Tensor], problem: Problem) -> int:
    sizes = {leaf.shape[0] if leaf.dim() else None for leaf in leaves}
    if len(sizes) == 1 and None not in sizes:
        return leaves[0].shape[0]
    names = tree_names("x", inputs)
    for leaf, name in zip(leaves, names, strict=True):
        if leaf.dim() == 0:
            raise InvalidInputError(
                f"`{call}`: `{name}` has no batch axis. Give it one with `.unsqueeze(0)`, or `.expand(B)` it if the "
                f"items share it."
            )
        if leaf.shape[0] != leaves[0].shape[0]:
            raise InvalidInputError(
                f"`{call}`: all inputs must have the same batch size, got {leaves[0].shape[0]} for `{names[0]}` and "
                f"{leaf.shape[0]} for `{name}`. Inputs that the items share belong in the problem, or `.expand` them."
            )
    start = problem.function("initial")
    given = [] if start is None or callable(start) else pytree.tree_leaves(start)
    if not given or not all(isinstance(leaf, Tensor) and leaf.dim() for leaf in given):
        raise InvalidInputError(
            f"`{call}`: without inputs the batch size comes from the start: give it a leading batch axis."
        )
    return given[0].shape[0]
