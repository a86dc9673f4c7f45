r"""The hypergradient: the derivative of an upper objective through the lower solution, with what it is worth.

::

    y(theta) = argmin_y f(y, theta)          dJ/dtheta = J_theta - u . L_ytheta,     K u = J_y

The second term is a backward pass of the lower node, whatever its constraints; only products with ``K`` are needed.
Three numbers say how far to trust it. The *certificate* is ``|K u - J_y| / |J_y|``, the linear system's. The lower
solution's own error is told by perturbation: a ``y`` with the residual ``r = f_y`` is the exact solution of the problem
``f - r . y``, and the hypergradient computed there is that problem's exact one. So, to first order in ``r``, ::

    error of the value      J_r . r               error of the gradient      d/dtheta [ J_r . r ]

and the latter is one differentiation more through the same node.

References:
    Gould, Hartley, Campbell, Deep Declarative Networks: A New Hope, 2019, equations 9 and 10. Pedregosa,
    Hyperparameter optimization with approximate gradient, 2016, has steps on inexact hypergradients.
"""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchddn._shapes import flatten_tree
from torchddn.bilevel.pair import METHODS, Answer, Bilevel, Upper, as_pair, check_theta
from torchddn.bilevel.perturbation import estimate_errors
from torchddn.bilevel.shortcut import is_only_term
from torchddn.diagnostics import diagnostics
from torchddn.errors import InvalidInputError
from torchddn.linear.certificate import default_rtol
from torchddn.status import Status, check_failure_policy

__all__ = ["Hypergradient", "Options", "check_method", "check_rtol", "differentiate", "hypergradient"]


@dataclasses.dataclass(frozen=True)
class Hypergradient:
    """What :func:`hypergradient` returns: plain tensors, no graph.

    Attributes:
        gradient: ``dJ/dtheta``, structured as ``theta``.
        value: ``J(theta, y)``, a scalar.
        y: The lower solution, ``(B, ...)``.
        status: Of the lower problems, ``(B,)`` of :class:`torchddn.Status`.
        num_steps: Steps of the lower solver, ``(B,)``.
        stationarity: Of the lower solution, ``(B,)``.
        method: How the gradient was found; ``"shortcut"`` where ``y`` enters only through the lower objective.
        certificate: ``|K u - J_y| / |J_y|``, the worst over the followers; 0 where there was no system to solve, NaN
            for a method that has no certificate.
        error: First-order estimate of the largest error of an entry of ``gradient`` that is due to the lower solution's
            error; NaN unless asked for.
        one_sided: Whether a lower constraint is active without a multiplier, so that the gradient is one-sided.
        objection: Why the gradient should not be used, in words; empty for a good one.
    """

    gradient: Any
    value: Tensor
    y: Any
    status: Tensor
    num_steps: Tensor
    stationarity: Tensor
    method: str
    certificate: float
    error: float
    one_sided: bool
    objection: str


@dataclasses.dataclass(frozen=True)
class Options:
    """How a hypergradient is to be found; the words are those of :func:`hypergradient`."""

    method: str = "implicit"
    rtol: float | None = None
    num_steps: int | None = None
    estimate_error: bool = False
    solver: Any = None
    on_failure: str = "warn"
    good_enough: float = 0.0  # a lower residual with which a solve that has not converged is as exact as was asked


