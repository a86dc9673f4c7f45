r"""Batches of square matrices, known by what they can do rather than by how they are stored.

An operator stands for ``K``, one matrix of size ``s`` for each of ``B`` items, ``(B, s, s)``. Vectors are
``(B, s)``; every product also takes several right-hand sides as the columns of ``(B, s, k)``. Tensors here carry
no gradient: derivatives are the adjoint's business, which calls this package inside an opaque function.
"""

import abc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError

__all__ = ["Dense", "Diagonal", "MatrixFree", "Operator", "Saddle", "check_operator", "check_vectors"]

_DTYPES = (torch.float32, torch.float64)  # LAPACK has no half precision: the adjoint converts before it comes here

# How many columns of the identity a matrix-free product is shown at once: enough to amortize a call, and little
# memory beside the (B, s, s) result.
_CHUNK = 64


class Operator(abc.ABC):
    """The interface: a batch of square matrices ``K``, ``(B, s, s)``.

    Attributes:
        batch: Number of items, ``B``.
        size: Number of rows of one matrix, ``s``.
        dtype: ``torch.float32`` or ``torch.float64``.
        device: Where the numbers are.
        symmetric: Whether ``K = K^T`` for every item. Trusted.
        primal_size: Length of the leading block that is the decision ``y``; the rest are multipliers, whose
            non-uniqueness harms nobody. Equal to ``size`` except for a saddle.
    """

    batch: int
    size: int
    dtype: torch.dtype
    device: torch.device
    symmetric: bool

    @property
    def primal_size(self) -> int:
        return self.size

    @abc.abstractmethod
    def matvec(self, u: Tensor) -> Tensor:
        """``K u``, shaped as ``u``: ``(B, s)`` or ``(B, s, k)``."""

    @abc.abstractmethod
    def rmatvec(self, u: Tensor) -> Tensor:
        """``K^T u``, shaped as ``u``: ``(B, s)`` or ``(B, s, k)``."""

    @abc.abstractmethod
    def dense(self) -> Tensor:
        """``K`` as a tensor ``(B, s, s)``, to be read and not written: it may be the operator's own."""

    @abc.abstractmethod
    def transpose(self) -> "Operator":
        """The operator of ``K^T``."""

    @abc.abstractmethod
    def select(self, items: Tensor) -> "Operator":
        """The operator of some items only; ``items`` holds their indices, ``(b,)``."""


class Dense(Operator):
    """Matrices that are stored in full.

    Args:
        matrix: ``(B, s, s)``.
        symmetric: Promise that each matrix equals its transpose. Trusted: a broken promise costs time in
            :func:`solve_certified`, never correctness.
        primal_size: Length of the block of decisions, ``s`` unless given.

    Raises:
        InvalidInputError: ``matrix`` is not a float32 or float64 tensor ``(B, s, s)`` with ``s >= 1``, or
            ``primal_size`` not from 1 to ``s``.

    Example:
        >>> Dense(torch.tensor([[[2.0, 1.0], [0.0, 3.0]]])).rmatvec(torch.ones(1, 2))
        tensor([[2., 4.]])
    """

    def __init__(self, matrix: Tensor, symmetric: bool = False, primal_size: int | None = None) -> None:
        check_tensor("Dense(matrix=...)", matrix, "(B, s, s)", 3)
        if matrix.shape[1] != matrix.shape[2] or matrix.shape[1] == 0:
            raise InvalidInputError(
                f"`Dense(matrix=...)` must have square items, shaped (B, s, s) with s >= 1, got {tuple(matrix.shape)}."
            )
        check_flag("Dense(symmetric=...)", symmetric)
        self.batch, self.size = matrix.shape[:2]
        if primal_size is not None:
            check_count("Dense(primal_size=...)", primal_size, most=self.size)
        self.matrix, self.symmetric, self._primal_size = matrix, symmetric, primal_size
        self.dtype, self.device = matrix.dtype, matrix.device

    @property
    def primal_size(self) -> int:
        return self.size if self._primal_size is None else self._primal_size

    def matvec(self, u: Tensor) -> Tensor:
        return _multiply(self.matrix, check_vectors("Dense.matvec(u=...)", self, u))

    def rmatvec(self, u: Tensor) -> Tensor:
        return _multiply(self.matrix.mT, check_vectors("Dense.rmatvec(u=...)", self, u))

    def dense(self) -> Tensor:
        return self.matrix

    def transpose(self) -> "Dense":
        return self if self.symmetric else Dense(self.matrix.mT, primal_size=self._primal_size)

    def select(self, items: Tensor) -> "Dense":
        return Dense(self.matrix[items], self.symmetric, self._primal_size)


