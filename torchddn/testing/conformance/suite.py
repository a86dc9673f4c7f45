"""The checks that this project runs on every node, for the nodes of its users.

A check compares the node with itself or with its problem: with finite differences, with its other mode of
differentiation, with the same items in another batch, in another precision, on another device. Each ends in one
sentence with numbers, so that a failure says what is wrong and where to look.
"""

import warnings
from collections.abc import Callable, Collection
from typing import Any

from torchddn._shapes import flatten_tree
from torchddn.errors import ConvergenceWarning, DegenerateGradientWarning, InvalidInputError
from torchddn.testing.conformance import checks
from torchddn.testing.conformance.finite_differences import check_gradient, check_second_derivative
from torchddn.testing.conformance.report import (
    Check,
    Conformance,
    ConformanceError,
    FailedError,
    SkippedError,
    first_line,
)
from torchddn.testing.conformance.subject import Subject

__all__ = ["check_node"]

# Name, check, and the checks without which it means nothing.
_ANSWER = ("call",)
_SAME = ("call", "determinism")
_CHECKS: tuple[tuple[str, Callable[[Subject], str], tuple[str, ...]], ...] = (
    ("call", checks.check_call, ()),
    ("determinism", checks.check_determinism, _ANSWER),
    ("dtype", checks.check_dtype, _SAME),
    ("optimality", checks.check_optimality, _ANSWER),
    ("feasibility", checks.check_feasibility, _ANSWER),
    ("gradient", check_gradient, _SAME),
    ("second derivative", check_second_derivative, (*_SAME, "gradient")),
    ("forward mode", checks.check_forward_mode, _SAME),
    ("vmap", checks.check_vmap, _SAME),
    ("batch independence", checks.check_batch_independence, _SAME),
    ("NaN isolation", checks.check_nan_isolation, _SAME),
    ("empty batch", checks.check_empty_batch, _ANSWER),
    ("device", checks.check_device, _SAME),
)


def check_node(
    node: Callable[..., Any],
    *x: Any,
    skip: Collection[str] = (),
    rtol: float = 1e-3,
    atol: float = 1e-5,
    seed: int = 0,
    raise_on_failure: bool = True,
) -> Conformance:
    """Checks that a node does what the nodes of this library do, and says in words what it does not.

    Runs on float64 copies of the node and its inputs, a few seconds for a small node. The checks are:

    - ``"call"``: finite tensors with the batch axis come out, and the inputs are left as they were;
    - ``"determinism"``: a second call gives the same;
    - ``"dtype"``: float64 in, float64 out, and float32 agrees with it;
    - ``"optimality"``, ``"feasibility"``: the Karush-Kuhn-Tucker conditions of a :class:`~torchddn.DeclarativeNode`;
    - ``"gradient"``, ``"second derivative"``: ``gradcheck`` and ``gradgradcheck`` of torch, in the parameters too;
    - ``"forward mode"``: the products of forward and reverse mode agree;
    - ``"vmap"``: ``torch.func.vmap`` of the node and of its gradient is a loop;
    - ``"batch independence"``: an item alone is the item in its batch;
    - ``"NaN isolation"``: an item that is NaN becomes NaN and harms no other (nor, in a
      :class:`~torchddn.DeclarativeNode`, the gradient of a parameter);
    - ``"empty batch"``: no items in, no items out;
    - ``"device"``: the answer on CUDA is that on the CPU, if there is CUDA.

    Args:
        node: A :class:`~torchddn.DeclarativeNode`, any ``nn.Module`` or function.
        *x: Inputs, each tensor ``(B, ...)``; trees of tensors are allowed. With at least two items every check can
            run. Derivatives are checked with respect to those that require grad, or to all if none does. Choose a
            point at which the node is differentiable: finite differences see both sides of a kink.
        skip: Names of checks to leave out.
        rtol: Relative tolerance of the comparison with finite differences.
        atol: Absolute tolerance of the comparison with finite differences.
        seed: Of the random directions.
        raise_on_failure: Whether a failed check raises; the report is returned otherwise.

    Returns:
        The report.

    Raises:
        InvalidInputError: If an argument is wrong, such as inputs without a common batch axis.
        ConformanceError: An ``AssertionError`` that lists all failures, if there are any.

    Example:
        >>> import torch, torchddn as ddn
        >>> node = ddn.DeclarativeNode(ddn.Problem.from_functions(lambda y, x: (y - x).pow(4).sum() + y @ y,
        ...                                                       initial=torch.zeros(2)))
        >>> print(check_node(node, torch.tensor([[1.0, 2.0], [3.0, -1.0]]))["gradient"])
        passed   gradient: Agrees with finite differences in `x[0]`.
    """
    _check_arguments(node, x, skip, rtol, atol, seed, raise_on_failure)
    subject = Subject.of(node, x, rtol, atol, seed)
    ended: list[Check] = []
    for name, check, needs in _CHECKS:
        lacking = [other.name for other in ended if other.name in needs and other.outcome == "failed"]
        if name in skip:
            ended.append(Check(name, "skipped", "As asked for."))
        elif lacking:
            ended.append(Check(name, "skipped", f"Means nothing while `{lacking[0]}` fails."))
        else:
            ended.append(_run(name, check, subject))
    report = Conformance(subject.name, tuple(ended))
    if raise_on_failure and not report.passed:
        raise ConformanceError(report)
    return report


def _check_arguments(
    node: object, x: Any, skip: object, rtol: object, atol: object, seed: object, raise_on_failure: object
) -> None:
    if not callable(node):
        raise InvalidInputError(f"`check_node(node=...)` must be a node, a module or a function, got {node!r}.")
    leaves, _ = flatten_tree("check_node", "x", x)
    sizes = {leaf.shape[0] if leaf.dim() else None for leaf in leaves}
    if len(sizes) != 1 or not sizes - {None, 0}:
        raise InvalidInputError(
            f"`check_node(x=...)` must be tensors with one common batch axis first and at least one item, got shapes "
            f"{[tuple(leaf.shape) for leaf in leaves]}."
        )
    if not any(leaf.dtype.is_floating_point for leaf in leaves):
        raise InvalidInputError("`check_node(x=...)` must have a floating-point tensor to differentiate in.")
    names = [name for name, *_ in _CHECKS]
    unknown = [skip] if isinstance(skip, str) or not isinstance(skip, Collection) else sorted(set(skip) - set(names))
    if unknown:
        raise InvalidInputError(f"`check_node(skip=...)` must be a list of names among {names}, got {unknown[0]!r}.")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float("inf"):
            raise InvalidInputError(f"`check_node({name}=...)` must be a non-negative number, got {value!r}.")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise InvalidInputError(f"`check_node(seed=...)` must be a non-negative integer, got {seed!r}.")
    if not isinstance(raise_on_failure, bool):
        raise InvalidInputError(f"`check_node(raise_on_failure=...)` must be True or False, got {raise_on_failure!r}.")


def _run(name: str, check: Callable[[Subject], str], subject: Subject) -> Check:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            outcome, sentence = "passed", check(subject)
        except SkippedError as reason:
            outcome, sentence = "skipped", str(reason)
        except FailedError as reason:
            outcome, sentence = "failed", str(reason)
        except Exception as error:
            outcome, sentence = "failed", f"Raises {first_line(error)}"
    telling = [w for w in caught if issubclass(w.category, (ConvergenceWarning, DegenerateGradientWarning))]
    if outcome == "failed" and telling:
        sentence += f" It also warned: {telling[0].message}"
    return Check(name, outcome, sentence)
