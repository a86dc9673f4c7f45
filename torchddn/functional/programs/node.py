r"""Solving a batch of quadratic programs as a node: the solver, the derivative, and what infeasible items get."""

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchddn.compiler import uncompiled
from torchddn.derivatives import inside_transform
from torchddn.diagnostics import timed
from torchddn.errors import ConvergenceWarning, InfeasibleError
from torchddn.functional.nodes.handmade import solve
from torchddn.functional.nodes.outcome import conclude
from torchddn.functional.programs.data import ProgramData, check_values, prepare
from torchddn.functional.programs.point import QuadraticPoint
from torchddn.functional.programs.solver import QuadraticSolver
from torchddn.functional.programs.sparse_data import SparseData
from torchddn.functional.programs.sparse_point import SparsePoint
from torchddn.functional.programs.sparse_program import is_sparse, prepare_sparse
from torchddn.functional.programs.sparse_solver import SparseSolver
from torchddn.quadratic.backends import OWN, sparse_backend
from torchddn.status import Solution, Status

__all__ = ["INFEASIBLE_POLICIES", "SIDES", "Found", "ProgramNode", "ProgramOptions", "cannot_read", "run", "run_sparse"]

INFEASIBLE_POLICIES = ("warn", "closest", "nan", "raise")
SIDES = ("active", "inactive")


class ProgramOptions(NamedTuple):
    """What a user can choose, checked."""

    smoothing: float
    holds_weak: bool
    backend: str
    infeasible: str
    check: bool
    max_steps: int
    on_failure: str
    solution: bool


def run(call: str, given: dict[str, Any], options: ProgramOptions) -> Tensor | Solution:
    """``y``, or the whole solution, for the arguments that ``call`` was given, by the names of a quadratic program."""
    backend, on_failure = options.backend, options.on_failure
    if is_sparse(given["Q"], given["A"], given["G"]):
        data, batch, p, bounded = prepare_sparse(call, given, options.smoothing, options.check)
        backend = sparse_backend(call, backend)
        solver, point = SparseSolver(p, backend), SparsePoint(call)
    else:
        data, batch, p, bounded = prepare(call, given, options.smoothing)
        if options.check:
            check_values(call, data)
        solver, point = QuadraticSolver(p, bounded, options.max_steps, backend), QuadraticPoint(call)
    node = ProgramNode(call, solver, point, options.holds_weak)
    m, dtype, name = data.q.shape[1], given["q"].dtype, "PrimalDual" if backend == OWN else backend
    with timed() as file:
        found = node.solve(data)
        z = found.z
        failed, lost = found.status, found.status == int(Status.INFEASIBLE)
        if cannot_read():  # nor choose items: a failure as any other
            z = torch.where(lost.unsqueeze(1), torch.nan, z)
        elif bool(lost.any()):
            z = node.settle(data, z, lost, options.infeasible)
            failed = torch.where(lost, int(Status.CONVERGED), failed)
        z = conclude(call, z, failed, found.error, on_failure, num_steps=found.num_steps, solver=name, file=file)
    if not options.solution:
        return z[:, :m].reshape(*batch, m).to(dtype)
    return _solution(data, found._replace(z=z), batch, p, bounded, dtype, name)


# The compiler knows no sparse tensors.
run_sparse = uncompiled(run)


def cannot_read() -> bool:
    """Whether tensors have no values: while a graph is made, and inside transforms."""
    return torch.compiler.is_compiling() or inside_transform()


class Found(NamedTuple):
    """``z = (y, nu, lam)``, ``(R, m + p + q)``, differentiable; what holds there; and how each item ended."""

    z: Tensor
    at_lower: Tensor
    at_upper: Tensor
    status: Tensor
    num_steps: Tensor
    error: Tensor


