"""The small quadratic programs of the Maros-Meszaros set that have a formula, and all that qpsolvers brings.

References:
    Maros, Meszaros, A repository of convex quadratic programming problems, 1999. Hock, Schittkowski, Test Examples for
    Nonlinear Programming Codes, 1981.
"""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from torchddn import Status
from torchddn.functional import quadratic_program

qpsolvers_problems = pytest.importorskip("qpsolvers.problems")
D = torch.float64
INF = math.inf


class Case(NamedTuple):
    """A program and its known least objective, without the constant."""

    Q: list
    q: list
    A: list
    b: list
    G: list
    h: list
    lower: list
    upper: list
    least: float


def least_squares(rows: list, right: list) -> tuple[list, list, float]:
    """Q, q and the constant of |rows y - right|^2."""
    M, r = np.array(rows, dtype=float), np.array(right, dtype=float)
    return (2 * M.T @ M).tolist(), (-2 * M.T @ r).tolist(), float(r @ r)


def hs21() -> Case:
    return Case([[0.02, 0], [0, 2]], [0, 0], [], [], [[-10, 1]], [-10], [2, -50], [50, 50], 0.04)


def hs35(fixed: bool) -> Case:
    Q, q = [[4, 2, 2], [2, 4, 0], [2, 0, 2]], [-8, -6, -4]
    lower, upper = ([0, 0.5, 0], [INF, 0.5, INF]) if fixed else ([0] * 3, [INF] * 3)
    return Case(Q, q, [], [], [[1, 1, 2]], [3], lower, upper, (0.25 if fixed else 1 / 9) - 9)


def hs51_to_53(number: int) -> Case:
    first = [4, -1, 0, 0, 0] if number == 52 else [1, -1, 0, 0, 0]
    Q, q, constant = least_squares([first, [0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]], [0, 2, 1, 1])
    A, b = [[1, 3, 0, 0, 0], [0, 0, 1, 1, -2], [0, 1, 0, 0, -1]], [4 if number == 51 else 0, 0, 0]
    limit = 10 if number == 53 else INF
    least = {51: 0.0, 52: 1859 / 349, 53: 176 / 43}[number] - constant
    return Case(Q, q, A, b, [], [], [-limit] * 5, [limit] * 5, least)


def hs76() -> Case:
    Q = [[2, 0, -1, 0], [0, 1, 0, 0], [-1, 0, 2, 1], [0, 0, 1, 1]]
    G, h = [[1, 2, 1, 1], [3, 1, 2, -1], [0, -1, -4, 0]], [5, 4, -1.5]
    return Case(Q, [-1, -3, 1, -1], [], [], G, h, [0] * 4, [INF] * 4, -4.681818181818)


def hs118() -> Case:
    m = 15
    Q = np.diag([2e-4, 2e-4, 3e-4] * 5)
    G, h = [], []

    def between(low: float, places: dict[int, float], high: float) -> None:
        row = np.zeros(m)
        for place, value in places.items():
            row[place] = value
        G.extend([row.tolist(), (-row).tolist()])
        h.extend([high, -low])

    for k in range(1, 5):
        for j, high in enumerate((6, 7, 6)):
            between(-7, {3 * k + j: 1.0, 3 * k + j - 3: -1.0}, high)
    for k, least in enumerate((60, 50, 70, 85, 100)):
        between(least, {3 * k: 1.0, 3 * k + 1: 1.0, 3 * k + 2: 1.0}, INF)
    lower = [8, 43, 3] + [0] * 12
    upper = [21, 57, 16] + [90, 120, 60] * 4
    return Case(Q.tolist(), [2.3, 1.7, 2.2] * 5, [], [], G, h, lower, upper, 664.82045)


def hs268() -> Case:
    Q = [
        [20394, -24908, -2026, 3896, 658],
        [-24908, 41818, -3466, -9828, -372],
        [-2026, -3466, 3510, 2178, -348],
        [3896, -9828, 2178, 3030, -44],
        [658, -372, -348, -44, 54],
    ]
    G = [[1, 1, 1, 1, 1], [-10, -10, 3, -5, -4], [8, -1, 2, 5, -3], [-8, 1, -2, -5, 3], [4, 2, -3, 5, -1]]
    return Case(Q, [18340, -34198, 4542, 8672, 86], [], [], G, [5, -20, 40, 11, 30], [-INF] * 5, [INF] * 5, -14463.0)


