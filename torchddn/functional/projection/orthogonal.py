r"""The nearest matrix with orthonormal columns, and the nearest rotation: Procrustes.

Solve, for each matrix X with n rows and m <= n columns::

    Y(X) = argmin_Y  1/2 |Y - X|^2   subject to   Y^T Y = I,   and for rotations  n = m,  det Y = 1

With the singular value decomposition ``X = U S V^T`` the answer is ``U V^T``; for a rotation the last column of U, that
of the smallest singular value, changes sign if need be. Then ``X = Y H`` with H symmetric, and differentiating gives,
with ``Omega = Y^T dY``, which is skew::

    dY = Y Omega + (I - Y Y^T) dX H^-1,     H Omega + Omega H = Y^T dX - dX^T Y

In the eigenvectors of H, whose eigenvalues are the singular values, the last of them negated where a sign changed, this
divides by the sums ``h_i + h_j`` of two of them, never by differences: singular values may repeat. Where a sum is zero
the answer is not isolated, and the gradient is that of minimum norm.

References:
    Higham, Computing the Polar Decomposition, with Applications, 1986. Kabsch, A Solution for the Best Rotation to
    Relate Two Sets of Vectors, 1976. Umeyama, Least-Squares Estimation of Transformation Parameters, 1991.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_flag, check_floating, wide
from torchddn.functional.nodes.degeneracy import warn_undetermined
from torchddn.functional.nodes.handmade import Answer, solve
from torchddn.functional.projection.vectors import Vectors, answer_of
from torchddn.status import Solution, check_failure_policy

__all__ = ["project_orthogonal", "project_rotation"]


@overload
def project_orthogonal(X: Tensor, *, on_failure: str = ..., solution: Literal[False] = ...) -> Tensor: ...
@overload
def project_orthogonal(X: Tensor, *, on_failure: str = ..., solution: Literal[True]) -> Solution: ...
def project_orthogonal(X: Tensor, *, on_failure: str = "warn", solution: bool = False) -> Tensor | Solution:
    r"""Returns the matrix with orthonormal columns nearest to each matrix of ``X``: a point of the Stiefel manifold.

    Args:
        X: ``(*B, n, m)`` with ``n >= m``.
        on_failure: What to do about matrices with a number that is not finite: ``"warn"``, ``"raise"``, ``"nan"`` or
            ``"ignore"``. Their answer is NaN in any case; they do not disturb others.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``Y``; its fields are ``(*B,)``.

    Returns:
        ``Y``, shaped as ``X`` and of its dtype (half precision computes in float32), with ``Y^T Y = I``. Where the rank
        of X is less than m, several are nearest, and the answer is the one that the decomposition gives.

    Raises:
        InvalidInputError: If an argument is wrong, or ``n < m``, or a matrix is empty.
        SolveError: If a matrix fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the matrix contains NaN or infinity.

    Gradients:
        Exact in ``X``, of every order and in every mode, also where singular values repeat. Where two of them are zero,
        or one if ``n > m``, the problem does not determine it; the gradient of minimum norm is returned, with a
        DegenerateGradientWarning.

    Example:
        >>> project_orthogonal(torch.tensor([[0.0, -3.0], [2.0, 0.0]]))
        tensor([[ 0., -1.],
                [ 1.,  0.]])

    References:
        Higham, Computing the Polar Decomposition, with Applications, 1986.
    """
    return _project("project_orthogonal", X, on_failure, solution, rotation=False)


@overload
def project_rotation(X: Tensor, *, on_failure: str = ..., solution: Literal[False] = ...) -> Tensor: ...
@overload
def project_rotation(X: Tensor, *, on_failure: str = ..., solution: Literal[True]) -> Solution: ...
def project_rotation(X: Tensor, *, on_failure: str = "warn", solution: bool = False) -> Tensor | Solution:
    r"""Returns the rotation nearest to each square matrix of ``X``.

    With ``X = sum_i q_i p_i^T`` this is the rotation that turns the points p_i best onto the q_i.

    Args:
        X: ``(*B, n, n)``.
        on_failure: As of :func:`project_orthogonal`.
        solution: As of :func:`project_orthogonal`.

    Returns:
        ``Y``, shaped as ``X`` and of its dtype, with ``Y^T Y = I`` and ``det Y = 1``.

    Raises:
        InvalidInputError: If an argument is wrong, or the matrices are not square, or empty.
        SolveError: If a matrix fails and ``on_failure="raise"``.

    Status:
        NON_FINITE: the matrix contains NaN or infinity.

    Gradients:
        As of :func:`project_orthogonal`. The problem does not determine it where the two smallest singular values are
        equal and ``det X < 0``, or zero.

    Example:
        >>> project_rotation(torch.tensor([[0.0, -3.0], [2.0, 0.0]]))
        tensor([[ 0., -1.],
                [ 1.,  0.]])

    References:
        Umeyama, Least-Squares Estimation of Transformation Parameters, 1991.
    """
    return _project("project_rotation", X, on_failure, solution, rotation=True)


def _project(call: str, X: Tensor, on_failure: str, solution: bool, *, rotation: bool) -> Tensor | Solution:
    check_floating(call, "X", X, "(*B, n, m)", 2)
    check_failure_policy(call, on_failure)
    check_flag(call, "solution", solution)
    n, m = X.shape[-2:]
    if rotation and n != m:
        raise InvalidInputError(f"`{call}(X=...)` must be square matrices, got shape {tuple(X.shape)}.")
    if n < m:
        raise InvalidInputError(
            f"`{call}(X=...)` must have at least as many rows as columns, got shape {tuple(X.shape)}. Transpose it."
        )
    if m == 0:
        raise InvalidInputError(f"`{call}(X=...)` must have entries, got shape {tuple(X.shape)}.")
    matrices = wide(X).reshape(X.shape[:-2].numel(), n, m)
    vectors = Vectors(call, matrices, X.shape[:-2], X.dim() - 1, X.dtype, on_failure, solution)

    def details(Y: Tensor) -> Mapping[str, Tensor]:
        plain = Y.detach()
        identity = torch.eye(m, dtype=plain.dtype, device=plain.device)
        return {"feasibility": (plain.mT @ plain - identity).flatten(1).abs().amax(dim=1)}

    def notes() -> Mapping[str, Tensor]:
        plain = matrices.detach()
        S = torch.linalg.svdvals(torch.where(plain.isfinite(), plain, 0))
        return {"of a rank at which several matrices are nearest": S[:, -1] <= _noise(S).squeeze(1)}

    return vectors.leave(lambda: solve(Polar(call, rotation), matrices), "SVD", details, notes)


def _noise(h: Tensor) -> Tensor:
    """Below this, eigenvalues ``h``, ``(R, m)``, count as zero; ``(R, 1)``."""
    return 8 * h.shape[1] * torch.finfo(h.dtype).eps * h.abs().amax(dim=1, keepdim=True)


@dataclasses.dataclass(frozen=True)
class Polar:
    """The formula of ``Y`` from ``X``, ``(R, n, m)``."""

    call: str
    rotation: bool

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``Y``, status, steps, violation."""
        (X,) = inputs
        finite = X.isfinite().flatten(1).all(dim=1).reshape(-1, 1, 1)
        U, _, Vh = torch.linalg.svd(torch.where(finite, X, _identity(X)), full_matrices=False)
        Y = U @ Vh
        if self.rotation:
            U[..., -1] *= _sign_of_determinant(Y).unsqueeze(1)
            Y = U @ Vh
        return answer_of(torch.where(finite, Y, torch.nan), finite.squeeze(2))

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        (X,) = inputs
        status = X.new_empty(X.shape[:1], dtype=torch.int64)
        return torch.empty_like(X), status, status.clone(), X.new_empty(X.shape[:1])

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        Y, v, H = self._parts(y, v, inputs[0])
        W = Y.mT @ v
        return (Y @ self._rotate(H, W) + self._complement(Y, H, v, W),)

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        (dX,) = tangents
        # The map is its own transpose.
        return torch.zeros_like(y) if dX is None else torch.as_tensor(self.pull(y, dX, inputs, (True,))[0])

    def _rotate(self, H: Tensor, W: Tensor) -> Tensor:
        return solve(Sylvester(self.call, two_sided=True), H, W - W.mT)[0]

    def _complement(self, Y: Tensor, H: Tensor, v: Tensor, W: Tensor) -> Tensor:
        if Y.shape[1] == Y.shape[2]:
            return torch.zeros_like(Y)
        return solve(Sylvester(self.call, two_sided=False), H, v - Y @ W)[0]

    def _parts(self, Y: Tensor, v: Tensor, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``Y``, ``v`` and ``H``; of matrices that failed the identity, zero and the identity."""
        sound = ~Y[:, :1, :1].isnan()
        Y, X, v = torch.where(sound, Y, _identity(Y)), torch.where(sound, X, _identity(X)), torch.where(sound, v, 0)
        H = Y.mT @ X
        return Y, v, (H + H.mT) / 2


def _identity(X: Tensor) -> Tensor:
    return torch.eye(X.shape[1], X.shape[2], dtype=X.dtype, device=X.device).expand_as(X)


def _sign_of_determinant(Y: Tensor) -> Tensor:
    """Of orthogonal matrices, ``(R,)``, by reflections: LU of large batches may hang on CPU (torch 2.13, oneMKL)."""
    R, tau = torch.geqrf(Y)
    signs = R.diagonal(dim1=1, dim2=2).sign() * torch.where(tau == 0, 1.0, -1.0).to(Y.dtype)
    return signs.prod(dim=1)


@dataclasses.dataclass(frozen=True)
class Sylvester:
    """The formula of ``Z`` with ``H Z + Z H = C``, C skew, or ``Z H = C``; H symmetric, ``(R, m, m)``.

    Its derivative is itself, of ``dC - dH Z - Z dH``, or of ``dC - Z dH``. Sums of eigenvalues that are zero are left
    out.
    """

    call: str
    two_sided: bool

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``Z``."""
        H, C = inputs
        h, Q = torch.linalg.eigh(H)
        noise = _noise(h)
        if self.two_sided:
            divisor, C = h.unsqueeze(2) + h.unsqueeze(1), Q.mT @ C @ Q
            pairs = ~torch.eye(h.shape[1], dtype=torch.bool, device=h.device)
        else:
            divisor, C = h.unsqueeze(1), C @ Q
            pairs = torch.ones_like(divisor, dtype=torch.bool)
        zero = divisor.abs() <= noise.unsqueeze(2)
        warn_undetermined(
            self.call,
            (zero & pairs).flatten(1).any(dim=1),
            "the answer is not isolated there",
            "singular values farther from zero, or from their negatives, single one out",
        )
        Z = torch.where(zero, 0, C / torch.where(zero, 1, divisor)) @ Q.mT
        return (Q @ Z if self.two_sided else Z,)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        return (torch.empty_like(inputs[1]),)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        Z, H = y, inputs[0]
        if not self.two_sided:
            G = solve(self, H, v)[0]
            return -Z.mT @ G, G
        G = solve(self, H, (v - v.mT) / 2)[0]
        return Z @ G + G @ Z, G

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        Z, (H, _), (dH, dC) = y, inputs, tangents
        right = torch.zeros_like(Z) if dC is None else dC
        if dH is not None:
            right = right - Z @ dH - (dH @ Z if self.two_sided else 0)
        return solve(self, H, right)[0]
