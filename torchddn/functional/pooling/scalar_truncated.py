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

Most of these sets need not be looked at: cells of y that bounds (:func:`_bounds`) do not rule out are divided, until
few sets are left.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.functional.nodes.blocks import block_size, sorted_rows
from torchddn.functional.nodes.found import Found
from torchddn.functional.pooling.descent import NOISE

__all__ = ["solve_truncated"]

# The fewest points of a row that is searched by cells, how many of them there are per alpha, and how many alphas they
# may span: a wider row would lose digits in its prefix sums.
_LEAST_POINTS, _POINTS_PER_ALPHA, _WIDEST = 64, 4, 128

_BLOCK = 2**20  # numbers whose prefix sums exist at a time
_FIRST_PARTS, _PARTS = 32, 8  # into which a cell is divided
_FEW = 6  # points in a strip that are not divided further


class _Sums(NamedTuple):
    """Sorted points and infinity, in units of alpha; sums of ``c``, ``c x`` and ``c x^2`` before each, ``(R, n + 1)``.

    No ``weights`` means that all are one. Places are counted through all rows.
    """

    x: Tensor
    weights: Tensor | None
    sums: Tensor
    squares: Tensor

    def before(self, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three sums before these places."""
        weights = place.to(self.x.dtype) if self.weights is None else _take(self.weights, place)
        return weights, _take(self.sums, place), _take(self.squares, place)


class _Cells(NamedTuple):
    """Runs of cells of y, each between two neighbors of ``y``, ``(K, N + 1)``, in the row that ``row`` names, ``(K,)``.

    ``inliers``, ``(K, 2, N + 1)``, are the places of the first inlier of ``y`` and of the first point beyond; points at
    distance one may be either. Between those of two neighbors lies a strip of points that are lost, or taken in.
    """

    row: Tensor
    y: Tensor
    inliers: Tensor

    def chosen(self, mask: Tensor) -> "_Cells":
        """The cells in ``mask``, ``(K, N)``, each as a run of one."""
        run, number = mask.nonzero().unbind(1)
        ends = torch.stack([number, number + 1], dim=1)
        width = self.y.shape[1]
        y = _take(self.y, ends + (width * run).unsqueeze(1))
        sides = width * torch.stack([2 * run, 2 * run + 1], dim=1)
        return _Cells(self.row.index_select(0, run), y, _take(self.inliers, ends.unsqueeze(1) + sides.unsqueeze(2)))


def solve_truncated(x: Tensor, alpha: Tensor, c: Tensor | None) -> Found:
    """The global minimizer for each row; ``alpha`` is ``(R, 1)``, ``c`` has the shape of ``x``."""
    size = block_size(x.shape[1], x.device, _BLOCK)
    rows = [slice(start, start + size) for start in range(0, len(x), size)]
    # In the same memory for all blocks, since that is in the cache, and new memory costs more than what is done in it.
    num_tables, num_rows = 3 if c is None else 4, min(size, len(x))
    space = x.new_empty(num_tables, num_rows, x.shape[1] + 1, dtype=torch.float64)
    y = torch.cat([_solve(x[at], alpha[at], None if c is None else c[at], space) for at in rows])
    still = torch.zeros_like(y)
    return Found(y, still.long(), still == 0, still)


def _solve(x: Tensor, alpha: Tensor, c: Tensor | None, space: Tensor) -> Tensor:
    if c is None:
        points = sorted_rows(x)
    else:
        points, order = x.sort(dim=1)
        c = c.gather(1, order)
    n, extent = x.shape[1], (points[:, -1] - points[:, 0]) / alpha.squeeze(1)
    narrow = (extent <= min(_WIDEST, n / _POINTS_PER_ALPHA)) & (n >= _LEAST_POINTS)
    if bool(narrow.all()):
        return _polished(points, _among_promising(points, alpha, c, space), alpha, c)
    y = torch.empty_like(x[:, 0])
    for chosen, search in ((narrow, partial(_among_promising, space=space)), (~narrow, _among_all)):
        rows = chosen.nonzero().squeeze(1)
        if rows.numel():
            y[rows] = search(points[rows], alpha[rows], None if c is None else c[rows])
    return _polished(points, y, alpha, c)


def _among_promising(x: Tensor, alpha: Tensor, c: Tensor | None, space: Tensor) -> Tensor:
    """The best of the sets that bounds do not rule out."""
    noise = NOISE * torch.finfo(x.dtype).eps
    middle = x[:, x.shape[1] // 2, None].double()
    sums = _sums(x, middle, alpha, c, space)
    parts, small, best = _first_cells(sums), [], torch.zeros_like(middle.squeeze(1))
    while len(parts.row):
        lower, upper = _bounds(sums, parts)
        best = best.scatter_reduce(0, parts.row, lower.amax(dim=1), "amax")
        kept = upper >= (best.index_select(0, parts.row) * (1 - max(1e-9, noise))).unsqueeze(1)
        few = parts.inliers.diff(dim=2).amax(dim=1) <= _FEW
        small.append(parts.chosen(kept & few))
        parts = _divided(sums, parts.chosen(kept & ~few))
    cells = _Cells(*(torch.cat(t) for t in zip(*small, strict=True)))
    # Few points are in the strips: all sets that lose and take in some of them.
    step = torch.arange(_FEW + 1, dtype=cells.inliers.dtype, device=x.device)
    before = sums.before(torch.minimum(cells.inliers[:, :, :1] + step, cells.inliers[:, :, 1:]))
    gain, mean = _gain(*((t[:, 1, None] - t[:, 0, :, None]).flatten(1) for t in before))
    best = best.scatter_reduce(0, cells.row, gain.amax(dim=1), "amax", include_self=False)
    equal = gain >= (best.index_select(0, cells.row) * (1 - noise)).unsqueeze(1)
    y = torch.where(equal, mean, torch.inf).amin(dim=1)
    y = torch.full_like(best, torch.inf).scatter_reduce(0, cells.row, y, "amin")
    return (middle + alpha * y.unsqueeze(1)).squeeze(1).to(x.dtype)


def _first_cells(sums: _Sums) -> _Cells:
    """All y of each row as a run of cells, in which an equal number of points is lost."""
    x, (num_rows, n) = sums.x, (len(sums.x), sums.x.shape[1] - 1)
    dtype = torch.int32 if x.numel() < 2**31 else torch.int64
    step = -(-n // _FIRST_PARTS)
    place = torch.arange(0, n + step, step, dtype=dtype, device=x.device).clamp_(max=n)
    lost = x[:, step:n:step].contiguous()
    y = torch.cat([x[:, :1] - 1, lost + 1, x[:, n - 1 : n] + 1], dim=1)
    row = torch.arange(num_rows, device=x.device)
    first = ((n + 1) * row).to(dtype).unsqueeze(1)
    # A search among all points takes twice as long as one among those at hand, and then between two of them.
    low = first + step * torch.searchsorted(lost, lost + 2, out_int32=dtype == torch.int32)
    beyond = _first_from(x, lost + 2, low, torch.minimum(low + step, first + n))
    place = first + place
    inliers = torch.stack([place, torch.cat([place[:, :1], beyond, place[:, -1:]], dim=1)], dim=1)
    return _Cells(row, y, inliers)


def _divided(sums: _Sums, cells: _Cells) -> _Cells:
    """Each cell as a run of parts, between which an equal share of its larger strip is lost or taken in."""
    row, y, inliers = cells
    if not len(row):
        return cells
    by_lost = inliers.diff(dim=2).squeeze(2).diff(dim=1) <= 0
    known, other = (torch.where(by_lost, inliers[:, i], inliers[:, 1 - i]) for i in (0, 1))
    share = torch.arange(1, _PARTS, dtype=inliers.dtype, device=y.device)
    place = known[:, :1] + (known[:, 1:] - known[:, :1]) * share // _PARTS
    # The point x is lost past y = x + 1, where x + 2 and more is beyond; it is taken in at y = x - 1.
    side = torch.where(by_lost, 1.0, -1.0).to(y.dtype)
    x = _take(sums.x, place)
    found = _first_from(sums.x, x + 2 * side, other[:, :1], other[:, 1:])
    inner = torch.stack([torch.where(by_lost, place, found), torch.where(by_lost, found, place)], dim=1)
    y = torch.cat([y[:, :1], x + side, y[:, 1:]], dim=1)
    return _Cells(row, y, torch.cat([inliers[:, :, :1], inner, inliers[:, :, 1:]], dim=2))


def _first_from(x: Tensor, value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The first place between ``low`` and ``high`` where x is at least ``value``, ``(K, N)``; by bisection."""
    width, shape = int((high - low).amax().item()), value.shape
    x, value, place, high = (t.flatten() for t in (x, value, (low - 1).expand(shape).clone(), high.expand(shape)))
    for bit in reversed(range(width.bit_length())):
        place.add_(x.index_select(0, torch.minimum(place + 2**bit, high)) < value, alpha=2**bit)
    return torch.minimum(place + 1, high).view(shape)


def _bounds(sums: _Sums, cells: _Cells) -> tuple[Tensor, Tensor]:
    """Of the gain: that of some set, and what no y in the cell exceeds, ``(K, N)``.

    What the points J that are inliers at both ends gain is a parabola in y, with its top at their mean. A point x that
    is lost in the cell gains ``1 - (y - x)^2 <= 2 (x + 1 - y)`` or nothing: by convexity at most ``2 (x + 1 - low)``
    times the share of the cell ahead of y. One that is taken in gains at most ``2 (high + 1 - x)`` times the share
    behind. And the gain is at most the weight of all these points.
    """
    low, high = cells.y[:, :-1], cells.y[:, 1:]
    weight, total, square = sums.before(cells.inliers)
    # Of J: from the first inlier at the upper end to the first point beyond at the lower one, if there is any between.
    C = weight[:, 1, :-1] - weight[:, 0, 1:]
    gain, mean = _gain(C, *(t[:, 1, :-1] - t[:, 0, 1:] for t in (total, square)))
    lower = gain.clamp(min=0)
    nearest = torch.minimum(torch.maximum(mean, low), high)
    weights, totals = weight.diff(dim=2), total.diff(dim=2)
    lost = totals[:, 0] - (low - 1) * weights[:, 0]
    taken = (high + 1) * weights[:, 1] - totals[:, 1]
    upper = lower - C.clamp(min=0) * (nearest - mean).square() + 2 * torch.maximum(lost, taken)
    return lower, torch.minimum(upper, weight[:, 1, 1:] - weight[:, 0, :-1])


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
    q, c = (x - x.gather(1, first)) / alpha, torch.ones_like(x) if c is None else c.double()
    sums = _before(c), _before(c * q), _before(c * q * q)

    start = torch.cat([torch.searchsorted(x, x - 2 * alpha), position + 1], dim=1)
    stop = torch.cat([position + 1, torch.searchsorted(x, x + 2 * alpha, right=True)], dim=1)
    start = start.clamp(max=n - 1)
    stop = torch.maximum(start, stop)
    border = torch.minimum(beyond.gather(1, start), stop)  # where the second cell begins
    anchor = x.gather(1, first.gather(1, start))
    shift = (x.gather(1, border.clamp(max=n - 1)) - anchor) / alpha  # from one anchor to the other
    weight, total, square = (t.gather(1, stop) - t.gather(1, start) for t in sums)
    shifted_weight, shifted = (t.gather(1, stop) - t.gather(1, border) for t in sums[:2])
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


def _sums(x: Tensor, middle: Tensor, alpha: Tensor, c: Tensor | None, space: Tensor) -> _Sums:
    """Of sorted points, relative to their ``middle``."""
    points, sums, squares, *weights = space[:, : len(x)]
    points[:, -1], space[1:, :, 0] = torch.inf, 0
    q = points[:, :-1].copy_(x).sub_(middle).mul_(1 / alpha.double())  # of one dtype, which takes half of the time
    weighted = q if c is None else torch.mul(c, q, out=sums[:, 1:])
    torch.mul(weighted, q, out=squares[:, 1:]).cumsum_(1)
    torch.cumsum(weighted, 1, out=sums[:, 1:])
    if c is None:
        return _Sums(points, None, sums, squares)
    torch.cumsum(c, 1, dtype=q.dtype, out=weights[0][:, 1:])
    return _Sums(points, weights[0], sums, squares)


def _before(t: Tensor) -> Tensor:
    """The sum of the numbers before each, and of all, ``(R, n + 1)``."""
    return torch.cat([torch.zeros_like(t[:, :1]), t.cumsum(1)], dim=1)


def _take(values: Tensor, places: Tensor) -> Tensor:
    """``torch.take``, which takes twice as long."""
    return values.view(-1).index_select(0, places.flatten()).view(places.shape)


def _polished(x: Tensor, y: Tensor, alpha: Tensor, c: Tensor | None) -> Tensor:
    """The mean of the inliers of ``y``, where ``y`` is that up to rounding of the prefix sums."""
    if x.dtype == torch.float32:
        return y  # prefix sums in float64 round less
    r = x - y.unsqueeze(1)
    inlier = (r.abs() <= alpha).to(x.dtype)
    weight = inlier if c is None else inlier * c
    step = (weight * r).sum(dim=1) / weight.sum(dim=1)
    return torch.where(step.abs() <= 1e-6 * alpha.squeeze(1), y + step, y)
