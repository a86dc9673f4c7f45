r"""The formula of weighted, regularized, minimum-norm least squares.

Solves, for each item and each column of b::

    y = argmin_y  sum_i w_i (a_i . y - b_i)^2 + sum_j ridge_j y_j^2         y = S^+ [W^(1/2) b; 0]

With ``r = b - A y``, ``G`` and ``N`` of ``gram.py``, differentiating ``A^T W r = ridge y`` and,
where many y are as good, the shortest of them (Golub and Pereyra, 1973)::

    dy = G (dA^T W r + A^T (dw r + W (db - dA y)) - dridge y) + N dA^T W A G y

For the incoming gradient v of y, let ``u = G v``. Then ``db = W A u``, ``dw = (A u) . r``, ``dridge = -u . y`` and
``dA = W (r u^T - (A u) y^T + (A G y) (N v)^T)``: two products with A, and no Jacobian.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from torchddn.functional.linear_algebra.gram import Factor, Gram
from torchddn.functional.nodes.degeneracy import warn_undetermined
from torchddn.functional.nodes.handmade import Answer, solve
from torchddn.linear.scaling import CUTOFF, rounding_unit

__all__ = ["fit"]


def fit(call: str, A: Tensor, b: Tensor, w: Tensor, ridge: Tensor, told: Tensor, kind: str) -> Tensor:
    """``y``, ``(R, m, k)``, differentiable.

    Args:
        call: Name that opens a warning of items whose rank is less than the shape of A has.
        A: ``(R, n, m)``.
        b: ``(R, n, k)``.
        w: ``(R, n)``.
        ridge: ``(R, m)``.
        told: Which items the warning counts, ``(R,)``.
        kind: Of the ridge: ``"none"``: it is zero; ``"positive"``: no entry of it is zero; ``"some"``: not known.
    """
    y, P, Q, short, degenerate = solve(_Factorization(kind), *(x.detach() for x in (A, b, w, ridge)))
    return solve(_Solution(call, kind == "positive"), A, b, w, ridge, y, P, Q, short, degenerate & told)[0]


@dataclasses.dataclass(frozen=True)
class _Factorization:
    """``y``, the :class:`Factor`, and whether each item is degenerate; a constant to whoever differentiates."""

    kind: str

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        A, b, w, ridge = inputs
        root = w.sqrt().unsqueeze(2)
        S, c = root * A, root * b
        if self.kind != "none":
            S = torch.cat([S, torch.diag_embed(ridge.sqrt())], dim=1)
            c = torch.cat([c, c.new_zeros(*ridge.shape, c.shape[2])], dim=1)
        y, *factor, degenerate = self.outline(inputs)
        factor = Factor(*factor)
        if S.shape[1] >= S.shape[2]:
            regular, y, P = _by_reflections(S, c)
            factor = Factor(P, factor.Q.zero_(), factor.short.zero_())
        else:
            regular, y, factor = _by_reflections_of_rows(S, c)
        degenerate.zero_()
        rows = (~regular).nonzero().squeeze(1)
        if rows.numel():
            parts = _by_singular_values(S[rows], c[rows])
            for whole, part in zip((y, *factor, degenerate), parts, strict=True):
                whole[rows] = part
        return y, *factor, degenerate

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        A, b, *_ = inputs
        batch, n, m = A.shape
        rank = min(n, m) if self.kind == "none" else m
        basis = (batch, m, rank)
        y, short = A.new_empty(batch, m, b.shape[2]), A.new_empty(batch)
        return y, A.new_empty(basis), A.new_empty(basis), short, A.new_empty(batch, dtype=torch.bool)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        return [None] * len(inputs)

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        return torch.zeros_like(y)


def _by_reflections(S: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By a QR factorization: which items have full column rank without doubt; their ``S^+ c`` and ``R^-1``."""
    m = S.shape[2]
    reflections, tau = torch.geqrf(S)
    R = reflections[:, :m].triu()
    y = torch.linalg.solve_triangular(R, torch.ormqr(reflections, tau, c, transpose=True)[:, :m], upper=True)
    inverse, regular = _inverted(R)
    return regular, y, inverse


