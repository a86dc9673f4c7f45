r"""Logistic regression on every fold at once, by Newton's method, the last step of which is differentiable.

Solves, for each fold, with training weights w and one row of coefficients per class::

    B(alpha) = argmin_B  sum_i w_i loss(B x_i, y_i) + 1/2 sum_j alpha_j |B_j|^2

where loss is the negative log of the softmax at the class of i. With two classes the first has the coefficients zero,
as in scikit-learn, and only those of the second are unknown. The intercept is the coefficient of a last feature, one.
"""

import torch
from torch import Tensor

from torchddn.bilevel.sklearn.fit import answer
from torchddn.bilevel.sklearn.folds import Folds
from torchddn.status import Solution

__all__ = ["Logistic"]

# Without a penalty, the intercepts of a fold in which a class does not occur would have no finite best value. This one
# changes no printed digit of others.
_INTERCEPT_PENALTY = 1e-10


class Logistic:
    """The lower problem of logistic regression: from log penalties, ``(1,)`` or ``(n,)``, to ``(K, R, n + 1)``.

    R is the number of classes, or one if there are two. Without an intercept the last coefficient is zero.

    Args:
        X: Features, ``(N, n)``.
        labels: Classes from 0 on, ``(N,)``.
        folds: Of ``(K, N)``.
        fit_intercept: Whether there are intercepts.
        max_steps: Most Newton steps for a fold.
    """

    def __init__(self, X: Tensor, labels: Tensor, folds: Folds, fit_intercept: bool, max_steps: int = 100) -> None:
        self.folds, self.max_steps, self.scale = folds, max_steps, 1.0
        self._X = torch.cat([X, torch.full_like(X[:, :1], float(fit_intercept))], dim=1)
        targets = torch.nn.functional.one_hot(labels).to(X)
        self._labels, self._is_binary = labels, targets.shape[1] == 2
        self._targets = targets[:, 1:] if self._is_binary else targets
        self._B = X.new_zeros(len(folds.training), self._targets.shape[1], self._X.shape[1])

    def solve(self, log_alpha: Tensor) -> Solution:
        """The coefficients of all folds; the derivative is that of the first order only."""
        n = self._X.shape[1] - 1
        penalty = torch.cat([log_alpha.exp().expand(n), log_alpha.new_full((1,), _INTERCEPT_PENALTY)])
        with torch.no_grad():
            B, solved, num_steps = self._newton(penalty)
            factor = self._factor(B, penalty)
        self._B = torch.where(solved[:, None, None], B, 0.0)
        # One more step, from a point and with a matrix that count as constants: what depends on alpha is the slope.
        B = B - _solve(factor, self._slope(B, penalty))
        return answer(B, "Newton", num_steps, solved)

    def error(self, B: Tensor) -> Tensor:
        """The mean negative log-likelihood on the validation parts, a scalar."""
        return (self.folds.validation * self._losses(B)).sum()

    def _newton(self, penalty: Tensor) -> tuple[Tensor, Tensor, int]:
        """Newton's method with step halving for every fold by itself; whether it was solved, and the steps."""
        # Where the last solution is worse than none at all, it would only mislead: its losses have no curvature.
        worse = self._objective(self._B, penalty) > self._objective(torch.zeros_like(self._B), penalty)
        B = torch.where(worse[:, None, None], 0.0, self._B)
        value, slope = self._objective(B, penalty), self._slope(B, penalty)
        num_steps = 0
        while True:
            d = -_solve(self._factor(B, penalty), slope)
            promised = -(slope * d).sum((1, 2))  # twice the fall of a quadratic model
            # A step squares the relative error: the one that is returned, and the one in `solve`, leave rounding only.
            solved = promised <= 1e-12 * value.abs()
            if bool(solved.all()) or num_steps == self.max_steps:
                return B + torch.where(solved, 1.0, 0.0)[:, None, None] * d, solved, num_steps
            t, lower = torch.ones_like(value), solved
            for _ in range(30):
                B_next = B + t[:, None, None] * d
                next_value = self._objective(B_next, penalty)
                lower = solved | (next_value <= value - 1e-4 * t * promised)
                if bool(lower.all()):
                    break
                t = torch.where(lower, t, 0.5 * t)
            # Rounding may hide the fall of the last steps, which are good nevertheless.
            B = B + torch.where(lower, t, promised <= 1e-8 * value.abs())[:, None, None] * d
            value, slope = self._objective(B, penalty), self._slope(B, penalty)
            num_steps += 1

    def _scores(self, B: Tensor) -> Tensor:
        """Logits of all classes, ``(K, N, C)``."""
        scores = self._X @ B.mT
        return torch.cat([torch.zeros_like(scores), scores], dim=2) if self._is_binary else scores

    def _losses(self, B: Tensor) -> Tensor:
        scores = self._scores(B)
        chosen = self._labels.expand(len(B), -1).unsqueeze(2)
        return scores.logsumexp(2) - scores.gather(2, chosen).squeeze(2)

    def _probabilities(self, B: Tensor) -> Tensor:
        """Of the classes that have coefficients, ``(K, N, R)``."""
        return self._scores(B).softmax(2)[..., -B.shape[1] :]

    def _objective(self, B: Tensor, penalty: Tensor) -> Tensor:
        return (self.folds.training * self._losses(B)).sum(1) + 0.5 * (penalty * B.square()).sum((1, 2))

    def _slope(self, B: Tensor, penalty: Tensor) -> Tensor:
        surplus = self.folds.training.unsqueeze(2) * (self._probabilities(B) - self._targets)
        return surplus.mT @ self._X + penalty * B

    def _factor(self, B: Tensor, penalty: Tensor) -> Tensor:
        """Cholesky factor of the Hessian, ``(K, R (n + 1), R (n + 1))``."""
        p = self._probabilities(B)
        num_folds, num_rows, size = B.shape
        H = B.new_empty(num_folds, num_rows, size, num_rows, size)
        for a in range(num_rows):
            for b in range(a + 1):
                weight = self.folds.training * p[..., a] * (float(a == b) - p[..., b])
                block = (weight.unsqueeze(1) * self._X.T) @ self._X
                H[:, a, :, b, :] = block
                H[:, b, :, a, :] = block
        if num_rows > 1:
            # The same number on all intercepts changes nothing; the sum of them, zero at the start, stays zero.
            H[:, :, -1, :, -1] += self.folds.training.sum(1)[:, None, None] / num_rows**2
        H = H.reshape(num_folds, num_rows * size, num_rows * size)
        return torch.linalg.cholesky(H + torch.diag(penalty.repeat(num_rows)))


def _solve(factor: Tensor, right: Tensor) -> Tensor:
    solution = torch.cholesky_solve(right.flatten(1).unsqueeze(2), factor).reshape(right.shape)
    # The same row for all classes changes no probability, so the penalty alone, which may be tiny, holds their mean at
    # zero: rounding would be divided by it.
    return solution - solution.mean(1, keepdim=True) if solution.shape[1] > 1 else solution
