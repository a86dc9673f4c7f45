r"""Penalties: what a residual costs.

A penalty is an even function ``phi(z; alpha) >= 0`` that grows with ``|z|``; ``alpha > 0`` is where it stops being
quadratic, loosely the distance up to which a point is an inlier. Nodes that use one need, from the chain rule of
``phi(|r|)`` for a vector ``r`` of length ``z``::

    gradient   kappa1(z) r                          kappa1 = phi' / z
    Hessian    kappa1(z) I + kappa2(z) r r^T        kappa2 = (phi'' - phi' / z) / z^2

====================  ==============================  =====================  ===========================
penalty               phi                             kappa1                 kappa2
====================  ==============================  =====================  ===========================
Quadratic             z^2 / 2                         1                      0
PseudoHuber           a^2 (s - 1), s = hyp(1, z/a)    1 / s                  -1 / (a^2 s^3)
Huber                 z^2 / 2, else a (|z| - a/2)     1, else a / |z|        0, else -a / |z|^3
Welsch                1 - e, e = exp(-z^2 / (2a^2))   e / a^2                -e / a^4
TruncatedQuadratic    z^2 / 2, else a^2 / 2           1, else 0              0
====================  ==============================  =====================  ===========================

"else" is ``|z| > alpha``: at the kink ``|z| = alpha`` a point is an inlier. ``kappa1 >= 0`` never grows with ``|z|``,
so ``phi`` is at most the parabola in ``z`` that touches it: minimizing that parabola (iteratively reweighted least
squares) never increases a sum of penalties.

The methods are ordinary differentiable operations on tensors of any shape; nothing is checked. NaN stays NaN in
``phi`` and ``phi'``, and is no inlier.

References:
    Gould, Hartley, Campbell, Deep Declarative Networks, table 2. Gould, Campbell, Ben-Shabat, Koneputugodage, Xu,
    Exploiting Problem Structure in Deep Declarative Networks, table 1.
"""

import abc
import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError

__all__ = ["Huber", "Penalty", "PseudoHuber", "Quadratic", "TruncatedQuadratic", "Welsch", "get"]

# exp() near the smallest float32 is about sixty times slower than elsewhere, and what it returns there slows later
# arithmetic. exp(-80) = 2e-35 is negligible beside the weight 1 of a point at the center.
_LARGEST_EXPONENT = 80.0


