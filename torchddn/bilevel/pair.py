r"""The pair of an upper and a lower problem, and the lower solution as the upper level sees it.

::

    minimize over theta   J(theta, y)   subject to   y = argmin_y f(y, theta)   and   theta in a simple set

The lower problem may be a batch, of followers or of folds: all of them see the same ``theta``, and the upper objective
sees all of their solutions.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchddn._shapes import check_floating, flatten_tree, tree_names
from torchddn.adjoint import Adjoint, Implicit, OneStep, Unrolled
from torchddn.bilevel.sets import Constraint, check_constraint
from torchddn.door import prepare
from torchddn.errors import InvalidInputError
from torchddn.linear import CG
from torchddn.node import DeclarativeNode
from torchddn.problem import BatchedProblem, Problem
from torchddn.status import PrimalDual, Solution, Status

__all__ = ["METHODS", "Answer", "Bilevel", "as_pair", "check_theta"]

METHODS = ("implicit", "cg", "unrolled", "one_step", "substitution")

Upper = Callable[[Any, Any], Tensor]


class Answer(NamedTuple):
    """The lower solution, differentiable in ``theta``; the flags are ``(B,)``."""

    y: Any
    status: Tensor
    num_steps: Tensor
    stationarity: Tensor


class Bilevel:
    r"""An upper objective, the lower problem that answers it, and where ``theta`` may be.

    Args:
        upper: ``J(theta, y)``, a scalar. ``y`` has the batch axis of the lower problems, ``(B, ...)``.
        lower: The problem of one follower, whose functions take ``(y, theta, *data)`` (``bounds``, ``initial`` and
            ``solve`` without ``y``); a :class:`torchddn.DeclarativeNode` of one, which brings solver and adjoint; or a
            differentiable function ``(theta, *data)`` that returns ``y`` or a :class:`torchddn.Solution`, such as a
            closed form or a ready node.
        data: What the followers differ in: tensors, or trees of them, ``(B, ...)``. Without any there is one follower,
            and ``y`` is ``(1, ...)``.
        constraint: :class:`Positive`, :class:`Box`, :class:`Simplex`, None, or a tree of them as ``theta`` is.

    Raises:
        InvalidInputError: If one of them is something else.

    Example:
        >>> follower = Problem.from_functions(lambda y, theta: (y - theta).square().sum(), initial=lambda theta: theta)
        >>> pair = Bilevel(lambda theta, y: (y - 1).square().sum() + theta.square().sum(), follower)
        >>> pair.value(torch.tensor([1.0, 0.0]))
        tensor(2.)
    """

    def __init__(
        self, upper: Upper, lower: Any, *, data: tuple[Any, ...] = (), constraint: Constraint | None = None
    ) -> None:
        if not callable(upper):
            raise InvalidInputError(f"`Bilevel(upper=...)` must be a function of (theta, y), got {upper!r}.")
        if isinstance(lower, type) or not (isinstance(lower, Problem) or callable(lower)):
            raise InvalidInputError(
                f"`Bilevel(lower=...)` must be a `torchddn.Problem`, a `DeclarativeNode` or a function of "
                f"(theta, *data), got {lower!r}."
            )
        if not isinstance(data, tuple):
            raise InvalidInputError(f"`Bilevel(data=...)` must be a tuple, one entry per argument, got {data!r}.")
        flatten_tree("Bilevel", "data", data)
        check_constraint("Bilevel", constraint)
        self.upper, self.lower, self.data, self.constraint = upper, lower, data, constraint

    @property
    def problem(self) -> Problem | None:
        """The lower problem; None where the lower level is a function."""
        lower = self.lower.problem if isinstance(self.lower, DeclarativeNode) else self.lower
        return lower if isinstance(lower, Problem) else None

    @property
    def is_unconstrained(self) -> bool:
        """Whether the lower level is a minimization without constraints."""
        problem = self.problem
        return (
            problem is not None
            and problem.kind == "minimize"
            and all(problem.function(name) is None for name in ("equality", "inequality", "bounds"))
        )

    def solve(
        self,
        theta: Any,
        *,
        method: str = "implicit",
        rtol: float | None = None,
        num_steps: int | None = None,
        solver: Any = None,
        on_failure: str = "warn",
    ) -> Answer:
        """Returns the lower solution, differentiable in ``theta`` by ``method``; see :func:`hypergradient`.

        Args:
            theta: A tensor or a tree of tensors.
            method: How it is differentiated.
            rtol: As for :func:`hypergradient`.
            num_steps: As for :func:`hypergradient`.
            solver: Instead of the one of the node.
            on_failure: As for :class:`torchddn.DeclarativeNode`.
        """
        problem = self.problem
        if problem is None:
            return _answer_of(self.lower(theta, *self.data))
        inputs = (self.spread(theta), *self.data)
        if method == "substitution":
            return _answer_of(_closed_form(problem)(*inputs))
        adjoint = self.adjoint(theta, method, rtol, num_steps)
        node = DeclarativeNode(problem, solver=solver or self.solver, adjoint=adjoint, on_failure=on_failure)
        return _answer_of(node.solve(*inputs))

    def value(self, theta: Any, *, method: str = "implicit", on_failure: str = "warn") -> Tensor:
        """Returns ``J(theta, y(theta))``, a scalar that is differentiable in ``theta``, to every order if exact."""
        return self.judge(theta, self.solve(theta, method=method, on_failure=on_failure).y)

    def answered(self, y: Any) -> "Bilevel":
        """The same pair with a lower problem whose solution is known."""
        assert self.problem is not None
        node = DeclarativeNode(_Answered(self.problem, y), adjoint=self._given_adjoint())
        return Bilevel(self.upper, node, data=self.data, constraint=self.constraint)

    def judge(self, theta: Any, y: Any) -> Tensor:
        """``J(theta, y)``, checked to be a scalar."""
        value = self.upper(theta, y)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise InvalidInputError(
                f"`Bilevel(upper=...)` must return a scalar tensor, got "
                f"{tuple(value.shape) if isinstance(value, Tensor) else value!r}. Sum over the followers."
            )
        return value.reshape(())

    @property
    def solver(self) -> Any:
        """What solves the lower problem."""
        return self.lower.solver if isinstance(self.lower, DeclarativeNode) else "auto"

    def spread(self, theta: Any) -> Any:
        """``theta`` for each follower, ``(B, ...)``."""
        leaves = pytree.tree_leaves(self.data)
        size = leaves[0].shape[0] if leaves and leaves[0].dim() else 1
        return pytree.tree_map(lambda leaf: leaf.expand(size, *leaf.shape), theta)

    def flat(self, theta: Any) -> tuple[BatchedProblem, tuple[Tensor, ...]]:
        """The lower problems in flat letters, with their inputs, which end with the start; no graph."""
        assert self.problem is not None
        with torch.no_grad():
            prepared = prepare("Bilevel", self.problem, (self.spread(theta), *self.data), "auto")
        return prepared.problem, prepared.x

    def adjoint(self, theta: Any, method: str, rtol: float | None = None, num_steps: int | None = None) -> Adjoint:
        """How the lower solution is differentiated; arguments as for :func:`hypergradient`."""
        if method == "unrolled":
            return Unrolled(num_steps)
        if method == "one_step":
            return OneStep()
        if method == "cg":
            small = torch.finfo(pytree.tree_leaves(theta)[0].dtype).eps ** 0.5 if rtol is None else rtol
            # The residual that the method tracks drifts from the true one, which is what the certificate measures.
            return Implicit(linear=CG(rtol=small / 2), rtol=small)
        given = self._given_adjoint()
        return dataclasses.replace(given, rtol=rtol) if rtol is not None and isinstance(given, Implicit) else given

    def _given_adjoint(self) -> Adjoint:
        return self.lower.adjoint if isinstance(self.lower, DeclarativeNode) else Implicit()


class _Answered(Problem):
    """A problem whose solution is known."""

    def __init__(self, problem: Problem, y: Any) -> None:
        super().__init__()
        self.problem, self.y = problem, pytree.tree_map(Tensor.detach, y)
        self.batched, self.structure, self.kind = problem.batched, problem.structure, problem.kind

    def solve(self, *x: Any) -> Any:
        """What is known."""
        return self.y

    def function(self, name: str) -> Any:
        """As the problem says, but for ``solve``."""
        return self.solve if name == "solve" else self.problem.function(name)


def as_pair(call: str, upper: Any, lower: Any, data: tuple[Any, ...], constraint: Any) -> Bilevel:
    """The pair that a caller passed, whole or in parts."""
    if not isinstance(upper, Bilevel):
        return Bilevel(upper, lower, data=data, constraint=constraint)
    if lower is not None or data or constraint is not None:
        raise InvalidInputError(
            f"`{call}(upper=...)` is a `Bilevel` and brings lower problem, data and constraint: pass None for `lower` "
            f"and leave the others out."
        )
    return upper


def check_theta(call: str, theta: Any) -> None:
    """Raises unless ``theta`` is made of finite real tensors."""
    leaves, _ = flatten_tree(call, "theta", theta)
    if not leaves:
        raise InvalidInputError(f"`{call}(theta=...)` must hold at least one tensor, got {theta!r}.")
    names = tree_names("theta", theta)
    check_floating(call, leaves, lambda: names)
    for leaf, name in zip(leaves, names, strict=True):
        if not bool(leaf.isfinite().all()):
            raise InvalidInputError(f"`{call}`: `{name}` is not finite (NaN or infinite). Start somewhere else.")


def _closed_form(problem: Problem) -> Callable[..., Any]:
    solve = problem.function("solve")
    if solve is None:
        raise InvalidInputError(
            "`hypergradient(method='substitution')` needs the closed form of the lower solution: write `solve` in the "
            "problem, or pass a function of (theta, *data) as `lower`."
        )
    return solve


def _answer_of(found: Any) -> Answer:
    if isinstance(found, Solution):
        return Answer(found.y, found.status, found.num_steps, found.stationarity)
    y = found.y if isinstance(found, PrimalDual) else found
    leaves, _ = flatten_tree("Bilevel", "lower(theta)", y)
    finite = torch.stack([leaf.detach().isfinite().all() for leaf in leaves]).all()[None]
    status = torch.where(finite, int(Status.CONVERGED), int(Status.NON_FINITE))
    return Answer(y, status, torch.zeros_like(status), torch.zeros_like(status, dtype=leaves[0].dtype))
