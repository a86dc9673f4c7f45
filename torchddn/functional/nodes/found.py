"""What a solver of rows hands back."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["Found"]


class Found(NamedTuple):
    """``y``, steps, whether it converged, and ``|f_y|`` where the solver last looked, ``(R,)`` each."""

    y: Tensor
    num_steps: Tensor
    converged: Tensor
    residual: Tensor
