r"""The projections onto spheres and balls of the L1, L2 and Linf norms, as formulas.

With ``s`` the signs of the coordinates that bear the norm (those of the support for p = 1, those on the face for
p = inf, none where x is inside the ball), ``k`` their number, and any direction ``v``::

    p = 2:     Dy v = c v - y (y.v) c / radius^2,   c = radius / |x|,        y_radius = y / radius
    p = 1:     Dy v = |s| v - s (s.v) / k,                                   y_radius = s / k
    p = inf:   Dy v = (1 - |s|) v,                                           y_radius = s

and with ``plateau="clarke"`` for p = 1, inf: ``Dy v = v - s (s.v) / k``. All matrices are symmetric.

What costs time here is memory: each formula reads the data a few times, with masks that are floats, since operations on
bool are ten times slower than others on CPU.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.functional.nodes.handmade import Answer
from torchddn.functional.projection.threshold import find_level
from torchddn.functional.projection.vectors import along, answer_of, clean, finite_rows, nan_unless, outline_of

__all__ = ["L1", "L2", "Linf"]


@dataclasses.dataclass(frozen=True)
class L2:
    """The formula of ``y`` from ``x``, ``(R, m)``, and ``radius``, ``(R, 1)``."""

    ball: bool

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``y``, status, steps, violation."""
        x, radius = inputs
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        limits = torch.finfo(x.dtype)
        # Where squares have neither overflowed nor vanished.
        regular = (length > limits.tiny**0.5 / limits.eps) & (length < limits.max**0.5)
        scale = radius / length
        y = x * (scale.clamp_(max=1) if self.ball else scale)
        if bool(regular.all()):
            return answer_of(y, None)
        rows = (~regular).squeeze(1).nonzero().squeeze(1)
        y[rows] = self._scaled(x[rows], radius[rows])
        return answer_of(y, ~y[:, :1].isnan())

    def _scaled(self, x: Tensor, radius: Tensor) -> Tensor:
        """``y`` by way of ``x / max |x_i|``."""
        size = x.abs().amax(dim=1, keepdim=True)
        unit = x / torch.where(size > 0, size, 1)
        unit[:, :1] = torch.where(size > 0, unit[:, :1], 1)
        length = torch.linalg.vector_norm(unit, dim=1, keepdim=True)
        y = unit / length * radius
        y = torch.where(size * length <= radius, x, y) if self.ball else y
        return torch.where(size.isfinite(), y, torch.nan)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return outline_of(inputs[0])

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        x, radius = inputs
        y, kept, failed = clean(y, v)
        scale, outside = self._scale(y, x, failed)
        dradius = along(y, v, failed) / radius
        if outside is not None:
            dradius = dradius * outside
        dx = torch.addcmul(kept * scale, y, dradius * (scale / radius), value=-1) if needed[0] else None
        return dx, dradius

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        (x, radius), (dx, dradius) = inputs, tangents
        dx = torch.zeros_like(y) if dx is None else dx
        y, kept, failed = clean(y, dx)
        scale, outside = self._scale(y, x, failed)
        grown = -along(y, dx, failed) / radius * scale
        if dradius is not None:
            grown = grown + torch.where(failed, 0, dradius)
        if outside is not None:
            grown = grown * outside
        return torch.addcmul(kept * scale, y, grown / radius)

    def _scale(self, y: Tensor, x: Tensor, failed: Tensor) -> tuple[Tensor, Tensor | None]:
        """``c``, and for a ball a mask of the rows that it binds, ``(R, 1)`` each.

        As a ratio of sums c neither overflows nor needs the length again, and both depend on x alike. It is zero at
        the center, and one, exactly, where y is x.
        """
        total = _total(x)
        none = failed | (total == 0)
        scale = torch.where(none, 0, _total(y) / torch.where(none, 1, total))
        if not self.ball:
            return scale, None
        inside = ~failed & ((total == 0) | (scale >= 1))
        return torch.where(inside, 1, scale), (~inside).to(y.dtype)


class _Face(NamedTuple):
    """``s``, ``(R, m)``; ``k``, ``(R, 1)``, or 1 if there are none; a mask of the coordinates that stay zero."""

    s: Tensor
    k: Tensor
    rest: Tensor