class ProgramNode(NamedTuple):
    """What programs of one kind have in common."""

    call: str
    solver: QuadraticSolver | SparseSolver
    point: QuadraticPoint | SparsePoint
    holds_weak: bool

    def solve(self, data: ProgramData | SparseData) -> Found:
        """The solutions, differentiable in the data."""
        z, *masks, status, num_steps, error = (found := solve(self.solver, *(part.detach() for part in data)))[:10]
        holds = [
            strong | weak if self.holds_weak else strong & ~weak
            for strong, weak in zip(masks[:3], masks[3:], strict=True)
        ]
        sound = status != int(Status.NON_FINITE)
        numbers = data.numbers
        if cannot_read() or not bool(sound.all()):
            numbers = [torch.where(sound.reshape(-1, *[1] * (part.dim() - 1)), part, 0) for part in numbers]
        z = solve(self.point, *numbers, z, *holds, *data.places, *found[10:])[0]
        return Found(z, holds[0], holds[1], status, num_steps, error)

    def settle(self, data: ProgramData | SparseData, z: Tensor, lost: Tensor, policy: str) -> Tensor:
        """``z`` with what the policy says in place of the items that are infeasible."""
        items = torch.nonzero(lost).flatten()
        shown = ", ".join(map(str, items[:8].tolist())) + (", ..." if len(items) > 8 else "")
        said = f"`{self.call}`: the constraints of {len(items)} of {len(lost)} items contradict each other ({shown})."
        if policy == "raise":
            raise InfeasibleError(f"{said} Relax them, or pass `infeasible='closest'`.")
        if policy == "nan":
            return torch.where(lost.unsqueeze(1), torch.nan, z)
        if policy == "warn":
            warnings.warn(
                f"{said} They get the point that is closest to satisfying them, in the sense of least squares; "
                f"`infeasible='closest'` says that this is what you want.",
                ConvergenceWarning,
                stacklevel=3,
            )
        return z.index_copy(0, items, self._closest(data.selected(items)))

    def _closest(self, data: ProgramData | SparseData) -> Tensor:
        """The solutions with the least-squares violations added to the right-hand sides, which makes them feasible."""
        m, r = data.q.shape[1], data.right.shape[1]
        # The violations t are unique, y need not be.
        t = self.solve(data.softened()).z[:, m : m + r]
        return self.solve(data._replace(right=data.right + t)).z


def _solution(
    data: ProgramData | SparseData,
    found: Found,
    batch: torch.Size,
    p: int,
    bounded: bool,
    dtype: torch.dtype,
    solver: str,
) -> Solution:
    q, right, lower, upper = data.q, data.right, data.lower, data.upper
    m = q.shape[1]
    y, dual = found.z[:, :m], found.z[:, m:]
    Q_y = data.curve(y)
    L_y = Q_y + q + data.pull(dual)
    at_lower, at_upper = found.at_lower, found.at_upper & ~found.at_lower
    pushes = torch.where(at_lower, L_y, 0), torch.where(at_upper, -L_y, 0)
    with torch.no_grad():
        slack = data.apply(y) - right
        slack = torch.where(right == torch.inf, -torch.inf, slack)
        violation = torch.cat([slack[:, :p].abs(), slack[:, p:], lower - y, y - upper], dim=1).clamp(min=0)
        products = torch.where(dual[:, p:] == 0, 0, dual[:, p:] * slack[:, p:])
        free = torch.where(at_lower | at_upper, 0, L_y)
        numbers = {
            "objective": ((0.5 * Q_y + q) * y).sum(1),
            "status": found.status,
            "num_steps": found.num_steps,
            "stationarity": free.abs().amax(1),
            "feasibility": violation.amax(1),
            "complementarity": products.abs().amax(1) if products.shape[1] else torch.zeros_like(y[:, 0]),
        }
    fields = {name: tensor.reshape(batch) for name, tensor in numbers.items()}
    parts = {"equality_multipliers": dual[:, :p], "inequality_multipliers": dual[:, p:]}
    parts = {
        name: part.reshape(*batch, part.shape[1]).to(dtype) if part.shape[1] else None for name, part in parts.items()
    }
    limits = [part.reshape(*batch, m).to(dtype) if bounded else None for part in pushes]
    return Solution(
        y=y.reshape(*batch, m).to(dtype),
        **parts,
        lower_multipliers=limits[0],
        upper_multipliers=limits[1],
        **fields,
        solver=solver,
    )
