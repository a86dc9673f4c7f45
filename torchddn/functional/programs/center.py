r"""The analytic center of a polyhedron as a node.

Solves, for each item::

    y = argmin_y  -sum_i log(h_i - g_i . y)   subject to   A y = b

The point inside that has the largest product of distances to the faces. Optimal is what has, with the slacks
``s = h - G y`` and ``d = 1 / s``, ::

    G'd + A'nu = 0,   A y = b

whose derivative is the symmetric saddle matrix of ``G' diag(d^2) G`` and A: one system for all gradients.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from torchddn.diagnostics import timed
from torchddn.errors import InvalidInputError
from torchddn.functional.linear_algebra.symmetric import solve_symmetric
from torchddn.functional.nodes.arguments import check_flag, check_floating, wide
from torchddn.functional.nodes.handmade import Answer, solve
from torchddn.functional.nodes.outcome import conclude, solution_of
from torchddn.functional.programs.center_solver import CenterSolver
from torchddn.linear.operators import check_count
from torchddn.status import Solution, check_failure_policy

__all__ = ["analytic_center"]


@overload
def analytic_center(
    G: Tensor,
    h: Tensor,
    A: Tensor | None = ...,
    b: Tensor | None = ...,
    *,
    max_steps: int = ...,
    on_failure: str = ...,
    solution: Literal[False] = ...,
) -> Tensor: ...
@overload
def analytic_center(
    G: Tensor,
    h: Tensor,
    A: Tensor | None = ...,
    b: Tensor | None = ...,
    *,
    max_steps: int = ...,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
def analytic_center(
    G: Tensor,
    h: Tensor,
    A: Tensor | None = None,
    b: Tensor | None = None,
    *,
    max_steps: int = 100,
    on_failure: str = "warn",
    solution: bool = False,
) -> Tensor | Solution:
    r"""Returns the analytic center of ``G y <= h, A y = b``: the point with the largest product of slacks.

    ::

        y = argmin_y  -sum_i log(h_i - g_i . y)   subject to   A y = b

    By damped Newton's method, in float64 whatever the dtype, from the shortest y with ``A y = b`` if that is inside,
    else from a point deep inside that a linear program finds. A Cholesky factor of an m x m matrix for each of some ten
    to fifty steps.

    Args:
        G: Normals of the faces, ``(*B, q, m)``. This and the others may have the batch axes or not.
        h: Their offsets, ``(*B, q)``; infinite where a face does not count.
        A: ``(*B, p, m)``; with ``b``. Rows may depend on each other.
        b: ``(*B, p)``.
        max_steps: Most steps for an item.
        on_failure: What to do about items that fail: ``"warn"``, ``"raise"``, ``"nan"`` or ``"ignore"``. The answer of
            those without a center is NaN in any case, and its gradient zero.
        solution: Whether to return a :class:`torchddn.Solution` in place of ``y``, with differentiable multipliers
            ``d`` and ``nu``; its fields are ``(*B,)``, and ``stationarity`` is Newton's decrement.

    Returns:
        ``y``, ``(*B, m)``, strictly inside, of the dtype of ``G`` (half precision computes in float32).

    Raises:
        InvalidInputError: If an argument is wrong, or there are no faces or no variables.
        InfeasibleError: If items have no center for want of a point inside, and ``on_failure="raise"``.
        SolveError: If an item fails otherwise and ``on_failure="raise"``.

    Status:
        INFEASIBLE: No point has ``G y < h`` and ``A y = b``. A flat set has none: state by A what it is flat in.
        UNBOUNDED: The set reaches to infinity, and so do points with ever larger products. Add faces.
        MAX_STEPS: The center is not found; raise the limit, or check the scale of the data.
        NON_FINITE: The item contains NaN, or infinity where it means nothing.

    Gradients:
        Exact in ``G``, ``h``, ``A`` and ``b``, of every order and in every mode. In directions along which the set is a
        line, and the center one of many, it is that of minimum norm, with a DegenerateGradientWarning.

    Example:
        >>> G = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> analytic_center(G, torch.tensor([3.0, 1.0, 2.0, 2.0]))  # of a rectangle: its middle
        tensor([1., 0.])

    References:
        Boyd, Vandenberghe, Convex Optimization, 2004, section 8.5.3. Nesterov, Nemirovskii, Interior-Point Polynomial
        Algorithms in Convex Programming, 1994, for the step length.
    """
    call = "analytic_center"
    check_count(f"{call}(max_steps=...)", max_steps)
    check_failure_policy(call, on_failure)
    check_flag(call, "solution", solution)
    batch, parts = _prepare(call, G, h, A, b)
    rows, right = parts[:2]
    m, q = rows.shape[2], rows.shape[1]
    with timed() as file:
        z, status, num_steps, decrement = solve(CenterSolver(max_steps), *(part.detach() for part in parts))
        z = solve(Center(call), *parts, z)[0]
        z = conclude(call, z, status, decrement, on_failure, num_steps=num_steps, solver="Newton", file=file)

    def back(x: Tensor) -> Tensor:
        return x.reshape(*batch, *x.shape[1:]).to(G.dtype)

    y = back(z[:, :m])
    if not solution:
        return y
    counts = right != torch.inf
    slack = torch.where(counts, right, 1) - (rows @ z[:, :m].unsqueeze(2)).squeeze(2)
    d = torch.where(counts, 1 / torch.where(counts, slack, 1), 0)
    with torch.no_grad():
        objective = -torch.where(counts, slack, 1).log().sum(1)
        off = (parts[2] @ z[:, :m].unsqueeze(2)).squeeze(2) - parts[3]
        feasibility = off.abs().amax(1) if off.shape[1] else torch.zeros_like(objective)
    fields = [x.reshape(batch) for x in (objective, status, num_steps, decrement)]
    return solution_of(
        y,
        fields[0],
        fields[1],
        fields[2],
        fields[3],
        "Newton",
        feasibility=feasibility.reshape(batch),
        inequality_multipliers=back(d) if q else None,
        equality_multipliers=back(z[:, m:]) if A is not None else None,
    )


@dataclasses.dataclass(frozen=True)
class Center:
    """The formula of ``z = (y, nu)``, ``(R, m + p)``, from G, h, A, b and ``z`` itself; NaN where there is no center.

    Attributes:
        call: Who asks, for warnings.
    """

    call: str

    def solve(self, inputs: Sequence[Tensor]) -> Answer:
        """``z``, which is known."""
        return (inputs[4].clone(),)

    def outline(self, inputs: Sequence[Tensor]) -> Answer:
        """``z``."""
        return (torch.empty_like(inputs[4]),)

    def pull(self, y: Tensor, v: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        z, v, G, A, d = self._parts(y, inputs, v)
        m = G.shape[2]
        u, w = self._respond(G, A, d, v)
        point, nu = z[:, :m].unsqueeze(1), z[:, m:].unsqueeze(2)
        d_h = d.square() * (G @ u.unsqueeze(2)).squeeze(2)
        d_G = d_A = None
        if needed[0]:
            d_G = -(d.unsqueeze(2) * u.unsqueeze(1) + d_h.unsqueeze(2) * point)
        if needed[2]:
            d_A = -(nu * u.unsqueeze(1) + w.unsqueeze(2) * point)
        return d_G, d_h, d_A, w, None

    def push(self, y: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
        z, _, G, A, d = self._parts(y, inputs, y)
        d_G, d_h, d_A, d_b, _ = tangents
        point, nu = z[:, : G.shape[2]].unsqueeze(2), z[:, G.shape[2] :].unsqueeze(2)
        counts = d > 0
        nearer = torch.zeros_like(d)  # how much the slacks lose
        force, rest = torch.zeros_like(point), torch.zeros_like(nu)
        if d_G is not None:
            d_G = torch.where(counts.unsqueeze(2), d_G, 0)
            nearer = nearer + (d_G @ point).squeeze(2)
            force = force + d_G.mT @ d.unsqueeze(2)
        if d_h is not None:
            nearer = nearer - torch.where(counts, d_h, 0)
        if d_A is not None:
            force, rest = force + d_A.mT @ nu, rest + d_A @ point
        if d_b is not None:
            rest = rest - d_b.unsqueeze(2)
        force = force + G.mT @ (d.square() * nearer).unsqueeze(2)
        return -torch.cat(self._respond(G, A, d, torch.cat([force, rest], dim=1).squeeze(2)), dim=1)

    def _parts(self, z: Tensor, inputs: Sequence[Tensor], v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """``z``, ``v``, G, A and d, with zeros for what does not count and for items without a center."""
        G, h, A, _, _ = inputs
        sound = ~z.isnan().any(1, keepdim=True)
        counts = sound & (h != torch.inf)
        z, v = torch.where(sound, z, 0), torch.where(sound, v, 0)
        G, A = torch.where(counts.unsqueeze(2), G, 0), torch.where(sound.unsqueeze(2), A, 0)
        slack = torch.where(counts, h, 1) - (G @ z[:, : G.shape[2]].unsqueeze(2)).squeeze(2)
        return z, v, G, A, torch.where(counts, 1 / slack, 0)

    def _respond(self, G: Tensor, A: Tensor, d: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``(u, w)`` with ``H u + A'w = v_y, A u = v_nu``."""
        scaled = d.unsqueeze(2) * G
        p, m = A.shape[1:]
        upper = torch.cat([scaled.mT @ scaled, A.mT], dim=2)
        K = torch.cat([upper, torch.cat([A, A.new_zeros(len(A), p, p)], dim=2)], dim=1)
        reason, remedy = "the set is a line in some directions", "faces across them single one out"
        solved = solve_symmetric(self.call, K, v.unsqueeze(2), reason, remedy, m).squeeze(2)
        return solved[:, :m], solved[:, m:]


