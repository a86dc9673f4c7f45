r"""Linear regression on the training part of each fold: what its penalized versions share.

With weights w of fold k, and x and y measured from their weighted means where there is an intercept::

    1/2 sum_i w_i (y_i - x_i'b)^2  =  1/2 b'G b - c'b + constant,    G = sum_i w_i x_i x_i',   c = sum_i w_i y_i x_i
"""

from torch import Tensor

from torchddn.bilevel.sklearn.folds import Folds

__all__ = ["Regression"]


class Regression:
    """The data of one regression per fold.

    Args:
        X: Features, ``(N, n)``.
        y: Targets, ``(N,)``.
        folds: Of ``(K, N)``.
        fit_intercept: Whether there is an intercept, without penalty.
    """

    def __init__(self, X: Tensor, y: Tensor, folds: Folds, fit_intercept: bool) -> None:
        self.X, self.y, self.folds = X, y, folds
        share = folds.training / folds.training.sum(1, keepdim=True)
        self.x_mean = share @ X if fit_intercept else X.new_zeros(len(share), X.shape[1])
        self.y_mean = share @ y if fit_intercept else y.new_zeros(len(share))

    @property
    def scale(self) -> float:
        """The mean squared error of the mean on the validation parts."""
        return float((self.folds.validation * (self.y - self.y_mean.unsqueeze(1)).square()).sum())

    def weighted_rows(self) -> tuple[Tensor, Tensor]:
        """``sqrt(w) x``, ``(K, N, n)``, and ``sqrt(w) y``, ``(K, N)``, centered: G and c are their products."""
        root = self.folds.training.sqrt()
        return root.unsqueeze(2) * (self.X - self.x_mean.unsqueeze(1)), root * (self.y - self.y_mean.unsqueeze(1))

    def normal_equations(self) -> tuple[Tensor, Tensor]:
        """``G``, ``(K, n, n)``, and ``c``, ``(K, n)``."""
        rows, right = self.weighted_rows()
        return rows.mT @ rows, (right.unsqueeze(1) @ rows).squeeze(1)

    def intercept(self, coef: Tensor) -> Tensor:
        """The best intercept of each fold for ``coef``, ``(K, n)``."""
        return self.y_mean - (self.x_mean * coef).sum(1)

    def error(self, coef: Tensor) -> Tensor:
        """The mean squared error on the validation parts, a scalar."""
        residual = self.y - coef @ self.X.T - self.intercept(coef).unsqueeze(1)
        return (self.folds.validation * residual.square()).sum()
