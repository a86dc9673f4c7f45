r"""The projection onto the cone of nondecreasing vectors, isotonic regression, as a formula.

Solves, for each row of x and positive weights w, which are ones unless given::

    y(x, w) = argmin_y  1/2 sum_i w_i (y_i - x_i)^2   subject to   y_1 <= y_2 <= ... <= y_m

y is constant on segments, each of them the mean of x there. A segment whose mean is not below that of the next belongs
to the same segment of y as that one. So every run of segments with falling means becomes one, all runs of all rows at
once, until no mean falls. Mostly that takes a few rounds, on ever fewer segments.

It may take m rounds, where one segment grows by a neighbor each time. Rows that are not done soon are solved by
halves: if the answer ``l`` of one half ends above the beginning of that of the other, ``r``, the end of one and the
beginning of the other are pooled, and become the number c that keeps the sum::

    y = (min(l, c), max(r, c)),     sum_i w_i max(l_i - c, 0) = sum_i w_i max(c - r_i, 0)                          (1)

The right-hand side of (1) minus the left grows with c, and l and r are sorted, so that binary search finds how many
numbers are pooled. All pairs of halves of all rows are merged at once, beginning with single numbers: about log2(m)
merges, of about log2(m) steps each on one number per pair. Neither way loops over rows or coordinates.

Derivatives, with the sums W of the weights and V of the incoming gradient over the segment of i::

    dx_i = w_i V / W,     dw_i = (x_i - y_i) V / W

Where two neighboring segments have the same mean, at a kink, they count as one.

References:
    Barlow, Bartholomew, Bremner, Brunk, Statistical Inference under Order Restrictions, 1972. Pooling the adjacent
    violators one after the other, as is usual, gives the same answer; its steps depend on each other.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from torchddn.functional.nodes.handmade import Answer
from torchddn.functional.projection.vectors import answer_of, finite_rows, nan_unless, outline_of

__all__ = ["MonotoneCone", "segment_means", "segments"]

_NUM_ROUNDS = 32


@dataclasses.dataclass(frozen=True)
class MonotoneCone:
    """The formula of ``y`` from ``x``, ``(R, m)``, and perhaps weights ``w``, ``(R, m)``, positive."""

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``y``, status, steps, violation."""
        x, w = _given(inputs)
        finite = finite_rows(x)
        rows = x if finite is None else torch.where(finite, x, 0)
        # Centered and with the digits of float64, sums of many numbers still tell which of two means is larger.
        offset = rows.mean(dim=1, keepdim=True)
        centered, w = (rows - offset).double(), None if w is None else w.double()
        y, num_steps = _pooled(centered, w)
        # The means once more, without the errors of one merge after the other.
        y = segment_means(centered, segments(y), w).cummax(dim=1).values
        y = nan_unless(finite, y.to(x.dtype) + offset)
        return answer_of(y, finite, num_steps)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return outline_of(inputs[0])

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        x, w = _given(inputs)
        sound, segment = _parts(y)
        mean = segment_means(torch.where(sound, v, 0), segment)
        if w is None:
            return (mean,)
        share = mean / segment_means(w, segment)
        return w * share, torch.where(sound, x - y, 0) * share

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        x, w = _given(inputs)
        sound, segment = _parts(y)
        dx = torch.zeros_like(y) if tangents[0] is None else torch.where(sound, tangents[0], 0)
        if w is None:
            return segment_means(dx, segment)
        rate = w * dx
        if tangents[1] is not None:
            rate = rate + torch.where(sound, x - y, 0) * tangents[1]
        return segment_means(rate, segment) / segment_means(w, segment)


