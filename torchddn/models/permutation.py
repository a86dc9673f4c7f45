"""A network that puts the patches of an image in order.

It gives every patch k a score S_kj for every place j. A permutation matrix would say where each belongs, but has no
gradient; a doubly stochastic one, whose rows and columns sum to one, is the relaxation of it:

    Y(S) = argmin_Y  -<S, Y> - H(Y) / gamma       (Sinkhorn: all entries are positive)
    Y(S) = argmin_Y  1/2 |Y - gamma S|^2          (exact projection: most are zero)

both over Y >= 0, Y 1 = 1, Y^T 1 = 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchddn.errors import InvalidInputError
from torchddn.functional import optimal_transport, project_birkhoff
from torchddn.functional.nodes.arguments import check_choice, check_positive
from torchddn.models.arguments import check_count, check_widths
from torchddn.models.encoder import encoder

__all__ = ["RELAXATIONS", "PermutationNet"]

RELAXATIONS = ("sinkhorn", "birkhoff", "softmax")


class PermutationNet(nn.Module):
    """Places the patches ``(B, n, in_channels, h, w)`` of images; the answer is ``(B, n, n)``, row k that of patch k.

    Each patch goes through the same small convolutional network, the patches of an image look at one another through
    self-attention, and a linear map gives the scores. Nothing depends on the order in which the patches come: to
    shuffle them shuffles the rows. The relaxation has no parameters.

    Args:
        num_patches: n.
        relaxation: ``"sinkhorn"``, ``"birkhoff"``, or, to compare with, ``"softmax"``: rows sum to one, columns to
            anything.
        gamma: Sharpness of the relaxation, positive.
        in_channels: Of a patch.
        widths: Channels after each convolution.
        num_features: Numbers per patch, a multiple of 4.
        num_layers: Of attention.

    Raises:
        InvalidInputError: If an argument is wrong, or the input has another shape.

    Example:
        >>> Y = PermutationNet(4)(torch.randn(2, 4, 1, 3, 3))
        >>> torch.allclose(Y.sum(dim=1), torch.ones(2, 4)), torch.allclose(Y.sum(dim=2), torch.ones(2, 4))
        (True, True)

    References:
        Santa Cruz, Fernando, Cherian, Gould, DeepPermNet: Visual Permutation Learning, 2017, with Sinkhorn's iteration
        unrolled.
    """

    def __init__(
        self,
        num_patches: int,
        *,
        relaxation: str = "sinkhorn",
        gamma: float = 1.0,
        in_channels: int = 1,
        widths: Sequence[int] = (16, 32),
        num_features: int = 64,
        num_layers: int = 2,
    ) -> None:
        super().__init__()
        check_choice("PermutationNet", "relaxation", relaxation, RELAXATIONS)
        check_positive("PermutationNet", "gamma", gamma)
        check_widths("PermutationNet", "widths", widths)
        sizes = (
            ("num_patches", num_patches),
            ("in_channels", in_channels),
            ("num_features", num_features),
            ("num_layers", num_layers),
        )
        for name, value in sizes:
            check_count("PermutationNet", name, value)
        if num_features % _NUM_HEADS:
            raise InvalidInputError(
                f"`PermutationNet(num_features=...)` must be a multiple of {_NUM_HEADS}, got {num_features}."
            )
        self.num_patches, self.relaxation, self.gamma, self.in_channels = num_patches, relaxation, gamma, in_channels
        self.encoder = encoder(in_channels, widths, num_features)
        self.attention = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(num_features, _NUM_HEADS, 2 * num_features, dropout=0.0, batch_first=True)
                for _ in range(num_layers)
            )
        )
        self.places = nn.Linear(num_features, num_patches)

    def forward(self, patches: Tensor) -> Tensor:
        return self.relax(self.scores(patches))

    def scores(self, patches: Tensor) -> Tensor:
        """How well each patch would fit each place, ``(B, n, n)``."""
        if patches.ndim != 5 or patches.shape[1] != self.num_patches or patches.shape[2] != self.in_channels:
            raise InvalidInputError(
                f"`PermutationNet`: the input must have shape (B, {self.num_patches}, {self.in_channels}, h, w), "
                f"got {tuple(patches.shape)}."
            )
        features = self.encoder(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
        return self.places(self.attention(features))

    def relax(self, scores: Tensor) -> Tensor:
        """The matrices ``(B, n, n)`` of scores."""
        if self.relaxation == "softmax":
            return torch.softmax(self.gamma * scores, dim=2)
        if self.relaxation == "birkhoff":
            return project_birkhoff(self.gamma * scores)
        return self.num_patches * optimal_transport(-scores, gamma=self.gamma)


_NUM_HEADS = 4
