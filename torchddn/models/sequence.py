"""A classifier of videos that summarizes the frames by the direction in which they evolve.

With x_t the features of frame t, the classifier reads

    y(x) = argmin_u  1/2 |u|^2 + C sum_t loss(t - u.x_t)

the vector whose products with the frames tell their order; or their maximum or mean, which do not know it.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from torchddn.errors import InvalidInputError
from torchddn.functional import rank_pooling
from torchddn.functional.nodes.arguments import check_choice, check_positive
from torchddn.models.arguments import check_count, check_widths
from torchddn.models.encoder import encoder

__all__ = ["SUMMARIES", "SequenceClassifier"]

SUMMARIES = ("rank", "max", "mean")


class SequenceClassifier(nn.Module):
    """Classifies videos ``(B, T, in_channels, H, W)``; the answer is logits ``(B, num_classes)``.

    Every frame goes through the same small convolutional network; the pooling over time has no parameters, so networks
    that differ in it only have the same weights in the same places.

    Args:
        pooling: ``"rank"`` (:func:`torchddn.functional.rank_pooling`), ``"max"`` or ``"mean"``.
        C: Of rank pooling: what a frame out of order costs, positive.
        num_classes: Logits per video.
        in_channels: Of a frame.
        widths: Channels after each convolution.
        num_features: Numbers per frame that are pooled.

    Raises:
        InvalidInputError: If an argument is wrong, or the input has another shape.

    Example:
        >>> import torch
        >>> SequenceClassifier()(torch.randn(2, 6, 1, 24, 24)).shape
        torch.Size([2, 10])

    References:
        Fernando, Gould, Learning End-to-end Video Classification with Rank-Pooling, 2016.
    """

    def __init__(
        self,
        pooling: str = "rank",
        C: float = 1.0,
        *,
        num_classes: int = 10,
        in_channels: int = 1,
        widths: Sequence[int] = (16, 32),
        num_features: int = 32,
    ) -> None:
        super().__init__()
        check_choice("SequenceClassifier", "pooling", pooling, SUMMARIES)
        check_positive("SequenceClassifier", "C", C)
        check_widths("SequenceClassifier", "widths", widths)
        sizes = (("num_classes", num_classes), ("in_channels", in_channels), ("num_features", num_features))
        for name, value in sizes:
            check_count("SequenceClassifier", name, value)
        self.pooling, self.C, self.in_channels = pooling, C, in_channels
        self.encoder = encoder(in_channels, widths, num_features)
        # A spread of one per feature is the scale that C refers to.
        self.frame_norm = nn.BatchNorm1d(num_features)
        self.summary_norm = nn.BatchNorm1d(num_features)
        self.classifier = nn.Linear(num_features, num_classes)

    def forward(self, videos: Tensor) -> Tensor:
        return self.classifier(self.summary_norm(self.pool(self.features(videos))))

    def features(self, videos: Tensor) -> Tensor:
        """The features of each frame, ``(B, T, num_features)``."""
        if videos.ndim != 5 or videos.shape[2] != self.in_channels:
            raise InvalidInputError(
                f"`SequenceClassifier`: the input must have shape (B, T, {self.in_channels}, H, W), "
                f"got {tuple(videos.shape)}."
            )
        return self.frame_norm(self.encoder(videos.flatten(0, 1))).unflatten(0, videos.shape[:2])

    def pool(self, features: Tensor) -> Tensor:
        """One vector per video, ``(B, num_features)``."""
        if self.pooling == "max":
            return features.amax(dim=1)
        if self.pooling == "mean":
            return features.mean(dim=1)
        return rank_pooling(features, self.C)
