r"""Euclidean projection onto the Birkhoff polytope, and onto every other transport polytope.

Solves, for each matrix X and marginals r and c >= 0 of the same sum::

    Y(X, r, c) = argmin_Y  1/2 |Y - X|^2   subject to   Y 1 = r,   Y^T 1 = c,   Y >= 0

On the support S of Y, a matrix of zeros and ones, Y is X plus potentials, and its derivative leaves the sums of rows
and columns as they are: with the least-squares fit ``(x, y)`` of dX by potentials on the support (``response.py``)::

    dY_ij = S_ij (dX_ij - x_i - y_j)

which is symmetric. The fit answers dr and dc likewise. A support that falls into parts leaves constants of the parts
free, and they cancel in dY: the derivative needs the pseudo-inverse of a singular system, and gets it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_flag, check_floating, wide
from torchddn.functional.nodes.finite import are_finite
from torchddn.functional.nodes.handmade import Answer, solve
from torchddn.functional.nodes.reading import read
from torchddn.functional.projection.vectors import Vectors
from torchddn.functional.transport.door import marginal
from torchddn.functional.transport.polytope import nearest
from torchddn.functional.transport.response import respond
from torchddn.status import Solution, Status, check_failure_policy

__all__ = ["project_birkhoff"]


@overload
def project_birkhoff(
    X: Tensor,
    r: Tensor | None = ...,
    c: Tensor | None = ...,
    *,
    max_steps: int = ...,
    on_failure: str = ...,
    solution: Literal[False] = ...,
) -> Tensor: ...
@overload
def project_birkhoff(
    X: Tensor,
    r: Tensor | None = ...,
    c: Tensor | None = ...,
    *,
    max_steps: int = ...,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
def project_birkhoff(
    X: Tensor,
    r: Tensor | None = None,
    c: Tensor | None = None,
    *,
    max_steps: int = 500,
    on_failure: str = "warn",
    solution: bool = False,
) -> Tensor | Solution:
    r"""Returns the doubly stochastic matrix nearest to each matrix of ``X``.

    Y(X) = argmin_Y 1/2 |Y - X|^2 subject to ``Y 1 = 1, Y^T 1 = 1, Y >= 0``. It is sparse, and for a large multiple of
    X it is the permutation matrix of the best assignment. Newton's method on the dual, which ends exactly: O(n^3) for
    each of about 5 to 30 steps, more where marginals differ by orders of magnitude.

    Args:
        X: ``(*B, n, n)``; ``(*B, m, n)`` with marginals.
        r: Sums of the rows, non-negative, broadcastable to ``(*B, m)``; ones unless given.
        c: Sums of the columns, non-negative, broadcastable to ``(*B, n)``; ones unless given. All entries of c add up
            to those of r.
        max_steps: Most steps for an item.
        on_failure: What to do about matrices that fail: ``"warn"``, ``"raise"``, ``"nan"`` or ``"ignore"``. Those with
            a number that is not finite are NaN in any case; they do not disturb others.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``Y``. Its ``equality_multipliers`` are
            those of the row sums, then of the column sums, ``(*B, m + n)``, differentiable, the derivative that of
            least norm; other fields are ``(*B,)``.

    Returns:
        ``Y``, shaped as ``X`` and of its dtype (half precision computes in float32; the steps are in float64),
        non-negative, with these sums.

    Raises:
        InvalidInputError: If an argument is wrong, or the sums of r and c differ.
        SolveError: If a matrix fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the matrix contains NaN or infinity.
        MAX_STEPS, STALLED: the sums are not met. Raise ``max_steps``; or the numbers of X are too large beside r and c
            for float64 to resolve.

    Gradients:
        Exact in ``X``, ``r`` and ``c`` (in r and c along changes that keep their sums equal), in every mode. Y is
        piecewise linear: higher derivatives are zero. Where an entry is about to enter the support there is a kink, and
        it counts as outside. In ``r`` and ``c`` the problem does not determine it where the support falls into
        parts; the gradient of minimum norm is returned, with a DegenerateGradientWarning.

    Example:
        >>> project_birkhoff(torch.tensor([[2.0, 0.0], [0.5, 0.9]]))
        tensor([[1., 0.],
                [0., 1.]])
        >>> project_birkhoff(torch.tensor([[0.4, 0.0], [0.1, 0.2]]))
        tensor([[0.6250, 0.3750],
                [0.3750, 0.6250]])

    References:
        Li, Sun, Toh, On the Efficient Computation of a Projector over the Birkhoff Polytope, 2020. Lim, Wright, Beyond
        the Birkhoff Polytope, 2014.
    """
    call = "project_birkhoff"
    check_floating(call, "X", X, "(*B, n, n)", 2)
    check_failure_policy(call, on_failure)
    check_flag(call, "solution", solution)
    if not isinstance(max_steps, int) or isinstance(max_steps, bool) or max_steps < 1:
        raise InvalidInputError(f"`{call}(max_steps=...)` must be a positive integer, got {max_steps!r}.")
    batch, (m, n) = X.shape[:-2], X.shape[-2:]
    if m == 0 or n == 0 or (m != n and r is None and c is None):
        remedy = "" if 0 in (m, n) else " Or pass `r` and `c`."
        raise InvalidInputError(
            f"`{call}(X=...)` must be square matrices, (*B, n, n), got shape {tuple(X.shape)}.{remedy}"
        )
    flat = wide(X).reshape(batch.numel(), m, n)
    vectors = Vectors(call, flat, batch, X.dim() - 1, X.dtype, on_failure, solution)
    rows, columns = (
        flat.new_ones(()).expand(batch.numel(), size)
        if value is None
        else marginal(call, name, value, (*batch, size), flat, False).reshape(-1, size)
        for name, value, size in (("r", r, m), ("c", c, n))
    )
    if r is not None or c is not None:
        _check_sums(call, rows, columns)
    formula = TransportPolytope(call, max_steps, r is not None or c is not None)
    found: list[Tensor] = []

    def compute() -> Answer:
        Y, status, num_steps, error, nu = solve(formula, flat, rows, columns)
        found.append(nu)
        return Y, status, num_steps, error

    def details(Y: Tensor) -> Mapping[str, Tensor]:
        return {"equality_multipliers": _multipliers(call, Y, flat, found[0])}

    return vectors.leave(compute, "dual Newton", details)


def _check_sums(call: str, r: Tensor, c: Tensor) -> None:
    def look(r: Tensor, c: Tensor) -> None:
        row, column = r.double().sum(dim=-1), c.double().sum(dim=-1)
        wrong = (row - column).abs() > torch.finfo(r.dtype).eps ** 0.5 * (row + column)
        if bool(wrong.any()):
            raise InvalidInputError(
                f"`{call}(r=..., c=...)` must have the same sum, got {row[wrong][0].item():.6g} and "
                f"{column[wrong][0].item():.6g}. Scale one of them; ones stand for a marginal that is not given."
            )

    read(look, r, c)


def _multipliers(call: str, Y: Tensor, X: Tensor, nu: Tensor) -> Tensor:
    """``nu``, with the derivative of what it is on the support: ``Y - X + nu_i + nu_j = 0``."""
    none = nu.new_zeros(len(nu), 0)
    rows, columns = torch.zeros_like(nu).split(X.shape[1:], dim=1)
    fit = torch.cat(respond(_support(Y), X - Y, rows, columns, none, none, call=call, unique=True, told=False), dim=1)
    return nu.to(Y.dtype) + (fit - fit.detach()).to(Y.dtype)


def _support(Y: Tensor) -> Tensor:
    """Ones where Y is positive, NaN where an item is NaN."""
    Y = Y.detach()
    return torch.where(Y.isnan(), torch.nan, (Y > 0).to(Y.dtype))


@dataclasses.dataclass(frozen=True)
class TransportPolytope:
    """The formula of ``Y``, ``(R, m, n)``, from ``X``, ``r``, ``(R, m)``, and ``c``, ``(R, n)``.

    Attributes:
        call: Who asks, for warnings.
        max_steps: Most steps for an item.
        given: Whether r or c is of use to somebody, so that a response to them that is one of many is told.
    """

    call: str
    max_steps: int
    given: bool

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``Y``; status, steps and error, ``(R,)`` each; and the multipliers, ``(R, m + n)``, float64."""
        X, r, c = inputs
        finite = are_finite(X, (1, 2)) & are_finite(r, (1,)) & are_finite(c, (1,))
        x = [torch.where(finite.reshape(-1, *[1] * (t.dim() - 1)), t, 0).double() for t in inputs]
        found = nearest(x[0], x[1], x[2], self.max_steps)
        status = torch.where(finite, found.status, int(Status.NON_FINITE))
        Y = torch.where(finite.reshape(-1, 1, 1), found.Y.to(X.dtype), torch.nan)
        error = torch.where(finite, found.error, torch.nan).to(X.dtype)
        return Y.contiguous(), status, found.num_steps, error, torch.cat([found.tau, -found.v], dim=1)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        X, r, c = inputs
        count = X.new_empty(len(X), dtype=torch.int64)
        nu = X.new_empty(len(X), r.shape[1] + c.shape[1], dtype=torch.float64)
        return X.new_empty(X.shape), count, count.clone(), X.new_empty(len(X)), nu

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        _, r, c = inputs
        zeros = torch.zeros_like(r), torch.zeros_like(c)
        dX, dr, dc = self._fitted(y, v, *zeros, unique=self.given and (needed[1] or needed[2]))
        return dX, dr.to(r.dtype), dc.to(c.dtype)

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        _, r, c = inputs
        dX, dr, dc = tangents
        dX = torch.zeros_like(y) if dX is None else dX
        below = (torch.zeros_like(t) if dt is None else -dt for t, dt in ((r, dr), (c, dc)))
        return self._fitted(y, dX, *below, unique=self.given)[0]

    def _fitted(self, Y: Tensor, v: Tensor, g: Tensor, h: Tensor, *, unique: bool) -> tuple[Tensor, Tensor, Tensor]:
        """``S (v - x_i - y_j)``, and potentials x and y whose sums over the support are those of v, plus g and h."""
        S = _support(Y)
        sound = ~S[:, :1, :1].isnan()
        v = torch.where(sound, v, 0)
        none = g.new_zeros(len(g), 0).double()
        x, y = respond(S, v, g.double(), h.double(), none, none, call=self.call, unique=unique)
        return torch.where(sound, S, 0) * (v - x.unsqueeze(2).to(v.dtype) - y.unsqueeze(1).to(v.dtype)), x, y