class Penalty(abc.ABC):
    """What every penalty offers.

    Attributes:
        convex: Whether ``phi`` is convex.
        isotropic: Whether ``kappa2`` is zero everywhere.
    """

    convex: ClassVar[bool]
    isotropic: ClassVar[bool]

    @abc.abstractmethod
    def phi(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        """The penalty, shaped as ``z`` and ``alpha`` together."""

    @abc.abstractmethod
    def dphi(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        """The derivative ``phi'`` in ``z``."""

    @abc.abstractmethod
    def ddphi(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        """The second derivative ``phi''`` in ``z``."""

    @abc.abstractmethod
    def kappa1(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        """``phi' / z``, and its limit at zero."""

    @abc.abstractmethod
    def kappa2(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        """``(phi'' - phi' / z) / z^2``, and its limit at zero."""

    @abc.abstractmethod
    def weights(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        """``kappa1``, divided along the last axis by its sum; zeros if all of ``kappa1`` is zero."""


@dataclasses.dataclass(frozen=True)
class Quadratic(Penalty):
    """``z^2 / 2``; ``alpha`` plays no part.

    Example:
        >>> Quadratic().phi(torch.tensor([0.0, 2.0]), 1.0)
        tensor([0., 2.])
    """

    convex: ClassVar[bool] = True
    isotropic: ClassVar[bool] = True

    def phi(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return 0.5 * z * _spread(z, alpha)

    def dphi(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return _spread(z, alpha)

    def ddphi(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return torch.ones_like(_spread(z, alpha))

    def kappa1(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return torch.ones_like(_spread(z, alpha))

    def kappa2(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return torch.zeros_like(_spread(z, alpha))

    def weights(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return _normalized(self.kappa1(z, alpha))


@dataclasses.dataclass(frozen=True)
class PseudoHuber(Penalty):
    """``alpha^2 (sqrt(1 + (z / alpha)^2) - 1)``: smooth, ``z^2 / 2`` near zero and ``alpha |z|`` far away.

    Example:
        >>> PseudoHuber().phi(torch.tensor([0.0, 0.75]), 1.0)
        tensor([0.0000, 0.2500])
    """

    convex: ClassVar[bool] = True
    isotropic: ClassVar[bool] = False

    def phi(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        # s - 1 = (z / alpha)^2 / (s + 1) without the cancellation; grouped so that a huge z does not overflow.
        return z * (z / (self._s(z, alpha) + 1))

    def dphi(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return z / self._s(z, alpha)

    def ddphi(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        kappa1 = self.kappa1(z, alpha)
        return kappa1 * kappa1 * kappa1

    def kappa1(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return self._s(z, alpha).reciprocal()

    def kappa2(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return -self.ddphi(z, alpha) / alpha / alpha

    def weights(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return _normalized(self.kappa1(z, alpha))

    def _s(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return torch.hypot(z / alpha, z.new_ones(()))


@dataclasses.dataclass(frozen=True)
class Huber(Penalty):
    """``z^2 / 2`` for ``|z| <= alpha``, else ``alpha (|z| - alpha / 2)``.

    Example:
        >>> Huber().phi(torch.tensor([0.5, 3.0]), 1.0)
        tensor([0.1250, 2.5000])
    """

    convex: ClassVar[bool] = True
    isotropic: ClassVar[bool] = False

    def phi(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return torch.where(z.abs() > alpha, alpha * (z.abs() - alpha / 2), 0.5 * z * z)

    def dphi(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return torch.where(z.abs() > alpha, alpha * z.sign(), z)

    def ddphi(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return _inlier(z, alpha)

    def kappa1(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return torch.where(z.abs() > alpha, alpha / self._outer(z, alpha), 1)

    def kappa2(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        outer = self._outer(z, alpha)
        return torch.where(z.abs() > alpha, -alpha / outer / outer / outer, 0)

    def weights(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return _normalized(self.kappa1(z, alpha))

    def _outer(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        """``|z|``, and for an inlier ``alpha``, so that no branch divides by zero."""
        return torch.where(z.abs() <= alpha, alpha, z.abs())


@dataclasses.dataclass(frozen=True)
class Welsch(Penalty):
    """``1 - exp(-z^2 / (2 alpha^2))``: at most one, whatever the outlier. Its curvature at 0 is ``1 / alpha^2``.

    Example:
        >>> Welsch().phi(torch.tensor([0.0, 1.0, 100.0]), 1.0)
        tensor([0.0000, 0.3935, 1.0000])
    """

    convex: ClassVar[bool] = False
    isotropic: ClassVar[bool] = False

    def phi(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return -torch.expm1(-self._exponent(z, alpha))

    def dphi(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return z * self.kappa1(z, alpha)

    def ddphi(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return (1 - 2 * self._exponent(z, alpha)) * self.kappa1(z, alpha)

    def kappa1(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        exponent = self._exponent(z, alpha)
        # Exactly zero far away: times a huge z, even exp(-80) would be a pull.
        return torch.where(exponent >= _LARGEST_EXPONENT, 0, torch.exp(-exponent)) / alpha / alpha

    def kappa2(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return -self.kappa1(z, alpha) / alpha / alpha

    def weights(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        # softmax subtracts the largest exponent, so one weight is at least 1 / n however far away all points are.
        exponent = (z / alpha).square() / 2
        nearest = exponent.amin(dim=-1, keepdim=True)
        return torch.softmax((nearest - exponent).clamp(min=-_LARGEST_EXPONENT), dim=-1)

    def _exponent(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return (0.5 * (z / alpha).square()).clamp(max=_LARGEST_EXPONENT)


@dataclasses.dataclass(frozen=True)
class TruncatedQuadratic(Penalty):
    """``z^2 / 2`` for ``|z| <= alpha``, else ``alpha^2 / 2``: outliers have no influence at all.

    Example:
        >>> TruncatedQuadratic().phi(torch.tensor([1.0, 3.0]), 2.0)
        tensor([0.5000, 2.0000])
    """

    convex: ClassVar[bool] = False
    isotropic: ClassVar[bool] = True

    def phi(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return torch.where(z.abs() > alpha, 0.5 * alpha * alpha, 0.5 * z * z)

    def dphi(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return torch.where(z.abs() > alpha, 0, z)

    def ddphi(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return _inlier(z, alpha)

    def kappa1(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return _inlier(z, alpha)

    def kappa2(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return torch.zeros_like(_spread(z, alpha))

    def weights(self, z: Tensor, alpha: float | Tensor) -> Tensor:
        return _normalized(self.kappa1(z, alpha))


_PENALTIES = {
    "quadratic": Quadratic,
    "pseudo_huber": PseudoHuber,
    "huber": Huber,
    "welsch": Welsch,
    "truncated_quadratic": TruncatedQuadratic,
}


def get(penalty: str | Penalty, call: str = "penalties.get") -> Penalty:
    """Returns the penalty that a word names, and a penalty itself as it is.

    Args:
        penalty: ``"quadratic"``, ``"pseudo_huber"``, ``"huber"``, ``"welsch"``, ``"truncated_quadratic"``, or an
            object of this module.
        call: Name that opens the message.

    Raises:
        InvalidInputError: If it is neither.

    Example:
        >>> get("huber")
        Huber()
    """
    if isinstance(penalty, Penalty):
        return penalty
    if isinstance(penalty, str) and penalty in _PENALTIES:
        return _PENALTIES[penalty]()
    words = ", ".join(map(repr, _PENALTIES))
    raise InvalidInputError(
        f"`{call}(penalty=...)` must be one of {words}, or an object of `torchddn.penalties`, got {penalty!r}."
    )


def _spread(z: Tensor, alpha: float | Tensor) -> Tensor:
    """``z``, expanded to the shape of ``z`` and ``alpha`` together."""
    return z.expand(torch.broadcast_shapes(z.shape, alpha.shape)) if isinstance(alpha, Tensor) else z


def _inlier(z: Tensor, alpha: float | Tensor) -> Tensor:
    """One for ``|z| <= alpha``, else zero."""
    return (z.abs() <= alpha).to(z.dtype)


def _normalized(kappa1: Tensor) -> Tensor:
    total = kappa1.sum(dim=-1, keepdim=True)
    return kappa1 / torch.where(total == 0, 1, total)
