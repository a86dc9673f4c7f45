"""Modules of the ready nodes of :mod:`torchddn.functional`, which says what they compute."""

from torchddn.nn.convex import ConvexProgram
from torchddn.nn.least_squares import LinearFit, RidgeRegression
from torchddn.nn.norms import ProjectL21Ball, ProjectWeightedL1Ball
from torchddn.nn.orthogonal import ProjectOrthogonal, ProjectRotation
from torchddn.nn.pooling import RobustPool, RobustPool2d, RobustVectorPool, RobustVectorPool2d
from torchddn.nn.projection import ProjectBall, ProjectSphere
from torchddn.nn.quadratic import QuadraticProgram
from torchddn.nn.sets import ProjectAffine, ProjectBox, ProjectHalfspace, ProjectMonotone
from torchddn.nn.simplex import Entmax15, ProjectCappedSimplex, ProjectSimplex, Sparsemax
from torchddn.nn.spectral import BottomEigenvectors, TopEigenvectors
from torchddn.nn.transport import OptimalTransport

__all__ = [
    "BottomEigenvectors",
    "ConvexProgram",
    "Entmax15",
    "LinearFit",
    "OptimalTransport",
    "ProjectAffine",
    "ProjectBall",
    "ProjectBox",
    "ProjectCappedSimplex",
    "ProjectHalfspace",
    "ProjectL21Ball",
    "ProjectMonotone",
    "ProjectOrthogonal",
    "ProjectRotation",
    "ProjectSimplex",
    "ProjectSphere",
    "ProjectWeightedL1Ball",
    "QuadraticProgram",
    "RidgeRegression",
    "RobustPool",
    "RobustPool2d",
    "RobustVectorPool",
    "RobustVectorPool2d",
    "Sparsemax",
    "TopEigenvectors",
]
