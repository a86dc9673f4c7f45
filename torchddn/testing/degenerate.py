"""Problems that are special in one way each: at their solution, in their constraints, or at their start.

The data of each are such that small changes keep it what it is: a weakly active constraint stays weakly active,
a start at a saddle stays there.
"""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from torchddn.problem import Problem
from torchddn.status import Status
from torchddn.testing.hock_schittkowski import hock_schittkowski
from torchddn.testing.reference import INF, ItemFunction, ReferenceProblem, stated

__all__ = ["degenerate"]

_SQRT2 = math.sqrt(2)


def _special(
    name: str,
    data: tuple[float, ...],
    start: tuple[float, ...],
    objective: ItemFunction | None,
    *tags: str,
    **rest: Any,
) -> ReferenceProblem:
    return stated(name, data, start, objective, tags=tags, source="torchddn", **rest)


def degenerate() -> list[ReferenceProblem]:
    """The problems, in the order of the table of what an adjoint must know."""
    return [
        *_inactive(),
        *_weakly_active(),
        *_singular_hessian(),
        *_non_isolated(),
        *_redundant(),
        *_overdetermined(),
        *_feasibility(),
        *_kinked(),
        *_several_solutions(),
        *_irregular_constraints(),
        *_stationary_starts(),
        *_badly_scaled(),
    ]


def _distance(y: Tensor, x: Tensor) -> Tensor:
    """Half the squared distance to the first m data."""
    return 0.5 * (y - x[: len(y)]).square().sum()


def _linear(y: Tensor, x: Tensor) -> Tensor:
    return x[: len(y)] @ y


def _inactive() -> list[ReferenceProblem]:
    return [
        _special(
            "point inside a ball",
            (0.3, -0.4, 0.2, 2),
            (1, 1, 1),
            _distance,
            "inactive",
            inequality=lambda y, x: y.square().sum() - x[3] ** 2,
            optimum=0.0,
            solution=(0.3, -0.4, 0.2),
        ),
        _special(
            "point outside a ball",
            (3, -4, 2),
            (1, 0),
            _distance,
            inequality=lambda y, x: y.square().sum() - x[2] ** 2,
            optimum=4.5,
            solution=(1.2, -1.6),
        ),
        _special(
            "point beside a box",
            (0.3, -4, 2, -1, 1),
            (0, 0, 0),
            _distance,
            bounds=lambda x: (x[3], x[4]),
            optimum=5.0,
            solution=(0.3, -1, 1),
        ),
        _special(
            "projection onto the simplex",
            (0.5, -2, 1, 0.1, 1),
            (0.25, 0.25, 0.25, 0.25),
            _distance,
            equality=lambda y, x: y.sum() - x[4],
            bounds=lambda x: (0.0, INF),
            optimum=2.0675,
            solution=(0.25, 0, 0.75, 0),
        ),
    ]


def _weakly_active() -> list[ReferenceProblem]:
    return [
        _special(
            "point on the edge of a halfplane",
            (0.5, -1, 2, 1),
            (0, 0),
            _distance,
            "weakly active",
            inequality=lambda y, x: x[2] * (y[0] - x[0]) + x[3] * (y[1] - x[1]),
            optimum=0.0,
            solution=(0.5, -1),
            regular=False,
        ),
        _special(
            "point on the edge of a box",
            (0.5, -1, 2),
            (0, -2, 0),
            _distance,
            "weakly active",
            bounds=lambda x: (-3.0, (x[0], x[1], 5.0)),
            optimum=0.0,
            solution=(0.5, -1, 2),
            regular=False,
        ),
        _special(
            "point on the edge of a ball",
            (0.6, 0.8),
            (0, 0.5),
            _distance,
            "weakly active",
            inequality=lambda y, x: y.square().sum() - x.square().sum(),
            optimum=0.0,
            solution=(0.6, 0.8),
            regular=False,
        ),
        _special(
            "one row strong and one weak",
            (1, 2),
            (-1, -1),
            lambda y, x: 0.5 * (y[0] - x[0] - 1) ** 2 + 0.5 * (y[1] - x[1]) ** 2,
            "weakly active",
            inequality=lambda y, x: y - x,
            optimum=0.5,
            solution=(1, 2),
            regular=False,
        ),
    ]


