r"""Solvers of the package ``qpsolvers``, one call per program, several at a time.

They are told, and tell, the numbers of ::

    min_y  1/2 y'Q y + c'y   subject to   A y = b,   G y <= h,   lower <= y <= upper

What they return is where the active-set method starts, not what is believed: neither a solution nor the lack of one.

References:
    Caron et al., qpsolvers: quadratic programming solvers in Python. https://github.com/qpsolvers/qpsolvers
"""

import concurrent.futures
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from torchddn.compiler import settled_by_the_compiler
from torchddn.errors import InvalidInputError
from torchddn.quadratic.program import Data, Program
from torchddn.status import Status

__all__ = ["OWN", "Guess", "Matrices", "call_backend", "check_backend", "guess_all", "sparse_backend", "work_through"]

# The word for the method of this library.
OWN = "torchddn"
_PREFIX = "qpsolvers:"
# Those that solve sparse programs, the quickest on a chain of 10,000 variables first: the automatic choice.
_SPARSE = ("clarabel", "piqp", "osqp", "scs", "proxqp", "highs")
# Most solvers are content with few digits unless told, too few to tell which rows are active.
_OPTIONS: dict[str, dict[str, Any]] = {
    "clarabel": {"tol_feas": 1e-9, "tol_gap_abs": 1e-9, "tol_gap_rel": 1e-9},
    "daqp": {"primal_tol": 1e-9, "dual_tol": 1e-12},
    "highs": {"primal_feasibility_tolerance": 1e-9, "dual_feasibility_tolerance": 1e-9},
    "osqp": {"eps_abs": 1e-8, "eps_rel": 1e-8, "max_iter": 20_000},
    "piqp": {"eps_abs": 1e-10, "eps_rel": 1e-10},
    "proxqp": {"eps_abs": 1e-9, "eps_rel": 0.0},
    "scs": {"eps_abs": 1e-8, "eps_rel": 1e-8, "max_iters": 20_000},
}

_Result = TypeVar("_Result")


class Matrices(NamedTuple):
    """One program as NumPy arrays, or with sparse matrices of SciPy; None for what there is not."""

    Q: Any
    c: np.ndarray
    A: Any
    b: np.ndarray | None
    G: Any
    h: np.ndarray | None
    lower: np.ndarray | None
    upper: np.ndarray | None


class Guess(NamedTuple):
    """What a solver says; zeros if nothing. The multiplier of a bound is positive at the upper one."""

    y: np.ndarray
    nu: np.ndarray
    lam: np.ndarray
    bounds: np.ndarray
    claim: int  # a Status


def check_backend(call: str, backend: object) -> None:
    """Raises unless ``backend`` is ``"torchddn"`` or ``"qpsolvers:<name>"`` with an installed solver.

    Raises:
        InvalidInputError: If it is something else, or there is no such solver.
        ImportError: If ``qpsolvers`` is not installed.
    """
    if backend == OWN:
        return
    if not isinstance(backend, str) or not backend.startswith(_PREFIX):
        raise InvalidInputError(f"`{call}(backend=...)` must be 'torchddn' or 'qpsolvers:<name>', got {backend!r}.")
    installed = _installed(False)
    if backend.removeprefix(_PREFIX) not in installed:
        raise InvalidInputError(
            f"`{call}(backend=...)` must name a solver that is installed, one of {_listed(installed)}, got {backend!r}."
        )


def sparse_backend(call: str, backend: str) -> str:
    """The backend for sparse data: the one given, or the best that is installed.

    Raises:
        InvalidInputError: If the one given would make the matrices dense.
        ImportError: If there is none.
    """
    installed = _installed(True)
    if backend == OWN:
        best = next((name for name in _SPARSE if name in installed), None)
        if best is None:
            raise ImportError("Sparse quadratic programs need a sparse solver: pip install torchddn[qp].")
        return _PREFIX + best
    if backend.removeprefix(_PREFIX) not in installed:
        raise InvalidInputError(
            f"`{call}(backend=...)` must name a solver of sparse programs, one of {_listed(installed)}, since a "
            f"matrix is sparse, got {backend!r}. Or pass dense matrices, with `.to_dense()`."
        )
    return backend


