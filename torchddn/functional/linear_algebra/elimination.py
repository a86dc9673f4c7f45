r"""Banded systems: cyclic reduction where it is accurate, orthogonal reduction where it is not, in O(n).

Solves, for each item, with ``band[w + k, i] = K[i, i + k]``, ``|k| <= w``::

    K y = b

Cyclic reduction (:mod:`torchddn.linear.banded`) is fast and does not pivot. Its answer, refined if need be, is kept if
its backward error is a rounding error and no pivot vanished. The others are solved again by reflections, which are
stable for every regular matrix. The rows are cut into segments of 2w. Segment t couples two neighbors in a chain of
states of 2w unknowns, ``s_t = y[2 w t - w : 2 w t + w]``::

    S_t s_t + T_t s_{t+1} = f_t

A QR factorization of ``[T_1; S_2]`` takes the state between two segments out and leaves one segment between the outer
two; all pairs of neighbors do so at once, then half as many, until one is left. The factorization runs on over the
other columns, which applies its reflections to them. Neither method has a loop over rows.

Derivatives. With ``u = K^-T v``: ``db = u`` and ``dband[w + k, i] = -u_i y_{i+k}``, a solve of the same kind.

References:
    Wright, Stable parallel algorithms for two-point boundary value problems, 1992: structured orthogonal factorization.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchddn.functional.nodes.finite import are_finite
from torchddn.functional.nodes.handmade import Answer, solve
from torchddn.linear import BandedMatrix, CyclicReduction
from torchddn.linear.scaling import power_of_two
from torchddn.status import Status

__all__ = ["BandedSystem", "multiply"]

# In roundings: the largest pivot of the equilibrated matrix that counts as zero, and the largest backward errors of an
# answer that needs no second method, and of one that is correct.
_SINGULAR = 100.0
_ACCURATE = 20.0
_TRUSTED = 1e4


class _Found(NamedTuple):
    """``y``, ``(R, n, k)``; its backward error and the smallest pivot, ``(R,)``."""

    y: Tensor
    error: Tensor
    pivot: Tensor

    def accurate(self, roundings: float) -> Tensor:
        """Whether K is regular and the backward error within so many roundings, ``(R,)``."""
        eps = torch.finfo(self.y.dtype).eps
        return (self.pivot > _SINGULAR * eps) & (self.error <= roundings * eps)  # and not NaN


class _Level(NamedTuple):
    """``R s + E s_left + F s_right = g`` for the states that are taken out, stacked to ``(B, N, 2 w, 6 w + k)``."""

    rows: Tensor
    num_segments: int


@dataclasses.dataclass(frozen=True)
class BandedSystem:
    """The formula of ``y``, ``(R, n, k)``, from ``band``, ``(R, 2 w + 1, n)``, zero outside of K, and ``b``.

    An item that is singular or not finite has the answer NaN and derivatives of zero.
    """

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``y``; status and the backward error, ``(R,)`` each."""
        band, b = inputs
        if len(b) == 0:
            return self.outline(inputs)
        finite = are_finite(band, (1, 2)) & are_finite(b, (1, 2))
        if not bool(finite.all()):
            band, b = (torch.where(finite.reshape(-1, 1, 1), x, 0) for x in (band, b))
        found = _by_cyclic_reduction(band, b)
        rows = (finite & ~found.accurate(_ACCURATE)).nonzero().squeeze(1)
        if rows.numel():
            for whole, part in zip(found, _by_reflections(band[rows], b[rows]), strict=True):
                whole[rows] = part
        y, error = found.y, found.error
        converged = found.accurate(_TRUSTED) & are_finite(y, (1, 2))
        status = torch.where(converged, int(Status.CONVERGED), int(Status.STALLED))
        status = torch.where(finite, status, int(Status.NON_FINITE))
        answered = (finite & converged).reshape(-1, 1, 1)
        return torch.where(answered, y, torch.nan), status, torch.where(finite, error, torch.nan)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        b = inputs[1]
        y = torch.empty_like(b, memory_format=torch.contiguous_format)
        return y, b.new_empty(b.shape[0], dtype=torch.int64), b.new_empty(b.shape[0])

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        sound, y, band = _sound(y, inputs[0])
        u = solve(self, _transposed(band), torch.where(sound, v, 0))[0]
        dband = None
        if needed[0]:
            w, n = band.shape[1] // 2, y.shape[1]
            padded = pad(y, (0, 0, w, w))
            dband = -torch.stack([(u * padded[:, k : k + n]).sum(dim=2) for k in range(2 * w + 1)], dim=1)
        return dband, u

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        sound, y, band = _sound(y, inputs[0])
        dband, db = tangents
        rate = torch.zeros_like(y) if db is None else db
        if dband is not None:
            rate = rate - multiply(dband, y)
        return solve(self, band, torch.where(sound, rate, 0))[0]


