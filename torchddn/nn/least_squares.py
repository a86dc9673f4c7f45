"""Ridge regression as a module: fitted inside the network, differentiable in all that it is fitted to."""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchddn.errors import InvalidInputError
from torchddn.functional import weighted_least_squares
from torchddn.functional.linear_algebra.right_sides import broadcast
from torchddn.functional.nodes.arguments import check_flag, check_floating, wide
from torchddn.nn._scale import Scale
from torchddn.status import Solution, check_failure_policy

__all__ = ["LinearFit", "RidgeRegression"]


class LinearFit(NamedTuple):
    """What a regression found.

    Attributes:
        coefficients: ``(*B, m)``, or ``(*B, m, k)`` for k outputs.
        intercept: ``(*B,)``, or ``(*B, k)``.
    """

    coefficients: Tensor
    intercept: Tensor

    def predict(self, X: Tensor) -> Tensor:
        """``X coefficients + intercept`` for rows ``X``, ``(*B, q, m)``: ``(*B, q)`` or ``(*B, q, k)``."""
        if self.coefficients.dim() < X.dim():
            return (X @ self.coefficients.unsqueeze(-1)).squeeze(-1) + self.intercept.unsqueeze(-1)
        return X @ self.coefficients + self.intercept.unsqueeze(-2)


class RidgeRegression(nn.Module):
    r"""Fits ``Y`` by a linear function of ``X`` with a penalty on its coefficients, and predicts by it.

    minimize over c and an intercept c_0   sum_i w_i (x_i . c + c_0 - y_i)^2 + ridge |c|^2, for each output on its own,
    by :func:`torchddn.functional.weighted_least_squares`. Everything is differentiable in X, Y, w and ``ridge``, so
    that a network can learn the features and the strength by which it fits few examples well.

    Args:
        ridge: Positive strength; a tensor ``(k,)`` has one for each output, which takes a factorization each. A start
            if it is learned.
        intercept: Whether there is one; it is not penalized.
        learnable_ridge: Whether the strength is a parameter, kept positive as the exponential of one.
        on_failure: As of the function.

    Example:
        >>> import torch
        >>> X = torch.tensor([[0.0], [1.0], [2.0]])
        >>> RidgeRegression(1e-6)(X, torch.tensor([1.0, 3.0, 5.0]), torch.tensor([[10.0]]))
        tensor([21.0000])

    References:
        Hoerl and Kennard, Ridge regression, 1970. Bertinetto, Henriques, Torr, Vedaldi, Meta-learning with
        differentiable closed-form solvers, 2019.
    """

    def __init__(
        self,
        ridge: float | Tensor = 1.0,
        *,
        intercept: bool = True,
        learnable_ridge: bool = False,
        on_failure: str = "warn",
    ) -> None:
        super().__init__()
        self.scale = Scale("RidgeRegression", "ridge", ridge, learnable_ridge)
        check_flag("RidgeRegression", "intercept", intercept)
        check_failure_policy("RidgeRegression", on_failure)
        if isinstance(ridge, Tensor) and ridge.dim() > 1:
            raise InvalidInputError(
                f"`RidgeRegression(ridge=...)` must be a number or a tensor (k,), got shape {tuple(ridge.shape)}."
            )
        self.intercept, self.on_failure = intercept, on_failure

    def forward(self, X: Tensor, Y: Tensor, X_new: Tensor) -> Tensor:
        """What the fit to ``X`` and ``Y`` predicts for ``X_new``, ``(*B, q, m)``: ``(*B, q)`` or ``(*B, q, k)``."""
        return self.fit(X, Y).predict(X_new)

    def fit(self, X: Tensor, Y: Tensor, w: Tensor | None = None) -> LinearFit:
        """The coefficients for ``X``, ``(*B, n, m)``, ``Y``, ``(*B, n)`` or ``(*B, n, k)``, weights ``(*B, n)``."""
        return self.solve(X, Y, w).y

    def solve(self, X: Tensor, Y: Tensor, w: Tensor | None = None) -> Solution:
        """What ``fit`` returns, as ``y`` of all that is known about it.

        Other fields are ``(*B,)``, and ``(*B, k)`` if ``ridge`` is a tensor ``(k,)``.
        """
        call = "RidgeRegression"
        check_floating(call, "X", X, "(*B, n, m)", 2)
        sides = broadcast(call, "X", X, Y, "(*B, n, m)", X.shape[-2], b_name="Y")
        ridge, A = self.scale(), wide(X)
        ridge = ridge.to(A) if isinstance(ridge, Tensor) else A.new_tensor(ridge)
        by_output = ridge.dim() == 1
        if by_output and (sides.is_vector or len(ridge) not in (1, Y.shape[-1])):
            raise InvalidInputError(
                f"`{call}(Y=...)` must have shape (*B, n, k) with an output for each of {len(ridge)} strengths, got "
                f"{tuple(Y.shape)}."
            )
        if self.intercept:
            # Before the others: its reflection takes the means out of them.
            A = torch.cat([torch.ones_like(A[..., :1]), A], dim=-1)
        strength = ridge.unsqueeze(-1).expand(*ridge.shape, X.shape[-1])
        if self.intercept:
            strength = torch.cat([torch.zeros_like(strength[..., :1]), strength], dim=-1)
        b = wide(Y)
        if by_output:
            A, b, w = A.unsqueeze(-3), b.mT, w if w is None else w.unsqueeze(-2)
        found = weighted_least_squares(A, b, w, ridge=strength, on_failure=self.on_failure, solution=True)
        y = (found.y.mT if by_output else found.y).to(Y.dtype)
        rows = -1 if sides.is_vector else -2
        first = int(self.intercept)
        coefficients = y.narrow(rows, first, X.shape[-1])
        constant = y.select(rows, 0) if self.intercept else torch.zeros_like(y.select(rows, 0))
        return dataclasses.replace(found, y=LinearFit(coefficients, constant))

    def extra_repr(self) -> str:
        return f"{self.scale.describe('ridge')}, intercept={self.intercept}"
