"""What a solver may hope of the Hessian of the Lagrangian."""

from collections.abc import Sequence

import torch
from torch import Tensor

from torchddn.derivatives import inside_transform
from torchddn.linear import Declaration
from torchddn.problem import BatchedProblem
from torchddn.structure.memory import Belief, known, recall
from torchddn.structure.search import guess_curvature
from torchddn.structure.system import System, generic
from torchddn.structure.unmasked import unmasked

__all__ = ["of_curvature"]

# How far from a start it is looked at, of each number or, where that is zero, of the size of y: at the start itself
# terms may hide.
_ASIDE = 1e-3


def of_curvature(problem: BatchedProblem, x: Sequence[Tensor], y: Tensor, looks: bool) -> Belief | None:
    """What is said or known of the Hessian of a minimization, ``H`` of the belief; None for nothing.

    It may be wrong of these items, or of these points: look whether it holds.

    Args:
        problem: Its ``structure`` says whether anything may be looked up.
        x: Its inputs.
        y: The start, ``(B, m)``.
        looks: Whether, if no gradient has been taken yet, a few products near the start are worth it.

    Raises:
        InvalidInputError: What is declared does not fit the sizes.
    """
    declared = problem.structure
    if declared is None or inside_transform():
        return None
    like = y.new_empty(0, problem.m + problem.p + problem.q)
    belief = known(problem, like, True, declared)
    if belief is not None:
        usable = belief.H is not None and not belief.whole and belief.eliminates
        return belief if usable else None
    H = declared[0] if isinstance(declared, tuple) else declared
    if isinstance(H, Declaration):
        H.check(problem.m)
    elif not (looks and declared == "auto"):
        return None

    def look() -> Belief:
        return Belief(H) if isinstance(H, Declaration) else Belief(_look(problem, x, y))

    # Under a name of its own: a gradient, which knows more, begins anew.
    return recall(problem, like, True, ("start", declared), look)


def _look(problem: BatchedProblem, x: Sequence[Tensor], y: Tensor) -> Declaration | None:
    length = torch.maximum(y.abs().amax(1), x[-1].abs().amax(1))[:, None]
    lower, upper = problem.bounds(x)
    step = torch.where(y != 0, y.abs(), torch.where(length > 0, length, 1.0))
    aside = y + _ASIDE * step * generic(problem.m, y)
    z = torch.cat([torch.minimum(torch.maximum(aside, lower), upper), y.new_zeros(len(y), problem.p + problem.q)], 1)
    system = System(unmasked(problem, z, x), None, None, z, problem.m, None, None, True, problem.work(x))
    return guess_curvature(problem, system)
