"""Ready nodes: functions whose forward and backward passes exploit the structure of their problem.

They take any batch axes, ``(*B, ...)``, are differentiable to every order in reverse and forward mode, and work under
the transforms of ``torch.func``. :mod:`torchddn.nn` has the modules of the same things.
"""

from torchddn.functional.learning.kernels import KernelMachine
from torchddn.functional.learning.rank_pooling import rank_pooling
from torchddn.functional.learning.ridge import ridge_head
from torchddn.functional.learning.support_vectors import support_vector_machine
from torchddn.functional.linear_algebra.banded import banded_solve, tridiagonal_solve
from torchddn.functional.linear_algebra.least_squares import total_least_squares, weighted_least_squares
from torchddn.functional.linear_algebra.spectral import bottom_eigenvectors, top_eigenvectors
from torchddn.functional.pooling.robust import robust_pool, robust_vector_pool
from torchddn.functional.programs.center import analytic_center
from torchddn.functional.programs.quadratic import quadratic_program
from torchddn.functional.projection.affine import project_affine
from torchddn.functional.projection.monotone import isotonic_regression, project_monotone
from torchddn.functional.projection.norms import project_l21_ball, project_weighted_l1_ball
from torchddn.functional.projection.orthogonal import project_orthogonal, project_rotation
from torchddn.functional.projection.polyhedron import project_polyhedron
from torchddn.functional.projection.second_order_cone import project_second_order_cone
from torchddn.functional.projection.semidefinite import project_psd
from torchddn.functional.projection.sets import project_box, project_halfspace
from torchddn.functional.projection.simplex import entmax15, project_capped_simplex, project_simplex, sparsemax
from torchddn.functional.projection.spheres import project_ball, project_sphere
from torchddn.functional.projection.top_k import soft_top_k
from torchddn.functional.projection.total_variation import total_variation
from torchddn.functional.transport.birkhoff import project_birkhoff
from torchddn.functional.transport.clouds import CloudSolution, sinkhorn_divergence, transport_between
from torchddn.functional.transport.plans import optimal_transport, transport_cost

__all__ = [
    "CloudSolution",
    "KernelMachine",
    "analytic_center",
    "banded_solve",
    "bottom_eigenvectors",
    "entmax15",
    "isotonic_regression",
    "optimal_transport",
    "project_affine",
    "project_ball",
    "project_birkhoff",
    "project_box",
    "project_capped_simplex",
    "project_halfspace",
    "project_l21_ball",
    "project_monotone",
    "project_orthogonal",
    "project_polyhedron",
    "project_psd",
    "project_rotation",
    "project_second_order_cone",
    "project_simplex",
    "project_sphere",
    "project_weighted_l1_ball",
    "quadratic_program",
    "rank_pooling",
    "ridge_head",
    "robust_pool",
    "robust_vector_pool",
    "sinkhorn_divergence",
    "soft_top_k",
    "sparsemax",
    "support_vector_machine",
    "top_eigenvectors",
    "total_least_squares",
    "total_variation",
    "transport_between",
    "transport_cost",
    "tridiagonal_solve",
    "weighted_least_squares",
]