def _singular_hessian() -> list[ReferenceProblem]:
    return [
        _special(
            "linear on the circle",
            (1, 2, 1),
            (0.3, -0.8),
            _linear,
            "singular Hessian",
            "nonconvex",
            equality=lambda y, x: y.square().sum() - x[2],
            optimum=-math.sqrt(5),
            solution=(-1 / math.sqrt(5), -2 / math.sqrt(5)),
        ),
        _special(
            "linear on the disc",
            (1, 2, 1),
            (0.3, -0.8),
            _linear,
            "singular Hessian",
            inequality=lambda y, x: y.square().sum() - x[2],
            optimum=-math.sqrt(5),
            solution=(-1 / math.sqrt(5), -2 / math.sqrt(5)),
        ),
        _special(
            "smallest eigenvalue",
            (0.50740436, 0.31461995, 0.4479928),
            (0.6, -0.8, 0.2),
            lambda y, x: (x * y.square()).sum(),
            "singular Hessian",
            "several solutions",
            "nonconvex",
            equality=lambda y, x: (y[0] ** 2 + y[1] ** 2 - 1, y.sum()),
            optimum=0.4007593810589,
            solution=(0.628350800774, -0.777930119719, 0.149579318945),
            spread=1e-3,
        ),
        _special(
            "linear program at a vertex",
            (-3, -5, 4, 12, 18),
            (0, 0),
            _linear,
            "singular Hessian",
            inequality=lambda y, x: (y[0] - x[2], 2 * y[1] - x[3], 3 * y[0] + 2 * y[1] - x[4]),
            bounds=lambda x: (0.0, INF),
            optimum=-36.0,
            solution=(2, 6),
        ),
        _special(
            "linear program with equalities",
            (1, 2, 3, 1, 1),
            (0.5, 0.5, 0.5),
            _linear,
            "singular Hessian",
            equality=lambda y, x: (y.sum() - x[3], y[0] - y[1] - 0.5 * x[4]),
            bounds=lambda x: (0.0, INF),
            optimum=1.25,
            solution=(0.75, 0.25, 0),
        ),
        _special(
            "saddle on a line",
            (1, 3, 2),
            (5, -2),
            lambda y, x: x[0] * y[0] * y[1],
            "singular Hessian",
            "nonconvex",
            equality=lambda y, x: y[0] - x[1] * y[1] - x[2],
            optimum=-1 / 3,
            solution=(1, -1 / 3),
        ),
    ]


def _non_isolated() -> list[ReferenceProblem]:
    return [
        _special(
            "valley floor",
            (1, 2, 3),
            (5, -5),
            lambda y, x: 0.5 * (x[0] * y[0] + x[1] * y[1] - x[2]) ** 2,
            "non-isolated",
            optimum=0.0,
            solution=(0.6, 1.2),
            regular=False,
        ),
        _special(
            "center of a sphere",
            (2,),
            (0.3, 0.4),
            lambda y, x: 0.5 * y.square().sum(),
            "non-isolated",
            equality=lambda y, x: y.square().sum() - x[0],
            optimum=1.0,
            solution=(1, 1),
            regular=False,
        ),
        _special(
            "linear program with a face of solutions",
            (1, 2),
            (3, 4),
            lambda y, x: x[0] * y.sum(),
            "non-isolated",
            inequality=lambda y, x: x[1] - y.sum(),
            bounds=lambda x: (0.0, INF),
            optimum=2.0,
            solution=(1, 1),
            regular=False,
        ),
        _special(
            "least squares of deficient rank",
            (1, 2, 3, 1, 2, 4),
            (0, 0),
            lambda y, x: 0.5 * ((y[0] + 2 * y[1]) * x[:3] - x[3:]).square().sum(),
            "non-isolated",
            optimum=5 / 28,
            solution=(17 / 14, 0),
            regular=False,
        ),
        _special(
            "Huber mean of two far clusters",
            (10, 1),
            (0.5,),
            lambda y, x: _huber(y[0] - x[0], x[1]) + _huber(y[0] + x[0], x[1]),
            "non-isolated",
            "nonsmooth",
            optimum=19.0,
            solution=(0,),
            regular=False,
        ),
    ]


