"""Cones and cone programs: projections with their derivatives, and the optimality conditions in them.

Tensors here are plain or differentiable, in float64; who calls makes nodes of them.
"""

from torchddn.cones.canonical import Canonical, Leaf, canonicalize
from torchddn.cones.clarabel import Found, Settings, check_settings, solve_programs
from torchddn.cones.optimality import ConeData, errors, linearize, polish
from torchddn.cones.product import ProductCone
from torchddn.cones.semidefinite import lyapunov
from torchddn.cones.system import System, dense, gather_products, operator, refine

__all__ = [
    "Canonical",
    "ConeData",
    "Found",
    "Leaf",
    "ProductCone",
    "Settings",
    "System",
    "canonicalize",
    "check_settings",
    "dense",
    "errors",
    "gather_products",
    "linearize",
    "lyapunov",
    "operator",
    "polish",
    "refine",
    "solve_programs",
]
