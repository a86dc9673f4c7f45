"""The door of nodes that take matrices and right-hand sides: one vector, or columns, for each matrix of a batch."""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_floating, wide

__all__ = ["Sides", "broadcast"]


class Sides(NamedTuple):
    """Matrices, ``(R, p, q)``, and right-hand sides, ``(R, n, k)``, in the dtype to compute in; how they came."""

    matrix: Tensor
    b: Tensor
    batch: torch.Size
    is_vector: bool
    dtype: torch.dtype

    def restore(self, y: Tensor) -> Tensor:
        """``y``, ``(R, m, k)``, shaped and typed as the user passed ``b``."""
        y = y.reshape(*self.batch, *y.shape[1:]).to(self.dtype)
        return y.squeeze(-1) if self.is_vector else y


def broadcast(call: str, name: str, matrix: Tensor, b: object, shape: str, rows: int, *, b_name: str = "b") -> Sides:
    """The two with one flat batch axis. ``b`` has an axis less than ``matrix``, or as many and then columns.

    Args:
        call: Name that opens messages.
        name: The argument that ``matrix`` came as, likewise.
        matrix: Checked, ``(*B, p, q)``.
        b: ``(*B, n)`` or ``(*B, n, k)``; checked here.
        shape: Of the matrix, for messages.
        rows: ``n``.
        b_name: The argument that ``b`` came as.
    """
    check_floating(call, b_name, b, "(*B, n) or (*B, n, k)", 1)
    assert isinstance(b, Tensor)
    for attribute in ("dtype", "device"):
        theirs, ours = getattr(matrix, attribute), getattr(b, attribute)
        if theirs != ours:
            raise InvalidInputError(
                f"`{call}({b_name}=...)` must have the {attribute} of {name}, {theirs}, got {ours}. Use `.to`."
            )
    is_vector = b.dim() == matrix.dim() - 1
    columns = b.unsqueeze(-1) if is_vector else b
    expected = f"(*B, {rows}) or (*B, {rows}, k) beside {name} of shape {shape} = {tuple(matrix.shape)}"
    if columns.dim() != matrix.dim() or columns.shape[-2] != rows:
        raise InvalidInputError(f"`{call}({b_name}=...)` must have shape {expected}, got {tuple(b.shape)}.")
    try:
        batch = torch.broadcast_shapes(matrix.shape[:-2], columns.shape[:-2])
    except RuntimeError:
        raise InvalidInputError(
            f"`{call}({b_name}=...)` must have batch axes that broadcast: shape {expected}, got {tuple(b.shape)}."
        ) from None
    flat = [wide(x).expand(*batch, *x.shape[-2:]).reshape(batch.numel(), *x.shape[-2:]) for x in (matrix, columns)]
    return Sides(flat[0], flat[1], batch, is_vector, b.dtype)
