"""The true K of a backward pass, known by its products."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchddn.linear import MatrixFree, SparseRows

__all__ = ["Product", "System", "generic"]

Product = Callable[[Tensor], Tensor]

# Numbers in flight of products that are taken together; small problems pay the fixed cost of one pass only. Fewer than
# for other derivatives: a backward pass holds the graph of its inputs meanwhile.
_BUDGET = 2**16

# In rounding units of a whole row: an entry that is none.
_NOTHING = 1e-3


class System:
    """K with its masks, and the one without, in which nothing is at a bound and every row counts.

    Args:
        product: ``K u``, ``(B, s)`` to the same; ``torch.func.vmap`` maps it.
        rproduct: ``K' u``, unless K is symmetric.
        unmasked: Makes the product without masks; None where there are none.
        like: A plain tensor shaped as ``u``.
        m: Number of variables; the other unknowns are rows.
        active: Which rows count, boolean ``(B, r)``; None for all.
        free: Which variables are at no bound, boolean ``(B, m)``; None for all.
        symmetric: Whether ``K = K'``.
        work: How many numbers a product touches.
        witness: ``K u`` for the certificate, where its caller makes more of it than of a product.
    """

    def __init__(
        self,
        product: Product,
        rproduct: Product | None,
        unmasked: Callable[[], Product] | None,
        like: Tensor,
        m: int,
        active: Tensor | None,
        free: Tensor | None,
        symmetric: bool,
        work: int,
        witness: Product | None = None,
    ) -> None:
        self.like, self.m, self.symmetric = like, m, symmetric
        self.batch, self.size = like.shape
        self.num_rows = self.size - m
        self.active = active if self.num_rows else None
        self.free = free
        self.work = max(work, like.numel(), 1)
        self._product, self._rproduct, self._unmasked = product, rproduct, unmasked
        self._witness = product if witness is None else witness

    @property
    def is_masked(self) -> bool:
        """Whether a variable may be at a bound, or a row not count."""
        return self.free is not None or self.active is not None

    def multiply(self, columns: Tensor) -> Tensor:
        """``K z`` for each row ``z`` of ``columns``, ``(k, s)``, the same for all items: ``(k, B, s)``."""
        return self._map(self._product, self._for_all(columns))

    def multiply_H(self, columns: Tensor) -> Tensor:
        """``H z`` for each row ``z`` of ``columns``, ``(k, m)``, without masks: ``(k, B, m)``."""
        return self._map(self._unmasked_product, self._for_all(pad(columns, (0, self.num_rows))))[:, :, : self.m]

    def multiply_rows(self, columns: Tensor) -> Tensor:
        """``A' w`` for each row ``w`` of ``columns``, ``(k, r)``, without masks: ``(k, B, m)``."""
        return self._map(self._unmasked_product, self._for_all(pad(columns, (self.m, 0))))[:, :, : self.m]

    @functools.cached_property
    def truth(self) -> MatrixFree:
        """K as an operator of products."""
        return self._matrix_free(self._product)

    @functools.cached_property
    def witness(self) -> MatrixFree:
        """The same for the certificate."""
        return self._matrix_free(self._witness)

    def _matrix_free(self, product: Product) -> MatrixFree:
        rproduct = self._rproduct

        def multiply(u: Tensor) -> Tensor:
            return product(u) if u.ndim == 2 else self._multiply_vectors(self._product, u)

        return MatrixFree(
            multiply,
            None if rproduct is None else functools.partial(self._multiply_vectors, rproduct),
            batch=self.batch,
            size=self.size,
            dtype=self.like.dtype,
            device=self.like.device,
            symmetric=self.symmetric,
            primal_size=self.m,
            accepts_columns=True,
            form=self.dense,
        )

    def first_columns(self) -> Tensor:
        """The columns of K that belong to variables, ``(B, s, m)``, the rows in them :meth:`without_noise`."""
        columns = torch.eye(self.m, self.size, dtype=self.like.dtype, device=self.like.device)
        columns = self.multiply(columns).movedim(0, -1)
        if self.free is None or not self.num_rows:
            return columns
        A = self.without_noise(columns[:, self.m :])
        assert isinstance(A, Tensor)
        return torch.cat([columns[:, : self.m], A], dim=1)

    def without_noise(self, A: Tensor | SparseRows) -> Tensor | SparseRows:
        """The rows without entries that are rounding beside those of variables at a bound, which are masked.

        A row that vanishes in all other variables would divide by them, and is dependent without them.
        """
        if self.free is None:
            return A
        z = pad(generic(self.m, self.like), (0, self.num_rows)).expand(self.batch, -1)
        least = _NOTHING * torch.finfo(z.dtype).eps * self._unmasked_product(z)[:, self.m :].abs()
        if isinstance(A, Tensor):
            return torch.where(A.abs() <= least.unsqueeze(2), 0.0, A)
        values = torch.where(A.values.abs() <= pad(least, (0, 1))[:, A.index], 0.0, A.values)
        return SparseRows(values, A.index, self.num_rows)

    def dense(self) -> Tensor:
        """K in full, ``(B, s, s)``, by m products: where it has rows, it is symmetric, and the rest is known."""
        first, m = self.first_columns(), self.m
        if not self.num_rows:
            return first
        matrix = first.new_zeros(self.batch, self.size, self.size)
        matrix[:, :, :m], matrix[:, :m, m:] = first, first[:, m:].mT
        if self.active is not None:
            matrix.diagonal(dim1=1, dim2=2)[:, m:] = -(~self.active).to(matrix.dtype)
        return matrix

    @functools.cached_property
    def _unmasked_product(self) -> Product:
        return self._product if self._unmasked is None else self._unmasked()

    def _for_all(self, columns: Tensor) -> Tensor:
        return columns.unsqueeze(1).expand(-1, self.batch, -1)

    def _multiply_vectors(self, product: Product, u: Tensor) -> Tensor:
        """For ``u`` as ``(B, s)`` or ``(B, s, k)``."""
        if u.ndim == 2:
            return product(u)
        return self._map(product, u.movedim(2, 0)).movedim(0, 2)

    def _map(self, product: Product, vectors: Tensor) -> Tensor:
        """The product of each ``(B, s)`` in ``vectors``, ``(k, B, s)``; some at a time, for memory."""
        parts = vectors.split(max(1, _BUDGET // self.work))
        # `vmap` has its price, and one vector does not need it.
        products = [product(p[0])[None] if len(p) == 1 else torch.func.vmap(product)(p) for p in parts]
        return products[0] if len(products) == 1 else torch.cat(products)


def generic(size: int, like: Tensor) -> Tensor:
    """A vector ``(size,)`` without zeros or symmetries, the same on every call."""
    place = torch.arange(1, size + 1, dtype=like.dtype, device=like.device)
    # Multiples of the golden ratio and of the root of two are spread evenly and never in step.
    golden, root = (place * 0.6180339887498949).frac(), (place * 0.41421356237309515).frac()
    return (0.5 + root) * torch.where(golden > 0.5, 1, -1)
