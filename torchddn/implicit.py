r"""THE autograd function: the root of a residual, differentiable to every order and in every mode.

A solution ``z = (y, dual)`` is the root of a residual ``R(z, x)`` (``optimality.py``). With ``K = R_z`` and the
incoming gradient ``v``, the implicit function theorem asks for ONE linear system and ONE product per item::

    reverse    K' u = v       dJ/dx = -u . R_x          forward    K dz = -R_x dx

For a minimization ``K`` is symmetric and this is the saddle-point system of the Lagrangian
``L = f + nu.h + lam.g`` with the constraints that are active at each item; neither ``L_xy`` nor ``c_x`` is ever formed.
(Gould et al. write ``L = f - lambda.h``: their multipliers are ours negated. Their formula
``H^-1 A' (A H^-1 A')^-1 (A H^-1 B - C) - H^-1 B`` is the Schur-complement way of solving the same system,
``linear="schur"``.)

The linear system is itself a root, of ``K(z, x) u - v``, and its own linearization in ``u`` is ``K`` again. So
:class:`ImplicitRoot` differentiates its backward pass by calling itself, and derivatives of every order and mode
follow from the same few lines.
"""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from torchddn import optimality, structure
from torchddn.active_set import ActiveSet
from torchddn.derivatives import Linearization, gradient, inside_transform, jvp, private_graph, vjp
from torchddn.diagnostics import timed
from torchddn.findings import Findings
from torchddn.fusion import fused, is_fused
from torchddn.linear import Certified, Operator, choose, name_of, solve_certified, solve_once
from torchddn.linear import get as get_linear
from torchddn.problem import BatchedProblem, mend

__all__ = ["Forward", "Found", "ImplicitRoot", "LinearOptions", "Report", "SolutionSystem"]


class LinearOptions(NamedTuple):
    """How the adjoint system is solved; the words are those of :class:`torchddn.Implicit`."""

    linear: Any
    on_singular: str
    damping: float
    rtol: float | None
    weakly_active: str
    structure: Any


class Report(NamedTuple):
    """What a forward solve tells beside the answer, ``(B,)`` each."""

    objective: Tensor
    status: Tensor
    num_steps: Tensor
    stationarity: Tensor
    feasibility: Tensor
    complementarity: Tensor


class Found(NamedTuple):
    """What a forward solve finds: plain tensors, no graph. ``active`` is None where there are equalities only."""

    y: Tensor  # (B, m)
    dual: Tensor  # (B, p + q)
    active: ActiveSet | None
    sound: Tensor  # (B,): finite in and out
    report: Report