def _by_reflections_of_rows(S: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Factor]:
    """The same for fewer rows than columns, whose rows are independent without doubt: ``S^T = Q R``."""
    Q, R = torch.linalg.qr(S.mT)
    inverse, regular = _inverted(R)
    y = Q @ torch.linalg.solve_triangular(R.mT, c, upper=False)
    return regular, y, Factor(Q @ inverse.mT, Q, torch.ones_like(Q[:, 0, 0]))


def _inverted(R: Tensor) -> tuple[Tensor, Tensor]:
    """``R^-1`` of triangular matrices, and which are regular without doubt.

    Columns are in their own units, so that it does not depend on those of the variables, or of the rows.
    """
    size = torch.linalg.vector_norm(R, dim=1)
    size = torch.where(size > 0, size, 1)
    identity = torch.eye(R.shape[2], dtype=R.dtype, device=R.device).expand_as(R)
    inverse = torch.linalg.solve_triangular(R / size.unsqueeze(1), identity, upper=True)
    regular = torch.linalg.matrix_norm(inverse) < 1 / rounding_unit(R, CUTOFF)  # and not NaN
    return inverse / size.unsqueeze(2), regular


def _by_singular_values(S: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``S^+ c``, the :class:`Factor`, and whether the rank is less than the shape has."""
    U, sigma, Vh = torch.linalg.svd(S, full_matrices=False)
    kept = sigma > rounding_unit(S, CUTOFF) * sigma[:, :1]
    P = Vh.mT * torch.where(kept, sigma.reciprocal(), 0).unsqueeze(1)
    rank = kept.sum(dim=1)
    short = rank < S.shape[2]
    Q = torch.where((kept & short.unsqueeze(1)).unsqueeze(1), Vh.mT, 0)
    return P @ (U.mT @ c), P, Q, short.to(S.dtype), rank < sigma.shape[1]


@dataclasses.dataclass(frozen=True)
class _Solution:
    """The formula of ``y`` from ``A``, ``b``, ``w``, ``ridge``; y itself and its :class:`Factor` are handed over."""

    call: str
    regular: bool

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        return (inputs[4].clone(),)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return (torch.empty_like(inputs[4]),)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        gram, b = self._parts(inputs)
        u = gram.inverse(v)
        Ay, Au = (gram.A @ torch.cat([y, u], dim=2)).split(y.shape[2], dim=2)
        r, WAu = b - Ay, gram.w.unsqueeze(2) * Au
        dA = dw = dridge = None
        if needed[0]:
            left, right = [gram.w.unsqueeze(2) * r, -WAu], [u, y]
            if not self.regular:
                left.append(gram.weighted(gram.inverse(y)))
                right.append(gram.null(v))
            dA = torch.cat(left, dim=2) @ torch.cat(right, dim=2).mT
        if needed[2]:
            dw = (Au * r).sum(dim=2)
        if needed[3]:
            dridge = -(u * y).sum(dim=2)
        return dA, WAu if needed[1] else None, dw, dridge, *[None] * 5

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        (gram, b), (dA, db, dw, dridge) = self._parts(inputs), tangents[:4]
        w = gram.w.unsqueeze(2)
        r = b - gram.A @ y
        rate, target = torch.zeros_like(y), torch.zeros_like(b)
        if dA is not None:
            rate, target = rate + dA.mT @ (w * r), target - w * (dA @ y)
        if db is not None:
            target = target + w * db
        if dw is not None:
            target = target + dw.unsqueeze(2) * r
        if dridge is not None:
            rate = rate - dridge.unsqueeze(2) * y
        dy = gram.inverse(rate + gram.A.mT @ target)
        if self.regular or dA is None:
            return dy
        return dy + gram.null(dA.mT @ gram.weighted(gram.inverse(y)))

    def _parts(self, inputs: Sequence[Tensor]) -> tuple[Gram, Tensor]:
        A, b, w, ridge, _, P, Q, short, degenerate = inputs
        warn_undetermined(
            self.call,
            degenerate,
            "the rank of A, without rows of weight zero, is less than its shape allows",
            "a positive ridge singles one out",
        )
        return Gram(A, w, ridge, Factor(P, Q, short), self.regular), b
