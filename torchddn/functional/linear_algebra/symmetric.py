r"""A symmetric system as a node: ``M u = v``, differentiable in both as often as one likes.

Its derivative is the same system with another right-hand side, so this function differentiates itself. Every solve is
certified (:func:`torchddn.linear.solve_certified`); where ``M`` is singular the solution is that of minimum norm.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from torchddn.functional.nodes.degeneracy import warn_undetermined
from torchddn.functional.nodes.handmade import Answer, solve
from torchddn.linear import LU, Cholesky, DenseMatrix, solve_certified

__all__ = ["solve_symmetric"]


def solve_symmetric(
    call: str, M: Tensor, v: Tensor, reason: str, remedy: str, primal_size: int | None = None
) -> Tensor:
    """``u``, ``(R, m, k)``, for ``M``, ``(R, m, m)``, of which the symmetric part counts, and ``v``, ``(R, m, k)``.

    Args:
        call: Who asks, for the warning of items that have many solutions.
        M: Positive semidefinite, unless there are multipliers among the unknowns.
        v: Right-hand sides.
        reason: Why an item may have many, for that warning.
        remedy: What singles one out.
        primal_size: How many of the unknowns come before the multipliers, which may be many without harm; all if None.
    """
    return solve(SymmetricSolve(call, reason, remedy, primal_size), M, v)[0]


@dataclasses.dataclass(frozen=True)
class SymmetricSolve:
    """The formula of ``u``, ``(R, m, k)``, from ``M`` and ``v``.

    Attributes:
        call: Who asks, for warnings.
        reason: As of :func:`torchddn.functional.nodes.degeneracy.warn_undetermined`.
        remedy: Likewise.
        primal_size: As of :func:`solve_symmetric`.
    """

    call: str
    reason: str
    remedy: str
    primal_size: int | None

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``u``."""
        M, v = inputs
        if not v.numel():
            return (torch.zeros_like(v),)
        size = M.shape[1] if self.primal_size is None else self.primal_size
        operator = DenseMatrix(0.5 * (M + M.mT), True, size)
        certified = solve_certified(operator, v, linear=Cholesky() if size == M.shape[1] else LU())
        # What v asks for may be determined although not everything is: then the system has a solution.
        asked = certified.residual > torch.finfo(v.dtype).eps ** 0.5
        warn_undetermined(self.call, certified.degenerate & asked, self.reason, self.remedy)
        return (certified.solution,)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        """``u``."""
        return (torch.empty_like(inputs[1], memory_format=torch.contiguous_format),)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        back = solve(self, inputs[0], v)[0]
        product = back @ y.mT if needed[0] else None
        return None if product is None else -0.5 * (product + product.mT), back

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        dM, dv = tangents
        change = torch.zeros_like(y) if dv is None else dv
        if dM is not None:
            change = change - 0.5 * (dM + dM.mT) @ y
        return solve(self, inputs[0], change)[0]
