"""Modules of the ready nodes of :mod:`torchddn.functional`, which says what they compute."""

from torchddn.nn.center import AnalyticCenter
from torchddn.nn.cones import ProjectPSD, ProjectSecondOrderCone
from torchddn.nn.convex import ConvexProgram
from torchddn.nn.heads import RidgeHead, SupportVectorMachine
from torchddn.nn.least_squares import LinearFit, RidgeRegression
from torchddn.nn.norms import ProjectL21Ball, ProjectWeightedL1Ball
from torchddn.nn.orthogonal import ProjectOrthogonal, ProjectRotation
from torchddn.nn.polyhedra import ProjectBirkhoff, ProjectPolyhedron
from torchddn.nn.pooling import RobustPool, RobustPool2d, RobustVectorPool, RobustVectorPool2d
from torchddn.nn.projection import ProjectBall, ProjectSphere
from torchddn.nn.quadratic import QuadraticProgram
from torchddn.nn.rank_pooling import RankPooling
from torchddn.nn.segments import IsotonicRegression, TotalVariation
from torchddn.nn.sets import ProjectAffine, ProjectBox, ProjectHalfspace, ProjectMonotone
from torchddn.nn.simplex import Entmax15, ProjectCappedSimplex, ProjectSimplex, Sparsemax
from torchddn.nn.spectral import BottomEigenvectors, TopEigenvectors
from torchddn.nn.top_k import SoftTopK
from torchddn.nn.transport import OptimalTransport

__all__ = [
    "AnalyticCenter",
    "BottomEigenvectors",
    "ConvexProgram",
    "Entmax15",
    "IsotonicRegression",
    "LinearFit",
    "OptimalTransport",
    "ProjectAffine",
    "ProjectBall",
    "ProjectBirkhoff",
    "ProjectBox",
    "ProjectCappedSimplex",
    "ProjectHalfspace",
    "ProjectL21Ball",
    "ProjectMonotone",
    "ProjectOrthogonal",
    "ProjectPSD",
    "ProjectPolyhedron",
    "ProjectRotation",
    "ProjectSecondOrderCone",
    "ProjectSimplex",
    "ProjectSphere",
    "ProjectWeightedL1Ball",
    "QuadraticProgram",
    "RankPooling",
    "RidgeHead",
    "RidgeRegression",
    "RobustPool",
    "RobustPool2d",
    "RobustVectorPool",
    "RobustVectorPool2d",
    "SoftTopK",
    "Sparsemax",
    "SupportVectorMachine",
    "TopEigenvectors",
    "TotalVariation",
]
