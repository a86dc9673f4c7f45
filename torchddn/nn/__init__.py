"""Modules of the ready nodes of :mod:`torchddn.functional`, which says what they compute."""

from torchddn.nn.pooling import RobustPool, RobustPool2d, RobustVectorPool, RobustVectorPool2d
from torchddn.nn.projection import ProjectBall, ProjectSphere

__all__ = ["ProjectBall", "ProjectSphere", "RobustPool", "RobustPool2d", "RobustVectorPool", "RobustVectorPool2d"]
