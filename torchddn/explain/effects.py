r"""What each input does to the solution, and why it does nothing.

The gradient is ``-u . L_xy - mu . a_x``. An input can reach the solution through the gradient of the Lagrangian, the
active constraints and the active bounds only, and not even then if these hold ``y`` against it.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from torchddn.adjoint import Implicit
from torchddn.derivatives import gradient
from torchddn.explain.anatomy import Anatomy
from torchddn.explain.differences import Differences
from torchddn.explain.subject import Answer, Subject
from torchddn.optimality import lagrangian
from torchddn.problem import BatchedProblem
from torchddn.status import Status

__all__ = ["DETACHED", "KINK", "Effect", "effects_of"]

# Two one-sided differences of a smooth function agree better than this.
KINK = 0.05

DETACHED = "it changes the problem, but torch sees no derivative: it is detached, rounded or branched on"
_AT_KINK = "the problem has a kink in it here, at which torch takes the derivative zero"
_SATURATED = "y hardly reacts to it here: it is saturated"
# A gradient so small beside the size of y and of the input is as good as none.
_HARDLY = 1e-6


@dataclasses.dataclass(frozen=True)
class Effect:
    """What an input or a parameter does to the solution.

    Attributes:
        name: Such as ``x[0]`` or a parameter's name.
        gradient: Size of the gradient of a random sum of the entries of ``y`` with respect to it.
        requires_grad: Whether it was given with ``requires_grad``.
        enters: Where derivatives with respect to it are not zero: among ``"f"``, ``"L_y"``, ``"constraints"``,
            ``"bounds"``; of a root, ``"F"``. Constraints and bounds count if they are active.
        reason: Why its gradient is zero or nearly so; empty if it is not.
    """

    name: str
    gradient: float
    requires_grad: bool
    enters: tuple[str, ...]
    reason: str


def effects_of(subject: Subject, answer: Answer, anatomy: Anatomy, differences: Differences) -> tuple[Effect, ...]:
    """Returns the effect of each of the subject's tensors; nothing if there is no gradient to look at."""
    if not answer.is_finite or not subject.tensors:
        return ()
    pulls = _pulls(subject, answer, anatomy)
    effects = []
    for i, (name, tensor) in enumerate(zip(subject.names, subject.tensors, strict=True)):
        size = float(differences.grads[i].norm()) if differences.grads else float("nan")
        enters = tuple(place for place, grads in pulls.items() if grads[i] > 0)
        pull = max(grads[i] for place, grads in pulls.items() if place != "f")
        reason = ""
        if size <= torch.finfo(answer.y.dtype).eps ** 0.6 * pull / anatomy.stiffness:
            reason = _reason(subject, answer, anatomy, differences, i, enters)
        elif size * float(tensor.norm()) <= _HARDLY * float(answer.y.norm()):
            reason = _SATURATED
        effects.append(Effect(name, size, subject.requires_grad[i], enters, reason))
    return tuple(effects)


def _pulls(subject: Subject, answer: Answer, anatomy: Anatomy) -> dict[str, list[float]]:
    """For each place where a tensor can occur, the size of the derivatives there of a random sum, per tensor."""
    problem, y, dual, x, leaves = answer.problem, answer.y, answer.dual, answer.x, answer.leaves
    with torch.enable_grad():
        places = _values(subject, anatomy, problem, y, x)
        if problem.kind == "minimize":
            places["L_y"] = gradient(lambda y: lagrangian(problem, y, dual, x), y)
        return {place: _sizes(value, leaves) for place, value in places.items()}


def _values(
    subject: Subject, anatomy: Anatomy, problem: BatchedProblem, y: Tensor, x: Sequence[Tensor]
) -> dict[str, Tensor]:
    """What the functions of the problem return at ``y``: of constraints and bounds, the active ones."""
    if problem.kind != "minimize":
        return {"F": problem.residual(y, x)}
    values = {"f": problem.objective(y, x)}
    if anatomy.active_set is not None:
        adjoint = subject.node.adjoint
        inactive = isinstance(adjoint, Implicit) and adjoint.weakly_active == "inactive"
        held = anatomy.active_set.held(problem, weakly_active=not inactive)
        lower, upper = problem.bounds(x)
        values["constraints"] = problem.constraints(y, x) * held.rows
        values["bounds"] = torch.where(held.at_lower, lower, 0.0) + torch.where(held.at_upper, upper, 0.0)
    return values


def _sizes(value: Tensor, leaves: Sequence[Tensor]) -> list[float]:
    if not value.requires_grad:
        return [0.0] * len(leaves)
    weights = torch.as_tensor(np.random.default_rng(1).standard_normal(value.shape)).to(value)
    grads = torch.autograd.grad(value, leaves, weights, retain_graph=True, allow_unused=True)
    return [0.0 if grad is None else float(grad.norm()) for grad in grads]


def _reason(
    subject: Subject, answer: Answer, anatomy: Anatomy, differences: Differences, i: int, enters: tuple[str, ...]
) -> str:
    """Why tensor ``i`` has gradient zero."""
    if answer.status != Status.CONVERGED:
        return "there is no solution to differentiate"
    if _moved_places(subject, answer, anatomy, i) - set(enters):
        return _AT_KINK if differences.kink is not None and differences.kink > KINK else DETACHED
    if not enters:
        return "no active part of the problem depends on it"
    moves_constraints = "constraints" in enters or "bounds" in enters
    if anatomy.freedom == 0 and not moves_constraints:
        return "the active constraints alone determine y, and do not depend on it"
    if enters == ("f",):
        return "it changes the value of f, but not where its minimum is"
    if not moves_constraints:
        return "it only pulls against active constraints, which hold y"
    return "its effects cancel at this point"


def _moved_places(subject: Subject, answer: Answer, anatomy: Anatomy, i: int) -> set[str]:
    """Where values change with tensor ``i``, whether a derivative says so or not."""
    tensors = subject.tensors
    tensors[i] = tensors[i] * 1.01 + 0.01
    with torch.no_grad():
        problem, x, *_ = subject.prepare(tensors)
        moved = _values(subject, anatomy, problem, answer.y, x)
        values = _values(subject, anatomy, answer.problem, answer.y, answer.x)
    return {place for place, value in values.items() if not torch.equal(moved[place], value)}
