"""torchddn: any optimization problem as a PyTorch layer, with exact gradients.

Declare what a layer's output must be, the solution of an optimization problem, and get an ``nn.Module`` whose
gradients come from the implicit function theorem, whichever solver found the solution.
"""

import importlib
from typing import TYPE_CHECKING, Any

from torchddn import bilevel, functional, linear, nn, penalties, solvers
from torchddn.adjoint import IgnoreConstraints, Implicit, OneStep, Unrolled
from torchddn.diagnostics import diagnostics
from torchddn.errors import (
    CompileWarning,
    ConvergenceWarning,
    DDNError,
    DegenerateGradientWarning,
    InfeasibleError,
    InvalidInputError,
    SingularError,
    SolveError,
    UnboundedError,
)
from torchddn.explain import explain
from torchddn.node import DeclarativeNode, argmin, fixed_point, root
from torchddn.problem import LeastSquares, Problem
from torchddn.status import PrimalDual, Solution, Status

if TYPE_CHECKING:
    from torchddn import plotting as plotting
    from torchddn import testing

__version__ = "0.1.0"

__all__ = [
    "CompileWarning",
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
    "PrimalDual",
    "Problem",
    "SingularError",
    "Solution",
    "SolveError",
    "Status",
    "UnboundedError",
    "Unrolled",
    "argmin",
    "bilevel",
    "diagnostics",
    "explain",
    "fixed_point",
    "functional",
    "linear",
    "nn",
    "penalties",
    "root",
    "solvers",
    "testing",
]


def __getattr__(name: str) -> Any:
    # Imported when first asked for. `plotting` needs matplotlib, which is why it is not in `__all__` either: a star
    # import asks for everything there.
    if name in ("plotting", "testing"):
        return importlib.import_module(f"torchddn.{name}")
    raise AttributeError(f"module 'torchddn' has no attribute {name!r}")
