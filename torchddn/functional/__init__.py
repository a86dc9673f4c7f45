"""Ready nodes: functions whose forward and backward passes exploit the structure of their problem.

They take any batch axes, ``(*B, ...)``, are differentiable to every order in reverse and forward mode, and work under
the transforms of ``torch.func``. :mod:`torchddn.nn` has the modules of the same things.
"""

from torchddn.functional.linear_algebra.banded import banded_solve, tridiagonal_solve
from torchddn.functional.linear_algebra.least_squares import total_least_squares, weighted_least_squares
from torchddn.functional.linear_algebra.spectral import bottom_eigenvectors, top_eigenvectors
from torchddn.functional.pooling.robust import robust_pool, robust_vector_pool
from torchddn.functional.programs.quadratic import quadratic_program
from torchddn.functional.projection.affine import project_affine
from torchddn.functional.projection.monotone import project_monotone
from torchddn.functional.projection.norms import project_l21_ball, project_weighted_l1_ball
from torchddn.functional.projection.orthogonal import project_orthogonal, project_rotation
from torchddn.functional.projection.sets import project_box, project_halfspace
from torchddn.functional.projection.simplex import entmax15, project_capped_simplex, project_simplex, sparsemax
from torchddn.functional.projection.spheres import project_ball, project_sphere
from torchddn.functional.transport.clouds import CloudSolution, sinkhorn_divergence, transport_between
from torchddn.functional.transport.plans import optimal_transport, transport_cost

__all__ = [
    "CloudSolution",
    "banded_solve",
    "bottom_eigenvectors",
    "entmax15",
    "optimal_transport",
    "project_affine",
    "project_ball",
    "project_box",
    "project_capped_simplex",
    "project_halfspace",
    "project_l21_ball",
    "project_monotone",
    "project_orthogonal",
    "project_rotation",
    "project_simplex",
    "project_sphere",
    "project_weighted_l1_ball",
    "quadratic_program",
    "robust_pool",
    "robust_vector_pool",
    "sinkhorn_divergence",
    "sparsemax",
    "top_eigenvectors",
    "total_least_squares",
    "transport_between",
    "transport_cost",
    "tridiagonal_solve",
    "weighted_least_squares",
]
