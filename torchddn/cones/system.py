r"""The linear system in the derivative of a cone program, its solution, and the derivative of that.

::

    J = [ P   -A'(I - D) ]        in x and w, for symmetric P and D
        [ A        D     ]

An auxiliary variable of cvxpy's, such as a bound of a norm that is not reached, is often not determined, and J is
singular. So what is factored is a matrix near J that is always regular: with ``-dz = (I - D) dw``, the equations are
those of x, z and w in which ``d = 1e-8`` times x is added to the first, and d times z taken from the second. A null
vector has ``x'(P + d) x + s'z + d z'z = 0`` with ``s'z`` not negative, and vanishes. Refinement with it solves for what
is determined, and the residual of J says whether all that was asked is.
"""

import importlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchddn.linear import LU, DenseMatrix, MatrixFree, Operator

__all__ = ["System", "dense", "gather_products", "operator", "refine"]

# Small enough for few refinements, large enough for a factorization.
_REGULARIZATION = 1e-8
# Systems of more rows than this are sparse enough for a sparse factorization to be faster, which goes item by item.
_DENSE_SIZE = 400


class System(NamedTuple):
    """Entries of P, A and D that may differ from zero, ``(R, number of entries)``, and where they are; n and m."""

    P: Tensor
    A: Tensor
    D: Tensor
    P_rows: Tensor
    P_columns: Tensor
    A_rows: Tensor
    A_columns: Tensor
    D_rows: Tensor
    D_columns: Tensor
    n: int
    m: int

    def multiply(self, u: Tensor, transposed: bool = False) -> Tensor:
        """``J u``, or ``J'u``, ``(R, n + m)``."""
        x, w = u.split((self.n, self.m), dim=1)
        P_x, A_x = self.times("P", x), self.times("A", x)
        if transposed:
            D_w, D_A_x = self.times("D", w), self.times("D", A_x)
            return torch.cat([P_x + self.times("A", w, True), D_w - A_x + D_A_x], dim=1)
        D_w = self.times("D", w)
        return torch.cat([P_x - self.times("A", w - D_w, True), A_x + D_w], dim=1)

    def times(self, name: str, u: Tensor, transposed: bool = False) -> Tensor:
        """The product with P, A or D, or its transpose."""
        size = self.m if name == "D" or (name == "A" and not transposed) else self.n
        values, rows, columns = (getattr(self, name + suffix) for suffix in ("", "_rows", "_columns"))
        if transposed:
            rows, columns = columns, rows
        return u.new_zeros(u.shape[0], size).scatter_add(1, rows, values * u.gather(1, columns))

    def select(self, items: Tensor) -> "System":
        """The system of some items."""
        return System._make([*(part[items] for part in self[:9]), self.n, self.m])