def hypergradient(
    upper: Upper | Bilevel,
    lower: Any,
    theta: Any,
    y: Any = None,
    *,
    data: tuple[Any, ...] = (),
    method: str = "implicit",
    rtol: float | None = None,
    num_steps: int | None = None,
    estimate_error: bool = False,
    on_failure: str = "warn",
) -> Hypergradient:
    r"""Returns ``dJ/dtheta`` of ``J(theta, y)`` with ``y`` the solution of the lower problem at ``theta``.

    ==================  ============================================================================================
    method              what it is
    ==================  ============================================================================================
    ``"implicit"``      exact: one linear system of the adjoint of the node, ``Implicit()`` unless it has another
    ``"cg"``            exact to ``rtol``: Hessian-vector products and conjugate gradients, memory ``O(m)``; needs a
                        positive definite lower Hessian
    ``"unrolled"``      through the last ``num_steps`` steps of the lower solver (None: through all of them)
    ``"one_step"``      through one more step of the lower solver
    ``"substitution"``  through the closed form that the lower problem has as its ``solve``
    ==================  ============================================================================================

    Where the lower objective is the only term of ``upper`` in which ``y`` occurs, and the lower problem has no
    constraints, the second term of the gradient is zero and is not computed: exact methods look whether that is so.

    Args:
        upper: ``J(theta, y)``, a scalar, or a :class:`Bilevel`, and then ``lower`` is None.
        lower: As for :class:`Bilevel`.
        theta: Where: a tensor, or a tree of them.
        y: The lower solution, if it is known, ``(B, ...)``; it is polished and checked, not solved for.
        data: As for :class:`Bilevel`.
        method: See above.
        rtol: Largest certificate; None for a value fitting the dtype (square root of eps for ``"cg"``).
        num_steps: For ``"unrolled"``.
        estimate_error: Also estimate the error that the lower solution's own error makes, for one more differentiation.
            Without constraints in the lower problem, and by an exact method.
        on_failure: What to do about lower problems that were not solved, as for :class:`torchddn.DeclarativeNode`.

    Raises:
        InvalidInputError: If an argument is wrong, or the method does not fit the lower problem.

    Gradients:
        None: the result has no graph. :meth:`Bilevel.value` is differentiable to every order.

    Example:
        >>> import torchddn as ddn
        >>> ridge = ddn.Problem.from_functions(
        ...     lambda y, theta: 0.5 * (y - 3.0).square().sum() + 0.5 * theta * y.square().sum(),
        ...     initial=torch.zeros(1, 1),
        ... )
        >>> found = hypergradient(lambda theta, y: 0.5 * (y - 1.0).square().sum(), ridge, torch.tensor(1.0))
        >>> found.gradient  # y = 3 / (1 + theta)
        tensor(-0.3750)
    """
    pair = as_pair("hypergradient", upper, lower, data, None)
    check_theta("hypergradient", theta)
    check_method("hypergradient", pair, method, num_steps)
    check_failure_policy("hypergradient", on_failure)
    check_rtol("hypergradient", "rtol", rtol)
    if estimate_error and not (pair.is_unconstrained and method in ("implicit", "cg")):
        raise InvalidInputError(
            f"`hypergradient(estimate_error=True)` needs an exact method and a lower minimization without constraints, "
            f"got method={method!r}. Look at `certificate` and `stationarity` instead."
        )
    if y is not None:
        if pair.problem is None or method not in ("implicit", "cg"):
            raise InvalidInputError(
                "`hypergradient(y=...)` is for an exact method and a lower problem that need not be solved again: "
                "leave it out."
            )
        flatten_tree("hypergradient", "y", y)
        pair = pair.answered(y)
    options = Options(method, rtol, num_steps, estimate_error, on_failure=on_failure)
    return differentiate(pair, theta, options)


def differentiate(pair: Bilevel, theta: Any, options: Options) -> Hypergradient:
    """:func:`hypergradient` with everything checked."""
    with torch.enable_grad():
        theta = pytree.tree_map(lambda leaf: leaf.detach().requires_grad_(), theta)
        leaves, spec = pytree.tree_flatten(theta)
        answer = pair.solve(
            theta,
            method=options.method,
            rtol=options.rtol,
            num_steps=options.num_steps,
            solver=options.solver,
            on_failure=options.on_failure,
        )
        y = pytree.tree_map(lambda leaf: leaf.detach().requires_grad_(), answer.y)
        value, J_theta, J_y = _partial_derivatives(pair, theta, y)
    exact = options.method in ("implicit", "cg") and pair.problem is not None
    error = math.nan
    if exact and pair.is_unconstrained and is_only_term(pair, theta, y, J_y):
        gradient, method, certificate, one_sided, objection = J_theta, "shortcut", 0.0, False, ""
        error = 0.0 if options.estimate_error else error
    else:
        method = options.method if pair.problem is not None else "substitution"
        through, certificate, one_sided, objection = _pull(answer.y, leaves, J_y, options.rtol)
        gradient = [direct + indirect for direct, indirect in zip(J_theta, through, strict=True)]
        if options.estimate_error:
            adjoint = pair.adjoint(theta, options.method, options.rtol)
            error = estimate_errors(pair, theta, y, adjoint).gradient
    return Hypergradient(
        gradient=pytree.tree_unflatten(gradient, spec),
        value=value,
        y=pytree.tree_map(Tensor.detach, y),
        status=answer.status.detach(),
        num_steps=answer.num_steps.detach(),
        stationarity=answer.stationarity.detach(),
        method=method,
        certificate=certificate,
        error=error,
        one_sided=one_sided,
        objection=_object(answer, value, gradient, options) or objection,
    )


