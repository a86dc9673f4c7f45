"""The pseudo-inverse of symmetric matrices, with derivatives of every order and in every mode.

Where the rank is constant nearby, and with ``P = H^+``, the derivative on the range is ``dP = -P dH P``. The parts that
move the null space are left out: where ``H`` is singular the derivative is finite and that of the regular part.
"""

from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor

from torchddn.compiler import uncompiled
from torchddn.functional.nodes.degeneracy import warn_undetermined
from torchddn.linear import DenseMatrix, solve_certified

__all__ = ["pseudo_inverse"]

_NOT_ISOLATED = "the solution is not isolated there", "a larger alpha, or a smooth penalty, singles one out"


def pseudo_inverse(H: Tensor) -> Tensor:
    """``H^+`` of symmetric matrices ``(R, m, m)``; warns of those that are singular to working precision."""
    return _PseudoInverse.apply(H)


class _PseudoInverse(torch.autograd.Function):
    """An inverse whose derivative applies itself again: those of ``torch.linalg`` are wrong in nested forward mode."""

    @staticmethod
    def forward(H: Tensor) -> Tensor:
        if not H.numel():
            return torch.zeros_like(H)
        identity = torch.eye(H.shape[1], dtype=H.dtype, device=H.device).expand_as(H).contiguous()
        certified = solve_certified(DenseMatrix(H, symmetric=True), identity)
        warn_undetermined("robust_vector_pool", certified.degenerate, *_NOT_ISOLATED)
        return certified.solution.clone(memory_format=torch.contiguous_format)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], P: Tensor) -> None:
        ctx.save_for_backward(P)
        ctx.save_for_forward(P)

    @staticmethod
    @uncompiled
    def backward(ctx: Any, v: Tensor) -> Tensor:
        (P,) = ctx.saved_tensors
        return -P.mT @ v @ P.mT

    @staticmethod
    @uncompiled
    def jvp(ctx: Any, dH: Tensor) -> Tensor:
        with fwAD._set_fwd_grad_enabled(True):  # https://github.com/pytorch/pytorch/issues/197867
            P = fwAD.unpack_dual(ctx.saved_tensors[0]).primal
            return -P @ dH @ P

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], H: Tensor) -> tuple[Tensor, int]:
        H = H.movedim(in_dims[0], 0)
        return _PseudoInverse.apply(H.flatten(0, 1)).reshape(H.shape), 0
