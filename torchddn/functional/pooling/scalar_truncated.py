r"""The robust mean of numbers under the truncated quadratic: exactly, from sorted points.

Solves, for each row of x with weights c (one each unless given)::

    y(x) = argmin_y  f(y) = sum_i c_i min((y - x_i)^2, alpha^2) / 2

Since ``min(a, b)`` chooses for each point, f is a minimum over sets I of points, the inliers::

    min_y f(y) = min_I  (sum_i c_i alpha^2 - gain(I)) / 2,    gain(I) = C(I) alpha^2 - SS(I)

with the weight ``C(I)`` of the set, the sum of squares ``SS(I) = sum_{i in I} c_i (x_i - mean(I))^2``, and y =
mean(I). So any family of sets that contains the inliers ``{i : |y - x_i| <= alpha}`` of a minimizer will do. These are
the points in ``[y - alpha, y + alpha]``, consecutive in the sorted order. As y moves right, the set changes only when
it takes in a point j, at ``y = x_j - alpha``, or has lost a point i, past ``y = x_i + alpha``; right after that it is

    taken in j:  all points of [x_j - 2 alpha, x_j]          lost i:  all points of (x_i, x_i + 2 alpha]

which makes 2 n sets in all (equal points are taken in one by one, which only adds sets). There is always an inlier,
because ``y = x_i`` gains ``c_i alpha^2``. Of minimizers that cost the same, that with the smaller mean is preferred.

Most of these sets need not be looked at (:func:`_promising`).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.functional.nodes.blocks import blocks, places_in, sorted_rows
from torchddn.functional.nodes.found import Found
from torchddn.functional.pooling.descent import NOISE

__all__ = ["solve_truncated"]

_CELLS_PER_ALPHA = 8
_MOST_CELLS = 1024  # of a row that is searched by cells
_LEAST_POINTS = 64  # likewise


class _Sums(NamedTuple):
    """Sorted points in units of alpha, ``(R, n)``; sums of ``c``, ``c x`` and ``c x^2`` before each, ``(R, n + 1)``."""

    x: Tensor
    weights: Tensor
    sums: Tensor
    squares: Tensor

    def gain(self, row: Tensor, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
        """The gain and the mean of the points ``start`` to ``stop - 1`` of each row named; of no points, ``-inf``."""
        at = row * self.weights.shape[1]
        start, stop = start + at, stop + at
        flat = (t.view(-1) for t in self[1:])
        return _gain(*(t.index_select(0, stop) - t.index_select(0, start) for t in flat))


def solve_truncated(x: Tensor, alpha: Tensor, c: Tensor | None) -> Found:
    """The global minimizer for each row; ``alpha`` is ``(R, 1)``, ``c`` has the shape of ``x``."""
    parts = [_solve(x[at], alpha[at], None if c is None else c[at]) for at, _ in blocks(len(x), x)]
    y = torch.cat(parts)
    still = torch.zeros_like(y)
    return Found(y, still.long(), still == 0, still)


def _solve(x: Tensor, alpha: Tensor, c: Tensor | None) -> Tensor:
    n = x.shape[1]
    if c is None:
        points = sorted_rows(x)
    else:
        points, order = x.sort(dim=1)
        c = c.gather(1, order)
    extent = _CELLS_PER_ALPHA * (points[:, -1] - points[:, 0]) / alpha.squeeze(1)
    few = (extent <= min(_MOST_CELLS, 2 * n)) & (n >= _LEAST_POINTS)
    if bool(few.all()):
        return _polished(points, _among_promising(points, alpha, c), alpha, c)
    y = torch.empty_like(x[:, 0])
    for chosen, search in ((few, _among_promising), (~few, _among_all)):
        rows = chosen.nonzero().squeeze(1)
        if rows.numel():
            y[rows] = search(points[rows], alpha[rows], None if c is None else c[rows])
    return _polished(points, y, alpha, c)


def _among_promising(x: Tensor, alpha: Tensor, c: Tensor | None) -> Tensor:
    r"""The best of the sets that bounds do not rule out.

    Let cells of width ``d = alpha / 8`` begin at ``g_k = x_0 + k d``. For y in a cell, the points J of
    ``[g_{k+1} - alpha, g_k + alpha]`` are inliers; a point within d left of these gains at most ``2 alpha (d - s)``
    with ``s = y - g_k``, one within d right of them at most ``2 alpha s``, and others nothing. So the gain in the cell
    is at most that of J, a parabola in y, plus ``2 alpha d`` times the larger of the two weights. A cell in which this
    is less than the gain of some set is ruled out. In the others, sets change at the points of these two strips.
    """
    dtype, (num_rows, n), device = x.dtype, x.shape, x.device
    middle, alpha = x[:, n // 2, None].double(), alpha.double()
    sums = _prefix_sums((x.double() - middle).div_(alpha), c)
    x, L = sums.x, _CELLS_PER_ALPHA
    num_cells = int((L * (x[:, -1] - x[:, 0])).amax().item()) + 1
    edge = x[:, :1] + torch.arange(-L, num_cells + 1 + L, device=device) / L
    # How many points lie before each edge is counted: a search for it takes four times as long.
    width = edge.shape[1] - 1
    place = ((x - x[:, :1]) * L).long().add_((width * torch.arange(num_rows, device=device) + L).unsqueeze(1))
    position = place.new_zeros(num_rows, width + 1)
    counts = torch.bincount(place.flatten(), minlength=num_rows * width)
    torch.cumsum(counts.view(num_rows, width), 1, out=position[:, 1:])
    # The edges that matter to cell k, with the L edges before the first point counted, are k, k + 1, k + 2 L and
    # k + 2 L + 1.
    weight, total, square = (t.gather(1, position) for t in sums[1:])

    def between(t: Tensor, start: int, stop: int) -> Tensor:
        return t[:, stop : stop + num_cells] - t[:, start : start + num_cells]

    C = between(weight, 1, 2 * L)
    lower, mean = _gain(C, between(total, 1, 2 * L), between(square, 1, 2 * L))
    nearest = torch.minimum(torch.maximum(mean, edge[:, L : L + num_cells]), edge[:, L + 1 : L + 1 + num_cells])
    strips = torch.maximum(between(weight, 0, 1), between(weight, 2 * L, 2 * L + 1))
    upper = lower.clamp(min=0) - C * (nearest - mean).square() + 2 / L * strips
    best, cell = lower.max(dim=1, keepdim=True)
    # The inliers of the best mean gain no less.
    around = torch.searchsorted(x, mean.gather(1, cell) + torch.tensor([-1.0, 1.0], dtype=x.dtype, device=device))
    row = torch.arange(num_rows, device=device)
    best = torch.maximum(best.squeeze(1), sums.gain(row, *around.unbind(1))[0])
    row, cell = (upper >= best.unsqueeze(1) * (1 - 1e-9)).nonzero().unbind(1)
    inner, left, right, beyond = (position[row, cell + shift] for shift in (0, 1, 2 * L, 2 * L + 1))
    # Before anything changes in the cell, then after a point is lost, then after one is taken in.
    lost_row, lost = _expand(row, inner, left)
    taken_row, taken = _expand(row, right, beyond)
    line = _side_by_side(x)
    until = places_in(line, line.index_select(0, lost_row * n + lost) + 2, right=True) - lost_row * n
    since = places_in(line, line.index_select(0, taken_row * n + taken) - 2) - taken_row * n
    rows = torch.cat([row, lost_row, taken_row])
    start, stop = torch.cat([inner, lost + 1, since]), torch.cat([right, until, taken + 1])
    gain, mean = sums.gain(rows, start, stop)
    best = torch.zeros_like(x[:, 0]).scatter_reduce(0, rows, gain, "amax")
    equal = gain >= best.index_select(0, rows) * (1 - NOISE * torch.finfo(dtype).eps)
    y = torch.full_like(best, torch.inf)
    y = y.scatter_reduce(0, rows, torch.where(equal, mean, torch.inf), "amin")
    return (middle + alpha * y.unsqueeze(1)).squeeze(1).to(dtype)


def _among_all(x: Tensor, alpha: Tensor, c: Tensor | None) -> Tensor:
    """The best of all 2 n sets.

    So that a far outlier does not drown the sums, points are grouped into cells a little wider than 2 alpha, and the
    sums are those of the distances from the first point of the cell; a set then touches at most two cells.
    """
    n, dtype = x.shape[1], x.dtype
    middle, alpha = x[:, n // 2, None].double(), alpha.double()
    x = x.double()
    cell = ((x - middle) / (2.001 * alpha)).floor()
    opens = torch.ones_like(cell, dtype=torch.bool)
    opens[:, 1:] = cell[:, 1:] > cell[:, :-1]
    position = torch.arange(n, device=x.device).expand_as(x)
    first = torch.where(opens, position, 0).cummax(dim=1).values  # of the cell that holds the point
    beyond = torch.where(opens, position, n).flip(1).cummin(dim=1).values.flip(1)  # first of a cell, from here on
    beyond = torch.cat([beyond[:, 1:], beyond.new_full((len(x), 1), n)], dim=1)  # ... after this point
    sums = _prefix_sums((x - x.gather(1, first)) / alpha, c)

    start = torch.cat([torch.searchsorted(x, x - 2 * alpha), position + 1], dim=1)
    stop = torch.cat([position + 1, torch.searchsorted(x, x + 2 * alpha, right=True)], dim=1)
    start = start.clamp(max=n - 1)
    stop = torch.maximum(start, stop)
    border = torch.minimum(beyond.gather(1, start), stop)  # where the second cell begins
    anchor = x.gather(1, first.gather(1, start))
    shift = (x.gather(1, border.clamp(max=n - 1)) - anchor) / alpha  # from one anchor to the other
    weight, total, square = (t.gather(1, stop) - t.gather(1, start) for t in sums[1:])
    shifted_weight, shifted = (t.gather(1, stop) - t.gather(1, border) for t in sums[1:3])
    square = square + shift * (2 * shifted + shifted_weight * shift)
    gain, mean = _gain(weight, total + shifted_weight * shift, square)
    best = gain.amax(dim=1, keepdim=True)
    equal = gain >= best * (1 - NOISE * torch.finfo(dtype).eps)
    return torch.where(equal, anchor + alpha * mean, torch.inf).amin(dim=1).to(dtype)


def _gain(weight: Tensor, total: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """The gain and the mean, from sums of ``c``, ``c x`` and ``c x^2`` over the set; of no points, ``-inf`` and 0."""
    some = weight > 0
    mean = total / torch.where(some, weight, 1)
    return torch.where(some, weight - (square - mean * total), -torch.inf), mean


def _prefix_sums(q: Tensor, c: Tensor | None) -> _Sums:
    """Of sorted points ``q`` and their weights."""
    num_rows, n = q.shape
    weights, sums, squares = (q.new_zeros(num_rows, n + 1) for _ in range(3))
    if c is None:
        weights += torch.arange(n + 1, device=q.device)
        weighted = q
    else:
        torch.cumsum(c.double(), 1, out=weights[:, 1:])
        weighted = c * q
    torch.cumsum(weighted, 1, out=sums[:, 1:])
    torch.cumsum(weighted * q, 1, out=squares[:, 1:])
    return _Sums(q, weights, sums, squares)


def _expand(row: Tensor, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """The rows and numbers of all points ``start`` to ``stop - 1``."""
    count = stop - start
    item = torch.repeat_interleave(torch.arange(len(row), device=row.device), count)
    first = count.cumsum(0) - count
    shift = (start - first).index_select(0, item)
    return row.index_select(0, item), torch.arange(len(item), device=row.device).add_(shift)


def _side_by_side(x: Tensor) -> Tensor:
    """All rows in one ascending line, so far apart that none is mistaken for another in steps of two."""
    width = (x[:, -1] - x[:, 0]).amax() + 5
    return (x + (width * torch.arange(len(x), device=x.device) - x[:, 0]).unsqueeze(1)).flatten()


def _polished(x: Tensor, y: Tensor, alpha: Tensor, c: Tensor | None) -> Tensor:
    """The mean of the inliers of ``y``, where ``y`` is that up to rounding of the prefix sums."""
    if x.dtype == torch.float32:
        return y  # prefix sums in float64 round less
    r = x - y.unsqueeze(1)
    inlier = (r.abs() <= alpha).to(x.dtype)
    weight = inlier if c is None else inlier * c
    step = (weight * r).sum(dim=1) / weight.sum(dim=1)
    return torch.where(step.abs() <= 1e-6 * alpha.squeeze(1), y + step, y)
