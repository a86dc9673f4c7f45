"""A small convolutional network from an image to a vector, shared by frames of a video or patches of a puzzle."""

from collections.abc import Sequence

from torch import nn

__all__ = ["encoder"]


def encoder(in_channels: int, widths: Sequence[int], num_features: int) -> nn.Sequential:
    """Returns convolutions of 3 x 3 with these widths, halving the sides between them, and a linear map.

    The last sides are brought to 4 x 4, so that images of any size will do.
    """
    layers = nn.Sequential()
    for number, (width_prev, width) in enumerate(zip((in_channels, *widths), widths, strict=False)):
        if number > 0:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        layers.extend([nn.Conv2d(width_prev, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()])
    layers.extend([nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * widths[-1], num_features)])
    return layers