def dense(values: Tensor, rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> Tensor:
    """Matrices in full, ``(R, *shape)``."""
    flat = values.new_zeros(values.shape[0], shape[0] * shape[1])
    return flat.scatter_add(1, rows * shape[1] + columns, values).unflatten(1, shape)


def gather_products(system: System, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``left'J right`` in the entries of P, A and D."""
    a, b = left.split((system.n, system.m), dim=1)
    x, w = right.split((system.n, system.m), dim=1)
    minus_z = w - system.times("D", w)
    force = b + system.times("A", a)
    d_A = b.gather(1, system.A_rows) * x.gather(1, system.A_columns)
    d_A = d_A - minus_z.gather(1, system.A_rows) * a.gather(1, system.A_columns)
    d_P = a.gather(1, system.P_rows) * x.gather(1, system.P_columns)
    return d_P, d_A, force.gather(1, system.D_rows) * w.gather(1, system.D_columns)


def operator(system: System, transposed: bool) -> Operator:
    """J, or its transpose, in full if that is not too large."""
    size, R = system.n + system.m, system.P.shape[0]
    if size <= _DENSE_SIZE:
        return DenseMatrix(_form(system, transposed), primal_size=system.n)
    return MatrixFree(
        lambda u: system.multiply(u, transposed),
        lambda u: system.multiply(u, not transposed),
        batch=R,
        size=size,
        dtype=system.P.dtype,
        device=system.P.device,
        primal_size=system.n,
        form=lambda: _form(system, transposed),
    )


def refine(system: System, v: Tensor, transposed: bool = False, max_refinements: int = 3) -> tuple[Tensor, Tensor]:
    """``u`` with ``J u = v``, or ``J'u = v``, and its residual ``|J u - v| / |v|``, infinite if the factors are broken.

    Where J is singular, u is found if there is one, and else the residual says so.
    """
    solve, sound = (_factor if system.n + system.m <= _DENSE_SIZE else _factor_sparse)(system, transposed)
    size = torch.linalg.vector_norm(v, dim=1)
    u = solve(v)
    rest = v - system.multiply(u, transposed)
    for _ in range(max_refinements):
        u_next = u + solve(rest)
        rest_next = v - system.multiply(u_next, transposed)
        better = (rest_next.norm(dim=1) < rest.norm(dim=1)).unsqueeze(1)
        u, rest = torch.where(better, u_next, u), torch.where(better, rest_next, rest)
    return u, torch.where(sound, rest.norm(dim=1) / torch.where(size > 0, size, 1), torch.inf)


def _form(system: System, transposed: bool, d: float = 0.0) -> Tensor:
    """The matrix in full, with the regularization ``d``."""
    n, m = system.n, system.m
    P = dense(system.P, system.P_rows, system.P_columns, (n, n))
    A = dense(system.A, system.A_rows, system.A_columns, (m, n))
    D = dense(system.D, system.D_rows, system.D_columns, (m, m))
    P.diagonal(dim1=1, dim2=2).add_(d)
    coupling = D @ A - A
    D = D * (1 - d)
    D.diagonal(dim1=1, dim2=2).add_(d)
    if transposed:
        return torch.cat([torch.cat([P, A.mT], dim=2), torch.cat([coupling, D], dim=2)], dim=1)
    return torch.cat([torch.cat([P, coupling.mT], dim=2), torch.cat([A, D], dim=2)], dim=1)


_Factors = tuple[Callable[[Tensor], Tensor], Tensor]


def _factor(system: System, transposed: bool) -> _Factors:
    solver = LU()
    state = solver.init(DenseMatrix(_form(system, transposed, _REGULARIZATION), primal_size=system.n))
    return lambda v: solver.solve(state, v), solver.sound(state)


def _factor_sparse(system: System, transposed: bool) -> _Factors:
    """Of the equations in x, z and w, which have no products of matrices."""
    sparse, linalg = (importlib.import_module(name) for name in ("scipy.sparse", "scipy.sparse.linalg"))
    n, m, R = system.n, system.m, system.P.shape[0]
    P_rows, P_columns, A_rows, A_columns, D_rows, D_columns = (
        part[:1].reshape(-1).cpu().numpy() for part in system[3:9]
    )
    each, x = np.arange(m), np.arange(n)
    rows = [P_rows, x, A_columns, n + A_rows, n + each, n + D_rows, n + m + each, n + m + each, n + m + D_rows]
    columns = [P_columns, x, n + A_rows, A_columns, n + each, n + m + D_columns, n + each, n + m + each]
    where = np.concatenate(rows), np.concatenate([*columns, n + m + D_columns])
    P, A, D = (part.detach().cpu().numpy() for part in system[:3])
    near, ones = np.full(n, _REGULARIZATION), np.ones(m)

    def factor(i: int) -> Callable[..., np.ndarray] | None:
        entries = np.concatenate([P[i], near, A[i], A[i], -_REGULARIZATION * ones, D[i], ones, ones, -D[i]])
        matrix = sparse.coo_array((entries, where), shape=(n + 2 * m, n + 2 * m)).tocsc()
        try:
            return linalg.splu(matrix).solve
        except RuntimeError:  # exactly singular, which says that something overflowed
            return None

    factors = [factor(i) for i in range(R)]

    def solve(v: Tensor) -> Tensor:
        columns, nothing = v.detach().cpu().numpy(), np.full(n + m, np.nan)
        found = [nothing if f is None else solve_item(f, column) for f, column in zip(factors, columns, strict=True)]
        return torch.as_tensor(np.stack(found)).to(v) if found else torch.zeros_like(v)

    def solve_item(factors: Callable[..., np.ndarray], v: np.ndarray) -> np.ndarray:
        if transposed:
            return factors(np.concatenate([v[:n], np.zeros(m), v[n:]]), trans="T")[: n + m]
        u = factors(np.concatenate([v, np.zeros(m)]))
        return np.concatenate([u[:n], u[n + m :]])

    return solve, torch.tensor([f is not None for f in factors], dtype=torch.bool, device=system.P.device)
