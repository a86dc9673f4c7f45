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

__all__ = ["DenseMatrix", "DiagonalMatrix", "MatrixFree", "Operator", "check_operator", "check_order", "check_vectors"]

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

    def diagonal(self) -> Tensor:
        """The diagonal of ``K``, ``(B, s)``."""
        return self.dense().diagonal(dim1=1, dim2=2)

    @abc.abstractmethod
    def transpose(self) -> "Operator":
        """The operator of ``K^T``."""

    @abc.abstractmethod
    def select(self, items: Tensor) -> "Operator":
        """The operator of some items only; ``items`` holds their indices, ``(b,)``."""


class DenseMatrix(Operator):
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
        >>> DenseMatrix(torch.tensor([[[2.0, 1.0], [0.0, 3.0]]])).rmatvec(torch.ones(1, 2))
        tensor([[2., 4.]])
    """

    def __init__(self, matrix: Tensor, symmetric: bool = False, primal_size: int | None = None) -> None:
        check_tensor("DenseMatrix(matrix=...)", matrix, "(B, s, s)", 3)
        if matrix.shape[1] != matrix.shape[2] or matrix.shape[1] == 0:
            raise InvalidInputError(
                "`DenseMatrix(matrix=...)` must have square items, shaped (B, s, s) with s >= 1, got "
                f"{tuple(matrix.shape)}."
            )
        check_flag("DenseMatrix(symmetric=...)", symmetric)
        self.batch, self.size = matrix.shape[:2]
        if primal_size is not None:
            check_count("DenseMatrix(primal_size=...)", primal_size, most=self.size)
        self.matrix, self.symmetric, self._primal_size = matrix, symmetric, primal_size
        self.dtype, self.device = matrix.dtype, matrix.device

    @property
    def primal_size(self) -> int:
        return self.size if self._primal_size is None else self._primal_size

    def matvec(self, u: Tensor) -> Tensor:
        return multiply(self.matrix, check_vectors("DenseMatrix.matvec(u=...)", self, u))

    def rmatvec(self, u: Tensor) -> Tensor:
        return multiply(self.matrix.mT, check_vectors("DenseMatrix.rmatvec(u=...)", self, u))

    def dense(self) -> Tensor:
        return self.matrix

    def transpose(self) -> "DenseMatrix":
        return self if self.symmetric else DenseMatrix(self.matrix.mT, primal_size=self._primal_size)

    def select(self, items: Tensor) -> "DenseMatrix":
        return DenseMatrix(self.matrix[items], self.symmetric, self._primal_size)


class DiagonalMatrix(Operator):
    """Diagonal matrices.

    Args:
        d: The diagonals, ``(B, s)``.

    Raises:
        InvalidInputError: ``d`` is not a float32 or float64 tensor ``(B, s)`` with ``s >= 1``.

    Example:
        >>> DiagonalMatrix(torch.tensor([[2.0, 3.0]])).matvec(torch.ones(1, 2))
        tensor([[2., 3.]])
    """

    symmetric = True

    def __init__(self, d: Tensor) -> None:
        check_tensor("DiagonalMatrix(d=...)", d, "(B, s)", 2)
        if d.shape[1] == 0:
            raise InvalidInputError(f"`DiagonalMatrix(d=...)` must be shaped (B, s) with s >= 1, got {tuple(d.shape)}.")
        self.d = d
        self.batch, self.size = d.shape
        self.dtype, self.device = d.dtype, d.device

    def matvec(self, u: Tensor) -> Tensor:
        return self._multiply(check_vectors("DiagonalMatrix.matvec(u=...)", self, u))

    def rmatvec(self, u: Tensor) -> Tensor:
        return self._multiply(check_vectors("DiagonalMatrix.rmatvec(u=...)", self, u))

    def dense(self) -> Tensor:
        return torch.diag_embed(self.d)

    def diagonal(self) -> Tensor:
        return self.d

    def transpose(self) -> "DiagonalMatrix":
        return self

    def select(self, items: Tensor) -> "DiagonalMatrix":
        return DiagonalMatrix(self.d[items])

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
        form: Makes the matrices in full, ``(B, s, s)``, where that takes less than a product for each column.

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
        form: Callable[[], Tensor] | None = None,
    ) -> None:
        if not callable(matvec):
            raise InvalidInputError(f"`MatrixFree(matvec=...)` must be a function, got {type(matvec).__name__}.")
        for name, function in (("rmatvec", rmatvec), ("form", form)):
            if function is not None and not callable(function):
                raise InvalidInputError(
                    f"`MatrixFree({name}=...)` must be a function or None, got {type(function).__name__}."
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
        self._primal_size, self._accepts_columns, self._form = primal_size, accepts_columns, form
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
        if self._form is not None:
            return self._form()
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
        form = self._form
        return self._like(
            restricted(self._matvec), rmatvec, items.shape[0], None if form is None else lambda: form()[items]
        )

    def _like(
        self, matvec: Callable, rmatvec: Callable | None, batch: int, form: Callable[[], Tensor] | None = None
    ) -> "MatrixFree":
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
            form=form,
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


def check_operator(where: str, operator: object) -> None:
    """Raises unless ``operator`` is an :class:`Operator`; ``where`` opens the message, as ``call(argument=...)``."""
    if not isinstance(operator, Operator):
        raise InvalidInputError(
            f"`{where}` must be an Operator (DenseMatrix, DiagonalMatrix, MatrixFree, Saddle, ...), "
            f"got {type(operator).__name__}; wrap a tensor (B, s, s) in `DenseMatrix`."
        )


def check_vectors(where: str, operator: Operator, vectors: Tensor) -> Tensor:
    """``vectors``, after a check that they are ``(B, s)`` or ``(B, s, k)`` and of the operator's dtype and device."""
    shape = (operator.batch, operator.size)
    if not isinstance(vectors, Tensor) or vectors.ndim not in (2, 3) or vectors.shape[:2] != shape:
        raise InvalidInputError(
            f"`{where}` must be a tensor (B, s) or (B, s, k) with (B, s) = {shape}, got {describe(vectors)}."
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
        raise InvalidInputError(f"`{where}` must be a tensor {shape}, got {describe(tensor)}.")
    if tensor.dtype not in _DTYPES:
        raise InvalidInputError(f"`{where}` must be torch.float32 or torch.float64, got {tensor.dtype}.")


def check_order(where: str, order: object, size: int) -> None:
    """Raises unless ``order`` is None or looks like a permutation of so many variables."""
    if order is not None and not (
        isinstance(order, Tensor) and order.dtype == torch.int64 and tuple(order.shape) == (size,)
    ):
        raise InvalidInputError(
            f"`{where}` must be an int64 tensor ({size},), a permutation, or None, got {describe(order)}."
        )


def check_flag(where: str, value: object) -> None:
    """Raises unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise InvalidInputError(f"`{where}` must be True or False, got {value!r}.")


def describe(value: object) -> str:
    """``value`` in a message."""
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return f"{value!r}" if value is None or isinstance(value, int | float | str) else type(value).__name__


def multiply(matrix: Tensor, vectors: Tensor) -> Tensor:
    """``matrix @ vectors`` for ``vectors`` shaped ``(B, s)`` or ``(B, s, k)``."""
    if vectors.ndim == 2:
        # A row times the transposed matrix: the batched product of torch does that up to twelve times faster.
        return torch.bmm(vectors.unsqueeze(1), matrix.mT).squeeze(1)
    if vectors.shape[2] == 1:
        return multiply(matrix, vectors.squeeze(2)).unsqueeze(2)
    return matrix @ vectors
