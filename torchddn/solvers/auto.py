"""Which solver for which problem."""

from torchddn.errors import InvalidInputError
from torchddn.problem import BatchedProblem
from torchddn.solvers.augmented_lagrangian import AugmentedLagrangian
from torchddn.solvers.base import Composite, Solver, is_solver
from torchddn.solvers.bridges import SciPy
from torchddn.solvers.descent import LBFGS, GradientDescent
from torchddn.solvers.least_squares import GaussNewton, LevenbergMarquardt
from torchddn.solvers.newton import SQP, Newton
from torchddn.solvers.roots import Anderson, Bisection, Broyden

__all__ = ["choose", "get"]

# Above this many variables and multipliers a dense Hessian costs more than the steps that it saves.
_DENSE_SIZE = 200


def choose(problem: BatchedProblem) -> Solver:
    """Returns the solver that ``"auto"`` stands for: Newton-type while a dense matrix is cheap, first-order beyond.

    Example:
        >>> import torch, torchddn as ddn
        >>> ddn.argmin(lambda y, x: (y - x).square().sum(), torch.zeros(2), torch.ones(1, 2), solution=True).solver
        'Newton'
    """
    small = problem.m + problem.p <= _DENSE_SIZE
    if problem.kind == "fixed_point":
        return Anderson()
    if problem.kind == "root":
        return Newton() if small else Broyden()
    if problem.p:
        return SQP() if small else AugmentedLagrangian()
    if not small:
        return LBFGS()
    return LevenbergMarquardt() if problem.has_residual else Newton()


# What has options without which it means nothing (MultiStart, WarmStart) has no name.
_SOLVERS = {
    cls.__name__: cls
    for cls in (
        Anderson,
        AugmentedLagrangian,
        Bisection,
        Broyden,
        GaussNewton,
        GradientDescent,
        LBFGS,
        LevenbergMarquardt,
        Newton,
        SQP,
        SciPy,
    )
}


def get(solver: object) -> Solver | Composite:
    """Returns the solver that a name stands for, with its default options; an object is returned as it is.

    Raises:
        InvalidInputError: If it is neither.

    Example:
        >>> get("Newton")
        Newton(rtol=None, atol=0.0, max_steps=200)
    """
    if isinstance(solver, str) and solver in _SOLVERS:
        return _SOLVERS[solver]()
    if is_solver(solver):
        return solver
    raise InvalidInputError(
        f"`solvers.get(solver=...)` must be 'auto', one of {', '.join(map(repr, _SOLVERS))}, or a solver object such "
        f"as `Newton(rtol=1e-8)`, got {solver!r}."
    )
