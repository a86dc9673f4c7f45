r"""What the system of the gradient is made of, at the solution.

With ``H = L_yy`` and ``a`` the gradients of the active constraints, each of length one, the gradient exists and is the
only one if the rows of ``a`` are independent (LICQ) and ``H`` is positive along ``a d = 0`` (second order); how well it
can be computed is the condition of ``K = [[H, a'], [a, 0]]``.
"""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.active_set import INACTIVE, WEAK, ActiveSet, identify
from torchddn.derivatives import hessian, jacobian
from torchddn.explain.subject import Answer
from torchddn.optimality import Scales, kkt_error, lagrangian, scales

__all__ = ["ActiveConstraint", "Anatomy", "row_names"]

# Up to this many unknowns and rows the matrices are looked at: singular values cost their cube.
_DENSE_LIMIT = 512


@dataclasses.dataclass(frozen=True)
class ActiveConstraint:
    """A constraint that holds as an equation at the solution.

    Attributes:
        name: Such as ``inequality[3]`` or ``lower[0]``; entries of ``y`` are counted in its flat form.
        multiplier: Its multiplier.
        weak: Whether it is active without a multiplier, so that the solution has a kink.
        dependent: Whether its gradient is a combination of those of the other active constraints.
    """

    name: str
    multiplier: float
    weak: bool
    dependent: bool


class Anatomy(NamedTuple):
    """The findings; None is what was too large to be looked at, or what there is not.

    Attributes:
        error: Of the optimality conditions, relative.
        active: The active constraints.
        active_set: The same as masks; None unless there is a problem to minimize and a point.
        violated: Constraints that the point violates, by how much of the size of ``y``.
        singular_values: Of ``a``, largest first.
        curvature: Lowest eigenvalue of ``H`` along ``a d = 0``, relative to ``stiffness``.
        stiffness: Largest entry of ``H``, 1 if that is zero.
        freedom: Dimension of ``a d = 0``.
        condition: Of ``K``, in the units in which its rows and columns are about one.
    """

    error: float = float("nan")
    active: tuple[ActiveConstraint, ...] = ()
    active_set: ActiveSet | None = None
    violated: tuple[tuple[str, float], ...] = ()
    singular_values: tuple[float, ...] | None = None
    curvature: float | None = None
    stiffness: float = 1.0
    freedom: int | None = None
    condition: float | None = None

    @staticmethod
    @torch.no_grad()
    def of(answer: Answer) -> "Anatomy":
        """Looks at the matrices."""
        problem, y, dual = answer.problem, answer.y, answer.dual
        if problem.kind != "minimize" or not answer.is_finite:
            return Anatomy()
        x = tuple(tensor.detach() for tensor in answer.x)
        units = scales(problem, y, dual, x)
        error = float(kkt_error(problem, y, dual, x, units)[0])
        eps = torch.finfo(answer.dtype).eps
        # What decides is as exact as the point.
        active = identify(problem, y, dual, x, units, eps**0.5 if error <= eps**0.5 else eps ** (1 / 3))
        names, kept, multipliers, weak = _name(answer, active)
        anatomy = Anatomy(error, active_set=active, violated=_violated(answer, x, units))
        listed = tuple(map(ActiveConstraint, names, multipliers, weak, [False] * len(names)))
        if problem.m + len(names) > _DENSE_LIMIT:
            return anatomy._replace(active=listed)
        a = jacobian(lambda y: problem.constraints(y, x), y, problem.work(x))[0]
        H = hessian(lambda y: lagrangian(problem, y, dual, x), y, problem.work(x))[0].double()
        eye = torch.eye(problem.m, dtype=torch.float64, device=y.device)
        normals = torch.cat([a.double(), -eye, eye])[kept]
        if not bool(torch.cat([H, normals]).isfinite().all()):
            return anatomy._replace(active=listed)
        lengths = normals.norm(dim=1, keepdim=True)
        normals = normals / torch.where(lengths > 0, lengths, 1.0)
        left, values, right = torch.linalg.svd(normals, full_matrices=True)
        rank = int((values > eps**0.5 * values[:1]).sum())
        dependent = (left[:, rank:].square().sum(1) > eps**0.5).tolist()
        along = right[rank:].mT
        stiffness = float(H.abs().max()) or 1.0
        bends = torch.linalg.eigvalsh(along.mT @ H @ along) if rank < problem.m else None
        return anatomy._replace(
            active=tuple(map(ActiveConstraint, names, multipliers, weak, dependent)),
            singular_values=tuple(values.tolist()),
            curvature=None if bends is None else float(bends[0]) / stiffness,
            stiffness=stiffness,
            freedom=problem.m - rank,
            condition=_condition(H, normals),
        )


def row_names(answer: Answer) -> list[str]:
    """What to call the rows of ``(h, g, lower, upper)``."""
    problem = answer.problem
    sizes = {"equality": problem.p, "inequality": problem.q, "lower": problem.m, "upper": problem.m}
    return [f"{name}[{i}]" for name, size in sizes.items() for i in range(size)]


def _name(answer: Answer, active: ActiveSet) -> tuple[list[str], Tensor, list[float], list[bool]]:
    """Names of the active constraints, which rows of ``(h, g, -y, y)`` they are, their multipliers, which are weak."""
    problem, solution = answer.problem, answer.solution
    assert solution is not None
    zeros = answer.y.new_zeros(problem.m)
    bounds = [zeros if z is None else z[0].to(zeros) for z in (solution.lower_multipliers, solution.upper_multipliers)]
    kinds = torch.cat([torch.ones(problem.p, dtype=torch.int8, device=zeros.device), *(part[0] for part in active)])
    kept = (kinds != INACTIVE).nonzero().flatten()
    multipliers = torch.cat([answer.dual[0], *bounds])[kept].tolist()
    names = row_names(answer)
    return [names[i] for i in kept.tolist()], kept, multipliers, (kinds[kept] == WEAK).tolist()


def _violated(answer: Answer, x: tuple[Tensor, ...], units: Scales) -> tuple[tuple[str, float], ...]:
    """The worst first."""
    problem, y = answer.problem, answer.y
    rows = (problem.constraints(y, x) / (units.rows * units.length[:, None]))[0]
    lower, upper = ((part / units.length[:, None])[0] for part in (problem.bounds(x)[0] - y, y - problem.bounds(x)[1]))
    sizes = torch.cat([rows[: problem.p].abs(), rows[problem.p :], lower, upper])
    tolerance = torch.finfo(answer.dtype).eps ** 0.5
    names = row_names(answer)
    found = [(names[i], float(sizes[i])) for i in sizes.argsort(descending=True).tolist()]
    return tuple((name, size) for name, size in found if size > tolerance)


def _condition(H: Tensor, normals: Tensor) -> float:
    r = len(normals)
    K = torch.cat([torch.cat([H, normals.mT], dim=1), torch.cat([normals, normals.new_zeros(r, r)], dim=1)])
    for _ in range(5):
        size = K.abs().amax(1)
        unit = torch.where(size > 0, size, 1.0).rsqrt()
        K = unit[:, None] * K * unit
    values = torch.linalg.svdvals(K)
    return float(values[0] / values[-1]) if float(values[-1]) > 0 else float("inf")
