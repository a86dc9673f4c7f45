"""Solvers: batched, each item with its own steps, status and count.

A solver finds ``y``, by whatever way; that its answer has a gradient is not its business. ``"auto"`` stands for the
one that :func:`choose` picks.
"""

from torchddn.solvers.augmented_lagrangian import AugmentedLagrangian
from torchddn.solvers.auto import choose, get
from torchddn.solvers.base import RUNNING, Composite, Result, Solver, solve, unroll
from torchddn.solvers.bridges import Ipopt, SciPy
from torchddn.solvers.descent import LBFGS, GradientDescent
from torchddn.solvers.interior_point import InteriorPoint
from torchddn.solvers.least_squares import GaussNewton, LevenbergMarquardt
from torchddn.solvers.newton import Newton
from torchddn.solvers.roots import Anderson, Bisection, Broyden
from torchddn.solvers.search import StrongWolfe
from torchddn.solvers.sqp import SQP
from torchddn.solvers.starts import MultiStart, WarmStart

__all__ = [
    "LBFGS",
    "RUNNING",
    "SQP",
    "Anderson",
    "AugmentedLagrangian",
    "Bisection",
    "Broyden",
    "Composite",
    "GaussNewton",
    "GradientDescent",
    "InteriorPoint",
    "Ipopt",
    "LevenbergMarquardt",
    "MultiStart",
    "Newton",
    "Result",
    "SciPy",
    "Solver",
    "StrongWolfe",
    "WarmStart",
    "choose",
    "get",
    "solve",
    "unroll",
]
