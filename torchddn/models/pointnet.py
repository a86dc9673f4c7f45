"""PointNet: a network for sets of points, invariant to their order.

Every point goes through the same small network, the features of all points are pooled into one vector, and a
classifier reads it. The pooling is the declarative node: for each feature, with x_i its value at point i,

    y(x) = argmin_y  sum_i phi(y - x_i; alpha)
"""

from collections.abc import Sequence

from torch import Tensor, nn

from torchddn.errors import InvalidInputError
from torchddn.functional import robust_pool

__all__ = ["POOLINGS", "PointNet"]

POOLINGS = ("max", "quadratic", "pseudo_huber", "huber", "welsch", "truncated_quadratic")


class PointNet(nn.Module):
    """Classifies point sets ``(B, n, num_features)``; the answer is logits ``(B, num_classes)``.

    Batch normalization and ReLU stand before the pooling, so a feature has a spread of about one, which is the
    scale that ``alpha`` refers to. The pooling has no parameters: networks that differ in it only have the same
    weights in the same places.

    Args:
        pooling: ``"max"``, or the penalty of :func:`torchddn.functional.robust_pool` (``"quadratic"`` is the mean).
        alpha: Scale of the penalty, positive: loosely, how far an inlier's feature may be from the pooled one.
        num_features: Numbers per point.
        num_classes: Logits per point set.
        widths: Features of a point after each layer of the shared network; the last ones are pooled.

    Raises:
        InvalidInputError: If ``pooling`` is unknown, a number is not positive, or the input has another shape.

    Example:
        >>> import torch
        >>> PointNet(pooling="huber")(torch.randn(4, 64, 3)).shape
        torch.Size([4, 10])

    References:
        Qi, Su, Mo, Guibas, PointNet, 2017, without its learned transformations of the input; the robust pooling is
        that of Gould, Hartley, Campbell, Deep Declarative Networks, section 5.1.
    """

    def __init__(
        self,
        pooling: str = "max",
        alpha: float = 1.0,
        *,
        num_features: int = 3,
        num_classes: int = 10,
        widths: Sequence[int] = (32, 64, 128),
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise InvalidInputError(f"`PointNet(pooling=...)` must be one of {', '.join(POOLINGS)}, got {pooling!r}.")
        if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha < float("inf"):
            raise InvalidInputError(f"`PointNet(alpha=...)` must be a positive number, got {alpha!r}.")
        for name, size in (("num_features", num_features), ("num_classes", num_classes)):
            if not _is_count(size):
                raise InvalidInputError(f"`PointNet({name}=...)` must be a positive integer, got {size!r}.")
        if not isinstance(widths, Sequence) or not widths or not all(map(_is_count, widths)):
            raise InvalidInputError(f"`PointNet(widths=...)` must be one or more positive integers, got {widths!r}.")
        self.pooling = pooling
        self.alpha = alpha
        self.num_features = num_features
        self.shared = nn.Sequential()
        for width_prev, width in zip((num_features, *widths), widths, strict=False):
            self.shared.extend([nn.Linear(width_prev, width), nn.BatchNorm1d(width), nn.ReLU()])
        pooled = widths[-1]
        self.classifier = nn.Sequential(
            nn.Linear(pooled, pooled), nn.BatchNorm1d(pooled), nn.ReLU(), nn.Linear(pooled, num_classes)
        )

    def forward(self, points: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(points)))

    def features(self, points: Tensor) -> Tensor:
        """The features of each point, ``(B, n, widths[-1])``."""
        if points.ndim != 3 or points.shape[-1] != self.num_features:
            raise InvalidInputError(
                f"`PointNet`: the input must have shape (B, n, {self.num_features}), got {tuple(points.shape)}."
            )
        return self.shared(points.flatten(0, 1)).unflatten(0, points.shape[:2])

    def pool(self, features: Tensor) -> Tensor:
        """The features of each set, ``(B, widths[-1])``."""
        if self.pooling == "max":
            return features.amax(dim=1)
        return robust_pool(features, self.pooling, self.alpha, dim=1)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
