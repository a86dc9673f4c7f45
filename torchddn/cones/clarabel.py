"""Cone programs solved by Clarabel, each in a thread."""

import concurrent.futures
import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchddn.cones.optimality import ConeData
from torchddn.cones.product import ProductCone
from torchddn.status import Status

__all__ = ["Found", "Settings", "check_settings", "solve_programs"]

# Options of Clarabel by name.
Settings = tuple[tuple[str, Any], ...]

_STATUS = {
    "Solved": Status.CONVERGED,
    "PrimalInfeasible": Status.INFEASIBLE,
    "AlmostPrimalInfeasible": Status.INFEASIBLE,
    "DualInfeasible": Status.UNBOUNDED,
    "AlmostDualInfeasible": Status.UNBOUNDED,
    "MaxIterations": Status.MAX_STEPS,
    "MaxTime": Status.MAX_STEPS,
}


class Found(NamedTuple):
    """What Clarabel says, ``(R, ...)``: ``w = s - z`` holds slacks and multipliers; NaN where there is no solution."""

    x: Tensor
    w: Tensor
    status: Tensor
    num_steps: Tensor


def check_settings(settings: Settings) -> str | None:
    """What is wrong with the options, if anything is."""
    given = importlib.import_module("clarabel").DefaultSettings()
    for name, value in settings:
        if not hasattr(given, name):
            return f"Clarabel has no option {name!r}"
        try:
            setattr(given, name, value)
        except (TypeError, ValueError, OverflowError) as error:
            return f"Clarabel does not take {value!r} for its option {name!r} ({error})"
    return None


def solve_programs(cone: ProductCone, data: ConeData, settings: Settings, num_workers: int | None) -> Found:
    """Solves each program; an item that is not finite gets NaN and NON_FINITE, and is not shown to Clarabel."""
    sparse = importlib.import_module("scipy.sparse")
    R, n, m = data.q.shape[0], data.q.shape[1], data.b.shape[1]
    P, q, A, b = (part.detach().cpu().double().numpy() for part in data[:4])
    rows, columns, A_rows, A_columns = (part[:1].cpu().numpy().reshape(-1) for part in data[4:])
    upper = rows <= columns
    # Entries are in the order of columns, and of rows in them.
    P_start, A_start = (np.searchsorted(of, np.arange(n + 1)) for of in (columns[upper], A_columns))
    cones = _cones(cone)
    options = _options(settings)

    def solve_item(i: int) -> tuple[np.ndarray, np.ndarray, int, int]:
        nothing = np.full(n, np.nan), np.full(m, np.nan)
        if not (np.isfinite(P[i]).all() and np.isfinite(q[i]).all() and np.isfinite(A[i]).all()):
            return *nothing, int(Status.NON_FINITE), 0
        if not np.isfinite(b[i]).all():
            return *nothing, int(Status.NON_FINITE), 0
        P_matrix = sparse.csc_matrix((P[i][upper], rows[upper], P_start), shape=(n, n))
        A_matrix = sparse.csc_matrix((A[i], A_rows, A_start), shape=(m, n))
        solver = importlib.import_module("clarabel").DefaultSolver(P_matrix, q[i], A_matrix, b[i], cones, options)
        found = solver.solve()
        status = int(_STATUS.get(str(found.status), Status.STALLED))
        if status in (Status.INFEASIBLE, Status.UNBOUNDED):
            return *nothing, status, found.iterations
        return np.asarray(found.x), np.asarray(found.s) - np.asarray(found.z), status, found.iterations

    num_workers = torch.get_num_threads() if num_workers is None else num_workers
    if min(num_workers, R) > 1:
        with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
            answers = list(pool.map(solve_item, range(R)))
    else:
        answers = [solve_item(i) for i in range(R)]
    x = np.stack([answer[0] for answer in answers]) if R else np.zeros((0, n))
    w = np.stack([answer[1] for answer in answers]) if R else np.zeros((0, m))
    counts = torch.tensor([answer[2:] for answer in answers], dtype=torch.int64, device=data.q.device).reshape(R, 2)
    return Found(torch.as_tensor(x).to(data.q), torch.as_tensor(w).to(data.q), *counts.unbind(1))


def _cones(cone: ProductCone) -> Sequence[Any]:
    clarabel = importlib.import_module("clarabel")
    cones = [clarabel.ZeroConeT(cone.zero)] if cone.zero else []
    cones += [clarabel.NonnegativeConeT(cone.nonnegative)] if cone.nonnegative else []
    cones += [clarabel.SecondOrderConeT(length) for length in cone.second_order]
    cones += [clarabel.PSDTriangleConeT(order) for order in cone.semidefinite]
    cones += [clarabel.ExponentialConeT() for _ in range(cone.exponential)]
    for exponents in cone.power:
        if len(exponents) == 2:
            cones.append(clarabel.PowerConeT(exponents[0]))
        else:
            cones.append(clarabel.GenPowerConeT(list(exponents), 1))
    return cones


def _options(settings: Settings) -> Any:
    options = importlib.import_module("clarabel").DefaultSettings()
    options.verbose = False
    for name, value in settings:
        setattr(options, name, value)
    return options
