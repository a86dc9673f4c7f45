"""One item of a node as a function of a list of tensors, and its answer as the problem sees it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchddn._shapes import tree_names
from torchddn.capture import live_tensors, rebuild
from torchddn.door import Prepared, prepare
from torchddn.inspection import flat_solution, one_item
from torchddn.node import DeclarativeNode
from torchddn.problem import BatchedProblem
from torchddn.status import Solution, Status

__all__ = ["Answer", "Subject"]

_CALL = "explain"


class Subject(NamedTuple):
    """One item of a node.

    Attributes:
        node: Solves that item alone, and reports instead of raising.
        inputs: The item's inputs, a batch of one.
        shared: Tensors that the problem uses beside its inputs, and that require grad: parameters, captured ones.
        names: What to call the tensors of ``inputs``, then those of ``shared``.
        requires_grad: Which of them require grad, as the user gave them.
    """

    node: DeclarativeNode
    inputs: tuple[Any, ...]
    shared: list[Tensor]
    names: list[str]
    requires_grad: list[bool]

    @staticmethod
    def of(node: DeclarativeNode, x: tuple[Any, ...], item: object) -> "Subject":
        """The item of ``x`` with that number."""
        alone, inputs = one_item(_CALL, node, x, item)
        known = {id(p): name.removeprefix("problem.") for name, p in alone.named_parameters()}
        shared = [tensor for tensor in live_tensors(alone.problem) if tensor.requires_grad]
        names = [known.get(id(tensor), f"captured[{i}]") for i, tensor in enumerate(shared)]
        return Subject(
            alone,
            inputs,
            shared,
            tree_names("x", x) + names,
            [leaf.requires_grad for leaf in pytree.tree_leaves(x)] + [True] * len(shared),
        )

    @property
    def tensors(self) -> list[Tensor]:
        """What the answer is a function of: the inputs, then the shared tensors; without a graph."""
        return [tensor.detach() for tensor in (*pytree.tree_leaves(self.inputs), *self.shared)]

    def at(self, tensors: Sequence[Tensor]) -> tuple[DeclarativeNode, tuple[Any, ...]]:
        """The node and its inputs with other tensors in place of ``self.tensors``."""
        spec = pytree.tree_structure(self.inputs)
        moved = {id(old): new for old, new in zip(self.shared, tensors[spec.num_leaves :], strict=True)}
        problem = rebuild(self.node.problem, lambda tensor: moved.get(id(tensor), tensor))
        node = DeclarativeNode(problem, solver=self.node.solver, adjoint=self.node.adjoint, on_failure="ignore")
        return node, pytree.tree_unflatten(list(tensors[: spec.num_leaves]), spec)

    def solve(self, tensors: Sequence[Tensor]) -> tuple[Tensor, Status]:
        """``y``, flat, ``(m,)``, and how the solve ended."""
        node, inputs = self.at(tensors)
        solution = node.solve(*inputs)
        y = torch.cat([leaf.flatten() for leaf in pytree.tree_leaves(solution.y)])
        return y, Status(int(solution.status[0]))

    def prepare(self, tensors: Sequence[Tensor]) -> Prepared:
        """The batched problem and its ``x``."""
        node, inputs = self.at(tensors)
        return prepare(_CALL, node.problem, inputs, "auto")


class Answer(NamedTuple):
    """The item's solution, with the problem and its ``x`` for evaluation.

    Attributes:
        problem: The batched problem, of one item.
        x: Its tensors, on the graph of ``leaves``.
        leaves: Copies of ``Subject.tensors`` that require grad.
        y: ``(1, m)``.
        dual: ``(1, p + q)``.
        solution: What the node says; None if it could not be asked.
        unsound: What of the item is not finite and why the node could not be asked.
    """

    problem: BatchedProblem
    x: tuple[Tensor, ...]
    leaves: list[Tensor]
    y: Tensor
    dual: Tensor
    solution: Solution | None
    unsound: tuple[str, ...]

    @staticmethod
    def of(subject: Subject) -> "Answer":
        """Solves."""
        leaves = [tensor.clone().requires_grad_() for tensor in subject.tensors]
        with torch.enable_grad():
            problem, x, *_ = subject.prepare(leaves)
        given = dict(zip(subject.names, subject.tensors, strict=True))
        unsound = [f"`{name}`" for name, tensor in given.items() if not bool(tensor.isfinite().all())]
        lower, upper = problem.bounds(x)
        if bool((lower.isnan() | upper.isnan()).any()):
            unsound += ["what `bounds` returns"]
        if problem.template.function("initial") is not None and not bool(x[-1].isfinite().all()):
            unsound += ["the start"]
        if unsound:
            nothing = x[-1].new_full((1, problem.m + problem.p + problem.q), torch.nan)
            y, dual = nothing[:, : problem.m], nothing[:, problem.m :]
            return Answer(problem, x, leaves, y, dual, None, tuple(unsound))
        with torch.no_grad():
            solution = subject.node.solve(*subject.inputs)
        y, dual = flat_solution(problem, solution, x[-1])
        return Answer(problem, x, leaves, y, dual, solution, ())

    @property
    def status(self) -> Status:
        """How the solve ended."""
        return Status.NON_FINITE if self.solution is None else Status(int(self.solution.status[0]))

    @property
    def dtype(self) -> torch.dtype:
        """That of the answer, as the user gets it."""
        return self.leaves[0].dtype if self.leaves else self.y.dtype

    @property
    def is_finite(self) -> bool:
        """Whether there is a point to look at."""
        return bool(self.y.isfinite().all() & self.dual.isfinite().all())