def _huber(z: Tensor, alpha: Tensor) -> Tensor:
    near = torch.minimum(z.abs(), alpha)
    return 0.5 * near**2 + alpha * (z.abs() - near)


def _redundant() -> list[ReferenceProblem]:
    return [
        _special(
            "an equality twice",
            (1, 2, 3, 1),
            (5, 5, 5),
            _distance,
            "redundant",
            "LICQ fails",
            equality=lambda y, x: (y.sum() - x[3], 2 * y.sum() - 2 * x[3]),
            optimum=25 / 6,
            solution=(-2 / 3, 1 / 3, 4 / 3),
            regular=False,
        ),
        _special(
            "three equalities of rank two",
            (1, 1, -2, 0.5),
            (1, 0, 1),
            _distance,
            "redundant",
            "LICQ fails",
            equality=lambda y, x: (y[0] - y[1], y[1] - y[2] - x[3], y[0] - y[2] - x[3]),
            optimum=25 / 12,
            solution=(1 / 6, 1 / 6, -1 / 3),
            regular=False,
        ),
        _special(
            "an inequality twice",
            (2, 3, 1),
            (0, 0),
            _distance,
            "redundant",
            "LICQ fails",
            inequality=lambda y, x: (y.sum() - x[2], 3 * (y.sum() - x[2])),
            optimum=4.0,
            solution=(0, 1),
            regular=False,
        ),
        _special(
            "a bound that is a row as well",
            (2, 3, 1),
            (0, 0),
            _distance,
            "redundant",
            "LICQ fails",
            inequality=lambda y, x: y[0] - x[2],
            bounds=lambda x: (-INF, (x[2], INF)),
            optimum=0.5,
            solution=(1, 3),
            regular=False,
        ),
        _special(
            "a sphere and its double",
            (3, 4, 1),
            (0.5, 0.5),
            _distance,
            "redundant",
            "LICQ fails",
            equality=lambda y, x: (y.square().sum() - x[2], y.square().sum() ** 2 - x[2] ** 2),
            optimum=8.0,
            solution=(0.6, 0.8),
            regular=False,
        ),
    ]


def _overdetermined() -> list[ReferenceProblem]:
    return [
        _special(
            "a circle cut to a point",
            (2, 0),
            (0.9, 0.1),
            _distance,
            "overdetermined",
            "LICQ fails",
            "several solutions",
            equality=lambda y, x: y.square().sum() - 1,
            inequality=lambda y, x: (y[0] + y[1] - 1, y[0] - y[1] - 1),
            optimum=0.5,
            solution=(1, 0),
            regular=False,
        ),
        _special(
            "apex of a pyramid",
            (1, 2, 0.5),
            (0.1, 0.2, -1),
            lambda y, x: -y[2],
            "overdetermined",
            "LICQ fails",
            "singular Hessian",
            inequality=lambda y, x: (
                y[2] + x[1] * y[0] - x[0],
                y[2] - x[1] * y[0] - x[0],
                y[2] + x[2] * y[1] - x[0],
                y[2] - x[2] * y[1] - x[0],
            ),
            optimum=-1.0,
            solution=(0, 0, 1),
            regular=False,
        ),
        _special(
            "three lines through a point",
            (1, 2),
            (0, 0),
            lambda y, x: y[0] ** 2 + y[1],
            "overdetermined",
            "LICQ fails",
            equality=lambda y, x: (y[0] - x[0], y[1] - x[1], y.sum() - x.sum()),
            optimum=3.0,
            solution=(1, 2),
            regular=False,
        ),
        _special(
            "equations for every variable",
            (3, 1),
            (2, 2),
            lambda y, x: y.square().sum(),
            "overdetermined",
            equality=lambda y, x: (y[0] + 2 * y[1] - x[0], y[0] ** 3 - y[1] + 1 - x[1]),
            optimum=2.0,
            solution=(1, 1),
            spread=1e-3,
        ),
    ]


