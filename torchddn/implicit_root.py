r"""THE autograd function: the root of a residual, differentiable to every order and in every mode.

With ``z`` the root of ``R(z, x)``, ``K = R_z`` and the incoming gradient ``v``, the implicit function theorem asks for
ONE linear system and ONE product per item::

    reverse    K' u = v       dJ/dx = -u . R_x          forward    K dz = -R_x dx

The linear system is itself a root, of ``K(z, x) u - v``, and its own linearization in ``u`` is ``K`` again. So
:class:`ImplicitRoot` differentiates its backward pass by calling itself, and derivatives of every order and mode
follow from the same few lines.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from torchddn.derivatives import inside_transform, jvp, private_graph, vjp

__all__ = ["ImplicitRoot", "System", "Unfold", "fold"]

# An output of a folded system, with the mapped axis brought back, and where that axis is.
Unfold = Callable[[Tensor], tuple[Tensor, int]]


class System(Protocol):
    """A residual ``R(z, x)`` with a way to its root and to its linearization."""

    num_constants: int
    num_outputs: int

    @property
    def size(self) -> int: ...
    def forward(self, x: Sequence[Tensor]) -> tuple[Tensor, ...]: ...
    def residual(self, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor]) -> Tensor: ...
    def solve_linear(
        self, v: Tensor, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor], transpose: bool
    ) -> Tensor: ...
    def pull_at_once(
        self, v: Tensor, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor], moving: Sequence[int]
    ) -> Sequence[Tensor] | None:
        """``-u . R_x`` for the tensors ``moving``, with ``K' u = v``, of which nobody wants a graph.

        None where that is no cheaper than one after the other.
        """
        ...

    def finish_gradient(self, grad: Tensor, i: int, constants: Sequence[Tensor]) -> Tensor: ...
    def split(self, saved: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]: ...
    def fold(
        self, times: int, in_dims: Sequence[int | None], x: Sequence[Tensor]
    ) -> tuple["System", list[Tensor], "Unfold"]: ...


class ImplicitRoot(torch.autograd.Function):
    """THE autograd function: ``z`` with ``R(z, x) = 0``, for whatever ``R`` the system stands for.

    Outputs ``(z, *constants, *report)``, of which ``z`` is differentiable.
    """

    @staticmethod
    def forward(system: "System", *x: Tensor) -> tuple[Tensor, ...]:
        with private_graph():
            return system.forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        ctx.system, *x = inputs
        z, *others = outputs
        ctx.mark_non_differentiable(*others)
        ctx.set_materialize_grads(False)  # of what has none, zeros would be made at each backward pass
        saved = (z, *others[: ctx.system.num_constants], *x)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, v: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if v is None:
            return (None,) * len(ctx.needs_input_grad)
        system = ctx.system
        z, constants, x = system.split(ctx.saved_tensors)
        moving = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        moved = _moving_residual(system, z, constants, x, moving)

        def pull(v: Tensor) -> tuple[Tensor, ...]:
            found = system.pull_at_once(v, z, constants, x, moving) if _is_plain() else None
            if found is None:
                u = system.solve_linear(v, z, constants, x, transpose=True)
                found = vjp(moved, [x[i] for i in moving], -u)
            return tuple(system.finish_gradient(grad, i, constants) for i, grad in zip(moving, found, strict=True))

        grads: list[Tensor | None] = [None] * len(x)
        if moving:
            for i, grad in zip(moving, _through_older_vmap(pull, v), strict=True):
                grads[i] = grad
        return None, *grads

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        # `jvp` runs with forward mode switched off, which would make an outer level see zeros:
        # https://github.com/pytorch/pytorch/issues/197867
        with fwAD._set_fwd_grad_enabled(True):
            system = ctx.system
            saved = [fwAD.unpack_dual(tensor).primal for tensor in ctx.saved_tensors]
            z, constants, x = system.split(saved)
            moving = [i for i, tangent in enumerate(tangents) if tangent is not None]
            moved = _moving_residual(system, z, constants, x, moving)
            R_x_dx = jvp(moved, [x[i] for i in moving], [tangents[i] for i in moving])
            dz = system.solve_linear(-R_x_dx, z, constants, x, transpose=False)
            return dz, *[None] * (system.num_outputs - 1)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], system: "System", *x: Tensor) -> tuple[Any, Any]:
        folded, tensors, unfold = system.fold(info.batch_size, in_dims[1:], x)
        outputs = ImplicitRoot.apply(folded, *tensors)
        unfolded, out_dims = zip(*(unfold(out) for out in outputs), strict=True)
        return unfolded, out_dims


def _is_plain() -> bool:
    """Whether nobody differentiates what is being computed, so that graphs may be made and used up on the spot."""
    return not torch.is_grad_enabled() and not inside_transform() and fwAD._current_level < 0


def _through_older_vmap(pull: Callable[[Tensor], tuple[Tensor, ...]], v: Tensor) -> tuple[Tensor, ...]:
    """``pull(v)`` also where ``v`` belongs to the vmap of ``is_grads_batched``, which no autograd.Function understands.

    That vmap hides the mapped axis in the tensor: take it out, map it with ``torch.func.vmap``, put it back.
    """
    if not is_legacy_batchedtensor(v):
        return pull(v)
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    plain = torch._remove_batch_dim(v, level, 0, 0)  # pyright: ignore[reportPrivateImportUsage]
    add = torch._add_batch_dim  # pyright: ignore[reportPrivateImportUsage]
    return tuple(add(grad, 0, level) for grad in torch.func.vmap(pull)(plain))


def _moving_residual(
    system: "System", z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor], moving: Sequence[int]
) -> Callable[..., Tensor]:
    """``R`` as a function of the tensors of ``x`` at the positions ``moving``."""

    def moved(*tensors: Tensor) -> Tensor:
        arguments = list(x)
        for i, tensor in zip(moving, tensors, strict=True):
            arguments[i] = tensor
        return system.residual(z, constants, arguments)

    return moved


def fold(
    times: int, size: int, in_dims: Sequence[int | None], x: Sequence[Tensor], batched: Sequence[bool]
) -> tuple[list[Tensor], tuple[bool, ...], Unfold]:
    """Merges an axis that ``torch.func.vmap`` maps into the batch axis; a mapped shared tensor becomes batched."""
    tensors, flags = [], []
    for tensor, dim, has_batch in zip(x, in_dims, batched, strict=True):
        if dim is None and not has_batch:
            tensors.append(tensor)
            flags.append(False)
            continue
        tensor = tensor.movedim(dim, 0) if dim is not None else tensor.expand(times, *tensor.shape)
        if not has_batch:
            tensor = tensor[:, None].expand(times, size, *tensor.shape[1:])
        tensors.append(tensor.reshape((times * size, *tensor.shape[2:])))
        flags.append(True)
    return tensors, tuple(flags), lambda out: (out.reshape((times, size, *out.shape[1:])), 0)
