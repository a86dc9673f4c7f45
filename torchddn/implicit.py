r"""THE autograd function: the root of a residual, differentiable to every order and in every mode.

A solution ``z = (y, nu)`` is the root of a residual ``R(z, x)`` (``optimality.py``). With ``K = R_z`` and the
incoming gradient ``v``, the implicit function theorem asks for ONE linear system and ONE product per item::

    reverse    K' u = v       dJ/dx = -u . R_x          forward    K dz = -R_x dx

For a minimization ``K`` is symmetric and this is the saddle-point system of the Lagrangian
``L = f + nu.h``; neither ``L_xy`` nor ``h_x`` is ever formed. (Gould et al. write ``L = f - lambda.h``: their
multipliers are ours negated. Their formula ``H^-1 A' (A H^-1 A')^-1 (A H^-1 B - C) - H^-1 B`` is the
Schur-complement way of solving the same system, ``linear="schur"``.)

The linear system is itself a root, of ``K(z, x) u - v``, and its own linearization in ``u`` is ``K`` again. So
:class:`ImplicitRoot` differentiates its backward pass by calling itself, and derivatives of every order and mode
follow from the same few lines.
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from torchddn import optimality
from torchddn.derivatives import Linearization, gradient, jvp, private_graph, vjp
from torchddn.diagnostics import Record, timed
from torchddn.errors import DegenerateGradientWarning
from torchddn.linear import (
    CG,
    GMRES,
    MINRES,
    Certified,
    Dense,
    MatrixFree,
    Operator,
    Saddle,
    SchurComplement,
    solve_certified,
)
from torchddn.linear import get as get_linear
from torchddn.problem import BatchedProblem, mend

__all__ = ["Forward", "ImplicitRoot", "LinearOptions", "Report", "SolutionSystem"]

# Up to this many unknowns "auto" forms K; above, it multiplies by K, which is cheaper and holds nothing of size m^2.
DENSE_SIZE = 128


class LinearOptions(NamedTuple):
    """How the adjoint system is solved; the words are those of :class:`torchddn.Implicit`."""

    linear: Any
    on_singular: str
    damping: float
    rtol: float | None


class Report(NamedTuple):
    """What a forward solve tells beside the answer, ``(B,)`` each."""

    objective: Tensor
    status: Tensor
    num_steps: Tensor
    stationarity: Tensor
    feasibility: Tensor


class Forward(Protocol):
    """The forward pass of one call as an adjoint sees it; ``node.py`` supplies it.

    Attributes:
        all_sound: Whether no item so far had a number that is not finite, in or out; True before solving.
    """

    all_sound: bool

    def solve(self, problem: BatchedProblem, x: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Report]:
        """``y``, ``nu``, which items are sound (finite in and out), and the report; plain tensors, no graph."""
        ...

    def unroll(
        self, problem: BatchedProblem, x: Sequence[Tensor], y: Tensor | None, num_steps: int | None
    ) -> tuple[Tensor, Tensor]:
        """``num_steps`` differentiable steps of the solver from ``y`` (None: from the start, all steps)."""
        ...


class ImplicitRoot(torch.autograd.Function):
    """THE autograd function: ``z`` with ``R(z, x) = 0``, for whatever ``R`` the system stands for.

    Outputs ``(z, *constants, *report)``, of which ``z`` is differentiable.
    """

    @staticmethod
    def forward(system: "_System", *x: Tensor) -> tuple[Tensor, ...]:
        with private_graph():
            return system.forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        ctx.system, *x = inputs
        z, *others = outputs
        ctx.mark_non_differentiable(*others)
        saved = (z, *others[: ctx.system.num_constants], *x)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, v: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        system = ctx.system
        z, constants, x = system.split(ctx.saved_tensors)
        moving = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        moved = _moving_residual(system, z, constants, x, moving)

        def pull(v: Tensor) -> tuple[Tensor, ...]:
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
    def vmap(info: Any, in_dims: tuple[int | None, ...], system: "_System", *x: Tensor) -> tuple[Any, Any]:
        folded, tensors, unfold = system.fold(info.batch_size, in_dims[1:], x)
        outputs = ImplicitRoot.apply(folded, *tensors)
        unfolded, out_dims = zip(*(unfold(out) for out in outputs), strict=True)
        return unfolded, out_dims


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
    system: "_System", z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor], moving: Sequence[int]
) -> Callable[..., Tensor]:
    """``R`` as a function of the tensors of ``x`` at the positions ``moving``."""

    def moved(*tensors: Tensor) -> Tensor:
        arguments = list(x)
        for i, tensor in zip(moving, tensors, strict=True):
            arguments[i] = tensor
        return system.residual(z, constants, arguments)

    return moved


# An output of a folded system, with the mapped axis brought back, and where that axis is.
Unfold = Callable[[Tensor], tuple[Tensor, int]]


class _System(Protocol):
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
    def finish_gradient(self, grad: Tensor, i: int, constants: Sequence[Tensor]) -> Tensor: ...
    def split(self, saved: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]: ...
    def fold(
        self, times: int, in_dims: Sequence[int | None], x: Sequence[Tensor]
    ) -> tuple["_System", list[Tensor], "Unfold"]: ...


@dataclasses.dataclass(frozen=True)
class SolutionSystem:
    """The solution of a problem as a root. Constants: which items are sound, and ``nu`` if it is held fixed.

    A further kind of constraint adds its rows to ``optimality.residual`` and its active set to the constants.
    """

    problem: BatchedProblem
    solver: Forward
    options: LinearOptions
    constrained: bool
    poison: bool

    @property
    def size(self) -> int:
        return self.problem.size

    @property
    def num_constants(self) -> int:
        return 1 if self.constrained else 2

    @property
    def num_outputs(self) -> int:
        return 1 + self.num_constants + len(Report._fields)

    @property
    def symmetric(self) -> bool:
        return self.problem.kind == "minimize"

    def forward(self, x: Sequence[Tensor]) -> tuple[Tensor, ...]:
        y, nu, sound, report = self.solver.solve(self.problem, x)
        if not self.constrained:
            return (y, sound, nu, *report)
        return (torch.cat([y, nu], dim=1) if self.problem.p else y, sound, *report)

    def residual(self, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor]) -> Tensor:
        """``R``, with the data of a sound item in place of those of each that is not."""
        z, (_, *fixed), x = self.mend(z, constants, x)
        if not fixed:
            return optimality.residual(self.problem, z, x)
        (nu,) = fixed
        return gradient(lambda y: optimality.lagrangian(self.problem, y, nu, x), z)

    def mend(
        self, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
        """All three without the numbers of items that are not sound."""
        if self.solver.all_sound:
            return z, constants, x
        sound, *fixed = constants
        z, *fixed = (mend(tensor, sound) for tensor in (z, *fixed))
        return z, (torch.ones_like(sound), *fixed), self.problem.mend(x, sound)

    def solve_linear(
        self, v: Tensor, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor], transpose: bool
    ) -> Tensor:
        system = _LinearSystem(self, transpose and not self.symmetric)
        return ImplicitRoot.apply(system, v, z, *constants, *x)[0]

    def finish_gradient(self, grad: Tensor, i: int, constants: Sequence[Tensor]) -> Tensor:
        if not (self.poison and self.problem.batched[i]):
            return grad
        sound = constants[0].reshape(-1, *[1] * (grad.dim() - 1))
        return torch.where(sound, grad, torch.nan)

    def split(self, saved: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
        first = 1 + self.num_constants
        return saved[0], saved[1:first], saved[first:]

    def fold(
        self, times: int, in_dims: Sequence[int | None], x: Sequence[Tensor]
    ) -> tuple["SolutionSystem", list[Tensor], Unfold]:
        tensors, batched, unfold = _fold(times, self.size, in_dims, x, self.problem.batched)
        return dataclasses.replace(self, problem=self.problem.rebatched(times * self.size, batched)), tensors, unfold


@dataclasses.dataclass(frozen=True)
class _LinearSystem:
    """``u`` with ``K u = v`` (or ``K' u = v``) at a solution; its inputs are ``(v, z, *constants, *x)``.

    ``v`` is ``(B, s)``, or ``(B, s, k)`` for k right-hand sides. Its residual ``K u - v`` is linear in ``u``, so that
    its own linearization is ``K`` again.
    """

    base: SolutionSystem
    transpose: bool

    num_constants = 0
    num_outputs = 1

    @property
    def size(self) -> int:
        return self.base.size

    def forward(self, x: Sequence[Tensor]) -> tuple[Tensor, ...]:
        v, z, constants, x = self._unpack(x)
        sound = constants[0]
        v = _where_sound(sound, v)
        base, options = self.base, self.base.options
        z, constants, x = base.mend(z, constants, x)  # now, so that K is a donor's K and not zero
        with timed() as file:
            K = Linearization(lambda z: base.residual(z, constants, x), z, base.problem.work(x))
            certified = solve_certified(
                self._operator(K),
                v,
                apply=K.vjp if self._by_vjp else K.jvp,
                linear=options.linear,
                rtol=options.rtol,
                on_singular=options.on_singular,
                damping=options.damping,
            )
            file(lambda seconds: _record(base.problem.call, certified, seconds))
        _report_degenerate(base.problem.call, certified, sound)
        return (certified.solution,)

    def residual(self, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor]) -> Tensor:
        v, point, inner, x = self._unpack(x)

        def R(point: Tensor) -> Tensor:
            return self.base.residual(point, inner, x)

        def K(u: Tensor) -> Tensor:
            return vjp(R, (point,), u)[0] if self._by_vjp else jvp(R, (point,), (u,))

        product = K(z) if z.dim() == 2 else torch.func.vmap(K, -1, -1)(z)
        return product - _where_sound(inner[0], v)

    def solve_linear(
        self, v: Tensor, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor], transpose: bool
    ) -> Tensor:
        flipped = (self.transpose ^ transpose) and not self.base.symmetric
        return ImplicitRoot.apply(_LinearSystem(self.base, flipped), v, *x[1:])[0]

    def finish_gradient(self, grad: Tensor, i: int, constants: Sequence[Tensor]) -> Tensor:
        return grad

    def split(self, saved: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
        return saved[0], (), saved[1:]

    def fold(
        self, times: int, in_dims: Sequence[int | None], x: Sequence[Tensor]
    ) -> tuple["_LinearSystem", list[Tensor], Unfold]:
        if in_dims[0] is not None and all(dim is None for dim in in_dims[1:]):
            # One matrix and many right-hand sides, as for a Jacobian: columns of v, and K is factored once.
            v = x[0].movedim(in_dims[0], -1)
            return self, [v.flatten(2), *x[1:]], lambda out: (out.reshape(v.shape), v.dim() - 1)
        own = 2 + self.base.num_constants
        batched = (True,) * own + self.base.problem.batched
        tensors, batched, unfold = _fold(times, self.size, in_dims, x, batched)
        problem = self.base.problem.rebatched(times * self.size, batched[own:])
        return dataclasses.replace(self, base=dataclasses.replace(self.base, problem=problem)), tensors, unfold

    @property
    def _by_vjp(self) -> bool:
        # The cheaper product: one reverse pass where a forward one costs two.
        return self.base.symmetric or self.transpose

    def _operator(self, K: Linearization) -> Operator:
        base, size, m = self.base, K.value.shape[1], self.base.problem.m
        linear = get_linear(base.options.linear)
        if isinstance(linear, (CG, MINRES, GMRES)) or (linear is None and size > DENSE_SIZE):
            return MatrixFree(
                *((K.vjp, K.jvp) if self._by_vjp else (K.jvp, K.vjp)),
                batch=K.value.shape[0],
                size=size,
                dtype=K.value.dtype,
                device=K.value.device,
                symmetric=base.symmetric,
                primal_size=m,
            )
        dense = K.dense()
        if base.symmetric and (size > m or isinstance(linear, SchurComplement)):
            return Saddle(dense[:, :m, :m], dense[:, m:, :m])
        return Dense(dense.mT if self.transpose else dense, symmetric=base.symmetric)

    def _unpack(self, x: Sequence[Tensor]) -> tuple[Tensor, Tensor, Sequence[Tensor], Sequence[Tensor]]:
        v, *saved = x
        return (v, *self.base.split(saved))


def _where_sound(sound: Tensor, v: Tensor) -> Tensor:
    """``v`` with zeros for the items that are not sound."""
    return torch.where(sound.reshape(-1, *[1] * (v.dim() - 1)), v, 0.0)


def _fold(
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


def _report_degenerate(call: str, certified: Certified, sound: Tensor) -> None:
    """Warns of sound items whose gradient the problem does not determine, or no method could certify."""
    doubtful = (certified.degenerate | ~certified.certified) & sound
    if not bool(doubtful.any()):
        return
    for which, reason, advice in (
        (
            certified.degenerate & doubtful,
            "is one of many, because the solution is not isolated there",
            "Add a regularizer or a constraint that singles one out; `Implicit(on_singular=...)` says what is "
            "returned meanwhile (minimum norm unless said otherwise).",
        ),
        (
            doubtful & ~certified.degenerate,
            "could not be certified",
            "Its system is too ill-conditioned for this dtype: use float64 or rescale the problem.",
        ),
    ):
        items = torch.nonzero(which).flatten().tolist()
        if items:
            shown = ", ".join(map(str, items[:8])) + (", ..." if len(items) > 8 else "")
            worst = certified.residual[which].max().item()
            warnings.warn(
                f"`{call}`: the gradient of {len(items)} of {len(which)} items {reason} (items {shown}; worst "
                f"residual {worst:.2e}). {advice}",
                DegenerateGradientWarning,
                stacklevel=2,
            )


def _record(call: str, certified: Certified, seconds: float) -> Record:
    residual, degenerate = certified.residual, certified.degenerate
    return Record(
        call=call,
        stage="backward",
        method=", ".join(sorted(set(certified.method))),
        seconds=seconds,
        num_items=len(residual),
        statuses={},
        num_steps=0,
        residual=float(residual.max()) if len(residual) else 0.0,
        degenerate=tuple(torch.nonzero(degenerate).flatten().tolist()),
    )
