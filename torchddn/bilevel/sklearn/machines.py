r"""Support-vector machines on every fold at once: libsvm finds the vectors, a linear system the values and gradients.

Solves, for each problem (a fold, or two classes of one), with the Gaussian kernel K of widths gamma::

    beta = argmin  1/2 beta'K beta - t'beta + eps |beta|_1   subject to   sum(beta) = 0,   0 <= s_i beta_i <= C w_i

for classes t = s = -1 or 1 and eps = 0; in regression t are the targets, and -C w_i <= beta_i <= C w_i. The decision is
f = K beta + b. The vectors F strictly between their limits have their residual at the edge of the loss; with r = t, or
t - eps sign(beta), and the others U at their limits ::

    [ K_FF  1 ] [ beta_F ]   [ r_F - K_FU beta_U ]
    [ 1'    0 ] [ b      ] = [ -1'beta_U         ]

This says how beta and b depend on C and gamma as long as no vector joins or leaves F.

References:
    Chang, Lin, LIBSVM, 2011. Chapelle, Vapnik, Bousquet, Mukherjee, Choosing multiple parameters for support vector
    machines, 2002, for the derivative.
"""

from typing import Any

import numpy as np
import torch
from sklearn.svm import SVC, SVR
from torch import Tensor

from torchddn.bilevel.sklearn.fit import answer
from torchddn.status import Solution

__all__ = ["Machine"]

# Samples that are equal, or nearly so, leave beta undecided; this, on the diagonal of the kernel, decides.
_JITTER = 1e-10


class Machine:
    """The lower problem of a support-vector machine: from log C and log gamma, to decisions, ``(P, N)``.

    Args:
        X: Features, ``(N, n)``.
        targets: ``t`` of each problem, ``(P, N)``.
        training: Weights w of the samples, ``(P, N)``; zero for those that a problem does not train with.
        validation: Weights with which the decisions are judged, ``(P, N)``.
        epsilon: Half the width of the tube of a regression; None for classes.
        tol: Of libsvm, whose last digits the linear system corrects.
    """

    def __init__(
        self,
        X: Tensor,
        targets: Tensor,
        training: Tensor,
        validation: Tensor,
        epsilon: float | None,
        tol: float = 1e-6,
    ) -> None:
        self._X, self._targets, self._training, self._validation = X, targets, training, validation
        self._epsilon, self._tol = epsilon, tol
        self.scale = 1.0 if epsilon is None else float((validation * (targets - targets.mean()).square()).sum())

    def solve(self, theta: Tensor) -> Solution:
        """The decisions of all problems for all samples.

        Args:
            theta: Log C, then log gamma of all features or of each, ``(2,)`` or ``(1 + n,)``.
        """
        C, gamma = theta[0].exp(), theta[1:].exp()
        K = self._kernel(gamma)
        found = self._vectors(K.detach().numpy(), float(C.detach()))
        limit = C * self._training
        free = (found != 0) & (found.abs() < limit.detach() * (1 - 1e-12))
        beta, b = self._values(K, limit, found, free)
        return answer(beta @ K + b.unsqueeze(1), "libsvm")

    def error(self, decisions: Tensor) -> Tensor:
        """The mean squared error of a regression; the mean squared hinge of a margin of one of classes."""
        if self._epsilon is None:
            miss = (1.0 - self._targets * decisions).clamp_min(0.0)
        else:
            miss = self._targets - decisions
        return (self._validation * miss.square()).sum()

    def _kernel(self, gamma: Tensor) -> Tensor:
        Z = self._X * gamma.sqrt()
        length = Z.square().sum(1)
        distance = (length + length.unsqueeze(1) - 2.0 * Z @ Z.T).clamp_min(0.0)
        return (-distance).exp() + _JITTER * torch.eye(len(Z), dtype=Z.dtype)

    def _vectors(self, K: np.ndarray, C: float) -> Tensor:
        """``beta``, ``(P, N)``, to the tolerance of libsvm."""
        found = torch.zeros_like(self._targets)
        for row, targets, weights in zip(found, self._targets, self._training, strict=True):
            used = weights.numpy().nonzero()[0]
            machine: Any = (
                SVC(kernel="precomputed", C=C, tol=self._tol)
                if self._epsilon is None
                else SVR(kernel="precomputed", C=C, tol=self._tol, epsilon=self._epsilon)
            )
            machine.fit(K[np.ix_(used, used)], targets.numpy()[used], sample_weight=weights.numpy()[used])
            row[used[machine.support_]] = torch.from_numpy(machine.dual_coef_[0])
        return found

    def _values(self, K: Tensor, limit: Tensor, found: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """``beta``, ``(P, N)``, and ``b``, ``(P,)``, differentiable in K and the limits."""
        bound = torch.where(free, 0.0, found.sign() * limit)
        edge = self._targets if self._epsilon is None else self._targets - self._epsilon * found.sign()
        pull = edge - bound @ K
        # The free vectors of every problem, padded to the largest number of them.
        size = max(int(free.sum(1).max()), 1)
        places = free.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :size]
        real = free.gather(1, places).to(K)
        K_FF = K[places.unsqueeze(2), places.unsqueeze(1)] * real.unsqueeze(2) * real.unsqueeze(1)
        factor = torch.linalg.cholesky(K_FF + torch.diag_embed(1.0 - real))
        rights = torch.stack([pull.gather(1, places) * real, real], dim=2)
        for_pull, for_one = torch.cholesky_solve(rights, factor).unbind(2)
        has_free = free.any(1)
        ones = torch.where(has_free, for_one.sum(1), 1.0)
        b = torch.where(has_free, (for_pull.sum(1) + bound.sum(1)) / ones, self._middle(bound, bound @ K, limit))
        beta = bound.scatter_add(1, places, (for_pull - b.unsqueeze(1) * for_one) * real)
        return beta, b

    def _middle(self, beta: Tensor, pushed: Tensor, limit: Tensor) -> Tensor:
        """The middle of the values that b can have if no vector is free."""
        t, limit = self._targets, limit.detach()
        sign = beta.detach().sign()
        if self._epsilon is None:
            may_rise = torch.where(t > 0, sign == 0, sign != 0)
            may_fall = ~may_rise
            edge_up = edge_down = t
        else:
            may_rise, may_fall = sign <= 0, sign >= 0
            edge_up = t + torch.where(sign < 0, self._epsilon, -self._epsilon)
            edge_down = t + torch.where(sign > 0, -self._epsilon, self._epsilon)
        used = limit > 0
        least = torch.where(may_rise & used, edge_up - pushed, -torch.inf).amax(1)
        most = torch.where(may_fall & used, edge_down - pushed, torch.inf).amin(1)
        return 0.5 * (least + most)
