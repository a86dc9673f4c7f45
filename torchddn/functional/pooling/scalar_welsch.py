r"""The robust mean of numbers under Welsch's penalty: the highest hill of a density.

Maximizes, for each row of x with weights c (one each unless given)::

    D(y) = sum_i c_i e(t_i) = sum_i c_i - f(y),     e(t) = exp(-t^2 / 2),     t_i = (y - x_i) / alpha

First cells are found outside which no maximizer can be; then Newton's method goes up the hill from the best cell of
each run of neighbors, and the highest wins, that with the smaller y of equals. Two searches for the cells:

* Many points within a narrow range: points are gathered into cells of width alpha / 16, with moments up to the second,
  which give D near each center with an error of at most ``max D / 4096``; see :func:`_tops`.
* Others: branch and bound, see :func:`_branches`.

So ``D(y) >= (1 - 1/2048) max D`` always, and y is the global minimizer unless D stays that close to its maximum all
the way from there to another local one.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.functional.nodes.blocks import blocks
from torchddn.functional.nodes.found import Found
from torchddn.functional.pooling.descent import NOISE, Local, descend
from torchddn.functional.pooling.kernel import kernel, suits
from torchddn.penalties import Welsch
from torchddn.status import Status

__all__ = ["solve_welsch"]

_MAX_LOOKS = 6  # of the fast ascent
_MAX_STEPS = 200  # of the descent that replaces it

# Cells of the branch and bound, in units of alpha, after those of one.
_SIZES = (1 / 2, 1 / 4, 1 / 8, 1 / 16)

# Cells of the moments per alpha; how many alphas they may span, and a row of which only a part can hold a maximizer;
# the fewest points that make them worth while; and how many cells from y points have no influence: seven alphas.
_CELLS = 16
_NEAR = 24
_FAR = 512
_LEAST_POINTS = 64
_MARGIN = 7 * _CELLS

# With kernels, the number of cells is a multiple of this, so that few numbers occur.
_STEP = 64

# A density that is lower than the best by this share is not that of a maximizer; both searches prove it.
_SHARE = 1 / 2048

# exp() near the smallest float32 is about sixty times slower than elsewhere.
_SMALLEST_EXPONENT = -80.0


class _Tops(NamedTuple):
    """Where to start the ascent: ``y`` and the row it belongs to, ascending in both, ``(E,)``."""

    row: Tensor
    y: Tensor


def solve_welsch(x: Tensor, alpha: Tensor, c: Tensor | None, low: Tensor, high: Tensor, compile: bool = False) -> Found:
    """The global minimizer for each row; ``alpha`` is ``(R, 1)``, ``c`` as ``x``, ``low`` its least number."""
    extent = (high - low) / alpha.squeeze(1)
    many = x.shape[1] >= _LEAST_POINTS
    near = (extent < _NEAR) & (_CELLS * extent < 2 * x.shape[1]) & many
    far = ~near & (extent < _FAR) & many
    first, width = torch.zeros_like(low), extent
    if bool(far.any()):
        first, width = first.clone(), extent.clone()
        at_once = compile and bool(far.all())
        cells = _rounded(int(torch.where(far, extent, 0).amax().item()) + 1, at_once)
        for rows, x_part, alpha_part, c_part in _by_rows(x, alpha, c, far, at_once):
            first[rows], width[rows] = _reach(x_part, alpha_part, c_part, low[rows].unsqueeze(1), cells, at_once)
        far = far & (width < _NEAR)
    tops = []
    for chosen, margin in ((near, 0), (far, _MARGIN)):
        if bool(chosen.any()):
            at_once = compile and bool(chosen.all())
            num_tops = _rounded(int(_CELLS * torch.where(chosen, width, 0).amax().item()) + 2, at_once)
            table = _expansion(num_tops, margin, x)
            start = (low + alpha.squeeze(1) * first).unsqueeze(1)
            for rows, x_part, alpha_part, c_part in _by_rows(x, alpha, c, chosen, at_once):
                tops.append(_of_rows(rows, _tops(x_part, alpha_part, c_part, start[rows], table, margin, at_once), x))
    rest = ~(near | far)
    for rows, x_part, alpha_part, c_part in _by_rows(x, alpha, c, rest):
        tops.append(_of_rows(rows, _branches(x_part, alpha_part, c_part), x))
    return _climb(x, alpha, c, _Tops(*(torch.cat(part) for part in zip(*tops, strict=True))), compile)


def _by_rows(
    x: Tensor, alpha: Tensor, c: Tensor | None, chosen: Tensor, at_once: bool = False
) -> Iterator[tuple[slice | Tensor, Tensor, Tensor, Tensor | None]]:
    """The rows chosen, a block of them at a time, or all at once: which, and their x, alpha and c."""
    if at_once:
        yield slice(None), x, alpha, c
        return
    rows = None if bool(chosen.all()) else chosen.nonzero().squeeze(1)
    for _, some in blocks(len(x) if rows is None else len(rows), x, rows):
        yield some, x[some], alpha[some], None if c is None else c[some]


def _of_rows(rows: slice | Tensor, tops: _Tops, x: Tensor) -> _Tops:
    """With the numbers that these rows have in ``x``."""
    return _Tops(torch.arange(len(x), device=x.device)[rows][tops.row], tops.y)


def _rounded(number: int, up: bool) -> int:
    """To a multiple of ``_STEP`` if ``up``."""
    return -(-number // _STEP) * _STEP if up else number


def _reach(
    x: Tensor, alpha: Tensor, c: Tensor | None, low: Tensor, num_cells: int, compile: bool
) -> tuple[Tensor, Tensor]:
    """From where to how far, in units of alpha, a maximizer can be, by the weights in cells of width one.

    Points of cell b are at least ``|k - b| - 1`` from any y of cell k, and at most ``|k - b| + 1/2`` from its center.
    """
    given = x, alpha, c, low, num_cells
    weight = kernel(_weights, *given) if compile else _weights(*given)
    k = torch.arange(num_cells, device=x.device, dtype=x.dtype)
    d = (k - k.unsqueeze(1)).abs()
    upper = weight @ ((d - 1).clamp(min=0).square() / -2).clamp_(min=_SMALLEST_EXPONENT).exp_()
    lower = weight @ ((d + 0.5).square() / -2).clamp_(min=_SMALLEST_EXPONENT).exp_()
    alive = (upper >= lower.amax(dim=1, keepdim=True) * (1 - 1e-5)).to(torch.int8)
    first = alive.argmax(dim=1)
    return first.to(x.dtype), (num_cells - alive.flip(1).argmax(dim=1) - first).to(x.dtype)


def _weights(x: Tensor, alpha: Tensor, c: Tensor | None, low: Tensor, num_cells: int) -> Tensor:
    """The weight in each cell, ``(R, num_cells)``."""
    number = ((x - low) / alpha).long().clamp_(max=num_cells - 1)
    weight = x.new_zeros(len(x), num_cells)
    return weight.scatter_add_(1, number, x.new_ones(()).expand_as(x) if c is None else c)


def _tops(
    x: Tensor, alpha: Tensor, c: Tensor | None, start: Tensor, table: Tensor, margin: int, compile: bool
) -> _Tops:
    r"""Where D is largest at centers of cells of width ``1/16``, in units of alpha, by moments of the points in each.

    With a point at distance o from the center b of its cell, ``|o| <= 1/32``, e(t) is expanded at the distance
    ``d = u - b`` of a center u to the second order in o. What is left out is less than
    ``|e'''| / (6 * 32^3) < 7.1e-6``, and falls quickly for ``|d| > 3``. Since a cell of width one holds at most
    ``e^(1/8) max D`` of the weight, these errors sum to less than ``max D / 4096``. A maximizer is within 1/32 of a
    center, where by (1) of :func:`_branches` D is at most 1/2048 lower; so centers that fall behind the best one by
    more than twice that are not those of a maximizer.

    The cells of y begin at ``start``, those of points ``margin`` cells earlier, and they end as many later. Points
    beyond have no influence worth mentioning; without a margin there are none.
    """
    num_cells, h = len(table) // 3, 1 / _CELLS
    given = x, alpha, c, start, num_cells, margin
    D = (kernel(_moments, *given) if compile else _moments(*given)) @ table
    before, after = torch.cat([D[:, :1], D[:, :-1]], dim=1), torch.cat([D[:, 1:], D[:, -1:]], dim=1)
    peak = (D.amax(dim=1, keepdim=True) * (1 - 2 * _SHARE) <= D) & (after <= D)
    peak[:, 1:] &= (before < D)[:, 1:]
    row, u = peak.nonzero().unbind(1)
    here, left, right = (t[row, u] for t in (D, before, after))
    # The top of the parabola through three centers.
    s = (0.5 * h * (right - left) / (2 * here - left - right)).nan_to_num_(0, 0, 0).clamp_(-h / 2, h / 2)
    return _Tops(row, start[row, 0] + alpha[row, 0] * ((u + 0.5) * h + s))


def _moments(x: Tensor, alpha: Tensor, c: Tensor | None, start: Tensor, num_cells: int, margin: int) -> Tensor:
    """The sums of ``c``, ``c o`` and ``c o^2`` over the points of each cell, side by side, ``(R, 3 num_cells)``."""
    cell = (x - (start - margin / _CELLS * alpha)).mul_(_CELLS / alpha)
    if margin:
        inside = ((cell >= 0) & (cell < num_cells)).to(x.dtype)
        c = inside if c is None else inside.mul_(c)
        cell.clamp_(0, num_cells - 0.5)
    number = cell.long()
    o = cell.sub_(number).sub_(0.5)
    moments = x.new_zeros(len(x), 3 * num_cells)
    ones = x.new_ones(()).expand_as(x) if c is None else c
    moments.scatter_add_(1, number, ones)
    moments.scatter_add_(1, number.add_(num_cells), o if c is None else o * c)
    moments.scatter_add_(1, number.add_(num_cells), o.square_() if c is None else o.square_().mul_(c))
    return moments


def _expansion(num_tops: int, margin: int, like: Tensor) -> Tensor:
    """What takes the moments of all cells to D at centers, in units of alpha."""
    h = 1 / _CELLS
    center = torch.arange(num_tops + 2 * margin, device=like.device, dtype=torch.float64) * h
    d = center[margin : margin + num_tops] - center.unsqueeze(1)  # from the cell of the points, the row, to that of y
    e = torch.exp((-d * d / 2).clamp(min=_SMALLEST_EXPONENT))
    return torch.cat([e, h * d * e, h * h / 2 * (d * d - 1) * e]).to(like.dtype)


def _branches(x: Tensor, alpha: Tensor, c: Tensor | None) -> _Tops:
    r"""The best cells of width alpha / 16, by branch and bound.

    At a maximizer ``sum_i (1 - t_i^2) c_i e(t_i) >= 0``, so some point is within alpha of it; and, since ``D'' >= -D /
    alpha^2 >= -max D / alpha^2`` everywhere::

        D(u) >= max D (1 - (u - y)^2 / (2 alpha^2))                                                               (1)

    Cells of width alpha that hold a point or touch one that does therefore contain every global maximizer, and a cell
    of width d whose center has ``D < best (1 - d^2 / (8 alpha^2))`` contains none. The cells that remain are halved,
    four times; after that (1) is within 1/2048.
    """
    row, center, density = _promising(x, alpha, c, *_cells(x, alpha), size=1.0)
    for size in _SIZES:
        half = 0.5 * size * alpha.squeeze(1)[row].unsqueeze(1)
        halves = (center.unsqueeze(1) + torch.cat([-half, half], dim=1)).flatten()
        row, center, density = _promising(x, alpha, c, row.repeat_interleave(2), halves, size)
    peak = _peaks(row, center, density, 1.5 * _SIZES[-1] * alpha.squeeze(1))
    return _Tops(row[peak], center[peak])


def _climb(x: Tensor, alpha: Tensor, c: Tensor | None, tops: _Tops, compile: bool) -> Found:
    """The highest hill from these starts: by Newton's method alone, or safely where that does not prove itself."""
    row, y = tops
    total = x.new_full((len(x),), x.shape[1]) if c is None else c.sum(dim=1)
    single = len(row) == len(x)  # each row has one start, which is the rule
    if single:
        order = row.argsort()
        row, y = row[order], y[order]
    start, running = y, torch.arange(len(row), device=x.device)
    y = y.clone()
    D, residual = torch.zeros_like(y), torch.zeros_like(y)
    num_steps, settled = torch.zeros_like(row), torch.zeros_like(row, dtype=torch.bool)
    for _ in range(_MAX_LOOKS):
        here = row[running]
        a, u = alpha[here, 0], y[running]
        if compile and single and suits(len(u), x):
            D_here, slope, curvature = (t[running] for t in kernel(_sums, x, alpha, c, y.unsqueeze(1)))
        else:
            D_here, slope, curvature = _by_block(_sums, x, alpha, c, None if single and len(u) == len(x) else here, u)
        step = slope / curvature
        near = (curvature > 0) & (step.abs() <= 0.5)
        # The slope that is left after the step is at most half of 1.38 step^2 for each point.
        rounding = NOISE * torch.finfo(x.dtype).eps * ((D_here - curvature) / 4 + curvature * u.abs() / a)
        done = near & (0.69 * total[here] * step.square() <= rounding)
        y[running] = torch.where(near, u - a * step, u)
        D[running] = D_here + 0.5 * slope * step
        residual[running] = slope.abs() / a
        num_steps[running] += 1
        settled[running] = done
        running = running[near & ~done]
        if not running.numel():
            break
    rest = (~settled).nonzero().squeeze(1)
    if rest.numel():
        slow = _descended(x, alpha, c, row[rest], start[rest])
        for field, values in zip((y, D, num_steps, settled, residual), slow, strict=True):
            field[rest] = values
    if single:
        return Found(y, num_steps, settled, residual)
    highest = torch.zeros_like(total).scatter_reduce(0, row, D, "amax")
    equal = highest[row] * (1 - NOISE * torch.finfo(x.dtype).eps) <= D
    first = torch.full_like(total, torch.inf).scatter_reduce(0, row, torch.where(equal, y, torch.inf), "amin")
    chosen = (y == first[row]).nonzero().squeeze(1)
    place = torch.zeros_like(total, dtype=torch.int64).index_copy(0, row[chosen], chosen)
    return Found(y[place], num_steps[place], settled[place], residual[place])


def _sums(x: Tensor, alpha: Tensor, c: Tensor | None, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``D``, ``-alpha D'`` and ``-alpha^2 D''`` at y, one for each row, ``(R,)``."""
    t = (y - x).div_(alpha)
    e = (t * t).mul_(-0.5).clamp_(min=_SMALLEST_EXPONENT).exp_()
    if c is not None:
        e.mul_(c)
    D = e.sum(dim=1)
    slope = e.mul_(t).sum(dim=1)
    return D, slope, D - e.mul_(t).sum(dim=1)


def _descended(x: Tensor, alpha: Tensor, c: Tensor | None, row: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """``y``, D, steps, whether it converged, and ``|f_y|``, from starts that descend step by step."""

    def look(y: Tensor, items: Tensor) -> Local:
        return Local(*_by_block(_look, x, alpha, c, row[items], y))

    found = descend(look, y, _MAX_STEPS)
    (D,) = _by_block(_density, x, alpha, c, row, found.y)
    return found.y, D, found.num_steps, found.status == Status.CONVERGED, found.slope


def _cells(x: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Cells of width alpha that hold a point or neighbor one that does: rows and centers, ascending in each row."""
    x = x.sort(dim=1).values
    scaled = (x - x[:, x.shape[1] // 2, None]) / alpha
    cell = scaled.floor()
    gap = torch.full_like(cell, torch.inf)
    gap[:, 1:] = cell.diff(dim=1)
    # Before a cell that opens: its left neighbor, and the right neighbor of the cell before, unless they are the same.
    center = x + (cell + 0.5 - scaled) * alpha
    before = torch.cat([x[:, :1], center[:, :-1] + alpha], dim=1)
    candidates = torch.stack([before, center - alpha, center], dim=2)
    wanted = torch.stack([(gap > 2) & gap.isfinite(), gap > 1, gap > 0], dim=2)
    # After the last point: its right neighbor.
    candidates = torch.cat([candidates.flatten(1), center[:, -1:] + alpha], dim=1)
    wanted = torch.cat([wanted.flatten(1), torch.ones_like(wanted[:, -1:, 0])], dim=1)
    row = wanted.nonzero()[:, 0]
    return row, candidates[wanted]


def _promising(
    x: Tensor, alpha: Tensor, c: Tensor | None, row: Tensor, center: Tensor, size: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The cells of width ``size * alpha`` that may hold a maximizer: their rows, centers and densities there."""
    (density,) = _by_block(_density, x, alpha, c, row, center)
    best = density.new_zeros(len(x)).scatter_reduce(0, row, density, "amax")
    kept = density >= best[row] * (1 - size**2 / 8)
    return row[kept], center[kept], density[kept]


def _density(x: Tensor, alpha: Tensor, c: Tensor | None, u: Tensor) -> tuple[Tensor]:
    """``D`` at ``u``, one for each row."""
    e = ((u - x) / alpha).square_().mul_(-0.5).clamp_(min=_SMALLEST_EXPONENT).exp_()
    return (e.sum(dim=1) if c is None else e.mul_(c).sum(dim=1),)


def _peaks(row: Tensor, center: Tensor, density: Tensor, reach: Tensor) -> Tensor:
    """Which entries no neighbor within reach exceeds; entries are ascending within each row."""
    linked = (row[1:] == row[:-1]) & (center[1:] - center[:-1] <= reach[row[1:]])
    peak = torch.ones_like(row, dtype=torch.bool)
    peak[1:] &= ~(linked & (density[:-1] >= density[1:]))
    peak[:-1] &= ~(linked & (density[1:] > density[:-1]))
    return peak


def _look(x: Tensor, alpha: Tensor, c: Tensor | None, y: Tensor) -> Local:
    penalty, eps = Welsch(), torch.finfo(x.dtype).eps
    r = y - x
    c = torch.ones_like(x) if c is None else c
    objective = (c * penalty.phi(r, alpha)).sum(dim=1)
    kappa1, weights = c * penalty.kappa1(r, alpha), c * penalty.weights(r, alpha)
    slope, total, f_yy = (kappa1 * r).sum(dim=1), kappa1.sum(dim=1), (c * penalty.ddphi(r, alpha)).sum(dim=1)
    pull = (kappa1 * r.abs()).sum(dim=1)
    y = y.squeeze(1)
    reweighted = y - ((weights * r).sum(dim=1) / weights.sum(dim=1)).nan_to_num(0, 0, 0)
    # Far steps would leave the hill that the search has found.
    newton = slope / f_yy
    near = (f_yy > 0) & (newton.abs() <= 0.5 * alpha.squeeze(1))
    return Local(
        objective,
        NOISE * eps * (objective + pull * y.abs()),
        slope.abs(),
        slope.abs() <= NOISE * eps * (pull + total * y.abs()),
        reweighted,
        torch.where(near, y - newton, reweighted),
    )


def _by_block(
    function: Callable[..., tuple], x: Tensor, alpha: Tensor, c: Tensor | None, row: Tensor | None, u: Tensor
) -> list[Tensor]:
    """The tensors of ``function`` at ``u``, each of a row named, or of all rows in order; a block of them at a time."""
    parts = [
        function(x[some], alpha[some], None if c is None else c[some], u[at].unsqueeze(1))
        for at, some in blocks(len(u), x, row)
    ]
    return [torch.cat(part) for part in zip(*parts, strict=True)]
