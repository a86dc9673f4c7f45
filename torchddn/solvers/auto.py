"""Which solver for which problem."""

from torchddn.errors import InvalidInputError
from torchddn.problem import BatchedProblem
from torchddn.solvers.active_set_newton import Hybrid
from torchddn.solvers.augmented_lagrangian import AugmentedLagrangian
from torchddn.solvers.base import Composite, Solver, is_solver
from torchddn.solvers.bridges import Ipopt, SciPy
from torchddn.solvers.descent import LBFGS, GradientDescent
from torchddn.solvers.interior_point import InteriorPoint
from torchddn.solvers.least_squares import GaussNewton, LevenbergMarquardt
from torchddn.solvers.newton import Newton
from torchddn.solvers.roots import Anderson, Bisection, Broyden
from torchddn.solvers.sqp import SQP
from torchddn.verification import DENSE_LIMIT

__all__ = ["choose", "get"]


def choose(problem: BatchedProblem) -> Solver | Composite:
    """Returns the solver that ``"auto"`` stands for: Newton-type while a dense matrix is cheap, first-order beyond.

    With constraints that is a pair, ``"ActiveSetNewton, InteriorPoint"`` or ``"ActiveSetNewton, SQP"``: a few steps of
    Newton's method on the active conditions, and for the items that these do not bring to a strict minimum the robust
    solver, from their start. So it is without constraints in a compiled node. Where a dense matrix is not cheap the
    first of the pair is tried if the Hessian has a structure.

    Example:
        >>> import torch, torchddn as ddn
        >>> ddn.argmin(lambda y, x: (y - x).square().sum(), torch.zeros(2), torch.ones(1, 2), solution=True).solver
        'Newton'
    """
    small = problem.m + problem.p <= DENSE_LIMIT
    if problem.kind == "fixed_point":
        return Anderson()
    if problem.kind == "root":
        return Newton() if small else Broyden()
    if problem.is_inequality_constrained:
        return Hybrid(InteriorPoint()) if small else Hybrid(AugmentedLagrangian(), forms_matrices=False)
    if problem.p:
        return Hybrid(SQP()) if small else Hybrid(AugmentedLagrangian(), forms_matrices=False)
    if not small:
        return Hybrid(LBFGS(), forms_matrices=False)
    if problem.has_residual:
        return LevenbergMarquardt()
    # A step of the first is one kernel of a compiled node, one of the other is many.
    return Newton() if problem.kernels is None else Hybrid(Newton())


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
        InteriorPoint,
        Ipopt,
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
