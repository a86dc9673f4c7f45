"""All experiments."""

from typing import Any

from torchddn.experiments.experiment import Experiment
from torchddn.experiments.imagenet_projection import IMAGENET_PROJECTION
from torchddn.experiments.permutation import PERMUTATION
from torchddn.experiments.pointcloud import POINTCLOUD
from torchddn.experiments.profile_pooling import PROFILE_POOLING
from torchddn.experiments.profile_transport import PROFILE_TRANSPORT
from torchddn.experiments.ridge_hyperparameter import RIDGE_HYPERPARAMETER
from torchddn.experiments.video_ranking import VIDEO_RANKING

__all__ = ["EXPERIMENTS"]

_ALL: tuple[Experiment[Any], ...] = (
    POINTCLOUD,
    IMAGENET_PROJECTION,
    VIDEO_RANKING,
    PERMUTATION,
    PROFILE_POOLING,
    PROFILE_TRANSPORT,
    RIDGE_HYPERPARAMETER,
)

EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}