def guess_all(backend: str, program: Program, data: Data) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``y``, ``z`` and ``s`` of each program, and a status which says what the solver claims."""
    m, p, r = program.m, program.p, program.p + program.q
    Q, c, R, b = (part.detach().cpu().double().numpy() for part in data[:4])
    present = data.present.cpu().numpy()

    def solve_item(i: int) -> np.ndarray:
        there = present[i, p:r]
        lower = upper = None
        if program.bounded:
            below, above = (slice(r, r + m), slice(r + m, r + 2 * m))
            lower = np.where(present[i, below], -b[i, below], -np.inf)
            upper = np.where(present[i, above], b[i, above], np.inf)
        item = Matrices(
            Q[i],
            c[i],
            R[i, :p] if p else None,
            b[i, :p] if p else None,
            R[i, p:][there] if there.any() else None,
            b[i, p:r][there] if there.any() else None,
            lower if lower is not None and np.isfinite(lower).any() else None,
            upper if upper is not None and np.isfinite(upper).any() else None,
        )
        guess = call_backend(backend, item)
        lam = np.zeros(r - p)
        lam[there] = guess.lam
        limits = [np.maximum(-guess.bounds, 0), np.maximum(guess.bounds, 0)] if program.bounded else []
        return np.concatenate([guess.y, guess.nu, np.maximum(lam, 0), *limits, [guess.claim]])

    rows = work_through(solve_item, len(c))
    numbers = np.stack(rows) if rows else np.zeros((0, m + program.num_rows + 1))
    found = torch.as_tensor(numbers).to(data.c)
    y, z, claim = found[:, :m], found[:, m:-1], found[:, -1].long()
    slack = data.b - program.times(data.R, y)
    behind = torch.arange(program.num_rows, device=y.device) >= p
    s = torch.where(data.present & behind, slack, 0.0).clamp(min=0)
    return y, torch.where(data.present, z, 0.0), s, claim


def call_backend(backend: str, item: Matrices) -> Guess:
    """What the solver makes of one program; what goes wrong there is a claim, STALLED or MAX_STEPS."""
    name = backend.removeprefix(_PREFIX)
    package = _qpsolvers()
    # Copies, since a solver may work in place.
    Q, c, A, b, G, h, lower, upper = (None if part is None else part.copy() for part in item)
    try:
        problem = package.Problem(Q, c, G, h, A, b, lower, upper)
        answer = package.solve_problem(problem, name, **_OPTIONS.get(name, {}))
    # What the solvers raise for a matrix they cannot factor, some of them under the package's own name.
    except (package.exceptions.QPError, ArithmeticError, RuntimeError, ValueError, np.linalg.LinAlgError):
        answer = package.Solution(None)
    claim = Status.CONVERGED if answer.found else Status.STALLED
    how = str(answer.extras.get("status", getattr(answer.extras.get("info"), "status", ""))).lower()
    if not answer.found and "max" in how:
        claim = Status.MAX_STEPS
    return Guess(
        _vector(answer.x, item.c.size),
        _vector(answer.y, 0 if b is None else b.size),
        _vector(answer.z, 0 if h is None else h.size),
        _vector(answer.z_box, item.c.size),
        int(claim),
    )


def work_through(work: Callable[[int], _Result], num_items: int) -> Sequence[_Result]:
    """``work(i)`` for every item, as many at a time as torch has threads."""
    num_workers = min(torch.get_num_threads(), num_items, os.cpu_count() or 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a library says of an item's last digits; the status says what matters
        if num_workers <= 1:
            return [work(i) for i in range(num_items)]
        with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
            return list(pool.map(work, range(num_items)))


def _vector(given: Any, size: int) -> np.ndarray:
    """A vector of the answer; zeros where the solver has none."""
    if given is None or np.size(given) != size:
        return np.zeros(size)
    vector = np.asarray(given, dtype=float).reshape(size)
    return np.where(np.isfinite(vector), vector, 0.0)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(_PREFIX + name) for name in names) or "none"


@settled_by_the_compiler
def _installed(sparse: bool) -> list[str]:
    package = _qpsolvers()
    return sorted(package.sparse_solvers if sparse else package.available_solvers)


def _qpsolvers() -> Any:
    """Imported on use: it is an extra, and imports all solvers that are installed."""
    known = sys.modules.get("qpsolvers")
    if known is not None:
        return known
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what those packages say of themselves
            return importlib.import_module("qpsolvers")
    except ImportError as error:
        raise ImportError("`backend='qpsolvers:...'` needs qpsolvers: pip install torchddn[qp].") from error
