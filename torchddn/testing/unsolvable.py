"""Problems without a solution: infeasible ones, unbounded ones, and those whose infimum no point attains."""

from typing import Any

import torch

from torchddn.status import Status
from torchddn.testing.reference import INF, ItemFunction, ReferenceProblem, stated

__all__ = ["unsolvable"]

_NOT_CONVERGED = (Status.MAX_STEPS, Status.STALLED, Status.UNBOUNDED)


def unsolvable() -> list[ReferenceProblem]:
    """The problems."""
    return [*_infeasible(), *_unbounded(), *_unattained()]


def _without(
    outcomes: tuple[Status, ...],
    tag: str,
    name: str,
    data: tuple[float, ...],
    start: tuple[float, ...],
    f: ItemFunction,
    **rest: Any,
) -> ReferenceProblem:
    return stated(name, data, start, f, outcomes=outcomes, tags=(tag,), source="torchddn", **rest)


def _square(y, x):
    return y.square().sum()


def _infeasible() -> list[ReferenceProblem]:
    def make(*args: Any, **rest: Any) -> ReferenceProblem:
        return _without((Status.INFEASIBLE,), "infeasible", *args, **rest)

    return [
        make(
            "positive numbers with a negative sum",
            (1, 1, -1),
            (0, 0),
            _square,
            inequality=lambda y, x: x[:2] @ y - x[2],
            bounds=lambda x: (0.0, INF),
        ),
        make(
            "two parallel planes",
            (1, 2, 1, 2),
            (0, 0, 0),
            _square,
            equality=lambda y, x: (y[0] + y[1] + x[0] * y[2] - x[2], y[0] + y[1] + x[0] * y[2] - x[3]),
            spread=1e-3,
        ),
        make(
            "three halfplanes apart",
            (1, 1, 1),
            (5, 5),
            lambda y, x: y[0] + 2 * y[1] ** 2,
            inequality=lambda y, x: (x[0] - y[0], x[1] - y[1], y[0] + y[1] - x[2]),
        ),
        make(
            "a sum that a box cannot reach",
            (5, 1),
            (0.5, 0.5, 0.5),
            _square,
            equality=lambda y, x: y.sum() - x[0],
            bounds=lambda x: (0.0, x[1]),
        ),
        make(
            "bounds that cross",
            (1, 2),
            (0, 0),
            _square,
            bounds=lambda x: ((x[1], -1.0), (x[0], 1.0)),
        ),
        make(
            "a square below zero",
            (1, 1),
            (2, 1),
            lambda y, x: y[0] + y[1] ** 2,
            inequality=lambda y, x: x[0] * y[0] ** 2 + x[1],
        ),
        make(
            "two discs apart",
            (2, 1),
            (0, 3),
            lambda y, x: y[1],
            inequality=lambda y, x: (
                (y[0] - x[0]) ** 2 + y[1] ** 2 - x[1],
                (y[0] + x[0]) ** 2 + y[1] ** 2 - x[1],
            ),
        ),
        make(
            "a circle and a line that miss",
            (1, 3),
            (1, 0),
            lambda y, x: y[0] ** 2 + y[1],
            equality=lambda y, x: (y.square().sum() - x[0], y.sum() - x[1]),
        ),
        make(
            "a sphere of negative radius",
            (1, 2, 3),
            (1, 1),
            lambda y, x: x[:2] @ y,
            equality=lambda y, x: y.square().sum() + x[2],
        ),
        make(
            "an exponential below its bound",
            (0.5, 0),
            (1, 1),
            _square,
            inequality=lambda y, x: torch.exp(y[0]) + y[1] ** 2 - x[0],
            bounds=lambda x: ((0.0, -INF), INF),
        ),
        make(
            "no objective and no point",
            (1, 1),
            (0.3, 0.4),
            None,
            equality=lambda y, x: y[0] * y[1] - x[0] - 5,
            bounds=lambda x: (-x[1], x[1]),
        ),
    ]


def _unbounded() -> list[ReferenceProblem]:
    def make(*args: Any, **rest: Any) -> ReferenceProblem:
        return _without((Status.UNBOUNDED,), "unbounded", *args, **rest)

    return [
        make("a plane", (1, -2), (0, 0), lambda y, x: x @ y),
        make("a concave parabola", (1, 2), (0.5, 0.5), lambda y, x: x[0] * y[0] ** 2 - x[1] * y[1] ** 2),
        make("a cubic", (1, 1), (2, 1), lambda y, x: -x[0] * y[0] ** 3 + x[1] * y[1] ** 2),
        make(
            "a linear program with a ray",
            (-1, -1, 1),
            (1, 1),
            lambda y, x: x[:2] @ y,
            inequality=lambda y, x: (y[0] - 2 * y[1] - x[2], y[1] - 2 * y[0] - x[2]),
            bounds=lambda x: (0.0, INF),
        ),
        make(
            "a plane along a line",
            (1, 2),
            (1, 1),
            lambda y, x: x[0] * y[0] + x[1] * y[1],
            equality=lambda y, x: y[0] - y[1],
        ),
        make(
            "a saddle under a line",
            (1, 1),
            (0.5, -0.5),
            lambda y, x: y[0] * y[1] * x[0],
            inequality=lambda y, x: y.sum() - x[1],
        ),
        make(
            "a ray of a box",
            (1, 2),
            (1, 1),
            lambda y, x: -x[0] * y[0] + x[1] * y[1] ** 2,
            bounds=lambda x: (0.0, (INF, 2.0)),
        ),
        make(
            "an exponential fall",
            (1, 1),
            (0, 1),
            lambda y, x: -torch.exp(x[0] * y[0]) + x[1] * y[1] ** 2,
        ),
        make(
            "along a parabola",
            (1, 1),
            (1, 1),
            lambda y, x: -x[0] * y[1] + y[0],
            equality=lambda y, x: y[1] - x[1] * y[0] ** 2,
        ),
    ]


def _unattained() -> list[ReferenceProblem]:
    def make(*args: Any, **rest: Any) -> ReferenceProblem:
        return _without(_NOT_CONVERGED, "infimum at infinity", *args, **rest)

    return [
        make("an exponential that vanishes", (1, 1), (0, 1), lambda y, x: torch.exp(-x[0] * y[0]) + x[1] * y[1] ** 2),
        make(
            "a reciprocal",
            (1, 1),
            (2,),
            lambda y, x: x[0] / y[0],
            bounds=lambda x: (x[1], INF),
        ),
        make(
            "the width of a hyperbola",
            (1, 1),
            (1, 2),
            lambda y, x: x[0] * y[0],
            inequality=lambda y, x: x[1] - y[0] * y[1],
            bounds=lambda x: (0.0, INF),
        ),
        make(
            "an exponential along a line",
            (1, 2),
            (0, 0),
            lambda y, x: torch.exp(-y[0]),
            equality=lambda y, x: x[0] * y[0] - x[1] * y[1],
        ),
        make(
            "logistic regression of separable data",
            (1, 2, -1, -3),
            (0,),
            lambda y, x: torch.nn.functional.softplus(-y[0] * x.abs()).sum(),
        ),
        make(
            "a logarithm that falls",
            (1, 1),
            (2, 1),
            lambda y, x: -x[0] * torch.log(y[0]) + y[1] ** 2,
            bounds=lambda x: ((x[1], -INF), INF),
        ),
    ]
