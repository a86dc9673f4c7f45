r"""Why a gradient is what it is: everything about one item of a node.

The gradient of a solution solves ``K (u, mu) = (v, 0)`` and is ``-u . L_xy - mu . a_x`` (``implicit.py``). So it can be
wrong or zero for few reasons only: the point is no solution, ``K`` is singular, the active constraints leave ``y`` no
freedom, the input does not occur in ``L_y`` or ``a``, or the solution has a kink or a jump. Each is looked at here.
"""

import dataclasses
import warnings
from typing import Any

from torch.utils import _pytree as pytree

from torchddn.diagnostics import Record, diagnostics
from torchddn.errors import InvalidInputError
from torchddn.explain.advice import advise
from torchddn.explain.anatomy import Anatomy
from torchddn.explain.differences import Differences
from torchddn.explain.effects import Effect, effects_of
from torchddn.explain.report import Explanation
from torchddn.explain.subject import Answer, Subject
from torchddn.node import DeclarativeNode
from torchddn.problem import Problem

__all__ = ["explain"]


def explain(
    problem: Problem | DeclarativeNode, *x: Any, item: int = 0, num_directions: int = 3, seed: int = 0
) -> Explanation:
    """Returns a report for whoever asks why a gradient is wrong or zero.

    Solves one item, looks at what its gradient is made of (active constraints, curvature, conditioning, where the
    inputs occur), compares the gradient with finite differences of the solution, and says what it concludes.

    Args:
        problem: The problem, or a node made of it, whose solver and adjoint are used then.
        *x: Inputs as the node takes them, each tensor ``(B, ...)``.
        item: Which of the B items.
        num_directions: Random directions along which the gradient is compared with finite differences.
        seed: Of the directions.

    Returns:
        An :class:`Explanation <torchddn.explain.Explanation>`; print it.

    Raises:
        InvalidInputError: If an argument is wrong.

    Status:
        An item that was not solved is explained as far as it can be: NON_FINITE names what is not finite, INFEASIBLE
        the constraints that are violated.

    Example:
        >>> import torch, torchddn as ddn
        >>> problem = ddn.Problem.from_functions(lambda y, x: (y - x).square().sum(),
        ...                                      bounds=(0.0, 1.0), initial=lambda x: 0.5 + 0 * x)
        >>> x = torch.tensor([[2.0, -3.0]], dtype=torch.float64)
        >>> report = explain(problem, x)
        >>> [constraint.name for constraint in report.active]
        ['lower[1]', 'upper[0]']
        >>> report.effects[0].reason
        'the active constraints alone determine y, and do not depend on it'
    """
    node = _node_of(problem)
    _check_count("num_directions", num_directions, 1)
    _check_count("seed", seed, 0)
    subject = Subject.of(node, x, item)
    with warnings.catch_warnings(record=True) as caught, diagnostics() as seen:
        warnings.simplefilter("always")
        answer = Answer.of(subject)
        anatomy = Anatomy.of(answer)
        differences = Differences.of(subject, answer, anatomy, num_directions, seed)
        effects = effects_of(subject, answer, anatomy, differences)
    warned = tuple(dict.fromkeys(str(w.message) for w in caught))
    backward = next((record for record in seen.records if record.stage == "backward"), None)
    found = _summarize(subject, item, answer, anatomy, differences, effects, backward, warned)
    return dataclasses.replace(found, advice=tuple(advise(found, node, answer, differences)))


def _node_of(problem: object) -> DeclarativeNode:
    if isinstance(problem, DeclarativeNode):
        return problem
    if not isinstance(problem, Problem):
        raise InvalidInputError(f"`explain(problem=...)` must be a Problem or a DeclarativeNode, got {problem!r}.")
    return DeclarativeNode(problem)


def _check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidInputError(f"`explain({name}=...)` must be an integer of at least {least}, got {value!r}.")


def _summarize(
    subject: Subject,
    item: int,
    answer: Answer,
    anatomy: Anatomy,
    differences: Differences,
    effects: tuple[Effect, ...],
    backward: Record | None,
    warned: tuple[str, ...],
) -> Explanation:
    problem, solution = answer.problem, answer.solution
    lower, upper = problem.bounds(answer.x)
    is_feasibility = problem.kind == "minimize" and problem.template.function("objective") is None
    return Explanation(
        node=f"DeclarativeNode({type(subject.node.problem).__name__})",
        item=item,
        kind="feasibility" if is_feasibility else problem.kind,
        n=sum(leaf.numel() for leaf in pytree.tree_leaves(subject.inputs)),
        m=problem.m,
        p=problem.p,
        q=problem.q,
        num_bounds=int(lower.isfinite().sum() + upper.isfinite().sum()),
        dtype=answer.dtype,
        solver="" if solution is None else solution.solver,
        status=answer.status,
        num_steps=0 if solution is None else int(solution.num_steps[0]),
        objective=float("nan") if solution is None else float(solution.objective[0]),
        kkt_error=anatomy.error,
        violated=anatomy.violated,
        active=anatomy.active,
        singular_values=anatomy.singular_values,
        freedom=anatomy.freedom,
        curvature=anatomy.curvature,
        condition=anatomy.condition,
        structure="" if backward is None else backward.structure,
        method="" if backward is None else backward.method,
        certificate=None if backward is None else backward.residual,
        notes=() if backward is None else backward.notes,
        error=differences.error,
        kink=differences.kink,
        effects=effects,
        warned=warned,
        advice=(),
    )
