"""The networks of the experiments."""

from torchddn.models.permutation import RELAXATIONS, PermutationNet
from torchddn.models.pointnet import POOLINGS, PointNet
from torchddn.models.resnet import RADII, ResNet18
from torchddn.models.sequence import SUMMARIES, SequenceClassifier

__all__ = [
    "POOLINGS",
    "RADII",
    "RELAXATIONS",
    "SUMMARIES",
    "PermutationNet",
    "PointNet",
    "ResNet18",
    "SequenceClassifier",
]
