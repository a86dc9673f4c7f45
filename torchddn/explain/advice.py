"""What the findings about an item mean for whoever reads them."""

from collections.abc import Iterator

import torch

from torchddn.adjoint import Implicit
from torchddn.explain.differences import Differences
from torchddn.explain.effects import DETACHED, KINK
from torchddn.explain.report import Explanation
from torchddn.explain.subject import Answer
from torchddn.node import DeclarativeNode
from torchddn.status import Status

__all__ = ["advise"]


def advise(found: Explanation, node: DeclarativeNode, answer: Answer, differences: Differences) -> Iterator[str]:
    """A sentence or two for each finding that asks for something, the most fundamental first."""
    yield from _on_solution(found, answer)
    if differences.refusal:
        yield f"The gradient was refused: {differences.refusal}"
    if not isinstance(node.adjoint, Implicit):
        yield f"The adjoint is {type(node.adjoint).__name__}, whose gradient may be approximate: compare `Implicit()`."
    if found.status in (Status.INFEASIBLE, Status.UNBOUNDED, Status.NON_FINITE):
        return  # what else could be said of the point is a consequence
    yield from _on_degeneracy(found)
    for effect in found.effects:
        if effect.reason:
            yield f"The gradient in `{effect.name}` is zero or nearly so: {effect.reason}."
    yield from _on_differences(found, differences)


def _on_solution(found: Explanation, answer: Answer) -> Iterator[str]:
    if answer.unsound:
        yield (
            f"{' and '.join(answer.unsound)} of this item {'is' if len(answer.unsound) == 1 else 'are'} not finite: "
            f"the answer is NaN and its gradient zero. Leave such items out, or mask their data."
        )
    elif found.status != Status.CONVERGED:
        where = f" It violates {', '.join(name for name, _ in found.violated[:8])}." if found.violated else ""
        yield f"The point is no solution ({found.status.name}), and has no gradient. {found.status.advice}{where}"


def _on_degeneracy(found: Explanation) -> Iterator[str]:
    dependent = [c.name for c in found.active if c.dependent]
    if dependent:
        yield (
            f"The gradients of active constraints depend on each other ({', '.join(dependent)}): multipliers are not "
            f"unique. Leave redundant constraints out."
        )
    weak = _weak(found)
    # Where nothing pushes, constraints of a feasibility problem have no multipliers, and that is no kink.
    if weak and found.kind == "minimize":
        yield (
            f"Active without a multiplier: {', '.join(weak)}. The solution has a kink; "
            f"`Implicit(weakly_active=...)` chooses the side whose gradient is returned."
        )
    if found.is_flat and found.kind == "feasibility":
        yield (
            "The constraints leave y free to move, and there is no objective to choose: the gradient is that of the "
            "shortest movement. Add an objective, such as the distance to a preferred point."
        )
    elif found.is_flat:
        assert found.curvature is not None
        bent = "is flat" if found.curvature >= -(torch.finfo(found.dtype).eps ** 0.5) else "bends down"
        yield (
            f"f {bent} along the constraints (lowest curvature {found.curvature:.1e} of its size): the solution is not "
            f"isolated. Add a regularizer, or see `Implicit(on_singular=...)`."
        )
    limit = torch.finfo(found.dtype).eps ** -0.75
    if found.condition is not None and found.condition > limit and not (found.is_flat or weak or dependent):
        yield f"The gradient's system is ill-conditioned ({found.condition:.1e}). Rescale, or use float64."


def _on_differences(found: Explanation, differences: Differences) -> Iterator[str]:
    if differences.unsolved:
        yield (
            f"In {differences.unsolved} of the random directions a neighboring problem was not solved: the solver is "
            f"not reliable here. Try another one, or another start."
        )
    if found.error is None or found.kink is None:
        return
    explained = found.is_flat or _weak(found) or any(DETACHED in effect.reason for effect in found.effects)
    if differences.jumps:
        yield (
            "The solution jumps for a tiny change of the inputs: there are several. Start closer to the one that is "
            "meant, or keep to it with `solvers.WarmStart`."
        )
    elif found.kink > KINK and not explained:
        yield f"The two sides of the derivative differ by {found.kink:.0%}: a kink, or an active set about to change."
    elif found.error > differences.tolerance and not explained:
        yield (
            f"The gradient differs from finite differences by {found.error:.1e}. If the problem is smooth here, look "
            f"for `.detach()`, rounding or branches in its functions."
        )


def _weak(found: Explanation) -> list[str]:
    return [c.name for c in found.active if c.weak]
