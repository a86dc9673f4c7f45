r"""Ridge regression on every fold at once, by a closed form that can be differentiated.

Solves, for each fold, with G and c of ``regression``::

    b(alpha) = argmin_b  1/2 b'G b - c'b + 1/2 sum_j alpha_j b_j^2  =  (G + diag(alpha))^-1 c

One penalty for all features needs one eigendecomposition and no solve after it. With more features than samples both
forms work with products of samples: ``b = A^-1 X'(X A^-1 X' + I)^-1 y`` for rows that carry the square roots of their
weights, ``A = diag(alpha)``.

References:
    Hastie, Tibshirani, Friedman, The Elements of Statistical Learning, 2009, section 3.4.1 and exercise 3.12.
"""

import functools

import torch
from torch import Tensor

from torchddn.bilevel.sklearn.fit import answer
from torchddn.bilevel.sklearn.regression import Regression
from torchddn.status import Solution

__all__ = ["Ridge"]


class Ridge:
    """The lower problem of ridge regression: from log penalties, ``(1,)`` or ``(n,)``, to coefficients, ``(K, n)``.

    Args:
        regression: The data.
    """

    def __init__(self, regression: Regression) -> None:
        self.error, self.scale = regression.error, regression.scale
        self._is_wide = regression.X.shape[0] < regression.X.shape[1]
        if self._is_wide:
            self._rows, self._right = regression.weighted_rows()
        else:
            self._gram, self._right = regression.normal_equations()

    def solve(self, log_alpha: Tensor) -> Solution:
        """The coefficients of all folds."""
        return answer(self._coefficients(log_alpha), "Cholesky")

    def _coefficients(self, log_alpha: Tensor) -> Tensor:
        if log_alpha.numel() == 1:
            eigenvalues, along, basis = self._spectrum
            return (basis @ (along / (eigenvalues + log_alpha.exp())).unsqueeze(2)).squeeze(2)
        # In the units in which every penalty is one, the matrix has no eigenvalue below one.
        unit = (-0.5 * log_alpha).exp()
        if self._is_wide:
            rows = self._rows * unit
            return unit * (rows.mT @ _solve_shifted(rows @ rows.mT, self._right).unsqueeze(2)).squeeze(2)
        return unit * _solve_shifted(unit.unsqueeze(1) * self._gram * unit, unit * self._right)

    @functools.cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvalues, the coordinates of the right-hand side in their basis, and what these become coefficients by."""
        eigenvalues, vectors = torch.linalg.eigh(self._rows @ self._rows.mT if self._is_wide else self._gram)
        along = (self._right.unsqueeze(1) @ vectors).squeeze(1)
        # Those of a singular matrix may come out negative.
        return eigenvalues.clamp_min(0.0), along, self._rows.mT @ vectors if self._is_wide else vectors


def _solve_shifted(matrix: Tensor, right: Tensor) -> Tensor:
    """``(matrix + I)^-1 right``."""
    factor = torch.linalg.cholesky(matrix + torch.eye(matrix.shape[-1], dtype=matrix.dtype))
    return torch.cholesky_solve(right.unsqueeze(2), factor).squeeze(2)