def tame() -> Case:
    return Case([[2, -2], [-2, 2]], [0, 0], [[1, 1]], [1], [], [], [0, 0], [INF, INF], 0.0)


def genhs28() -> Case:
    steps = np.eye(9, 10) + np.eye(9, 10, k=1)
    A = np.eye(8, 10) + 2 * np.eye(8, 10, k=1) + 3 * np.eye(8, 10, k=2)
    Q, q, _ = least_squares(steps.tolist(), [0] * 9)
    return Case(Q, q, A.tolist(), [1] * 8, [], [], [-INF] * 10, [INF] * 10, 0.92717369)


FORMULAS = {
    "HS21": hs21(),
    "HS35": hs35(False),
    "HS35MOD": hs35(True),
    "HS51": hs51_to_53(51),
    "HS52": hs51_to_53(52),
    "HS53": hs51_to_53(53),
    "HS76": hs76(),
    "HS118": hs118(),
    "HS268": hs268(),
    "TAME": tame(),
    "GENHS28": genhs28(),
}
PACKAGED = sorted(name for name in dir(qpsolvers_problems) if name.startswith("get_qp"))


def tensors(case: Case) -> dict[str, Tensor | None]:
    m = len(case.q)
    shapes = {"Q": (m, m), "q": (m,), "A": (-1, m), "b": (-1,), "G": (-1, m), "h": (-1,), "lower": (m,), "upper": (m,)}
    return {
        name: torch.tensor(getattr(case, name), dtype=D).reshape(shape) if getattr(case, name) else None
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("name", FORMULAS)
def test_known_least_objective_is_found(name):
    case = FORMULAS[name]
    data = tensors(case)
    found = quadratic_program(**data, solution=True)
    assert found.status.item() == Status.CONVERGED
    assert found.objective.item() == pytest.approx(case.least, rel=1e-7, abs=1e-7)
    assert found.feasibility.item() < 1e-9
    assert found.stationarity.item() < 1e-8 * max(1.0, data["Q"].abs().max().item())


# In the two others a row holds with multiplier zero: the derivative is one-sided.
@pytest.mark.parametrize("name", [name for name in FORMULAS if name not in ("HS35MOD", "HS268")])
def test_gradients_are_those_of_finite_differences(name):
    data = tensors(FORMULAS[name])
    names = [key for key in ("q", "b", "h") if data[key] is not None]
    free = [data[key].where(data[key].isfinite(), torch.tensor(1e4, dtype=D)).requires_grad_() for key in names]
    assert gradcheck(
        lambda *given: quadratic_program(**{**data, **dict(zip(names, given, strict=True))}),
        free,
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("name", PACKAGED)
def test_problems_of_the_package_are_solved_and_differentiable(name):
    given = getattr(qpsolvers_problems, name)()
    problem, known = given if isinstance(given, tuple) else (given.problem, given)

    def tensor(part: object) -> Tensor | None:
        if part is None:
            return None
        return torch.as_tensor(np.asarray(part.todense() if hasattr(part, "todense") else part), dtype=D)

    names = {"Q": "P", "q": "q", "A": "A", "b": "b", "G": "G", "h": "h", "lower": "lb", "upper": "ub"}
    data = {key: tensor(getattr(problem, name)) for key, name in names.items()}
    q = data["q"].requires_grad_()
    found = quadratic_program(**data, solution=True)
    y = found.y
    assert found.status.item() == Status.CONVERGED
    assert found.feasibility.item() < 1e-9
    if known.x is not None:
        mine, theirs = (
            0.5 * point @ data["Q"] @ point + data["q"] @ point for point in (y.detach(), tensor(known.x).flatten())
        )
        assert mine.item() <= theirs.item() + 1e-6 * (1 + abs(theirs.item()))
    # The step that the derivative predicts, for a change of q that leaves the active rows alone.
    direction = torch.randn(len(q), dtype=D, generator=torch.Generator().manual_seed(0))
    v = torch.randn(len(q), dtype=D, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(y, q, v)
    step = 1e-6 * direction
    ahead, behind = (quadratic_program(**{**data, "q": q.detach() + by}) for by in (step, -step))
    assert (gradient @ direction).item() == pytest.approx(((ahead - behind) @ v).item() / 2e-6, rel=1e-4, abs=1e-5)
