"""The networks of the experiments."""

from torchddn.models.pointnet import POOLINGS, PointNet

__all__ = ["POOLINGS", "PointNet"]