def _given(inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    return inputs[0], inputs[1] if len(inputs) > 1 else None


def _parts(y: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows have an answer, ``(R, 1)``, and the segments."""
    y = y.detach()
    return ~y[:, :1].isnan(), segments(y)


def segments(y: Tensor) -> Tensor:
    """The number of the segment of each coordinate, ``(R, m)``: a run of equal numbers of ``y``."""
    changes = (y[:, 1:] != y[:, :-1]).to(torch.int64)
    return torch.nn.functional.pad(changes.cumsum(dim=1), (1, 0))


def segment_means(v: Tensor, segment: Tensor, w: Tensor | None = None) -> Tensor:
    """The mean of ``v``, with the weights ``w``, over the segment of each coordinate."""
    zeros = torch.zeros_like(v)
    total = zeros.scatter_add(1, segment, v if w is None else w * v)
    size = zeros.scatter_add(1, segment, torch.ones_like(v) if w is None else w)
    return total.gather(1, segment) / size.gather(1, segment)


def _pooled(x: Tensor, w: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``y``, and the number of rounds and merges, ``(R,)``."""
    num_rows, m = x.shape
    num_steps = torch.zeros(num_rows, dtype=torch.int64, device=x.device)
    # Segments of all rows in one line: sum, weight, length and row of each.
    mean = total = x.flatten()
    weight = length = torch.ones_like(total)
    if w is not None:
        weight, total = w.flatten(), w.flatten() * mean
    row = torch.arange(num_rows, device=x.device).repeat_interleave(m)
    num_rounds = 0
    while True:
        joined = (mean[:-1] >= mean[1:]) & (row[:-1] == row[1:])
        unfinished = torch.zeros_like(num_steps).index_fill_(0, row[:-1][joined], 1)
        if num_rounds == _NUM_ROUNDS or not bool(unfinished.any()):
            break
        num_rounds += 1
        num_steps += unfinished
        begins = torch.nn.functional.pad(~joined, (1, 0), value=True)
        segment = begins.cumsum(dim=0) - 1
        row = row[begins]
        sums = [torch.zeros_like(row, dtype=x.dtype).index_add_(0, segment, t) for t in (total, length)]
        weight = sums[1] if w is None else torch.zeros_like(sums[1]).index_add_(0, segment, weight)
        total, length = sums
        mean = total / weight
    y = mean.repeat_interleave(length.to(torch.int64)).reshape(num_rows, m)
    rows = unfinished.nonzero().squeeze(1)
    if rows.numel():
        y[rows] = _merged(y[rows], None if w is None else w[rows])
        num_steps[rows] += (m - 1).bit_length()
    return y, num_steps


def _merged(x: Tensor, w: Tensor | None = None) -> Tensor:
    """``y`` by merges of neighbors, then of pairs of these, and so on."""
    num_rows, m = x.shape
    num_merges = (m - 1).bit_length()
    # Numbers above all others at the end are never pooled.
    y = torch.nn.functional.pad(x, (0, 2**num_merges - m), value=torch.inf)
    w = torch.ones_like(y) if w is None else torch.nn.functional.pad(w, (0, 2**num_merges - m), value=1.0)
    for merge in range(num_merges):
        halves = [t.reshape(num_rows, -1, 2, 2**merge).movedim(2, 0).contiguous().unbind() for t in (y, w)]
        y = _merge(*halves[0], *halves[1]).reshape(num_rows, -1)
    return y[:, :m]


def _merge(left: Tensor, right: Tensor, w_left: Tensor, w_right: Tensor) -> Tensor:
    """Merges halves ``(R, pairs, half)`` that are sorted."""
    half = left.shape[2]
    # Sums over the last a numbers of the left and the first b of the right, a, b = 0, ..., half, and their weights.
    last, last_weight = _sums((w_left * left).flip(2)), _sums(w_left.flip(2))
    first, first_weight = _sums(w_right * right), _sums(w_right)
    violated = left[..., -1:] > right[..., :1]

    def excess(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """(1), right minus left, for ``c`` with ``a`` numbers of the left above it, and ``b`` of the right below."""
        return (c * first_weight.gather(2, b) - first.gather(2, b)) - (last.gather(2, a) - c * last_weight.gather(2, a))

    def count(numbers: Tensor, is_left: bool) -> Tensor:
        """How many numbers of one side are pooled: the last of these is where the excess changes its sign."""
        low = torch.zeros_like(violated, dtype=torch.int64)
        high = torch.full_like(low, half)
        for _ in range(half.bit_length()):
            middle = (low + high + 1) // 2
            index = half - middle if is_left else middle - 1
            c = numbers.gather(2, index.clamp(0, half - 1))
            a = middle if is_left else half - torch.searchsorted(left, c.contiguous(), right=True)
            b = torch.searchsorted(right, c.contiguous()) if is_left else middle
            over = excess(torch.where(c.isfinite(), c, 0), a, b)
            pooled = (over > 0 if is_left else over < 0) & c.isfinite() & (middle > low)
            low, high = torch.where(pooled, middle, low), torch.where(pooled, high, torch.maximum(low, middle - 1))
        return low

    a, b = count(left, True), count(right, False)
    # Of two numbers that violate the order, these two at least are pooled.
    a, b = a.clamp(min=1), b.clamp(min=1)
    c = (last.gather(2, a) + first.gather(2, b)) / (last_weight.gather(2, a) + first_weight.gather(2, b))
    merged = torch.where(violated, torch.minimum(left, c), left), torch.where(violated, torch.maximum(right, c), right)
    return torch.cat(merged, dim=2)


def _sums(x: Tensor) -> Tensor:
    """Sums over the first 0, 1, ... numbers that are finite."""
    return torch.nn.functional.pad(torch.where(x.isfinite(), x, 0).cumsum(dim=2), (1, 0))
