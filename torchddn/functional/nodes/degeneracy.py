"""Warnings of gradients that the problem does not determine, with the reason and the remedy of the node."""

import warnings

from torch import Tensor

from torchddn.errors import DegenerateGradientWarning
from torchddn.functional.nodes.reading import read

__all__ = ["warn_undetermined"]


def warn_undetermined(call: str, items: Tensor, reason: str, remedy: str) -> None:
    """Warns of the items, a mask ``(R,)``, whose gradient is one of many, for ``reason``."""

    def look(items: Tensor) -> None:
        found = items.flatten().nonzero().flatten().tolist()
        if found:
            shown = ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
            warnings.warn(
                f"`{call}`: the gradient of {len(found)} of {items.numel()} items is one of many, because {reason} "
                f"(items {shown}). The one of minimum norm is returned; {remedy}.",
                DegenerateGradientWarning,
                stacklevel=2,
            )

    read(look, items)