class Diagonal(Operator):
    """Diagonal matrices.

    Args:
        d: The diagonals, ``(B, s)``.

    Raises:
        InvalidInputError: ``d`` is not a float32 or float64 tensor ``(B, s)`` with ``s >= 1``.

    Example:
        >>> Diagonal(torch.tensor([[2.0, 3.0]])).matvec(torch.ones(1, 2))
        tensor([[2., 3.]])
    """

    symmetric = True

    def __init__(self, d: Tensor) -> None:
        check_tensor("Diagonal(d=...)", d, "(B, s)", 2)
        if d.shape[1] == 0:
            raise InvalidInputError(f"`Diagonal(d=...)` must be shaped (B, s) with s >= 1, got {tuple(d.shape)}.")
        self.d = d
        self.batch, self.size = d.shape
        self.dtype, self.device = d.dtype, d.device

    def matvec(self, u: Tensor) -> Tensor:
        return self._multiply(check_vectors("Diagonal.matvec(u=...)", self, u))

    def rmatvec(self, u: Tensor) -> Tensor:
        return self._multiply(check_vectors("Diagonal.rmatvec(u=...)", self, u))

    def dense(self) -> Tensor:
        return torch.diag_embed(self.d)

    def transpose(self) -> "Diagonal":
        return self

    def select(self, items: Tensor) -> "Diagonal":
        return Diagonal(self.d[items])

    def _multiply(self, u: Tensor) -> Tensor:
        return (self.d if u.ndim == 2 else self.d.unsqueeze(-1)) * u


