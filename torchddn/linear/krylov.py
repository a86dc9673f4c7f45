r"""Krylov methods: solve with products alone, one item as if it were alone.

Solves, for each item and each right-hand side::

    K u = v        until        |v - K u| <= max(rtol |v|, atol)

from the start ``u = 0``. There is one loop, in :meth:`Krylov.run`; it freezes what has stopped, counts and stops.
Inside the loop right-hand sides are rows: ``(N, s)`` with ``N = B k``, scalars are ``(N, 1)``.

Memory: a few vectors; GMRES keeps ``restart + 1`` of them per right-hand side.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.linear.operators import (
    MatrixFree,
    Operator,
    check_count,
    check_number,
    check_operator,
    check_vectors,
)
from torchddn.linear.solver import Solver

__all__ = ["CG", "GMRES", "MINRES", "Krylov", "KrylovSolution", "KrylovState", "jacobi"]

# Reading "is anything still running" waits for an accelerator; the steps in between cost frozen items nothing but time.
_STEPS_PER_CHECK = 8

# Steps of a method that nobody asked for, where a matrix is too large to be formed: what takes more, as a singular
# matrix with small eigenvalues does, is reported and not waited for.
UNASKED_STEPS = 500

# Rounding units, of the size of the matrix, up to which what should be zero is zero.
_NOISE = 100


class KrylovState(NamedTuple):
    """Nothing is factored: the state is the operator."""

    operator: Operator


class KrylovSolution(NamedTuple):
    """What :meth:`Krylov.run` returns; all but ``solution`` are ``(B,)``, or ``(B, k)`` for several right-hand sides.

    Attributes:
        solution: Shaped as the right-hand side.
        converged: The stopping test was met by the residual that the method tracks.
        broken: The method cannot go on: CG met a direction without positive curvature, MINRES or GMRES found that
            no solution exists in the space it builds, or a number is not finite. Neither is set at ``max_steps``.
        num_steps: Steps, of one product with ``K`` each; a restart of GMRES takes one more.
        residual: ``|v - K u|`` as the method tracks it.
    """

    solution: Tensor
    converged: Tensor
    broken: Tensor
    num_steps: Tensor
    residual: Tensor


@dataclasses.dataclass(frozen=True)
class Krylov(Solver):
    """The interface of the Krylov methods, and their one loop.

    Args:
        rtol: Relative to ``|v|``; ``eps ** 0.75`` unless given (2e-12 in float64, 6e-6 in float32).
        atol: Absolute.
        max_steps: Steps at most; ``5 s``, and at least 20, unless given.
        preconditioner: A function that maps ``(B, s)`` to about ``K^-1`` of it. For CG and MINRES it must be
            symmetric positive definite. The same function serves the transposed system.

    Raises:
        InvalidInputError: A value is out of its range.
    """

    rtol: float | None = None
    atol: float = 0.0
    max_steps: int | None = None
    preconditioner: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.rtol is not None:
            check_number(f"{name}(rtol=...)", self.rtol)
        check_number(f"{name}(atol=...)", self.atol)
        if self.max_steps is not None:
            check_count(f"{name}(max_steps=...)", self.max_steps, least=0)
        if self.preconditioner is not None and not callable(self.preconditioner):
            raise InvalidInputError(
                f"`{name}(preconditioner=...)` must be a function or None, got {type(self.preconditioner).__name__}."
            )
        self._check()

    def _check(self) -> None:
        """Checks what a method has beyond the common knobs."""

    @abc.abstractmethod
    def _start(self, problem: "_Rows", rhs: Tensor) -> Any:
        """The state at ``u = 0``: a ``NamedTuple`` with fields ``residual`` and ``broken``, ``(N, 1)``."""

    @abc.abstractmethod
    def _step(self, problem: "_Rows", state: Any, running: Tensor) -> Any:
        """One product with ``K``. A tensor that is returned as the same object is not frozen by the loop."""

    @abc.abstractmethod
    def _finish(self, problem: "_Rows", state: Any) -> Tensor:
        """``u``, ``(N, s)``."""

    def run(self, operator: Operator, rhs: Tensor) -> KrylovSolution:
        """Iterates until every right-hand side has converged, is broken, or has had ``max_steps``."""
        name = type(self).__name__
        check_operator(f"{name}.run(operator=...)", operator)
        check_vectors(f"{name}.run(rhs=...)", operator, rhs)
        problem = _Rows(operator, self.preconditioner, 1 if rhs.ndim == 2 else rhs.shape[2])
        rows = problem.fold(rhs)
        max_steps = max(5 * operator.size, 20) if self.max_steps is None else self.max_steps
        rtol = torch.finfo(rhs.dtype).eps ** 0.75 if self.rtol is None else self.rtol
        target = (rtol * _norm(rows)).clamp(min=self.atol)
        steps_per_check = 1 if rhs.device.type == "cpu" else _STEPS_PER_CHECK

        state = self._start(problem, rows)
        running = (state.residual > target) & ~state.broken  # false for NaN
        num_steps = torch.zeros_like(running, dtype=torch.int64)
        for step in range(max_steps):
            if step % steps_per_check == 0 and not bool(running.any()):
                break
            state = _freeze(running, self._step(problem, state, running), state)
            num_steps += running
            running = running & (state.residual > target) & ~state.broken
        finite = state.residual.isfinite()
        converged = (state.residual <= target) & finite
        broken = (state.broken | ~finite) & ~converged
        lead = rhs.shape[:1] if rhs.ndim == 2 else (rhs.shape[0], rhs.shape[2])
        each = [flag.reshape(lead) for flag in (converged, broken, num_steps, state.residual)]
        return KrylovSolution(problem.unfold(self._finish(problem, state)).view_as(rhs), *each)

    def init(self, operator: Operator) -> KrylovState:
        check_operator(f"{type(self).__name__}.init(operator=...)", operator)
        return KrylovState(operator)

    def solve(self, state: KrylovState, rhs: Tensor) -> Tensor:
        return self.run(state.operator, rhs).solution

    def transpose(self, state: KrylovState) -> KrylovState:
        return KrylovState(state.operator.transpose())

    def sound(self, state: KrylovState) -> Tensor:
        # Nothing is known before a solve, and afterwards the residual says it.
        return torch.ones(state.operator.batch, dtype=torch.bool, device=state.operator.device)


class _CGState(NamedTuple):
    u: Tensor
    r: Tensor
    p: Tensor
    r_z: Tensor
    residual: Tensor
    broken: Tensor


@dataclasses.dataclass(frozen=True)
class CG(Krylov):
    """Conjugate gradients, for symmetric positive definite matrices.

    A semidefinite matrix is fine where a solution exists, which is then the one of minimum norm. An item that
    shows a direction of no or negative curvature is ``broken`` and keeps the iterate before it.

    Args:
        rtol, atol, max_steps, preconditioner: See :class:`Krylov`.

    Example:
        >>> from torchddn.linear import DenseMatrix
        >>> K = DenseMatrix(torch.tensor([[[2.0, 0.0], [0.0, 4.0]]]), symmetric=True)
        >>> CG().run(K, torch.tensor([[2.0, 4.0]])).num_steps
        tensor([2])

    References:
        Hestenes, Stiefel, Methods of conjugate gradients for solving linear systems, 1952.
    """

    def _start(self, problem: "_Rows", rhs: Tensor) -> _CGState:
        z = problem.precondition(rhs)
        r_z = _dot(rhs, z)
        return _CGState(torch.zeros_like(rhs), rhs, z, r_z, _norm(rhs), r_z < 0)

    def _step(self, problem: "_Rows", state: _CGState, running: Tensor) -> _CGState:
        q = problem.product(state.p)
        curvature = _dot(state.p, q)
        broken = ~(curvature > 0)
        alpha = torch.where(broken, 0, state.r_z / curvature)
        u = state.u + alpha * state.p
        r = state.r - alpha * q
        z = problem.precondition(r)
        r_z = _dot(r, z)
        p = z + (r_z / state.r_z) * state.p
        return _CGState(u, r, p, r_z, _norm(r), broken | (r_z < 0))

    def _finish(self, problem: "_Rows", state: _CGState) -> Tensor:
        return state.u


class _MINRESState(NamedTuple):
    u: Tensor
    r: Tensor
    z: Tensor
    z_prev: Tensor
    v: Tensor
    w: Tensor
    w_prev: Tensor
    beta: Tensor
    beta_prev: Tensor
    cos: Tensor
    sin: Tensor
    delta_bar: Tensor
    epsilon: Tensor
    phi_bar: Tensor
    norm: Tensor
    residual: Tensor
    broken: Tensor


@dataclasses.dataclass(frozen=True)
class MINRES(Krylov):
    """Minimum residuals, for symmetric matrices, definite or not, regular or not.

    For a singular matrix and a system that has a solution, the one of minimum norm. For one without, ``broken`` and
    a least-squares solution (not of minimum norm).

    Args:
        rtol, atol, max_steps, preconditioner: See :class:`Krylov`.

    Example:
        >>> from torchddn.linear import DenseMatrix
        >>> K = DenseMatrix(torch.tensor([[[1.0, 1.0], [1.0, 1.0]]]), symmetric=True)
        >>> MINRES().solve(MINRES().init(K), torch.tensor([[2.0, 2.0]]))
        tensor([[1., 1.]])

    References:
        Paige, Saunders, Solution of sparse indefinite systems of linear equations, 1975.
    """

    def _start(self, problem: "_Rows", rhs: Tensor) -> _MINRESState:
        v = problem.precondition(rhs)
        square = _dot(rhs, v)
        beta = square.clamp(min=0).sqrt()
        zeros, zero = torch.zeros_like(rhs), torch.zeros_like(beta)
        return _MINRESState(
            u=zeros,
            r=rhs,
            z=rhs,
            z_prev=zeros,
            v=v,
            w=zeros,
            w_prev=zeros,
            beta=beta,
            beta_prev=torch.ones_like(beta),
            cos=-torch.ones_like(beta),
            sin=zero,
            delta_bar=zero,
            epsilon=zero,
            phi_bar=beta,
            norm=zero,
            residual=_norm(rhs),
            broken=square < 0,
        )

    def _step(self, problem: "_Rows", state: _MINRESState, running: Tensor) -> _MINRESState:
        s = state
        # Lanczos: the next vector z of the space, unnormalized; v = M z / beta has length one in the norm of M^-1.
        v = _divide(s.v, s.beta)
        z = problem.product(v) - (s.beta / s.beta_prev) * s.z_prev
        alpha = _dot(v, z)
        z = z - _divide(alpha, s.beta) * s.z
        v_next = problem.precondition(z)
        square = _dot(z, v_next)
        beta = square.clamp(min=0).sqrt()
        norm = torch.hypot(torch.hypot(s.norm, alpha), beta)
        # The QR factorization of the tridiagonal matrix, one Givens rotation on.
        delta = s.cos * s.delta_bar + s.sin * alpha
        gamma_bar = s.sin * s.delta_bar - s.cos * alpha
        epsilon, delta_bar = s.sin * beta, -s.cos * beta
        gamma = torch.hypot(gamma_bar, beta)
        cos, sin = _divide(gamma_bar, gamma), _divide(beta, gamma)
        phi, phi_bar = cos * s.phi_bar, sin * s.phi_bar
        w = _divide(v - s.epsilon * s.w_prev - delta * s.w, gamma)
        u = s.u + phi * w
        r = sin.square() * s.r - _divide(phi_bar * cos, beta) * z
        # |K r| / |r| of the last iterate: nothing but the part outside the range is left, and gamma is noise.
        exhausted = torch.hypot(gamma_bar, delta_bar) <= _NOISE * torch.finfo(u.dtype).eps * norm
        u, r = torch.where(exhausted, s.u, u), torch.where(exhausted, s.r, r)
        ended = beta <= 10 * torch.finfo(u.dtype).eps * norm  # the space is invariant: this iterate is the last
        residual = torch.where(ended & ~exhausted, phi_bar.abs().minimum(_norm(r)), _norm(r))
        return _MINRESState(
            u=u,
            r=r,
            z=z,
            z_prev=s.z,
            v=v_next,
            w=w,
            w_prev=s.w,
            beta=beta,
            beta_prev=s.beta,
            cos=cos,
            sin=sin,
            delta_bar=delta_bar,
            epsilon=epsilon,
            phi_bar=phi_bar,
            norm=norm,
            residual=residual,
            broken=exhausted | ended | (square < 0),
        )

    def _finish(self, problem: "_Rows", state: _MINRESState) -> Tensor:
        return state.u


class _GMRESState(NamedTuple):
    u: Tensor  # at the start of the cycle, (N, s)
    rhs: Tensor
    basis: Tensor  # orthonormal, (N, restart + 1, s)
    R: Tensor  # triangular factor of the Hessenberg matrix, (N, restart, restart)
    cos: Tensor  # Givens rotations, (N, restart)
    sin: Tensor
    g: Tensor  # rotated right-hand side, (N, restart + 1)
    position: int  # in the cycle
    norm: Tensor  # the greatest length of a product so far, (N, 1)
    residual: Tensor
    broken: Tensor


@dataclasses.dataclass(frozen=True)
class GMRES(Krylov):
    """Generalized minimum residuals, for any matrices, restarted.

    Preconditioned from the right, so that the residual is the true one.

    Args:
        rtol, atol, max_steps, preconditioner: See :class:`Krylov`.
        restart: Vectors kept, at least 1: more of them need fewer steps and more memory.

    Example:
        >>> from torchddn.linear import DenseMatrix
        >>> K = DenseMatrix(torch.tensor([[[0.0, 2.0], [1.0, 0.0]]]))
        >>> GMRES().solve(GMRES().init(K), torch.tensor([[2.0, 1.0]])).round(decimals=4)
        tensor([[1., 1.]])

    References:
        Saad, Schultz, GMRES: a generalized minimal residual algorithm for solving nonsymmetric linear systems, 1986.
    """

    restart: int = 30

    def _check(self) -> None:
        check_count("GMRES(restart=...)", self.restart)

    def _start(self, problem: "_Rows", rhs: Tensor) -> _GMRESState:
        N, s = rhs.shape
        k = min(self.restart, s)
        state = _GMRESState(
            u=torch.zeros_like(rhs),
            rhs=rhs,
            basis=rhs.new_zeros(N, k + 1, s),
            R=torch.eye(k, dtype=rhs.dtype, device=rhs.device).repeat(N, 1, 1),
            cos=rhs.new_zeros(N, k),
            sin=rhs.new_zeros(N, k),
            g=rhs.new_zeros(N, k + 1),
            position=0,
            norm=rhs.new_zeros(N, 1),
            residual=_norm(rhs),
            broken=torch.zeros_like(rhs[:, :1], dtype=torch.bool),
        )
        return _open_cycle(state, rhs, torch.ones_like(state.broken))

    def _step(self, problem: "_Rows", state: _GMRESState, running: Tensor) -> _GMRESState:
        if state.position == state.R.shape[1]:
            state.u.copy_(self._finish(problem, state))
            state = _open_cycle(state, state.rhs - problem.product(state.u), running)
        # The tensors of the cycle are written in place, which the loop leaves alone; for what has stopped, a column
        # of the identity and a zero on the right keep the finished combination of basis vectors as it is.
        basis, R, cos, sin, g, j = state.basis, state.R, state.cos, state.sin, state.g, state.position
        w = problem.product(problem.precondition(basis[:, j]))
        length = _norm(w)
        h = w.new_zeros(w.shape[0], j + 1)
        for _ in range(2):  # classical Gram-Schmidt needs its second pass to be orthogonal to rounding
            coefficients = torch.einsum("njs,ns->nj", basis[:, : j + 1], w)
            w = w - torch.einsum("njs,nj->ns", basis[:, : j + 1], coefficients)
            h = h + coefficients
        below = _norm(w)
        ended = below <= 10 * torch.finfo(w.dtype).eps * length  # the space is invariant
        below = torch.where(ended, 0, below)
        basis[:, j + 1] = torch.where(running, _divide(w, below), 0)
        for i in range(j):
            upper, lower = h[:, i].clone(), h[:, i + 1].clone()
            h[:, i] = cos[:, i] * upper + sin[:, i] * lower
            h[:, i + 1] = cos[:, i] * lower - sin[:, i] * upper
        diagonal = torch.hypot(h[:, j : j + 1], below)
        norm = torch.maximum(state.norm, length)
        lost = diagonal <= _NOISE * torch.finfo(w.dtype).eps * norm  # K is singular on the space: skip the column
        c, s = _divide(h[:, j : j + 1], diagonal), _divide(below, diagonal)
        valid = running & ~lost
        identity = torch.zeros_like(h)
        identity[:, j] = 1
        h[:, j : j + 1] = diagonal
        R[:, : j + 1, j] = torch.where(valid, h, identity)
        cos[:, j : j + 1], sin[:, j : j + 1] = c, s
        g_j = g[:, j : j + 1].clone()
        g[:, j : j + 1] = torch.where(valid, c * g_j, 0)
        g[:, j + 1 : j + 2] = torch.where(valid, -s * g_j, torch.where(running, g_j, 0))
        residual = torch.where(lost, g_j.abs(), (s * g_j).abs())
        return state._replace(position=j + 1, norm=norm, residual=residual, broken=lost | ended)

    def _finish(self, problem: "_Rows", state: _GMRESState) -> Tensor:
        j = state.position
        if j == 0:
            return state.u
        y = torch.linalg.solve_triangular(state.R[:, :j, :j], state.g[:, :j].unsqueeze(-1), upper=True)
        return state.u + problem.precondition((state.basis[:, :j].mT @ y).squeeze(-1))


def jacobi(diagonal: Tensor) -> Callable[[Tensor], Tensor]:
    """The preconditioner that divides by the modulus of the diagonal, ``(B, s)``; zeros divide by one.

    Example:
        >>> jacobi(torch.tensor([[-2.0, 0.0]]))(torch.ones(1, 2))
        tensor([[0.5000, 1.0000]])
    """
    if not isinstance(diagonal, Tensor) or diagonal.ndim != 2:
        raise InvalidInputError("`jacobi(diagonal=...)` must be a tensor (B, s).")
    inverse = torch.where(diagonal == 0, 1, diagonal).abs().reciprocal()
    return lambda u: inverse * u


class _Rows:
    """An operator and a preconditioner that act on right-hand sides as rows ``(B k, s)``."""

    def __init__(self, operator: Operator, preconditioner: Callable[[Tensor], Tensor] | None, num_columns: int) -> None:
        self._operator, self._num_columns, self._M = operator, num_columns, None
        if preconditioner is not None:
            self._M = MatrixFree(
                preconditioner,
                batch=operator.batch,
                size=operator.size,
                dtype=operator.dtype,
                device=operator.device,
            )

    def fold(self, vectors: Tensor) -> Tensor:
        return vectors if vectors.ndim == 2 else vectors.mT.reshape(-1, vectors.shape[1])

    def unfold(self, rows: Tensor) -> Tensor:
        if self._num_columns == 1:
            return rows
        return rows.view(self._operator.batch, self._num_columns, rows.shape[1]).mT.contiguous()

    def product(self, rows: Tensor) -> Tensor:
        return self.fold(self._operator.matvec(self.unfold(rows)))

    def precondition(self, rows: Tensor) -> Tensor:
        return rows if self._M is None else self.fold(self._M.matvec(self.unfold(rows)))


def _open_cycle(state: _GMRESState, r: Tensor, running: Tensor) -> _GMRESState:
    length = _norm(r)
    state.basis.zero_()
    state.basis[:, 0] = torch.where(running, _divide(r, length), 0)
    state.R.copy_(torch.eye(state.R.shape[1], dtype=r.dtype, device=r.device))
    state.g.zero_()
    state.g[:, :1] = torch.where(running, length, 0)
    return state._replace(position=0)


def _freeze(running: Tensor, state_next: Any, state: Any) -> Any:
    """``state_next`` for the rows that run, ``state`` for the others."""

    def select(new: Any, old: Any) -> Any:
        return torch.where(running, new, old) if isinstance(new, Tensor) and new is not old else new

    return type(state)(*map(select, state_next, state))


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, and zero where the denominator is zero."""
    return torch.where(denominator == 0, 0, numerator / denominator)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(1, keepdim=True)


def _norm(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True)