def _prepare(
    call: str, G: Tensor, h: Tensor, A: Tensor | None, b: Tensor | None
) -> tuple[torch.Size, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The batch shape, and flat batches of G, h, A, b; A and b without rows if not given."""
    check_floating(call, "G", G, "(*B, q, m)", 2)
    q, m = G.shape[-2:]
    if q == 0 or m == 0:
        raise InvalidInputError(f"`{call}(G=...)` must have faces and variables, got shape {tuple(G.shape)}.")
    _check_beside(call, "h", h, G, (q,), "(*B, q)")
    if (A is None) != (b is None):
        missing = "A" if A is None else "b"
        raise InvalidInputError(f"`{call}({missing}=...)` is missing: `A` and `b` belong together.")
    if A is None or b is None:
        A, b = G.new_zeros(0, m), G.new_zeros(0)
    else:
        check_floating(call, "A", A, "(*B, p, m)", 2)
        _check_beside(call, "A", A, G, (A.shape[-2], m), "(*B, p, m)")
        _check_beside(call, "b", b, G, (A.shape[-2],), "(*B, p)")
    leads = (G.shape[:-2], h.shape[:-1], A.shape[:-2], b.shape[:-1])
    try:
        batch = torch.broadcast_shapes(*leads)
    except RuntimeError:
        raise InvalidInputError(
            f"`{call}`: the batch axes of the arguments must broadcast to one shape, got "
            f"{', '.join(str(tuple(lead)) for lead in leads)}."
        ) from None

    def flat(x: Tensor, axes: int) -> Tensor:
        item = x.shape[-axes:]
        return wide(x).expand(*batch, *item).reshape(batch.numel(), *item)

    return batch, (flat(G, 2), flat(h, 1), flat(A, 2), flat(b, 1))


def _check_beside(call: str, name: str, x: object, G: Tensor, item: tuple[int, ...], shape: str) -> None:
    """Raises unless ``x`` fits G: its dtype, its device, and the sizes ``item`` at the end."""
    check_floating(call, name, x, shape, len(item))
    assert isinstance(x, Tensor)
    if x.dtype != G.dtype or x.device != G.device:
        raise InvalidInputError(
            f"`{call}({name}=...)` must have the dtype and device of `G`, {G.dtype} on {G.device}, got {x.dtype} on "
            f"{x.device}. Use `.to(G)`."
        )
    if tuple(x.shape[-len(item) :]) != item:
        raise InvalidInputError(
            f"`{call}({name}=...)` must have shape {shape} = (*B, {', '.join(map(str, item))}) beside G of shape "
            f"{tuple(G.shape)}, got {tuple(x.shape)}."
        )