class MatrixFree(Operator):
    """Matrices that are known only by their products with vectors.

    Args:
        matvec: Maps ``(B, s)`` to ``K u``, ``(B, s)``.
        rmatvec: The same for ``K^T u``; not needed where ``symmetric``. Without it everything that
            uses the transpose raises.
        batch: ``B``.
        size: ``s``.
        dtype: Of the vectors.
        device: Of the vectors.
        symmetric: Promise that ``K = K^T``. Trusted.
        primal_size: Length of the block of decisions, ``size`` unless given.
        accepts_columns: Whether the two functions also take ``(B, s, k)``; they are called once per column
            otherwise.

    Raises:
        InvalidInputError: A function is not callable, a size is not a positive integer, or, when called, a
            product has another shape than its vector.

    Example:
        >>> twice = MatrixFree(lambda u: 2 * u, batch=1, size=2, symmetric=True)
        >>> twice.dense()
        tensor([[[2., 0.],
                 [0., 2.]]])
    """

    def __init__(
        self,
        matvec: Callable[[Tensor], Tensor],
        rmatvec: Callable[[Tensor], Tensor] | None = None,
        *,
        batch: int,
        size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        symmetric: bool = False,
        primal_size: int | None = None,
        accepts_columns: bool = False,
    ) -> None:
        if not callable(matvec):
            raise InvalidInputError(f"`MatrixFree(matvec=...)` must be a function, got {type(matvec).__name__}.")
        if rmatvec is not None and not callable(rmatvec):
            raise InvalidInputError(
                f"`MatrixFree(rmatvec=...)` must be a function or None, got {type(rmatvec).__name__}."
            )
        check_count("MatrixFree(batch=...)", batch, least=0)
        check_count("MatrixFree(size=...)", size)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in _DTYPES:
            raise InvalidInputError(f"`MatrixFree(dtype=...)` must be torch.float32 or torch.float64, got {dtype}.")
        check_flag("MatrixFree(symmetric=...)", symmetric)
        check_flag("MatrixFree(accepts_columns=...)", accepts_columns)
        if primal_size is not None:
            check_count("MatrixFree(primal_size=...)", primal_size, most=size)
        self._matvec, self._rmatvec = matvec, matvec if symmetric and rmatvec is None else rmatvec
        self._primal_size, self._accepts_columns = primal_size, accepts_columns
        self.batch, self.size, self.symmetric = batch, size, symmetric
        # Asking a tensor turns "cuda" into "cuda:0", which is what the vectors will say.
        self.dtype, self.device = dtype, torch.empty(0, device="cpu" if device is None else device).device

    @property
    def primal_size(self) -> int:
        return self.size if self._primal_size is None else self._primal_size

    def matvec(self, u: Tensor) -> Tensor:
        check_vectors("MatrixFree.matvec(u=...)", self, u)
        return self._apply(self._matvec, u, "matvec")

    def rmatvec(self, u: Tensor) -> Tensor:
        check_vectors("MatrixFree.rmatvec(u=...)", self, u)
        if self._rmatvec is None:
            raise InvalidInputError(
                "`MatrixFree.rmatvec` needs the product with the transpose: give `MatrixFree(rmatvec=...)`, or "
                "`symmetric=True` if the matrix equals its transpose."
            )
        return self._apply(self._rmatvec, u, "rmatvec")

    def dense(self) -> Tensor:
        matrix = torch.empty(self.batch, self.size, self.size, dtype=self.dtype, device=self.device)
        for start in range(0, self.size, _CHUNK):
            stop = min(start + _CHUNK, self.size)
            columns = torch.zeros(self.size, stop - start, dtype=self.dtype, device=self.device)
            columns.diagonal(-start).fill_(1)
            columns = columns.expand(self.batch, self.size, stop - start)
            matrix[:, :, start:stop] = self._apply(self._matvec, columns, "matvec")
        return matrix

    def transpose(self) -> "MatrixFree":
        if self.symmetric:
            return self
        if self._rmatvec is None:
            raise InvalidInputError("`MatrixFree.transpose` needs `MatrixFree(rmatvec=...)`.")
        return self._like(self._rmatvec, self._matvec, self.batch)

    def select(self, items: Tensor) -> "MatrixFree":
        # The function knows the whole batch only, so the others are given zeros and ignored.
        def restricted(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            def product(u: Tensor) -> Tensor:
                padded = u.new_zeros(self.batch, *u.shape[1:])
                padded[items] = u
                return function(padded)[items]

            return product

        rmatvec = None if self._rmatvec is None else restricted(self._rmatvec)
        return self._like(restricted(self._matvec), rmatvec, items.shape[0])

    def _like(self, matvec: Callable, rmatvec: Callable | None, batch: int) -> "MatrixFree":
        return MatrixFree(
            matvec,
            rmatvec,
            batch=batch,
            size=self.size,
            dtype=self.dtype,
            device=self.device,
            symmetric=self.symmetric,
            primal_size=self._primal_size,
            accepts_columns=self._accepts_columns,
        )

    def _apply(self, function: Callable[[Tensor], Tensor], u: Tensor, name: str) -> Tensor:
        if u.ndim == 2 or self._accepts_columns:
            product = function(u)
        elif u.shape[-1] == 0:
            return torch.zeros_like(u)
        else:
            product = torch.stack([function(column) for column in u.unbind(-1)], dim=-1)
        if product.shape != u.shape:
            raise InvalidInputError(
                f"`MatrixFree({name}=...)` must return the shape it is given, got {tuple(product.shape)} "
                f"for {tuple(u.shape)}."
            )
        return product


class Saddle(Operator):
    r"""The matrices of equality-constrained quadratic problems.

    ::

        K = [ H  A^T ]      with rows of A that do not count (``active`` false) replaced by  -mu_i = v_i
        [ A   0  ]

    so that batch mates with different active sets share one shape, and no dropped row makes K singular.

    Args:
        H: An :class:`Operator` or symmetric matrices, ``(B, m, m)``.
        A: Constraint rows, ``(B, p, m)``; ``p = 0`` is allowed.
        active: Which rows count, boolean ``(B, p)``; all unless given. The product keeps no other row of ``A``.

    Raises:
        InvalidInputError: Shapes, dtypes or devices do not match.

    Example:
        >>> K = Saddle(torch.eye(2)[None], torch.tensor([[[1.0, 1.0]]]))
        >>> K.dense()
        tensor([[[1., 0., 1.],
                 [0., 1., 1.],
                 [1., 1., 0.]]])
        >>> K.primal_size
        2
    """

    def __init__(self, H: Operator | Tensor, A: Tensor, active: Tensor | None = None) -> None:
        if isinstance(H, Tensor):
            check_tensor("Saddle(H=...)", H, "(B, m, m)", 3)
            H = Dense(H, symmetric=True)
        check_operator("Saddle(H=...)", H)
        check_tensor("Saddle(A=...)", A, "(B, p, m)", 3)
        if A.shape[0] != H.batch or A.shape[2] != H.size:
            raise InvalidInputError(
                f"`Saddle(A=...)` must be shaped (B, p, m) = ({H.batch}, p, {H.size}) to match H, got {tuple(A.shape)}."
            )
        if A.dtype != H.dtype or A.device != H.device:
            raise InvalidInputError(
                f"`Saddle(A=...)` must have the dtype and device of H, {H.dtype} on {H.device}, "
                f"got {A.dtype} on {A.device}."
            )
        if active is not None:
            if not isinstance(active, Tensor) or active.dtype != torch.bool or active.shape != A.shape[:2]:
                raise InvalidInputError(
                    f"`Saddle(active=...)` must be a boolean tensor (B, p) = {tuple(A.shape[:2])}, "
                    f"got {_describe(active)}."
                )
            A = A.masked_fill(~active.unsqueeze(-1), 0)
        self.H, self.A, self.active = H, A, active
        self.batch, self.size = H.batch, H.size + A.shape[1]
        self.dtype, self.device, self.symmetric = H.dtype, H.device, H.symmetric

    @property
    def primal_size(self) -> int:
        return self.H.size

    def matvec(self, u: Tensor) -> Tensor:
        check_vectors("Saddle.matvec(u=...)", self, u)
        return self._product(self.H.matvec, u)

    def rmatvec(self, u: Tensor) -> Tensor:
        check_vectors("Saddle.rmatvec(u=...)", self, u)
        return self._product(self.H.rmatvec, u)

    def dense(self) -> Tensor:
        m = self.primal_size
        matrix = torch.zeros(self.batch, self.size, self.size, dtype=self.dtype, device=self.device)
        matrix[:, :m, :m] = self.H.dense()
        matrix[:, m:, :m] = self.A
        matrix[:, :m, m:] = self.A.mT
        if self.active is not None:
            matrix.diagonal(dim1=1, dim2=2)[:, m:] = -(~self.active).to(self.dtype)
        return matrix

    def transpose(self) -> "Saddle":
        return self if self.symmetric else Saddle(self.H.transpose(), self.A, self.active)

    def select(self, items: Tensor) -> "Saddle":
        active = None if self.active is None else self.active[items]
        return Saddle(self.H.select(items), self.A[items], active)

    def _product(self, multiply_H: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
        m = self.primal_size
        y, mu = u[:, :m], u[:, m:]
        upper = multiply_H(y) + _multiply(self.A.mT, mu)
        lower = _multiply(self.A, y)
        if self.active is not None:
            dropped = ~self.active if u.ndim == 2 else ~self.active.unsqueeze(-1)
            lower = lower - mu * dropped
        return torch.cat([upper, lower], dim=1)


def check_operator(where: str, operator: object) -> None:
    """Raises unless ``operator`` is an :class:`Operator`; ``where`` opens the message, as ``call(argument=...)``."""
    if not isinstance(operator, Operator):
        raise InvalidInputError(
            f"`{where}` must be an Operator (Dense, Diagonal, MatrixFree, Saddle), got {type(operator).__name__}; "
            f"wrap a tensor (B, s, s) in `Dense`."
        )


def check_vectors(where: str, operator: Operator, vectors: Tensor) -> Tensor:
    """``vectors``, after a check that they are ``(B, s)`` or ``(B, s, k)`` and of the operator's dtype and device."""
    shape = (operator.batch, operator.size)
    if not isinstance(vectors, Tensor) or vectors.ndim not in (2, 3) or vectors.shape[:2] != shape:
        raise InvalidInputError(
            f"`{where}` must be a tensor (B, s) or (B, s, k) with (B, s) = {shape}, got {_describe(vectors)}."
        )
    if vectors.dtype != operator.dtype or vectors.device != operator.device:
        raise InvalidInputError(
            f"`{where}` must have the operator's dtype and device, {operator.dtype} on {operator.device}, "
            f"got {vectors.dtype} on {vectors.device}."
        )
    return vectors


def check_count(where: str, value: object, least: int = 1, most: int | None = None) -> None:
    """Raises unless ``value`` is an integer in the range."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        limit = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InvalidInputError(f"`{where}` must be an integer {limit}, got {value!r}.")


def check_number(where: str, value: object, below: float = float("inf")) -> None:
    """Raises unless ``value`` is a number in [0, below)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < below:
        raise InvalidInputError(f"`{where}` must be a number in [0, {below:g}), got {value!r}.")


def check_choice(where: str, value: object, choices: Sequence[str]) -> None:
    """Raises unless ``value`` is one of the words."""
    if not isinstance(value, str) or value not in choices:
        raise InvalidInputError(f"`{where}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_tensor(where: str, tensor: object, shape: str, ndim: int) -> None:
    """Raises unless ``tensor`` has so many axes and a dtype that LAPACK knows."""
    if not isinstance(tensor, Tensor) or tensor.ndim != ndim:
        raise InvalidInputError(f"`{where}` must be a tensor {shape}, got {_describe(tensor)}.")
    if tensor.dtype not in _DTYPES:
        raise InvalidInputError(f"`{where}` must be torch.float32 or torch.float64, got {tensor.dtype}.")


def check_flag(where: str, value: object) -> None:
    """Raises unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise InvalidInputError(f"`{where}` must be True or False, got {value!r}.")


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return f"{value!r}" if value is None or isinstance(value, int | float | str) else type(value).__name__


def _multiply(matrix: Tensor, vectors: Tensor) -> Tensor:
    """``matrix @ vectors`` for ``vectors`` shaped ``(B, s)`` or ``(B, s, k)``."""
    if vectors.ndim == 2:
        return (matrix @ vectors.unsqueeze(-1)).squeeze(-1)
    return matrix @ vectors