def _feasibility() -> list[ReferenceProblem]:
    return [
        _special(
            "circle and line",
            (2, 1),
            (2, 0.5),
            None,
            "feasibility",
            "several solutions",
            "singular Hessian",
            equality=lambda y, x: (y.square().sum() - x[0], y[0] - x[1] * y[1]),
            optimum=0.0,
            solution=(1, 1),
        ),
        _special(
            "any point of a disc in a halfplane",
            (1, 0.5),
            (3, -3),
            None,
            "feasibility",
            "non-isolated",
            inequality=lambda y, x: (y.square().sum() - x[0], x[1] - y[0]),
            optimum=0.0,
            regular=False,
        ),
        _special(
            "any point of a hyperplane in a box",
            (1, 2, 3, 4),
            (0, 0, 0),
            None,
            "feasibility",
            "non-isolated",
            equality=lambda y, x: x[:3] @ y - x[3],
            bounds=lambda x: (0.0, 1.0),
            optimum=0.0,
            regular=False,
        ),
    ]


def _kinked() -> list[ReferenceProblem]:
    return [
        _special(
            "Huber mean",
            (0.1, 0.2, 0.15, 8, 1),
            (2,),
            lambda y, x: _huber(y[0] - x[:4], x[4]).sum(),
            "nonsmooth",
            optimum=7.185833333333333,
            solution=(0.4833333333333334,),
        ),
        _special(
            "squared hinges",
            (1, 2, 0.1),
            (0, 0),
            lambda y, x: (
                (x[0] - y[0]).clamp_min(0) ** 2 + (y[0] + y[1] - x[1]).clamp_min(0) ** 2 + x[2] * y.square().sum()
            ),
            "nonsmooth",
            optimum=1 / 11,
            solution=(10 / 11, 0),
        ),
        _special(
            "absolute values by their epigraph",
            (1, 3, 2),
            (0, 5, 5, 5),
            lambda y, x: y[1:].sum(),
            "nonsmooth",
            "singular Hessian",
            inequality=lambda y, x: torch.cat((y[0] - x - y[1:], x - y[0] - y[1:])),
            optimum=2.0,
            solution=(2, 1, 1, 0),
        ),
    ]


def _several_solutions() -> list[ReferenceProblem]:
    return [
        _special(
            "double well",
            (1, 2),
            (0.5,),
            lambda y, x: 0.25 * x[0] * y[0] ** 4 - 0.5 * x[1] * y[0] ** 2,
            "several solutions",
            "nonconvex",
            optimum=-1.0,
            solution=(_SQRT2,),
        ),
        _special(
            "concave in a box",
            (-1, 2, 0.3, 0.1),
            (0.6, 0.7),
            lambda y, x: -y.square().sum() - x[2:] @ y,
            "several solutions",
            "nonconvex",
            bounds=lambda x: (x[0], x[1]),
            optimum=-8.8,
            solution=(2, 2),
        ),
        _special(
            "farthest point of a ring",
            (1, 2, 3),
            (0.1, 1.2),
            lambda y, x: -0.5 * (y[0] - x[2]) ** 2 - 0.5 * y[1] ** 2,
            "nonconvex",
            inequality=lambda y, x: (x[0] - y.square().sum(), y.square().sum() - x[1] ** 2),
            optimum=-12.5,
            solution=(-2, 0),
        ),
    ]