def multiply(band: Tensor, y: Tensor) -> Tensor:
    """``K y`` for columns ``y``, ``(R, n, k)``."""
    w, n = band.shape[1] // 2, y.shape[1]
    padded = pad(y, (0, 0, w, w))
    return sum((band[:, k].unsqueeze(2) * padded[:, k : k + n] for k in range(2 * w + 1)), torch.zeros_like(y))


def _transposed(band: Tensor) -> Tensor:
    w, n = band.shape[1] // 2, band.shape[2]
    padded = pad(band, (w, w))
    return torch.stack([padded[:, 2 * w - k, k : k + n] for k in range(2 * w + 1)], dim=1)


def _sound(y: Tensor, band: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which items have an answer, ``(R, 1, 1)``; y and the band, with an identity for those that have none."""
    sound = ~y.isnan().flatten(1).any(dim=1).reshape(-1, 1, 1)
    w = band.shape[1] // 2
    identity = band.new_zeros(band.shape[1], 1)
    identity[w] = 1
    return sound, torch.where(sound, y, 0), torch.where(sound, band, identity)


def _equilibrated(band: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Powers of two ``r`` and ``c``, ``(R, n)``, and ``diag(r) K diag(c)``, with rows and columns of about one."""
    w, n = band.shape[1] // 2, band.shape[2]
    row = power_of_two(band.abs().amax(dim=1).reciprocal())
    band = band * row.unsqueeze(1)
    column = power_of_two(_transposed(band).abs().amax(dim=1).reciprocal())
    return row, column, band * pad(column, (w, w), value=1.0).unfold(1, n, 1)


def _residual(band: Tensor, y: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``b - K y`` and ``|K| |y| + |b|``, ``(R, n, k)``."""
    return b - multiply(band, y), multiply(band.abs(), y.abs()) + b.abs()


def _by_cyclic_reduction(band: Tensor, b: Tensor) -> _Found:
    """Its error is the largest of all rows, which does not depend on the units of rows and columns."""
    method = CyclicReduction()
    state = method.init(BandedMatrix(band))
    pivot = torch.where(state.ok, state.rcond, 0)

    def judged(y: Tensor) -> tuple[_Found, Tensor]:
        residual, size = _residual(band, y, b)
        error = torch.where(size == 0, 0, residual.abs() / size).flatten(1).amax(dim=1)
        return _Found(y, error, pivot), residual

    found, residual = judged(method.solve(state, b))
    accurate = found.accurate(_ACCURATE)
    if bool(accurate.all()):
        return found
    return judged(torch.where(accurate.reshape(-1, 1, 1), found.y, found.y + method.solve(state, residual)))[0]


def _by_reflections(band: Tensor, b: Tensor) -> _Found:
    """Of the equilibrated matrix; its error is that of the largest entries. ``y`` is not finite where K is singular."""
    row, column, band = _equilibrated(band)
    b = row.unsqueeze(2) * b
    y, pivot = _eliminated(band, b)
    residual, size = (x.abs().amax(dim=1) for x in _residual(band, y, b))
    error = torch.where(size == 0, 0, residual / size).amax(dim=1)
    return _Found(column.unsqueeze(2) * y, error, pivot)


def _eliminated(band: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``y``, ``(R, n, k)``, and the smallest pivot, ``(R,)``."""
    w, n = band.shape[1] // 2, band.shape[2]
    segments = _segments(band, b)
    levels, pivots = [], []
    while segments.shape[1] > 1:
        level, segments, pivot = _reduced(segments, w)
        levels.append(level)
        pivots.append(pivot)
    # The outer halves of the two states left lie outside of K.
    last = torch.linalg.qr(segments[:, 0, :, w:], mode="r").R
    last = torch.cat([last[:, :, : 2 * w], last[:, :, 3 * w :]], dim=2)
    pivots.append(last.diagonal(dim1=1, dim2=2)[:, : 2 * w].abs().amin(dim=1))
    inner = torch.linalg.solve_triangular(last[:, :, : 2 * w], last[:, :, 2 * w :], upper=True)
    states = pad(inner, (0, 0, w, w)).unflatten(1, (2, 2 * w))
    for level in reversed(levels):
        states = _restored(level, states, w)
    y = states.flatten(1, 2)[:, w : w + n]
    return y, torch.stack(pivots).amin(dim=0)


def _segments(band: Tensor, b: Tensor) -> Tensor:
    """``[S_t, T_t, f_t]`` of all segments, ``(R, N, 2 w, 4 w + k)``; rows past the end say that an unknown is zero."""
    w, n = band.shape[1] // 2, band.shape[2]
    missing = -n % (2 * w)
    rows = pad(band.mT, (0, 0, 0, missing))
    rows[:, n:, w] = 1
    rows = rows.unflatten(1, (-1, 2 * w))
    segments = band.new_zeros(*rows.shape[:3], 4 * w + b.shape[2])
    for i in range(2 * w):
        segments[:, :, i, i : i + 2 * w + 1] = rows[:, :, i]
    segments[..., 4 * w :] = pad(b, (0, 0, 0, missing)).unflatten(1, (-1, 2 * w))
    return segments


def _reduced(segments: Tensor, w: int) -> tuple[_Level, Tensor, Tensor]:
    """One segment in place of each two; a last one without a partner stays. The smallest pivot, ``(R,)``."""
    size, num_pairs = 2 * w, segments.shape[1] // 2
    first, second = segments[:, 0 : 2 * num_pairs : 2], segments[:, 1 : 2 * num_pairs : 2]
    stack = segments.new_zeros(len(segments), num_pairs, 2 * size, segments.shape[3] + size)
    stack[..., :size, :size], stack[..., size:, :size] = first[..., size : 2 * size], second[..., :size]
    stack[..., :size, size : 2 * size], stack[..., size:, 2 * size : 3 * size] = (
        first[..., :size],
        second[..., size : 2 * size],
    )
    stack[..., :size, 3 * size :], stack[..., size:, 3 * size :] = first[..., 2 * size :], second[..., 2 * size :]
    R = torch.linalg.qr(stack, mode="r").R
    pivot = R[..., :size, :size].diagonal(dim1=2, dim2=3).abs().flatten(1).amin(dim=1)
    left = R[..., size:, size:]
    return _Level(R[..., :size, :], segments.shape[1]), torch.cat([left, segments[:, 2 * num_pairs :]], dim=1), pivot


def _restored(level: _Level, states: Tensor, w: int) -> Tensor:
    """All states of a level from those that were not taken out there, ``(R, N + 1, 2 w, k)``."""
    size, num_pairs = 2 * w, level.num_segments // 2
    R, E, F, g = level.rows.split((size, size, size, states.shape[3]), dim=3)
    rhs = g - E @ states[:, :num_pairs] - F @ states[:, 1 : num_pairs + 1]
    taken = torch.linalg.solve_triangular(R, rhs, upper=True)
    whole = states.new_empty(len(states), level.num_segments + 1, size, states.shape[3])
    whole[:, 1 : 2 * num_pairs : 2] = taken
    whole[:, 0 : 2 * num_pairs + 1 : 2] = states[:, : num_pairs + 1]
    if level.num_segments % 2:
        whole[:, -1] = states[:, -1]
    return whole
