"""What every linear solver of this package can do: init, solve, transpose."""

import abc
from typing import Any

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.linear.operators import Operator

__all__ = ["Solver", "as_columns"]


class Solver(abc.ABC):
    """The interface: solves ``K u = v`` for a batch of matrices and any number of right-hand sides.

    ``init`` does the work that depends on ``K`` alone and keeps it in a state, a ``NamedTuple``; ``solve`` uses
    it for right-hand sides; ``transpose`` turns it into the state of ``K^T`` without new work. A bad item raises
    nothing and harms no other: ``sound`` says which answers rest on a factorization that succeeded.
    """

    @abc.abstractmethod
    def init(self, operator: Operator) -> Any:
        """The state for ``operator``."""

    @abc.abstractmethod
    def solve(self, state: Any, rhs: Tensor) -> Tensor:
        """``u`` with ``K u = rhs``, shaped as ``rhs``: ``(B, s)`` or ``(B, s, k)``."""

    @abc.abstractmethod
    def transpose(self, state: Any) -> Any:
        """The state for the transposed matrices, which reuses the factorization."""

    @abc.abstractmethod
    def sound(self, state: Any) -> Tensor:
        """Which items may be trusted, boolean ``(B,)``: factored, and not singular to working precision."""

    def error(self, state: Any, u: Tensor, r: Tensor) -> Tensor:
        """A bound of the relative error of ``u`` with remainder ``r = rhs - K u``, ``(B, s, k)`` both.

        ``|K^-1| |r| / |u|`` in the units of the equilibrated matrix, the largest over the columns, ``(B,)``;
        infinite where the solver knows nothing of ``|K^-1|``.
        """
        return torch.full_like(u[:, 0, 0], torch.inf)


def as_columns(call: str, like: Tensor, rhs: Tensor) -> Tensor:
    """``rhs`` as columns ``(B, s, k)``, after a check against ``like``, ``(B, s)``."""
    if not isinstance(rhs, Tensor) or rhs.ndim not in (2, 3) or rhs.shape[:2] != like.shape:
        raise InvalidInputError(
            f"`{call}(rhs=...)` must be a tensor (B, s) or (B, s, k) with (B, s) = {tuple(like.shape)}, "
            f"got {tuple(rhs.shape) if isinstance(rhs, Tensor) else rhs!r}."
        )
    return rhs.unsqueeze(-1) if rhs.ndim == 2 else rhs
