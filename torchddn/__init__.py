"""torchddn: any optimization problem as a PyTorch layer, with exact gradients.

Declare what a layer's output must be, the solution of an optimization problem, and get an ``nn.Module`` whose
gradients come from the implicit function theorem, whichever solver found the solution.
"""

from torchddn import functional, linear, nn, penalties, solvers
from torchddn.adjoint import IgnoreConstraints, Implicit, OneStep, Unrolled
from torchddn.diagnostics import diagnostics
from torchddn.errors import (
    ConvergenceWarning,
    DDNError,
    DegenerateGradientWarning,
    InfeasibleError,
    InvalidInputError,
    SingularError,
    SolveError,
    UnboundedError,
)
from torchddn.node import DeclarativeNode, argmin, fixed_point, root
from torchddn.problem import LeastSquares, Problem
from torchddn.status import Solution, Status

__version__ = "0.1.0"

__all__ = [
    "ConvergenceWarning",
    "DDNError",
    "DeclarativeNode",
    "DegenerateGradientWarning",
    "IgnoreConstraints",
    "Implicit",
    "InfeasibleError",
    "InvalidInputError",
    "LeastSquares",
    "OneStep",
    "Problem",
    "SingularError",
    "Solution",
    "SolveError",
    "Status",
    "UnboundedError",
    "Unrolled",
    "argmin",
    "diagnostics",
    "fixed_point",
    "functional",
    "linear",
    "nn",
    "penalties",
    "root",
    "solvers",
]