def _irregular_constraints() -> list[ReferenceProblem]:
    return [
        _special(
            "touching discs",
            (1, 0.5),
            (0.2, 0.5),
            lambda y, x: y[0] + x[1] * y[1] ** 2,
            "MFCQ fails",
            "LICQ fails",
            inequality=lambda y, x: (
                (y[0] - x[0]) ** 2 + y[1] ** 2 - x[0] ** 2,
                (y[0] + x[0]) ** 2 + y[1] ** 2 - x[0] ** 2,
            ),
            optimum=0.0,
            solution=(0, 0),
            outcomes=(Status.CONVERGED, Status.MAX_STEPS, Status.STALLED),
        ),
        _special(
            "complementary variables",
            (2, 1),
            (1, 1),
            _distance,
            "MFCQ fails",
            "LICQ fails",
            "several solutions",
            inequality=lambda y, x: y[0] * y[1],
            bounds=lambda x: (0.0, INF),
            optimum=0.5,
            solution=(2, 0),
            regular=False,
        ),
        _special(
            "an equality as two inequalities",
            (1, 2, 3, 1),
            (0, 0, 0),
            _distance,
            "MFCQ fails",
            "LICQ fails",
            "redundant",
            inequality=lambda y, x: (y.sum() - x[3], x[3] - y.sum()),
            optimum=25 / 6,
            solution=(-2 / 3, 1 / 3, 4 / 3),
            regular=False,
        ),
        _special(
            "a circle as two inequalities",
            (3, 4),
            (0.5, 0),
            _distance,
            "MFCQ fails",
            "LICQ fails",
            "redundant",
            "nonconvex",
            inequality=lambda y, x: (y.square().sum() - 1, 1 - y.square().sum()),
            optimum=8.0,
            solution=(0.6, 0.8),
            regular=False,
        ),
        _special(
            "a fixed variable",
            (1, 2, 3),
            (0, 0, 0),
            lambda y, x: (y - x).square().sum() + y[0] * y[1],
            "fixed variable",
            bounds=lambda x: ((-INF, 0.5 * x[0], -INF), (INF, 0.5 * x[0], 1.0)),
            optimum=6.6875,
            solution=(0.75, 0.5, 1),
        ),
        _special(
            "a square that must vanish",
            (1, 2),
            (3, 3),
            lambda y, x: (y[0] - x[0]) ** 2 + (y[1] - x[1]) ** 2,
            "MFCQ fails",
            "LICQ fails",
            "no multipliers",
            equality=lambda y, x: (y[0] + y[1] - x[0]) ** 2,
            optimum=2.0,
            solution=(0, 1),
            outcomes=(Status.CONVERGED, Status.MAX_STEPS, Status.STALLED),
        ),
        _special(
            "a circle of radius zero",
            (1, 2),
            (1, 1),
            lambda y, x: x @ y,
            "MFCQ fails",
            "LICQ fails",
            "no multipliers",
            equality=lambda y, x: y.square().sum(),
            optimum=0.0,
            solution=(0, 0),
            outcomes=(Status.CONVERGED, Status.MAX_STEPS, Status.STALLED),
        ),
    ]


