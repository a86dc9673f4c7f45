"""PointNet: a network for sets of points, invariant to their order.

Every point goes through the same small network, the features of all points are pooled into one vector, and a
classifier reads it. The pooling is the declarative node: for each feature, with x_i its value at point i,

    y(x) = argmin_y  sum_i phi(y - x_i; alpha)
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from torchddn.errors import InvalidInputError
from torchddn.functional import robust_pool
from torchddn.functional.nodes.arguments import check_flag, check_positive
from torchddn.models.arguments import check_count, check_widths
from torchddn.penalties import Penalty

__all__ = ["POOLINGS", "PointNet"]

POOLINGS = ("max", "quadratic", "pseudo_huber", "huber", "welsch", "truncated_quadratic")

Pooling = str | Penalty | Callable[[Tensor], Tensor]


class PointNet(nn.Module):
    """Classifies point sets ``(B, n, num_features)``; the answer is logits ``(B, num_classes)``.

    Batch normalization stands before the pooling, so a feature has a spread of about one, which is the scale that
    ``alpha`` refers to. No ReLU comes between them: it would give many inliers and outliers the same feature, zero. A
    pooling that is a name or a penalty has no parameters: networks that differ in it only have the same weights in the
    same places. The defaults are a small network of 29,000 parameters; :meth:`published` is that of the paper.

    Args:
        pooling: ``"max"``, or the penalty of :func:`torchddn.functional.robust_pool`, by name (``"quadratic"`` is the
            mean) or an object of :mod:`torchddn.penalties`, or any function or module from ``(B, n, c)`` to ``(B, c)``.
        alpha: Scale of the penalty, positive: loosely, how far an inlier's feature may be from the pooled one.
        num_features: Numbers per point.
        num_classes: Logits per point set.
        widths: Features of a point after each layer of the shared network; the last ones are pooled.
        head: Widths of the layers between the pooled features and the logits.
        dropout: Share of the last hidden features that is left out in training, in [0, 1).
        transform: Whether to learn a linear map of the input, from the whole set, as the original does; it acts on the
            first three numbers of each point, and is pooled by max.

    Raises:
        InvalidInputError: If ``pooling`` is unknown, a number is out of range, or the input has another shape.

    Example:
        >>> import torch
        >>> PointNet(pooling="huber")(torch.randn(4, 64, 3)).shape
        torch.Size([4, 10])

    References:
        Qi, Su, Mo, Guibas, PointNet, 2017, with a ReLU before the pooling. Without it, and with robust pooling: Gould,
        Hartley, Campbell, Deep Declarative Networks, sections 5.1 and 7, and the code released with it.
    """

    def __init__(
        self,
        pooling: Pooling = "max",
        alpha: float = 1.0,
        *,
        num_features: int = 3,
        num_classes: int = 10,
        widths: Sequence[int] = (32, 64, 128),
        head: Sequence[int] = (128,),
        dropout: float = 0.0,
        transform: bool = False,
    ) -> None:
        super().__init__()
        _check_pooling(pooling)
        check_positive("PointNet", "alpha", alpha)
        check_count("PointNet", "num_features", num_features)
        check_count("PointNet", "num_classes", num_classes)
        check_widths("PointNet", "widths", widths)
        check_widths("PointNet", "head", head)
        check_flag("PointNet", "transform", transform)
        if not isinstance(dropout, int | float) or isinstance(dropout, bool) or not 0 <= dropout < 1:
            raise InvalidInputError(f"`PointNet(dropout=...)` must be in [0, 1), got {dropout!r}.")
        if transform and num_features < 3:
            raise InvalidInputError(
                f"`PointNet(transform=True)` needs points in three dimensions, got num_features = {num_features}."
            )
        self.pooling = pooling
        self.alpha = alpha
        self.num_features = num_features
        self.transform = _Transform() if transform else None
        self.shared = _layers((num_features, *widths))[:-1]
        self.classifier = _layers((widths[-1], *head))
        if dropout > 0:
            self.classifier.append(nn.Dropout(dropout))
        self.classifier.append(nn.Linear(head[-1], num_classes))

    @classmethod
    def published(
        cls,
        pooling: Pooling = "max",
        alpha: float = 1.0,
        *,
        num_features: int = 3,
        num_classes: int = 40,
        transform: bool = False,
    ) -> "PointNet":
        """Returns the network of the paper's tables, of 0.8 million parameters (with ``transform`` 1.6 million)."""
        return cls(
            pooling,
            alpha,
            num_features=num_features,
            num_classes=num_classes,
            widths=(64, 128, 1024),
            head=(512, 256),
            dropout=0.3,
            transform=transform,
        )

    def forward(self, points: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(points)))

    def features(self, points: Tensor) -> Tensor:
        """The features of each point, ``(B, n, widths[-1])``."""
        if points.ndim != 3 or points.shape[-1] != self.num_features:
            raise InvalidInputError(
                f"`PointNet`: the input must have shape (B, n, {self.num_features}), got {tuple(points.shape)}."
            )
        if self.transform is not None:
            turned = points[..., :3] @ self.transform(points[..., :3])
            points = torch.cat([turned, points[..., 3:]], dim=2)
        return self.shared(points.flatten(0, 1)).unflatten(0, points.shape[:2])

    def pool(self, features: Tensor) -> Tensor:
        """The features of each set, ``(B, widths[-1])``."""
        if self.pooling == "max":
            return features.amax(dim=1)
        if isinstance(self.pooling, str | Penalty):
            return robust_pool(features, self.pooling, self.alpha, dim=1)
        return self.pooling(features)


class _Transform(nn.Module):
    """A map of space per set, ``(B, n, 3)`` to ``(B, 3, 3)``; the identity before training."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = _layers((3, 64, 128, 1024))
        self.head = _layers((1024, 512, 256))
        self.last = nn.Linear(256, 9)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, points: Tensor) -> Tensor:
        features = self.shared(points.flatten(0, 1)).unflatten(0, points.shape[:2]).amax(dim=1)
        change = self.last(self.head(features)).unflatten(1, (3, 3))
        return torch.eye(3, dtype=points.dtype, device=points.device) + change


def _layers(widths: Sequence[int]) -> nn.Sequential:
    layers = nn.Sequential()
    for width_prev, width in itertools.pairwise(widths):
        layers.extend([nn.Linear(width_prev, width), nn.BatchNorm1d(width), nn.ReLU()])
    return layers


def _check_pooling(pooling: object) -> None:
    if isinstance(pooling, str) and pooling not in POOLINGS:
        raise InvalidInputError(f"`PointNet(pooling=...)` must be one of {', '.join(POOLINGS)}, got {pooling!r}.")
    if not isinstance(pooling, str | Penalty) and not callable(pooling):
        raise InvalidInputError(
            f"`PointNet(pooling=...)` must be one of {', '.join(POOLINGS)}, a penalty, or a function of the features, "
            f"got {pooling!r}."
        )
