"""ResNet-18, with a projection of its features before the last layer.

With f the pooled features, normalized over the batch, the classifier reads the nearest point of a sphere or ball:

    y(f) = argmin_y  1/2 |y - f|^2   subject to   |y|_p = radius   (or <=)
"""

import torch
from torch import Tensor, nn

from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_choice, check_flag, check_positive
from torchddn.functional.projection.spheres import check_norm
from torchddn.models.arguments import check_count
from torchddn.nn import ProjectBall, ProjectSphere

__all__ = ["RADII", "ResNet18"]

# Of the paper, for the 512 features of the full network: 2/3 of the median norm of its normalized features.
RADII = {1: 250.0, 2: 15.0, float("inf"): 3.0}

_SETS = {"sphere": ProjectSphere, "ball": ProjectBall}
_NUM_STAGES = 4


class ResNet18(nn.Module):
    """Classifies images ``(B, in_channels, H, W)``; the answer is logits ``(B, num_classes)``.

    Parameters have the names that torchvision gives them, so that its weights load (``load_state_dict(...)``; with a
    projection ``strict=False``, for the statistics of its normalization are new).

    Args:
        num_classes: Logits per image.
        projection: ``"sphere"`` or ``"ball"``: batch normalization without learnable parameters and a projection onto
            that set stand before the last layer; nothing does unless given. It adds no parameters.
        p: Norm of the projection.
        radius: Of the projection; 250, 15 and 3 for p = 1, 2 and inf unless given, which are those of the paper, for
            512 features. For others, take two thirds of the median norm of what :meth:`normalized` returns.
        in_channels: Of the images.
        width: Channels of the first stage; the last has eight times as many. 64 is the published network.
        small_images: Whether to begin with a 3 x 3 convolution in place of one of 7 x 7 and a pooling, which together
            leave a quarter of each side.

    Raises:
        InvalidInputError: If an argument is wrong, or the input has another shape.

    Example:
        >>> model = ResNet18(10, projection="sphere", in_channels=1, width=4, small_images=True)
        >>> model(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 10])

    References:
        He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2016. The projection: Gould, Hartley,
        Campbell, Deep Declarative Networks, section 7, table 5.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        projection: str | None = None,
        p: float = 2,
        radius: float | None = None,
        in_channels: int = 3,
        width: int = 64,
        small_images: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("in_channels", in_channels), ("width", width)):
            check_count("ResNet18", name, value)
        check_flag("ResNet18", "small_images", small_images)
        check_norm("ResNet18", p)
        if radius is not None:
            check_positive("ResNet18", "radius", radius)
        if projection is not None:
            check_choice("ResNet18", "projection", projection, tuple(_SETS))
            if radius is None and p not in RADII:
                raise InvalidInputError(f"`ResNet18(radius=...)` must be given for p = {p}; the paper has none for it.")
        self.in_channels = in_channels
        if small_images:
            self.conv1: nn.Module = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
            self.maxpool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        channels = [width, *(width * 2**stage for stage in range(_NUM_STAGES))]
        for stage in range(_NUM_STAGES):
            stride = 1 if stage == 0 else 2
            first = _Block(channels[stage], channels[stage + 1], stride)
            self.add_module(f"layer{stage + 1}", nn.Sequential(first, _Block(channels[stage + 1], channels[stage + 1])))
        num_features = channels[-1]
        self.norm = nn.BatchNorm1d(num_features, affine=False) if projection is not None else None
        self.projection = (
            _SETS[projection](p, RADII[p] if radius is None else radius) if projection is not None else None
        )
        self.fc = nn.Linear(num_features, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)
        if self.norm is not None and self.projection is not None:
            features = self.projection(self.norm(features))
        return self.fc(features)

    def features(self, images: Tensor) -> Tensor:
        """The pooled features of each image, ``(B, 8 * width)``, before any normalization."""
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise InvalidInputError(
                f"`ResNet18`: the input must have shape (B, {self.in_channels}, H, W), got {tuple(images.shape)}."
            )
        x = self.maxpool(torch.relu(self.bn1(self.conv1(images))))
        for stage in range(_NUM_STAGES):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return x.mean(dim=(2, 3))


class _Block(nn.Module):
    """Two convolutions around which the input is led and added."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        change = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(change + (x if self.downsample is None else self.downsample(x)))
