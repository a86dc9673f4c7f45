r"""The linear system of transport: how potentials answer to marginals.

A plan P with the sums ``p = P 1``, ``q = P^T 1`` and non-negative numbers e, f (zero where marginals are constraints)
makes::

    K = [ diag(p + e)   P           ]        K [x; y] = [g; h]
        [ P^T           diag(q + f) ]

Eliminating the longer side leaves ``S x = g - P D^-1 h``, ``D = diag(q + f)``, ``S = diag(p + e) - P D^-1 P^T``, the
block inverse of the paper. S is solved by three steps of the simple iteration, which are all that a smooth plan needs,
and by conjugate gradients, which read the plan twice a step, as long as these get on, else by Cholesky. There is no
cancellation in S: it is a Laplacian, whose off-diagonal entries ``-W_ik`` are sums of products of non-negative numbers,
and its diagonal is ``sum_{k != i} W_ik`` and what e and f add. A plan that is nearly a permutation, where S is tiny
beside p, keeps all its digits so. No more than the lower half of S is formed, a few items at a time, and factored in
its place.

With e = f = 0 there is one solution up to ``(x + s, y - s)`` if all rows and columns are linked, and one up to that in
each of the parts of the plan if not (``parts.py``). The one of minimum norm is returned, and an
unsolvable right-hand side is projected: the pseudo-inverse. A row of zeros has x = 0.

The answer is certified by ``|(g, h) - K (x, y)|``, in the units that make the diagonal of K one. Items that miss it are
solved by Cholesky, part by part, and refined with residuals in float64; what this does not reach, by eigenvectors of S.

References:
    Gould, Campbell, Ben-Shabat, Koneputugodage, Xu, Exploiting Problem Structure in Deep Declarative Networks,
    equations 20 to 23. They drop a row; here none is preferred.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.functional.transport.gibbs import blocks_of_rows, column_sums, row_sums
from torchddn.functional.transport.parts import center, linked, parts, whole
from torchddn.linear import default_rtol

__all__ = ["Balance", "balance", "conjugate_gradients", "factored", "size", "work_of_factoring"]

_CHUNK, _BLOCK = 2**16, 128  # numbers in the matrices factored at once, and rows that are multiplied at once
_MOST_REFINEMENTS = 2
_NUM_SIMPLE = 3


class Balance(NamedTuple):
    """What was found, each item with its certificate.

    Attributes:
        x: ``(R, m)``, float64, and so is the rest.
        y: ``(R, n)``.
        residual: ``|(g, h) - K (x, y)| / |(g, h)|``, after the projection, ``(R,)``.
        undetermined: Whether potentials are free beyond one constant, ``(R,)``; told if it was asked for.
    """

    x: Tensor
    y: Tensor
    residual: Tensor
    undetermined: Tensor


class _System(NamedTuple):
    """K and its right-hand side, whose size is ``unit``; d1 and d2 its diagonal, one where a row or column is zero."""

    P: Tensor
    p: Tensor
    q: Tensor
    e: Tensor
    f: Tensor
    d1: Tensor
    d2: Tensor
    g: Tensor
    h: Tensor
    unit: Tensor

    def select(self, items: Tensor | slice) -> "_System":
        return _System(*(tensor[items] for tensor in self))


def size(r: Tensor, d: Tensor) -> Tensor:
    """``|r|`` in units that make the diagonal d one, ``(R,)``."""
    return (r.square() / d).sum(dim=1).sqrt_()


def work_of_factoring(m: int) -> int:
    """In steps of conjugate gradients, on one CPU core; measured at m = 10, 100 and 500."""
    return 8 + m // 6


def balance(
    P: Tensor, e: Tensor | None, f: Tensor | None, g: Tensor, h: Tensor, rtol: float, *, unique: bool = False
) -> Balance:
    """Solves the system for plans ``(R, m, n)``; ``e``, ``g``, ``(R, m)`` and ``f``, ``h``, ``(R, n)``, in float64.

    With ``unique`` the answer is that of minimum norm, and told where there are others, also where these would differ
    by constants of parts alone, which make no difference to the plan.
    """
    if P.shape[1] > P.shape[2]:
        y, x, residual, undetermined = balance(P.mT, f, e, h, g, rtol, unique=unique)
        return Balance(x, y, residual, undetermined)
    p, q = P.sum(dim=2).double(), P.sum(dim=1).double()
    empty = None
    if e is None and f is None and bool((torch.minimum(p.amin(dim=1), q.amin(dim=1)) > 0).all()):
        d1, d2, project = p, q, center
    else:
        empty = p <= 0, q <= 0
        e, f = torch.zeros_like(p) if e is None else e, torch.zeros_like(q) if f is None else f
        d1, d2 = (p + e).masked_fill_(empty[0], 1), (q + f).masked_fill_(empty[1], 1)
        g, h = g.masked_fill(empty[0], 0), h.masked_fill(empty[1], 0)
        project = whole(p, q, e, f).project
    a, b = project(g, h)
    most = work_of_factoring(P.shape[1])
    unit = torch.hypot(size(g, d1), size(h, d2)).clamp_(min=1e-300)
    x, done = conjugate_gradients(P, d1, d2, a - row_sums(P, (b / d2).to(P.dtype)), unit, rtol, most)
    y = (b - column_sums(P, x.to(P.dtype))) / d2
    residual = size(a - d1 * x - row_sums(P, y.to(P.dtype)), d1) / unit
    x, y = project(x, y)
    done &= residual <= default_rtol(P.dtype)
    undetermined = torch.zeros_like(done)
    if unique:
        if empty is not None:
            undetermined = empty[0].any(dim=1) | empty[1].any(dim=1)
        done &= linked(P, p, q, most)
    if not bool(done.all()):
        none = torch.zeros_like(p), torch.zeros_like(q)
        system = _System(P, p, q, none[0] if e is None else e, none[1] if f is None else f, d1, d2, g, h, unit)
        for some in _few((~done).nonzero().squeeze(1), P):
            found = _by_parts(system.select(some) if len(some) < len(P) else system)
            x[some], y[some], residual[some] = found.x, found.y, found.residual
            undetermined[some] |= found.undetermined & unique
    return Balance(x, y, residual, undetermined)


def _by_parts(system: _System) -> Balance:
    """The same without hurry: what is free is known, and what the residual shows is added."""
    P, p, q, e, f, d1, d2 = system[:7]
    split = parts(P, p, q, e, f)
    g, h = split.project(system.g, system.h)
    S, scale = _laplacian(P, d2, e, f, split.rows)
    rtol = default_rtol(torch.float64) if P.dtype == torch.float64 else default_rtol(P.dtype) / 16

    def refined(inverse: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        x, r = torch.zeros_like(g), g - _exact_row_sums(P, h / d2)
        y, residual = h / d2, torch.full_like(g[:, 0], torch.inf)
        for _ in range(1 + _MOST_REFINEMENTS):
            x_next = x + torch.nan_to_num(inverse((r * scale).unsqueeze(2)).squeeze(2)) * scale
            y_next = (h - _exact_column_sums(P, x_next)) / d2
            r_next = g - d1 * x_next - _exact_row_sums(P, y_next)
            residual_next = size(r_next, d1) / system.unit
            better = (residual_next < residual).unsqueeze(1)
            x, y, r = (torch.where(better, *pair) for pair in ((x_next, x), (y_next, y), (r_next, r)))
            residual = torch.fmin(residual, residual_next)
            if bool((residual <= rtol).all()):
                break
        return x, y, residual

    S, _ = _cholesky(_anchored(S, scale, split.rows, split.free))
    x, y, residual = refined(partial(_solved, S))
    failed = ~(residual <= default_rtol(P.dtype))
    if bool(failed.any()):
        del S
        other = refined(_pseudo_inverse(_laplacian(P, d2, e, f, split.rows)[0]).matmul)
        better = (failed & (other[2] < residual)).unsqueeze(1)
        x, y = torch.where(better, other[0], x), torch.where(better, other[1], y)
        residual = torch.fmin(residual, other[2])
    x, y = split.project(x, y)
    return Balance(x, y, residual, split.free.sum(dim=1) > 1)


# A refined answer is better than products in the plan's own dtype.


def _exact_column_sums(P: Tensor, a: Tensor) -> Tensor:
    sums = torch.zeros_like(P[:, 0], dtype=torch.float64)
    for rows in blocks_of_rows(P.shape[1], sums.numel(), P.device):
        sums += column_sums(P[:, rows].double(), a[:, rows])
    return sums


def _exact_row_sums(P: Tensor, b: Tensor) -> Tensor:
    blocks = blocks_of_rows(P.shape[1], b.numel(), P.device)
    return torch.cat([row_sums(P[:, rows].double(), b) for rows in blocks], dim=1)


def _pseudo_inverse(S: Tensor) -> Tensor:
    size, vectors = torch.linalg.eigh(S)
    cutoff = S.shape[1] * torch.finfo(S.dtype).eps * size.abs().amax(dim=1, keepdim=True)
    return (vectors * torch.where(size > cutoff, size.reciprocal(), 0).unsqueeze(1)) @ vectors.mT


def conjugate_gradients(
    P: Tensor, d1: Tensor, d2: Tensor, rhs: Tensor, unit: Tensor, rtol: float, max_steps: int
) -> tuple[Tensor, Tensor]:
    """``x`` of ``(diag(d1) - P diag(1 / d2) P^T) x = rhs``, and which items have it to ``rtol`` of ``unit``, ``(R,)``.

    Preconditioned by d1, in the dtype of the plan. An item that will not arrive within ``max_steps`` at the speed that
    it shows is given up early.
    """
    dtype, goal, tiny = P.dtype, rtol * rtol, torch.finfo(P.dtype).tiny
    weight, inverse, right = (row.to(dtype).unsqueeze(1) for row in (d1, 1 / d1, 1 / d2))
    unit = unit.unsqueeze(1)
    residual = (rhs / unit).to(dtype).unsqueeze(1)
    x, scaled = torch.zeros_like(residual), residual * inverse
    # Easy systems need no more than this, and it does no harm: the eigenvalues are between 0 and 1.
    for _ in range(_NUM_SIMPLE):
        x += scaled
        residual = torch.bmm(torch.bmm(scaled, P).mul_(right), P.mT)
        scaled = residual * inverse
    direction = scaled
    square = first = torch.bmm(residual, scaled.mT)
    running = square > goal
    if not bool(running.any()):
        return x.squeeze(1) * unit, ~running.flatten()
    for step in range(1, max_steps + 1):
        image = torch.bmm(torch.bmm(direction, P).mul_(right), P.mT)
        image = torch.addcmul(image, weight, direction, value=-1)  # of the other sign, and so is the length
        # Without curvature the length is no number, and the item is not done.
        length = running * square / torch.bmm(direction, image.mT).clamp_(max=-tiny)
        x = x.addcmul_(length, direction, value=-1)
        residual = residual.addcmul_(length, image, value=-1)
        scaled = residual * inverse
        square, last = torch.bmm(residual, scaled.mT), square
        running = square > goal
        if step in (2, 3, 6) or step % 4 == 0 or step == max_steps:
            hopeful = running
            if step >= 4:
                fall = (square / first).clamp(min=tiny).log() / step
                left = (goal / square.clamp(min=tiny)).log() / fall.clamp(max=-1e-6)
                hopeful = running & (left <= 1.2 * (max_steps - step))
            if not bool(hopeful.any()):
                break
        direction = torch.addcmul(scaled, square / last.clamp(min=tiny), direction)
    return x.squeeze(1) * unit, (square <= goal).flatten()


def factored(
    P: Tensor, d2: Tensor, e: Tensor, f: Tensor | None, rhs: Tensor, grounded: Tensor, items: Tensor, out: Tensor
) -> None:
    """Writes ``x`` of ``S x = rhs`` for those items, by Cholesky in float64, a node of the ``grounded`` aside.

    Zero if it fails. ``grounded`` is ``(R,)``.
    """
    for some in _few(items, P):
        part = P if len(some) == len(P) else P.index_select(0, some)
        out[some] = _factored(part, d2[some], e[some], None if f is None else f[some], rhs[some], grounded[some])


def _factored(P: Tensor, d2: Tensor, e: Tensor, f: Tensor | None, rhs: Tensor, grounded: Tensor) -> Tensor:
    S, scale = _laplacian(P, d2, e, f, None)
    one = torch.zeros_like(rhs, dtype=torch.int64)
    factor, info = _cholesky(_anchored(S, scale, one, grounded.unsqueeze(1).expand(one.shape)))
    x = _solved(factor, (rhs * scale).unsqueeze(2)).squeeze(2) * scale
    return torch.where((info == 0).unsqueeze(1), x, 0)


def _few(items: Tensor, P: Tensor) -> Iterable[Tensor]:
    """The items, as many at a time as may be factored at once."""
    return items.split(max(1, (_CHUNK if P.device.type == "cpu" else 2**28) // P.shape[1] ** 2))


def _laplacian(P: Tensor, d2: Tensor, e: Tensor, f: Tensor | None, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """The lower half of ``D S D``, with ones on its diagonal, and D, ``(R, m)``; zeros above.

    Without links between parts of which ``rows`` tells.
    """
    num_items, m, _ = P.shape
    S = torch.empty((num_items, m, m), dtype=torch.float64, device=P.device)
    right = (1 / d2).to(P.dtype).unsqueeze(1)
    for first in range(0, m, _BLOCK):
        last = min(first + _BLOCK, m)
        S[:, first:last, :last] = torch.bmm(P[:, first:last] * right, P[:, :last].mT)
    S.tril_(-1)
    if rows is not None:
        S.masked_fill_(rows.unsqueeze(2) != rows.unsqueeze(1), 0)
    links = S.sum(dim=2) + S.sum(dim=1) + e
    if f is not None:
        links = links + row_sums(P, (f / d2).to(P.dtype))
    scale = torch.where(links > 0, links, 1).rsqrt()
    S.mul_(scale.unsqueeze(2)).mul_(scale.neg().unsqueeze(1)).diagonal(dim1=1, dim2=2).copy_(links > 0)
    return S, scale


def _cholesky(S: Tensor) -> tuple[Tensor, Tensor]:
    """The factor of what has the lower half S, in its place, and whether that failed, ``(R,)``."""
    info = torch.empty(len(S), dtype=torch.int32, device=S.device)
    columns = S.mT  # the layout that the library works on without a copy
    torch.linalg.cholesky_ex(columns, upper=True, out=(columns, info))
    return S, info


def _solved(factor: Tensor, b: Tensor) -> Tensor:
    """Unlike ``cholesky_solve``, without a copy of the factor."""
    return torch.linalg.solve_triangular(factor.mT, torch.linalg.solve_triangular(factor, b, upper=False), upper=True)


def _anchored(S: Tensor, scale: Tensor, rows: Tensor, free: Tensor) -> Tensor:
    """S with a second weight on the heaviest node of each free part: the constant is zero there. In place."""
    diagonal = S.diagonal(dim1=1, dim2=2)
    weight = diagonal / scale.square()
    heaviest = torch.zeros_like(weight).scatter_reduce(1, rows, weight, "amax").gather(1, rows) == weight
    # Of those that are as heavy, the first.
    m = S.shape[1]
    place = torch.arange(m, device=S.device).expand(rows.shape)
    first = torch.full_like(rows, m).scatter_reduce(1, rows, torch.where(heaviest, place, m), "amin").gather(1, rows)
    anchor = (first == place) & free.gather(1, rows)
    # The last term keeps the pivots of nodes without links positive.
    diagonal.add_(anchor).add_(1e-14)
    return S