def check_method(call: str, pair: Bilevel, method: str, num_steps: int | None) -> None:
    """Raises unless the method is known and fits."""
    if method not in METHODS:
        raise InvalidInputError(f"`{call}(method=...)` must be one of {', '.join(map(repr, METHODS))}, got {method!r}.")
    if pair.problem is None and method in ("cg", "unrolled", "one_step"):
        raise InvalidInputError(
            f"`{call}(method={method!r})` needs a lower `Problem`; a function is differentiated as it is. Leave "
            f"`method` out."
        )
    if method == "cg" and not pair.is_unconstrained:
        raise InvalidInputError(
            f"`{call}(method='cg')` needs a lower minimization without constraints, whose Hessian is positive "
            f"definite. Use 'implicit', which solves any lower problem."
        )
    if num_steps is not None and method != "unrolled":
        raise InvalidInputError(f"`{call}(num_steps=...)` belongs to method='unrolled', got method={method!r}.")


def check_rtol(call: str, name: str, rtol: object) -> None:
    """Raises unless ``rtol`` is None or a number between 0 and 1."""
    if rtol is None:
        return
    if isinstance(rtol, bool) or not isinstance(rtol, (int, float)) or not 0 < rtol < 1:
        raise InvalidInputError(f"`{call}({name}=...)` must be a number between 0 and 1, or None, got {rtol!r}.")


def _partial_derivatives(pair: Bilevel, theta: Any, y: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """``J``, ``J_theta`` and ``J_y`` with ``y`` held."""
    value = pair.judge(theta, y)
    leaves, followers = pytree.tree_leaves(theta), pytree.tree_leaves(y)
    if not value.requires_grad:
        raise InvalidInputError(
            "`Bilevel(upper=...)` depends neither on theta nor on y in a way that torch can differentiate. Look for "
            "`.detach()`, `.item()` or NumPy."
        )
    grads = torch.autograd.grad(value, [*leaves, *followers], materialize_grads=True, allow_unused=True)
    return value.detach(), list(grads[: len(leaves)]), list(grads[len(leaves) :])


def _pull(y: Any, leaves: list[Tensor], v: list[Tensor], rtol: float | None) -> tuple[list[Tensor], float, bool, str]:
    """``v . dy/dtheta``, the certificate of the pass, whether it is one-sided, and what there is to object."""
    followers = [(out, grad) for out, grad in zip(pytree.tree_leaves(y), v, strict=True) if out.requires_grad]
    if not followers:
        return [torch.zeros_like(leaf) for leaf in leaves], 0.0, False, ""
    outputs, cotangents = zip(*followers, strict=True)
    with diagnostics() as seen:
        pulled = torch.autograd.grad(outputs, leaves, cotangents, materialize_grads=True, allow_unused=True)
    records = [record for record in seen.records if record.stage == "backward"]
    if not records:  # nothing was solved on the way, but a formula or steps differentiated
        return list(pulled), math.nan, False, ""
    certificate = max(record.residual for record in records)
    one_sided = any(record.weakly_active for record in records)
    dtype = leaves[0].dtype
    # Of an ill-conditioned system rounding alone leaves more than the engine's own tolerance.
    limit = max(default_rtol(dtype) if rtol is None else rtol, torch.finfo(dtype).eps ** 0.4)
    if any(record.degenerate for record in records):
        said = "the lower solution is not isolated, so that its gradient is one of many"
        return list(pulled), certificate, one_sided, said
    if not certificate <= limit:
        said = f"the certificate of the hypergradient failed: its residual is {certificate:.1e}, the limit {limit:.1e}"
        return list(pulled), certificate, one_sided, said
    return list(pulled), certificate, one_sided, ""


def _object(answer: Answer, value: Tensor, gradient: list[Tensor], options: Options) -> str:
    """What there is to object to the lower solution and the numbers."""
    bad = answer.status != Status.CONVERGED
    if options.good_enough:
        inexact = (answer.status == Status.STALLED) & (answer.stationarity <= options.good_enough)
        bad = bad & ~inexact
    if bool(bad.any()):
        status = Status(int(answer.status[bad][0]))
        return f"{int(bad.sum())} of {bad.numel()} lower problems ended as {status.name}. {status.advice}"
    if not bool(torch.stack([value.isfinite().all(), *(part.isfinite().all() for part in gradient)]).all()):
        return "the upper objective or its gradient is not finite"
    return ""
