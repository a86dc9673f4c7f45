r"""Simple sets for the upper variables: those onto which one projects without solving anything.

A set is asked for three things: the nearest point, the limits of each number, and sums that stay as they are. From the
latter two the quasi-Newton step knows where it may go.
"""

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchddn.errors import InvalidInputError
from torchddn.functional import project_simplex

__all__ = ["Box", "Constraint", "Positive", "Simplex", "UpperSet", "check_constraint", "set_of_each"]


@runtime_checkable
class UpperSet(Protocol):
    """Where one tensor of ``theta`` may be."""

    def project(self, theta: Tensor) -> Tensor:
        """The nearest point of the set."""
        ...

    def limits(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper limits, shaped as ``theta``."""
        ...

    def sums(self, theta: Tensor) -> Tensor:
        """Rows ``(p, theta.numel())`` whose products with ``theta`` are constant on the set."""
        ...


# A set for all of theta, or a tree of sets and None.
Constraint = Any


@dataclasses.dataclass(frozen=True)
class Box:
    """``lower <= theta <= upper``: numbers, tensors that broadcast to ``theta``, or None for no limit.

    Raises:
        InvalidInputError: If a limit is NaN or something else, or a lower one is above the upper one.

    Example:
        >>> Box(0.0, 1.0).project(torch.tensor([-0.5, 0.3, 7.0]))
        tensor([0.0000, 0.3000, 1.0000])
    """

    lower: float | Tensor | None = None
    upper: float | Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("lower", "upper"):
            _check_limit(f"Box({name}=...)", getattr(self, name))
        lower, upper = (torch.as_tensor(side) for side in self._sides())
        if not bool((lower <= upper).all()):
            raise InvalidInputError(f"`Box(lower=..., upper=...)` must have lower <= upper, got {lower} and {upper}.")

    def project(self, theta: Tensor) -> Tensor:
        """Each number moved to its nearest limit."""
        lower, upper = self.limits(theta)
        return theta.clamp(lower, upper)

    def limits(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`UpperSet`."""
        lower, upper = (torch.as_tensor(side, dtype=theta.dtype, device=theta.device) for side in self._sides())
        try:
            return lower.expand(theta.shape), upper.expand(theta.shape)
        except RuntimeError as error:
            raise InvalidInputError(
                f"`Box(lower=..., upper=...)` must broadcast to theta, which is {tuple(theta.shape)}, got "
                f"{tuple(lower.shape)} and {tuple(upper.shape)}."
            ) from error

    def sums(self, theta: Tensor) -> Tensor:
        """None are constant."""
        return theta.new_zeros(0, theta.numel())

    def _sides(self) -> tuple[float | Tensor, float | Tensor]:
        return -math.inf if self.lower is None else self.lower, math.inf if self.upper is None else self.upper


@dataclasses.dataclass(frozen=True)
class Positive:
    """``theta >= least``, for weights and penalties.

    Args:
        least: The limit, not negative. A lower problem that has no solution at zero wants one above.

    Raises:
        InvalidInputError: If it is negative or not finite.
    """

    least: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.least, bool) or not isinstance(self.least, (int, float)) or not 0 <= self.least < math.inf:
            raise InvalidInputError(f"`Positive(least=...)` must be a number, at least 0, got {self.least!r}.")

    def project(self, theta: Tensor) -> Tensor:
        """Each number, or ``least`` if that is larger."""
        return theta.clamp(min=self.least)

    def limits(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`UpperSet`."""
        return torch.full_like(theta, self.least), torch.full_like(theta, torch.inf)

    def sums(self, theta: Tensor) -> Tensor:
        """None are constant."""
        return theta.new_zeros(0, theta.numel())


@dataclasses.dataclass(frozen=True)
class Simplex:
    """``theta >= 0`` with the sum ``radius`` along the last axis.

    Raises:
        InvalidInputError: If ``radius`` is not a positive number.

    Example:
        >>> Simplex().project(torch.tensor([0.9, 0.3, -0.2]))
        tensor([0.8000, 0.2000, 0.0000])
    """

    radius: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.radius, bool) or not isinstance(self.radius, (int, float)) or not 0 < self.radius < math.inf:
            raise InvalidInputError(f"`Simplex(radius=...)` must be a positive number, got {self.radius!r}.")

    def project(self, theta: Tensor) -> Tensor:
        """The nearest point, row by row."""
        if not theta.dim():
            raise InvalidInputError("`Simplex()` needs a theta with an axis to sum along, got a scalar.")
        return project_simplex(theta, float(self.radius))

    def limits(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`UpperSet`."""
        return torch.zeros_like(theta), torch.full_like(theta, torch.inf)

    def sums(self, theta: Tensor) -> Tensor:
        """One row of ones for each row of ``theta``."""
        num_rows = theta.numel() // theta.shape[-1]
        ones = theta.new_ones(1, theta.shape[-1])
        return torch.block_diag(*[ones] * num_rows)


def check_constraint(call: str, constraint: Any) -> None:
    """Raises unless ``constraint`` is a set, None, or a tree of them."""
    for part in pytree.tree_leaves(constraint):
        if part is not None and (isinstance(part, type) or not isinstance(part, UpperSet)):
            raise InvalidInputError(
                f"`{call}(constraint=...)` must be `Positive()`, `Box()`, `Simplex()`, None, or a tree of them as "
                f"`theta` is, got {part!r}."
            )


def set_of_each(call: str, constraint: Any, theta: Any) -> list[UpperSet]:
    """The set of each tensor of ``theta``; a box without limits where there is none."""
    leaves, spec = pytree.tree_flatten(theta)
    if constraint is None or isinstance(constraint, UpperSet):
        return [constraint or Box()] * len(leaves)
    try:
        parts = spec.flatten_up_to(constraint)  # the entries of a dict in the order of theta's
    except ValueError:
        parts = [constraint]
    if not all(part is None or isinstance(part, UpperSet) for part in parts):
        raise InvalidInputError(
            f"`{call}(constraint=...)` must be one set or a tree as `theta` is, with {len(leaves)} sets, got "
            f"{constraint!r}."
        )
    return [part or Box() for part in parts]


def _check_limit(name: str, limit: object) -> None:
    if limit is None:
        return
    real = isinstance(limit, Tensor) and limit.is_floating_point() and not bool(limit.isnan().any())
    number = isinstance(limit, (int, float)) and not isinstance(limit, bool) and not math.isnan(limit)
    if not real and not number:
        raise InvalidInputError(f"`{name}` must be a number, a real tensor without NaN, or None, got {limit!r}.")