def _stationary_starts() -> list[ReferenceProblem]:
    return [
        _special(
            "start at a saddle",
            (1, 2, 1),
            (0, 0),
            lambda y, x: 0.5 * x[0] * y[0] ** 2 - 0.5 * x[1] * y[1] ** 2 + 0.25 * x[2] * y[1] ** 4,
            "saddle start",
            "nonconvex",
            "several solutions",
            optimum=-1.0,
            solution=(0, _SQRT2),
        ),
        _special(
            "start at a maximum",
            (1, 4),
            (0, 0),
            lambda y, x: 0.25 * x[0] * y.pow(4).sum() - 0.5 * x[1] * y.square().sum(),
            "maximum start",
            "nonconvex",
            "several solutions",
            optimum=-8.0,
            solution=(2, 2),
        ),
        _special(
            "start at a maximum on the sphere",
            (1,),
            (1 / 3, 2 / 3, 2 / 3),
            lambda y, x: x[0] * (y[0] + 2 * y[1] + 2 * y[2]),
            "maximum start",
            "nonconvex",
            "singular Hessian",
            equality=lambda y, x: y.square().sum() - 1,
            optimum=-3.0,
            solution=(-1 / 3, -2 / 3, -2 / 3),
        ),
        _special(
            "start at a saddle in a box",
            (1, 1, 2),
            (0, 0),
            lambda y, x: x[0] * y[0] ** 2 - x[1] * y[1] ** 2,
            "saddle start",
            "nonconvex",
            "several solutions",
            bounds=lambda x: (-1.0, (3.0, x[2])),
            optimum=-4.0,
            solution=(0, 2),
        ),
        _special(
            "start at a maximum in a disc",
            (1, 2, 1),
            (0, 0),
            lambda y, x: -x[0] * y[0] ** 2 - x[1] * y[1] ** 2,
            "maximum start",
            "nonconvex",
            "several solutions",
            inequality=lambda y, x: y.square().sum() - x[2],
            optimum=-2.0,
            solution=(0, 1),
        ),
        _special(
            "start at a saddle on a bound",
            (2, 1, 3),
            (0, 0),
            lambda y, x: x[0] * y[0] - 0.5 * x[1] * y[1] ** 2 + 0.25 * y[1] ** 4,
            "saddle start",
            "nonconvex",
            "several solutions",
            bounds=lambda x: ((0.0, -3.0), x[2]),
            optimum=-0.25,
            solution=(0, 1),
        ),
        _special(
            "start at the solution",
            (1, 2),
            (0, 0),
            lambda y, x: x[0] * y[0] + x[1] * y[1] + y.square().sum(),
            "start at the solution",
            inequality=lambda y, x: -y[0] - y[1] ** 2,
            bounds=lambda x: ((-INF, 0.0), INF),
            optimum=0.0,
            solution=(0, 0),
        ),
    ]


def _badly_scaled() -> list[ReferenceProblem]:
    by_name = {example.name: example for example in hock_schittkowski()}
    return [
        _rescaled(by_name["HS 43"], 1.0, inequality=(1e6, 1.0, 1e-6)),
        _rescaled(by_name["HS 79"], 1.0, equality=(1e6, 1e-6, 1.0)),
        _rescaled(by_name["HS 71"], 1.0, equality=(1e-6,), inequality=(1e6,)),
        _rescaled(by_name["HS 100"], 1e6, inequality=(1.0, 1e-6, 1e3, 1e6)),
        _rescaled(by_name["HS 113"], 1e-6, inequality=(1e6, 1e-6, 1.0, 1e3, 1e-3, 1e5, 1e-5, 1.0)),
        _rescaled(by_name["HS 76"], 1e-6, inequality=(1e6, 1.0, 1e-6)),
    ]


def _rescaled(
    example: ReferenceProblem, weight: float, equality: tuple[float, ...] = (), inequality: tuple[float, ...] = ()
) -> ReferenceProblem:
    """The problem with its objective and its rows multiplied by the given numbers."""
    f, h, g = (example.problem.function(name) for name in ("objective", "equality", "inequality"))
    return dataclasses.replace(
        example,
        name=f"{example.name} rescaled",
        problem=Problem.from_functions(
            lambda y, x: weight * f(y, x),
            (lambda y, x: y.new_tensor(equality) * h(y, x).reshape(-1)) if equality else None,
            (lambda y, x: y.new_tensor(inequality) * g(y, x).reshape(-1)) if inequality else None,
            example.problem.function("bounds"),
            example.problem.function("initial"),
        ),
        optimum=weight * (example.optimum or 0.0),
        tags=example.tags | {"badly scaled"},
    )
