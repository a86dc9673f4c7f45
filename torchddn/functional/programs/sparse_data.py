r"""Quadratic programs whose matrices are sparse: numbers, and where in the matrix each of them is.

The places are the same for all items; so the numbers are a batch of vectors, and everything that is differentiated is
made of gathering and adding them. Memory is that of the numbers.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import wide

__all__ = ["Entries", "SparseData", "entries", "multiply", "multiply_symmetric"]

_LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


class Entries(NamedTuple):
    """The numbers of a matrix, ``(k,)``, and the row and column of each."""

    values: Tensor
    rows: Tensor
    columns: Tensor


class SparseData(NamedTuple):
    """Flat batches, ``(R, ...)``, differentiable in what they came from; then the places of the numbers."""

    Q: Tensor  # (R, k)
    q: Tensor
    rows: Tensor  # (R, l): of equalities, then inequalities
    right: Tensor  # (R, p + q)
    lower: Tensor
    upper: Tensor
    Q_rows: Tensor
    Q_columns: Tensor
    rows_rows: Tensor
    rows_columns: Tensor

    @property
    def numbers(self) -> tuple[Tensor, ...]:
        """What is differentiable."""
        return self[:6]

    @property
    def places(self) -> tuple[Tensor, ...]:
        """What says where in the matrices the numbers are."""
        return self[6:]

    def replaced(self, numbers: Iterable[Tensor]) -> "SparseData":
        """The same places with other numbers."""
        return SparseData(*numbers, *self.places)

    def selected(self, items: Tensor) -> "SparseData":
        """Some items only; ``items`` holds their indices."""
        return SparseData(*(part[items] for part in self))

    def curve(self, y: Tensor) -> Tensor:
        """``Q y``, with the symmetric part of Q."""
        return multiply_symmetric(self.Q, self.Q_rows, self.Q_columns, y)

    def apply(self, y: Tensor) -> Tensor:
        """What the rows are at ``y``."""
        return multiply(self.rows, self.rows_rows, self.rows_columns, y, self.right.shape[1])

    def pull(self, dual: Tensor) -> Tensor:
        """The rows, transposed, times their multipliers."""
        return multiply(self.rows, self.rows_columns, self.rows_rows, dual, self.q.shape[1])

    def softened(self) -> "SparseData":
        """The programs of the violations t, in ``(y, t)``: min |t|^2 / 2 with rows y - t (=, <=) right."""
        (R, m), r = self.q.shape, self.right.shape[1]
        one, last = self.right.new_ones(R, r), torch.arange(r, device=self.q.device).expand(R, r)
        return SparseData(
            one,
            self.q.new_zeros(R, m + r),
            torch.cat([self.rows, -one], dim=1),
            self.right,
            torch.nn.functional.pad(self.lower, (0, r), value=-torch.inf),
            torch.nn.functional.pad(self.upper, (0, r), value=torch.inf),
            m + last,
            m + last,
            torch.cat([self.rows_rows, last], dim=1),
            torch.cat([self.rows_columns, m + last], dim=1),
        )


def multiply(values: Tensor, rows: Tensor, columns: Tensor, x: Tensor, num_rows: int) -> Tensor:
    """The matrices with these entries times ``x``, ``(R, num_rows)``."""
    return x.new_zeros(x.shape[0], num_rows).scatter_add(1, rows, values * x.gather(1, columns))


def multiply_symmetric(values: Tensor, rows: Tensor, columns: Tensor, x: Tensor) -> Tensor:
    """The symmetric parts of the matrices times ``x``, ``(R, m)``."""
    m = x.shape[1]
    return 0.5 * (multiply(values, rows, columns, x, m) + multiply(values, columns, rows, x, m))


def entries(call: str, name: str, matrix: Tensor) -> Entries:
    """The entries of a matrix, ``(r, m)``, sparse or dense, differentiable."""
    if matrix.dim() != 2:
        raise InvalidInputError(
            f"`{call}({name}=...)` must have no batch axes where a matrix is sparse, since its places are those of all "
            f"items, got shape {tuple(matrix.shape)}. Vectors may have them."
        )
    if matrix.layout == torch.strided:
        rows, columns = torch.ones(matrix.shape, device=matrix.device).nonzero().unbind(1)
        return Entries(wide(matrix).reshape(-1), rows, columns)
    if matrix.layout not in _LAYOUTS:
        raise InvalidInputError(
            f"`{call}({name}=...)` must be dense or have the layout of one of torch.sparse_coo, torch.sparse_csr, "
            f"torch.sparse_csc, got {matrix.layout}. Convert it with `.to_sparse_csr()`."
        )
    if matrix.layout == torch.sparse_coo and not matrix.is_coalesced():
        matrix = matrix.coalesce()
    rows, columns = _places(matrix.detach())
    values = _Values.apply(matrix, f"{call}({name}=...)") if matrix.requires_grad else matrix.values()
    assert isinstance(values, Tensor)
    return Entries(wide(values), rows, columns)


def _places(matrix: Tensor) -> tuple[Tensor, Tensor]:
    if matrix.layout == torch.sparse_coo:
        rows, columns = matrix.indices()
        return rows, columns
    by_row = matrix.layout == torch.sparse_csr
    ends, others = (
        (matrix.crow_indices(), matrix.col_indices()) if by_row else (matrix.ccol_indices(), matrix.row_indices())
    )
    ends, others = ends.long(), others.long()
    first = torch.arange(len(ends) - 1, device=ends.device).repeat_interleave(ends.diff())
    return (first, others) if by_row else (others, first)


class _Values(torch.autograd.Function):
    """The numbers of a sparse matrix; their gradient is a matrix with the same places.

    What torch has for this loses second derivatives without a word.
    """

    @staticmethod
    def forward(matrix: Tensor, name: str) -> Tensor:
        return matrix.values().clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        matrix, ctx.name = inputs
        ctx.matrix = matrix.detach()

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        if v.requires_grad:
            raise InvalidInputError(
                f"`{ctx.name}` is sparse, and torch cannot differentiate the gradient of a sparse matrix again. Pass "
                f"it with `.to_dense()`, or leave out `create_graph=True`."
            )
        matrix = ctx.matrix
        if matrix.layout == torch.sparse_csr:
            ends, others = matrix.crow_indices(), matrix.col_indices()
            return torch.sparse_csr_tensor(ends, others, v, matrix.shape, check_invariants=False), None
        # Torch cannot add up gradients by columns (2.13), and takes coordinates for them.
        places = torch.stack(_places(matrix))
        by_row = matrix.layout == torch.sparse_coo
        gradient = torch.sparse_coo_tensor(places, v, matrix.shape, check_invariants=False, is_coalesced=by_row)
        return gradient.coalesce(), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], matrix: Tensor, name: str) -> Any:
        return _Values.apply(matrix, name), None
