r"""Euclidean projection onto an affine set.

Solves, for each vector of x::

    y(x, A, b) = argmin_y  1/2 |y - x|^2   subject to   A y = b

With the multipliers ``w`` the answer solves a linear system with a symmetric matrix::

    K z = (x, b),   z = (y, w),     K = [ I  A^T ]
                                        [ A  0   ]

Redundant rows of A make K singular; then ``z = K^+ (x, b)``, whose w is that of minimum norm. Derivatives are the same
system once more: for incoming gradients ``(v_y, v_w)`` let ``(u, mu) = K^+ (v_y, v_w)``, then

    v.dz/dx = u,    v.dz/db = mu,    v.dz/dA = -(w u^T + mu y^T)
"""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import broadcast, check_floating
from torchddn.functional.nodes.handmade import Answer, solve
from torchddn.functional.projection.vectors import Vectors, check_tensor
from torchddn.status import Solution, Status

__all__ = ["project_affine"]

_CERTIFIED = 1e3  # times the rounding error: the largest residual of ``A y = b`` that passes


@overload
def project_affine(
    x: Tensor,
    A: Tensor,
    b: float | Tensor = ...,
    dim: int = ...,
    *,
    on_failure: str = ...,
    solution: Literal[False] = ...,
) -> Tensor: ...
@overload
def project_affine(
    x: Tensor,
    A: Tensor,
    b: float | Tensor = ...,
    dim: int = ...,
    *,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
def project_affine(
    x: Tensor,
    A: Tensor,
    b: float | Tensor = 0.0,
    dim: int = -1,
    *,
    on_failure: str = "warn",
    solution: bool = False,
) -> Tensor | Solution:
    r"""Returns the point with ``A y = b`` nearest to each vector of ``x``.

    By a singular value decomposition of A, one for all vectors if A is shared, and one step of refinement; the
    residual ``A y - b`` is then looked at. Cost O(p m min(p, m)) for each A and O(p m) for each vector.

    Args:
        x: Vectors along ``dim``, ``(*B, m)`` for the last axis.
        A: ``(p, m)``, shared by all vectors, or ``(*B, p, m)``. Rows may be redundant.
        b: A number, or a tensor that broadcasts to ``(*B, p)``.
        dim: Axis of the vectors.
        on_failure: What to do about vectors that fail: ``"warn"``, ``"raise"``, ``"nan"`` or ``"ignore"``. Those with
            a number that is not finite are NaN in any case; they do not disturb others.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``y``; the multipliers have shape
            ``(*B, p)``, other fields ``(*B,)``.

    Returns:
        ``y``, shaped as ``x`` and of its dtype (half precision computes in float32).

    Raises:
        InvalidInputError: If an argument is wrong, or there are no coordinates or no rows.
        SolveError: If a vector fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: x, A or b contains NaN or infinity.
        INFEASIBLE: no point has ``A y = b``. The answer is the nearest of those where ``|A y - b|`` is least.

    Gradients:
        Exact in ``x``, ``A`` and ``b``, of every order and in every mode. With redundant rows it is that of minimum
        norm, which is right for changes of A and b that leave the rows redundant.

    Example:
        >>> project_affine(torch.tensor([3.0, 4.0, 5.0]), torch.ones(1, 3), 6.0)
        tensor([1., 2., 3.])

    References:
        Boyd, Vandenberghe, Convex Optimization, 2004, section 8.1.1.
    """
    call = "project_affine"
    vectors = Vectors.enter(call, x, dim, on_failure, solution)
    num_vectors, m = vectors.rows.shape
    check_floating(call, "A", A, "(*B, p, m)", 2)
    p = A.shape[-2]
    if p == 0 or A.shape[-1] != m:
        raise InvalidInputError(
            f"`{call}(A=...)` must have shape (*B, p, m) with p > 0 and m = {m}, got {tuple(A.shape)}."
        )
    check_tensor(call, "A", A, vectors.rows.device)
    if not isinstance(b, numbers.Real):
        check_tensor(call, "b", b, vectors.rows.device)
    # One A for each group of vectors: all of them, or each alone.
    groups, size = (1, num_vectors) if A.dim() == 2 else (num_vectors, 1)
    A = broadcast(
        call, "A", A, torch.Size([p, m]) if A.dim() == 2 else torch.Size([*vectors.batch, p, m]), vectors.rows
    )
    b = broadcast(call, "b", b, torch.Size([*vectors.batch, p]), vectors.rows)
    rows, A, b = vectors.rows.reshape(groups, size, m), A.reshape(groups, p, m), b.reshape(groups, size, p)
    found: list[Tensor] = []

    def compute() -> Answer:
        z, *others = solve(Saddle(), rows, b, A)
        found.append(z.reshape(-1, m + p)[:, m:])
        return z.reshape(-1, m + p)[:, :m], *(other.reshape(-1) for other in others)

    return vectors.leave(compute, "SVD", lambda y: {"equality_multipliers": found[0]})


@dataclasses.dataclass(frozen=True)
class Saddle:
    """The formula of ``z``, ``(R, k, m + p)``, from ``x``, ``(R, k, m)``, ``b``, ``(R, k, p)``, A, ``(R, p, m)``."""

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``z``; status and steps, and the violation ``|A y - b|``, ``(R, k)`` each."""
        x, b, A = inputs
        m, eps = x.shape[2], torch.finfo(x.dtype).eps
        whole = A.isfinite().flatten(1).all(dim=1).reshape(-1, 1, 1)
        finite = x.isfinite().all(dim=2, keepdim=True) & b.isfinite().all(dim=2, keepdim=True) & whole
        x, b, A = torch.where(finite, x, 0), torch.where(finite, b, 0), torch.where(whole, A, 0)
        U, S, Vh = torch.linalg.svd(A, full_matrices=False)
        S = S.unsqueeze(1)
        kept = max(A.shape[1:]) * eps * S[..., :1] < S
        inverse = torch.where(kept, 1 / torch.where(kept, S, 1), 0)

        def apply(x: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            off = kept * (x @ Vh.mT) - inverse * (b @ U)
            return x - off @ Vh, (off * inverse) @ U.mT

        y, w = apply(x, b)
        dy, dw = apply(x - y - w @ A, b - y @ A.mT)
        y, w = y + dy, w + dw
        residual = torch.linalg.vector_norm(y @ A.mT - b, dim=2)
        size = S[..., 0] * torch.linalg.vector_norm(y, dim=2) + torch.linalg.vector_norm(b, dim=2)
        fits = residual <= _CERTIFIED * eps * size
        status = torch.where(fits, int(Status.CONVERGED), int(Status.INFEASIBLE))
        status = torch.where(finite.squeeze(2), status, int(Status.NON_FINITE))
        z = torch.where(finite, torch.cat([y, w], dim=2), torch.nan)
        return z, status, torch.zeros_like(status), torch.where(z[..., m - 1].isnan(), torch.nan, residual)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        x, b, _ = inputs
        status = x.new_empty(x.shape[:2], dtype=torch.int64)
        z = x.new_empty(*x.shape[:2], x.shape[2] + b.shape[2])
        return z, status, status.clone(), x.new_empty(x.shape[:2])

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        x, _, A = inputs
        m, z = x.shape[2], y
        sound = ~z[..., :1].isnan()
        z, v = torch.where(sound, z, 0), torch.where(sound, v, 0)
        A = torch.where(A.isfinite(), A, 0)
        u = solve(self, v[..., :m], v[..., m:], A)[0]
        dA = -(z[..., m:].mT @ u[..., :m] + u[..., m:].mT @ z[..., :m]) if needed[2] else None
        return u[..., :m], u[..., m:], dA

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        x, b, A = inputs
        m, z = x.shape[2], y
        sound = ~z[..., :1].isnan()
        z, A = torch.where(sound, z, 0), torch.where(A.isfinite(), A, 0)
        dx, db, dA = tangents
        dx = torch.zeros_like(x) if dx is None else torch.where(sound, dx, 0)
        db = torch.zeros_like(b) if db is None else torch.where(sound, db, 0)
        if dA is not None:
            dx, db = dx - z[..., m:] @ dA, db - z[..., :m] @ dA.mT
        return solve(self, dx, db, A)[0]
