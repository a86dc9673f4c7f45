r"""The elastic net on every fold at once: the signs by semismooth Newton steps, the values and gradients by those.

Solves, for each fold, with G and c of ``regression`` divided by the sum s of the weights::

    b(alpha) = argmin_b  1/2 b'H b - c'b + sum_j lam_j |b_j|,    H = G + (1 - r) diag(alpha),   lam = r alpha

where r is ``l1_ratio``. With the signs known, b solves the linear system of the coordinates that are not zero. It says
how b depends on alpha as long as no coordinate joins or leaves them.

References:
    Zou, Hastie, Regularization and variable selection via the elastic net, 2005. Hintermüller, Ito, Kunisch, The
    primal-dual active set strategy as a semismooth Newton method, 2003. Lee, Battle, Raina, Ng, Efficient sparse coding
    algorithms, 2007, for feature-sign search.
"""

import torch
from torch import Tensor

from torchddn.bilevel.sklearn.fit import answer
from torchddn.bilevel.sklearn.regression import Regression
from torchddn.status import Solution

__all__ = ["ElasticNet"]


class ElasticNet:
    """The lower problem of the elastic net: from log penalties, ``(1,)`` or ``(n,)``, to coefficients, ``(K, n)``.

    Args:
        regression: The data.
        l1_ratio: Share r of the absolute values in the penalty, between 0 and 1.
        max_steps: Most steps for a fold.
    """

    def __init__(self, regression: Regression, l1_ratio: float, max_steps: int = 1000) -> None:
        self.error, self.scale = regression.error, regression.scale
        self.l1_ratio, self.max_steps = l1_ratio, max_steps
        total = regression.folds.training.sum(1, keepdim=True)
        gram, right = regression.normal_equations()
        self._gram, self._right = gram / total.unsqueeze(2), right / total
        # Features that depend on each other leave the lasso undecided; this decides, and shows in no printed digit.
        level = 1e-12 * self._gram.diagonal(dim1=1, dim2=2).mean(1, keepdim=True) + torch.finfo(gram.dtype).tiny
        self._gram.diagonal(dim1=1, dim2=2).add_(level)
        self._b = torch.zeros_like(right)  # of the last call: where the next one starts

    def largest_alpha(self) -> Tensor:
        """The penalty of each fold and feature above which the first coefficient stays at zero, ``(K, n)``."""
        return self._right.abs() / self.l1_ratio

    def solve(self, log_alpha: Tensor) -> Solution:
        """The coefficients of all folds."""
        alpha = log_alpha.exp().expand(self._right.shape[1])
        H = self._gram + torch.diag_embed((1.0 - self.l1_ratio) * alpha)
        lam = self.l1_ratio * alpha
        with torch.no_grad():
            signs, settled, num_steps = self._signs(H, lam)
        b = _solve_for(signs, H, self._right, lam)
        self._b = b.detach()
        return answer(b, "feature-sign search", num_steps, settled)

    def _signs(self, H: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, int]:
        """The sign of every coefficient, ``(K, n)``, whether they are right, ``(K,)``, and the steps.

        A quick step takes the signs that a gradient step would lead to and solves for the values: Newton's method for
        the optimality conditions, which ends exactly, but may go in circles. Where it does not lower the objective, a
        sure step moves towards the minimum for the present signs, as far as the objective falls.
        """
        b, c = self._b, self._right
        value = _objective(b, H, c, lam)
        num_steps = 0
        while True:
            signs = _assume(b, H, c, lam)
            b_next = _solve_for(signs, H, c, lam)
            settled = (_assume(b_next, H, c, lam) == signs).all(1)
            if bool(settled.all()) or num_steps == self.max_steps:
                return signs, settled, num_steps
            next_value = _objective(b_next, H, c, lam)
            quick = settled | (next_value < value)
            if not bool(quick.all()):
                b_sure, sure_value = _sure_step(b, H, c, lam)
                b_next = torch.where(quick.unsqueeze(1), b_next, b_sure)
                next_value = torch.where(quick, next_value, sure_value)
            if bool((settled | (next_value >= value)).all()):
                # What is left is rounding: two sets of signs are equally good.
                return signs, torch.ones_like(settled), num_steps
            b, value = b_next, next_value
            num_steps += 1


def _assume(b: Tensor, H: Tensor, c: Tensor, lam: Tensor) -> Tensor:
    """The signs after a gradient step in every coordinate by itself; zero where a coordinate stays at zero."""
    curvature = H.diagonal(dim1=1, dim2=2)
    moved = curvature * b - (_times(H, b) - c)
    return torch.where(moved.abs() > lam, moved.sign(), 0.0)


def _solve_for(signs: Tensor, H: Tensor, c: Tensor, lam: Tensor) -> Tensor:
    """``b`` for the given signs, differentiable in H and lam."""
    free = signs.abs()
    system = free.unsqueeze(2) * H * free.unsqueeze(1) + torch.diag_embed(1.0 - free)
    factor = torch.linalg.cholesky(system)
    return torch.cholesky_solve((free * c - signs * lam).unsqueeze(2), factor).squeeze(2)


def _sure_step(b: Tensor, H: Tensor, c: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """A step of feature-sign search, and the objective there, which is lower unless b is the solution."""
    slope = _times(H, b) - c
    signs = b.sign()
    scale = torch.finfo(b.dtype).eps ** 0.5 * (c.abs().amax(1, keepdim=True) + lam)
    excess = torch.where(signs == 0, slope.abs() - lam, -torch.inf)
    most = torch.nn.functional.one_hot(excess.argmax(1), b.shape[1]).bool() & (excess > 0)
    # One coordinate joins, and only where the others have nothing more to gain: then it leaves zero downhill.
    at_rest = torch.where(signs != 0, (slope + lam * signs).abs() <= scale, True).all(1, keepdim=True)
    signs = torch.where(most & at_rest, -slope.sign(), signs)
    d = _solve_for(signs, H, c, lam) - b
    # The objective along d is a parabola between the points at which a coordinate passes zero, and least at one of them
    # or at the end.
    crossing = torch.where(d != 0, -b / d, 1.0)
    t = torch.cat([torch.where((crossing > 0) & (crossing < 1), crossing, 1.0), torch.ones_like(b[:, :1])], dim=1)
    points = b.unsqueeze(1) + t.unsqueeze(2) * d.unsqueeze(1)
    places = torch.arange(b.shape[1])
    # At its crossing a coordinate is zero, and not what rounding leaves of it.
    points[:, places, places] = torch.where(t[:, :-1] < 1, 0.0, points[:, places, places])
    curvature = (_times(H, d) * d).sum(1, keepdim=True)
    values = 0.5 * t.square() * curvature + t * (slope * d).sum(1, keepdim=True) + (lam * points.abs()).sum(2)
    best = points[torch.arange(len(b)), values.argmin(1)]
    return best, _objective(best, H, c, lam)


def _objective(b: Tensor, H: Tensor, c: Tensor, lam: Tensor) -> Tensor:
    return ((0.5 * _times(H, b) - c) * b + lam * b.abs()).sum(1)


def _times(H: Tensor, b: Tensor) -> Tensor:
    return (H @ b.unsqueeze(2)).squeeze(2)