class Forward(Protocol):
    """The forward pass of one call as an adjoint sees it; ``node.py`` supplies it.

    Attributes:
        all_sound: Whether no item so far had a number that is not finite, in or out; True before solving.
    """

    all_sound: bool

    def solve(self, problem: BatchedProblem, x: Sequence[Tensor]) -> Found:
        """The solution of every item, as far as there is one."""
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
            if _is_plain() and isinstance(system, SolutionSystem):
                found = system.pull(v, z, constants, x, moving)
            else:
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
    """The solution of a problem as a root.

    Constants: which items are sound, the active set if there are inequalities or bounds, and ``dual`` if it is held
    fixed, because the constraints are ignored.
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
        return 1 + len(ActiveSet._fields) * self.problem.is_inequality_constrained + (not self.constrained)

    @property
    def num_outputs(self) -> int:
        return 1 + self.num_constants + len(Report._fields)

    @property
    def symmetric(self) -> bool:
        return self.problem.kind == "minimize"

    def forward(self, x: Sequence[Tensor]) -> tuple[Tensor, ...]:
        y, dual, active, sound, report = self.solver.solve(self.problem, x)
        constants = (sound, *(active or ()))
        if not self.constrained:
            return (y, *constants, dual, *report)
        return (torch.cat([y, dual], dim=1) if dual.shape[1] else y, *constants, *report)

    def active(self, constants: Sequence[Tensor]) -> ActiveSet | None:
        """The active set among the constants."""
        if not self.problem.is_inequality_constrained:
            return None
        return ActiveSet(*constants[1 : 1 + len(ActiveSet._fields)])

    def held(self, constants: Sequence[Tensor]) -> optimality.Held | None:
        """The constraints that the residual takes for equations."""
        active = self.active(constants) if self.constrained else None
        return None if active is None else active.held(self.problem, self.options.weakly_active == "active")

    def residual(self, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor]) -> Tensor:
        """``R``, with the data of a sound item in place of those of each that is not."""
        return self.sound_residual(*self.mend(z, constants, x))

    def sound_residual(self, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor]) -> Tensor:
        """``R`` of data without items that are not sound."""
        if self.constrained:
            return optimality.residual(self.problem, z, x, self.held(constants))
        dual = constants[-1]
        return gradient(lambda y: optimality.lagrangian(self.problem, y, dual, x), z)

    def mend(
        self, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
        """All three without the numbers of items that are not sound."""
        if self.solver.all_sound:
            return z, constants, x
        sound, *others = constants
        z, *others = (mend(tensor, sound) for tensor in (z, *others))
        return z, (torch.ones_like(sound), *others), self.problem.mend(x, sound)

    def pull(
        self, v: Tensor, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor], moving: Sequence[int]
    ) -> Sequence[Tensor]:
        """``-u . R_x`` for the tensors ``moving``, with ``K' u = v``, from one evaluation of R; it leaves no graph."""
        with private_graph():
            leaves = list(x)
            for i in moving:
                leaves[i] = x[i].detach().requires_grad_()
            with torch.enable_grad():
                mended = self.mend(z.detach(), constants, leaves)
            moved = [leaves[i] for i in moving]
            _, pulled = _LinearSystem(self, transpose=not self.symmetric).solve(v, *mended, constants[0], moved)
            return [torch.zeros_like(x) if p is None else -p for x, p in zip(moved, pulled, strict=True)]

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
        # Mended now, so that K is a donor's K and not zero.
        return (self.solve(v, *self.base.mend(z, constants, x), sound)[0],)

    def solve(
        self,
        v: Tensor,
        z: Tensor,
        constants: Sequence[Tensor],
        x: Sequence[Tensor],
        sound: Tensor,
        leaves: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """``u``, certified, and ``u . R_x`` for ``leaves`` of ``x``; ``sound`` is how the items were before mending."""
        base = self.base
        v = v if base.solver.all_sound else _where_sound(sound, v)
        active = base.active(constants)
        weak = active.weak.any(1) & sound if active is not None else None
        with timed() as file:
            solved = self._solve_at_once(v, z, constants, x, leaves) or self._solve(v, z, constants, x, leaves)
            certified, pulled, operator, name, notes = solved
            findings = Findings(base.problem, certified, sound, active, weak, operator, v, name, notes)
            file(findings.record)
        findings.warn()
        return certified.solution, pulled

    def _solve(
        self, v: Tensor, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor], leaves: Sequence[Tensor]
    ) -> "_Solved":
        """One rung of the ladder after the other, until every item is certified."""
        believed, pullback = self.believed(z, constants, x, leaves)
        options = self.base.options
        certified = solve_certified(
            believed.operator,
            v,
            apply=believed.truth,
            again=believed.reread,
            linear=believed.linear,
            rtol=options.rtol,
            on_singular=options.on_singular,
            damping=options.damping,
        )
        notes = believed.review(certified)
        return _Solved(certified, pullback.of(certified.solution), believed.operator, believed.name, notes)

    def _solve_at_once(
        self, v: Tensor, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor], leaves: Sequence[Tensor]
    ) -> "_Solved | None":
        """The same as one kernel, if the node is compiled and the first rung certifies every item; None if not."""
        base, problem, options = self.base, self.base.problem, self.base.options
        if not is_fused(problem) or not base.solver.all_sound:
            return None
        state = structure.settled(
            problem,
            z,
            declared=options.structure,
            linear=options.linear,
            symmetric=base.symmetric,
            has_bounds=base.constrained and problem.has_bounds,
        )
        if state is None:
            return None
        moving = tuple(i for i, tensor in enumerate(x) if any(tensor is leaf for leaf in leaves))
        u, residual, is_certified, pulled, method, name, notes = _first_rung(
            problem, x, v, z, tuple(constants), options, base.constrained, self.transpose, moving, state
        )
        if not bool(is_certified.all()):
            return None
        no = ~is_certified
        certified = Certified(
            u, residual, is_certified, no, no, (method,) * len(no), torch.zeros_like(no, dtype=torch.int64)
        )
        return _Solved(certified, pulled, None, name, notes)

    def believed(
        self, z: Tensor, constants: Sequence[Tensor], x: Sequence[Tensor], leaves: Sequence[Tensor]
    ) -> tuple[structure.Believed, "_Pullback"]:
        """K as it is believed to be, and its product that pulls back to ``leaves``."""
        base, problem, held = self.base, self.base.problem, self.base.held(constants)
        K = Linearization(lambda z: base.sound_residual(z, constants, x), z, problem.work(x))
        product, transposed = (K.vjp, K.jvp) if self._by_vjp else (K.jvp, K.vjp)
        pullback = _Pullback(K, leaves)
        believed = structure.operator(
            problem,
            product,
            K.value.detach(),
            active=None if held is None else held.rows,
            free=~held.variables if held is not None and problem.has_bounds else None,
            unmasked=self._unmasked(z, x, held),
            declared=base.options.structure,
            linear=base.options.linear,
            symmetric=base.symmetric,
            rproduct=None if base.symmetric else transposed,
            witness=pullback if leaves else None,
            work=problem.work(x),
        )
        return believed, pullback

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

    def _unmasked(
        self, z: Tensor, x: Sequence[Tensor], held: optimality.Held | None
    ) -> Callable[[], structure.Product] | None:
        """Makes the product with a K that does not depend on what is active, for its structure."""
        base, m = self.base, self.base.problem.m
        if not base.constrained or (held is None and z.shape[1] == m):
            return None

        def make() -> structure.Product:
            # A constraint without a multiplier would hide its curvature.
            dual = z[:, m:]
            place = torch.arange(1, dual.shape[1] + 1, dtype=z.dtype, device=z.device)
            size = dual.abs().amax(1, keepdim=True) if dual.shape[1] else z[:, :1]
            generic = (0.5 + (place * 0.6180339887498949).frac()) * torch.where(size > 0, size, 1.0)
            point = torch.cat([z[:, :m], torch.where(dual == 0, generic, dual)], dim=1)
            free = held and optimality.Held(*(torch.full_like(part, i == 0) for i, part in enumerate(held)))
            return Linearization(
                lambda z: optimality.residual(base.problem, z, x, free), point, base.problem.work(x)
            ).vjp

        return make

    def _unpack(self, x: Sequence[Tensor]) -> tuple[Tensor, Tensor, Sequence[Tensor], Sequence[Tensor]]:
        v, *saved = x
        return (v, *self.base.split(saved))


