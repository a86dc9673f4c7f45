r"""Functions that are sums of kernels at the examples, and the matrices of kernels.

::

    f(x) = sum_i coefficients_i k(x, x_i)          linear:  k(x, z) = x.z          rbf:  k(x, z) = exp(-gamma |x - z|^2)

For the linear kernel ``f(x) = weights x`` with ``weights = coefficients^T support``.
"""

import numbers
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_choice, check_floating, positive, wide
from torchddn.functional.nodes.finite import are_finite
from torchddn.functional.nodes.reading import read

__all__ = ["Examples", "KernelMachine"]

KERNELS = ("linear", "rbf", "precomputed")


class KernelMachine(NamedTuple):
    """A function that was fitted to examples, with k outputs.

    Attributes:
        coefficients: Of each example, ``(*B, n, k)``.
        weights: ``(*B, k, m)`` of the linear kernel; None of another.
        support: The examples, ``(*B, n, m)``; None for a kernel that is given as a matrix.
        gamma: Of the rbf kernel, ``(*B, 1, 1)``; None of another.
    """

    coefficients: Tensor
    weights: Tensor | None
    support: Tensor | None
    gamma: Tensor | None

    def predict(self, query: Tensor) -> Tensor:
        """The outputs, ``(*B, q, k)``, at ``query``, ``(*B, q, m)``: for a classifier, the logits.

        For a kernel that is given as a matrix, ``query`` has the kernels of queries and examples, ``(*B, q, n)``.
        """
        size = self.coefficients.shape[-2] if self.support is None else self.support.shape[-1]
        if not isinstance(query, Tensor) or query.dim() < 2 or query.shape[-1] != size:
            got = tuple(query.shape) if isinstance(query, Tensor) else type(query).__name__
            raise InvalidInputError(f"`predict(query=...)` must have shape (*B, q, {size}), got {got}.")
        if self.weights is not None:
            return query @ self.weights.mT
        if self.support is None or self.gamma is None:
            return query @ self.coefficients
        return radial(query, self.support, self.gamma) @ self.coefficients


class Examples(NamedTuple):
    """What a call was given: flat batches in the dtype to compute in, and how they came."""

    support: Tensor  # (R, n, m); the matrix of kernels, (R, n, n), if that is given
    kernel: str
    gamma: Tensor | None  # (R, 1, 1)
    finite: Tensor  # (R,): of items whose numbers are finite; others are zeros
    batch: torch.Size
    dtype: torch.dtype

    @classmethod
    def enter(cls, call: str, support: object, kernel: object, gamma: object) -> "Examples":
        """Checks the arguments that these nodes have in common."""
        check_floating(call, "support", support, "(*B, n, m)", 2)
        check_choice(call, "kernel", kernel, KERNELS)
        assert isinstance(support, Tensor) and isinstance(kernel, str)
        *batch, n, m = support.shape
        if n == 0 or m == 0:
            raise InvalidInputError(
                f"`{call}(support=...)` must have examples and features, got shape {tuple(support.shape)}."
            )
        if gamma is not None and kernel != "rbf":
            raise InvalidInputError(
                f"`{call}(gamma=...)` belongs to `kernel='rbf'`, got {kernel!r}. Leave it out, or change the kernel."
            )
        if kernel == "precomputed" and n != m:
            raise InvalidInputError(
                f"`{call}(support=...)` must be the square matrix of kernels (*B, n, n) for `kernel='precomputed'`, "
                f"got shape {tuple(support.shape)}."
            )
        batch = torch.Size(batch)
        rows = wide(support).reshape(batch.numel(), n, m)
        finite = are_finite(rows, (1, 2))
        rows = torch.where(finite.reshape(-1, 1, 1), rows, 0)
        width = None
        if kernel == "rbf":
            scale: float | Tensor = 1 / m
            if isinstance(gamma, (numbers.Real, Tensor)) and not isinstance(gamma, bool):
                scale = gamma if isinstance(gamma, Tensor) else float(gamma)
            elif gamma is not None:
                raise InvalidInputError(
                    f"`{call}(gamma=...)` must be a number or a tensor, got {type(gamma).__name__}."
                )
            width = positive(call, "gamma", scale, batch, rows).reshape(-1, 1, 1)
        if kernel == "precomputed":
            check_kernel(call, rows)
        return cls(rows, kernel, width, finite, batch, support.dtype)

    def gram(self) -> Tensor:
        """The kernels of all pairs of examples, ``(R, n, n)``."""
        if self.kernel == "linear":
            return self.support @ self.support.mT
        if self.gamma is None:
            return 0.5 * (self.support + self.support.mT)
        return radial(self.support, self.support, self.gamma)

    def machine(self, coefficients: Tensor) -> KernelMachine:
        """The function with these coefficients, ``(R, n, k)``, NaN for items that are not finite."""
        coefficients = torch.where(self.finite.reshape(-1, 1, 1), coefficients, torch.nan)

        def back(x: Tensor) -> Tensor:
            return x.reshape(*self.batch, *x.shape[1:]).to(self.dtype)

        return KernelMachine(
            back(coefficients),
            back(coefficients.mT @ self.support) if self.kernel == "linear" else None,
            None if self.kernel == "precomputed" else back(self.support),
            None if self.gamma is None else back(self.gamma),
        )


def radial(x: Tensor, z: Tensor, gamma: Tensor) -> Tensor:
    """``exp(-gamma |x_i - z_j|^2)``, ``(*B, q, n)``.

    By differences and not by the expanded square: that cancels for points close to each other.
    """
    return (-gamma * (x.unsqueeze(-2) - z.unsqueeze(-3)).square().sum(-1)).exp()


def check_kernel(call: str, matrix: Tensor) -> None:
    """Raises for a matrix of kernels that is not symmetric positive semidefinite."""

    def look(matrix: Tensor) -> None:
        K = matrix.flatten(0, -3)
        tolerance = torch.finfo(K.dtype).eps ** 0.5 * K.abs().amax((1, 2)).clamp(min=torch.finfo(K.dtype).tiny)
        skew = (K - K.mT).abs().amax((1, 2)) > tolerance
        if bool(skew.any()):
            raise InvalidInputError(
                f"`{call}(support=...)` must be a symmetric matrix of kernels, but that of item "
                f"{int(skew.nonzero()[0])} is not. Pass `0.5 * (K + K.mT)`."
            )
        least = torch.linalg.eigvalsh(K.double())[:, 0]
        wrong = least < -K.shape[1] * tolerance.double()
        if bool(wrong.any()):
            item = int(wrong.nonzero()[0])
            raise InvalidInputError(
                f"`{call}(support=...)` must be a positive semidefinite matrix of kernels, but that of item {item} has "
                f"the eigenvalue {least[item].item():.2e}."
            )

    read(look, matrix)