@dataclasses.dataclass(frozen=True)
class L1:
    """The formula of ``y`` from ``x``, ``(R, m)``, and ``radius``, ``(R, 1)``."""

    ball: bool
    plateau: str

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``y``, status, steps, violation."""
        x, radius = inputs
        a = x.abs()
        finite = finite_rows(a)
        inside = a.sum(dim=1, keepdim=True) <= radius
        # Taken from the largest |x_i|, the numbers of the support are no larger than the radius, and so are their
        # errors.
        a.sub_(a.amax(dim=1, keepdim=True))
        low = torch.maximum((a.sum(dim=1, keepdim=True) - radius) / x.shape[1], -radius)
        level, num_steps = find_level(a, radius, low)
        y = a.sub_(nan_unless(finite, level)).clamp_(min=0)
        y.mul_(x.sign()).add_(0.0)  # which makes 0 of -0
        rows = (inside if finite is None else inside & finite).squeeze(1).nonzero().squeeze(1)
        if rows.numel():
            y[rows] = x[rows] if self.ball else self._outward(x[rows], radius[rows])
            num_steps = num_steps.index_fill(0, rows, 0)
        return answer_of(y, finite, num_steps)

    def _outward(self, x: Tensor, radius: Tensor) -> Tensor:
        """From inside every coordinate moves by the same amount, away from zero."""
        move = (radius - x.abs().sum(dim=1, keepdim=True)) / x.shape[1]
        return x + torch.where(x < 0, -move, move)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return outline_of(inputs[0])

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        y, kept, failed = clean(y, v)
        face = self._face(y, inputs)
        dradius = along(face.s, v, failed) / face.k
        return self._tangent(face, kept, dradius) if needed[0] else None, dradius

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        dx, dradius = tangents
        dx = torch.zeros_like(y) if dx is None else dx
        y, kept, failed = clean(y, dx)
        face = self._face(y, inputs)
        grown = 0 if dradius is None else torch.where(failed, 0, dradius / face.k)
        return self._tangent(face, kept, along(face.s, dx, failed) / face.k - grown)

    def _tangent(self, face: _Face, v: Tensor, share: Tensor) -> Tensor:
        if self.plateau == "zero":
            v = v - face.rest * v
        return torch.addcmul(v, face.s, share, value=-1)

    def _face(self, y: Tensor, inputs: Sequence[Tensor]) -> _Face:
        x, radius = (tensor.detach() for tensor in inputs)
        s = y.detach().sign()
        if self.ball:
            outside = (_total(x) > radius).to(y.dtype)
            s = s * outside
            rest = outside - s.abs()
        else:
            rest = 1 - s.abs()
        return _Face(s, s.abs().sum(dim=1, keepdim=True).clamp(min=1), rest)


@dataclasses.dataclass(frozen=True)
class Linf:
    """The formula of ``y`` from ``x``, ``(R, m)``, and ``radius``, ``(R, 1)``."""

    ball: bool
    plateau: str

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``y``, status, steps, violation."""
        x, radius = inputs
        finite = finite_rows(x)
        bound = nan_unless(finite, radius)
        y = torch.minimum(x, bound)
        y = torch.maximum(y, -bound, out=y)
        if not self.ball:
            inside = torch.maximum(x.amax(dim=1, keepdim=True), -x.amin(dim=1, keepdim=True)) < radius
            rows = (inside if finite is None else inside & finite).squeeze(1).nonzero().squeeze(1)
            if rows.numel():
                j = x[rows].abs().argmax(dim=1)
                y[rows, j] = torch.where(x[rows, j] < 0, -radius[rows, 0], radius[rows, 0])
        return answer_of(y, finite)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return outline_of(inputs[0])

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        y, kept, failed = clean(y, v)
        s = self._face(y, inputs)
        dradius = along(s, v, failed) if needed[1] else None
        return self._tangent(s, kept, v, failed) if needed[0] else None, dradius

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        dx, dradius = tangents
        dx = torch.zeros_like(y) if dx is None else dx
        y, kept, failed = clean(y, dx)
        s = self._face(y, inputs)
        pushed = self._tangent(s, kept, dx, failed)
        return pushed if dradius is None else pushed + s * torch.where(failed, 0, dradius)

    def _tangent(self, s: Tensor, kept: Tensor, v: Tensor, failed: Tensor) -> Tensor:
        if self.plateau == "zero":
            # The sum gives a NaN back to its row.
            return kept - s.abs() * kept + torch.where(failed, 0, 0 * v.sum(dim=1, keepdim=True))
        k = s.abs().sum(dim=1, keepdim=True).clamp(min=1)
        return torch.addcmul(kept, s, along(s, v, failed) / k, value=-1)

    def _face(self, y: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        x, radius = (tensor.detach() for tensor in inputs)
        y = y.detach()
        if self.ball:
            # A point on the face itself counts as inside.
            return torch.nan_to_num(x - y, nan=0.0).sign()
        return y.sign() * (1 + (y.abs() - radius).sign())


def _total(x: Tensor) -> Tensor:
    """``|x|_1``, ``(R, 1)``: several times faster than the norm of that name."""
    return x.abs().sum(dim=1, keepdim=True)