class _Solved(NamedTuple):
    """A linear solve, and what there is to say of it."""

    certified: Certified
    pulled: Sequence[Tensor | None]
    operator: Operator | None
    name: str
    notes: tuple[str, ...]


@fused
def _first_rung(
    problem: BatchedProblem,
    x: Sequence[Tensor],
    v: Tensor,
    z: Tensor,
    constants: Sequence[Tensor],
    options: LinearOptions,
    constrained: bool,
    transpose: bool,
    moving: Sequence[int],
    state: Hashable,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor | None, ...], str, str, tuple[str, ...]]:
    """``u``, its residual, which items are certified, ``u . R_x`` for ``moving``, and in words how and with what.

    The items are sound, and ``state`` is that of a belief which has settled.
    """
    forward = cast("Forward", SimpleNamespace(all_sound=True))
    system = _LinearSystem(SolutionSystem(problem, forward, options, constrained, poison=False), transpose)
    leaves = list(x)
    for i in moving:
        leaves[i] = x[i].detach().requires_grad_()
    moved = [leaves[i] for i in moving]
    believed, pullback = system.believed(z, constants, leaves, moved)
    linear = get_linear(believed.linear) or choose(believed.operator)
    solved = solve_once(believed.operator, v, apply=believed.truth, linear=linear, rtol=options.rtol)
    return *solved, tuple(pullback.of(solved[0])), name_of(linear), believed.name, believed.notes


class _Pullback:
    """``u K`` for the certificate, which keeps ``u . R_x`` from the same pass: the last one is for the solution."""

    def __init__(self, K: Linearization, leaves: Sequence[Tensor]) -> None:
        self._K, self._leaves = K, leaves
        self._u: Tensor | None = None
        self._pulled: Sequence[Tensor | None] = ()

    def __call__(self, u: Tensor) -> Tensor:
        product, self._pulled = self._K.vjp_and(u, self._leaves)
        self._u = u
        return product

    def of(self, u: Tensor) -> Sequence[Tensor | None]:
        """``u . R_x`` for each leaf, None for zero."""
        if self._leaves and self._u is not u:
            self(u)
        return self._pulled


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
