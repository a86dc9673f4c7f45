"""The problems of Hock and Schittkowski, with their main coefficients turned into data.

The functions are those of the book up to the sign of its inequalities, which it writes as ``g >= 0``. Where solvers
of today find a lower minimum than the book states, or where more of its digits are known, that is stated.

References:
    Hock, Schittkowski, Test Examples for Nonlinear Programming Codes, Lecture Notes in Economics and Mathematical
    Systems 187, Springer, 1981.
"""

import math
from typing import Any

import torch
from torch import Tensor

from torchddn.status import Status
from torchddn.testing.reference import INF, ItemFunction, ReferenceProblem, stated

__all__ = ["hock_schittkowski"]


def _hs(
    number: int, data: tuple[float, ...], start: tuple[float, ...], objective: ItemFunction, **rest: Any
) -> ReferenceProblem:
    source = f"Hock and Schittkowski 1981, problem {number}"
    return stated(f"HS {number}", data, start, objective, source=source, **rest)


def hock_schittkowski() -> list[ReferenceProblem]:
    """The problems, in the order of the book."""
    return [*_two_variables(), *_three_variables(), *_four_variables(), *_five_variables(), *_more_variables()]


def _banana(y: Tensor, x: Tensor) -> Tensor:
    return x[0] * (y[1] - y[0] ** 2) ** 2 + (x[1] - y[0]) ** 2


def _two_variables() -> list[ReferenceProblem]:
    edge = math.sqrt(598 / 1200)
    hs2 = 2 * edge * math.cos(math.acos(1 / (400 * edge**3)) / 3)
    return [
        _hs(
            1,
            (100, 1, -1.5),
            (-2, 1),
            _banana,
            bounds=lambda x: ((-INF, x[2]), INF),
            optimum=0.0,
            solution=(1, 1),
            tags=("nonconvex",),
        ),
        _hs(
            2,
            (100, 1, 1.5),
            (-2, 1),
            _banana,
            bounds=lambda x: ((-INF, x[2]), INF),
            optimum=0.0504261879,
            solution=(hs2, 1.5),
            tags=("nonconvex", "several solutions"),
        ),
        _hs(
            3,
            (1e-5,),
            (10, 1),
            lambda y, x: y[1] + x[0] * (y[1] - y[0]) ** 2,
            bounds=lambda x: ((-INF, 0.0), INF),
            optimum=0.0,
            solution=(0, 0),
        ),
        _hs(
            4,
            (1, 0, 3),
            (1.125, 0.125),
            lambda y, x: (y[0] + 1) ** 3 / x[2] + y[1],
            bounds=lambda x: ((x[0], x[1]), INF),
            optimum=8 / 3,
            solution=(1, 0),
        ),
        _hs(
            5,
            (1.5, 2.5, 1),
            (0, 0),
            lambda y, x: torch.sin(y[0] + y[1]) + x[2] * (y[0] - y[1]) ** 2 - x[0] * y[0] + x[1] * y[1] + 1,
            bounds=lambda x: ((-1.5, -3.0), (4.0, 3.0)),
            optimum=-math.sqrt(3) / 2 - math.pi / 3,
            solution=(-math.pi / 3 + 0.5, -math.pi / 3 - 0.5),
            tags=("nonconvex", "several solutions"),
        ),
        _hs(
            6,
            (10, 1),
            (-1.2, 1),
            lambda y, x: (x[1] - y[0]) ** 2,
            equality=lambda y, x: x[0] * (y[1] - y[0] ** 2),
            optimum=0.0,
            solution=(1, 1),
            tags=("singular Hessian",),
        ),
        _hs(
            7,
            (4, 1),
            (2, 2),
            lambda y, x: torch.log(x[1] + y[0] ** 2) - y[1],
            equality=lambda y, x: (1 + y[0] ** 2) ** 2 + y[1] ** 2 - x[0],
            optimum=-math.sqrt(3),
            solution=(0, math.sqrt(3)),
            tags=("nonconvex",),
        ),
        _hs(
            8,
            (25, 9),
            (2, 1),
            lambda y, x: 0.0 * y.sum() - 1.0,
            equality=lambda y, x: (y[0] ** 2 + y[1] ** 2 - x[0], y[0] * y[1] - x[1]),
            optimum=-1.0,
            solution=(math.sqrt((25 + math.sqrt(301)) / 2), 9 / math.sqrt((25 + math.sqrt(301)) / 2)),
            tags=("feasibility", "several solutions", "singular Hessian"),
        ),
        _hs(
            9,
            (math.pi / 12, math.pi / 16, 4, 3),
            (0, 0),
            lambda y, x: torch.sin(x[0] * y[0]) * torch.cos(x[1] * y[1]),
            equality=lambda y, x: x[2] * y[0] - x[3] * y[1],
            optimum=-0.5,
            solution=(-3, -4),
            tags=("nonconvex", "several solutions"),
        ),
        _hs(
            10,
            (3, 2, 1),
            (-10, 10),
            lambda y, x: y[0] - y[1],
            inequality=lambda y, x: x[0] * y[0] ** 2 - x[1] * y[0] * y[1] + y[1] ** 2 - x[2],
            optimum=-1.0,
            solution=(0, 1),
            tags=("singular Hessian",),
        ),
        _hs(
            11,
            (5, 25, 1),
            (4.9, 0.1),
            lambda y, x: (y[0] - x[0]) ** 2 + y[1] ** 2 - x[1],
            inequality=lambda y, x: x[2] * y[0] ** 2 - y[1],
            optimum=-8.498464223155,
            solution=(1.23477282505, 1.52466392949),
        ),
        _hs(
            12,
            (7, 7, 25, 4),
            (0, 0),
            lambda y, x: 0.5 * y[0] ** 2 + y[1] ** 2 - y[0] * y[1] - x[0] * y[0] - x[1] * y[1],
            inequality=lambda y, x: x[3] * y[0] ** 2 + y[1] ** 2 - x[2],
            optimum=-30.0,
            solution=(2, 3),
        ),
        _hs(
            13,
            (2, 1),
            (-2, -2),
            lambda y, x: (y[0] - x[0]) ** 2 + y[1] ** 2,
            inequality=lambda y, x: y[1] - (x[1] - y[0]) ** 3,
            bounds=lambda x: (0.0, INF),
            optimum=1.0,
            solution=(1, 0),
            outcomes=(Status.CONVERGED, Status.MAX_STEPS, Status.STALLED),
            tags=("MFCQ fails", "no multipliers"),
        ),
        _hs(
            14,
            (2, 1, 1, 0.25),
            (2, 2),
            lambda y, x: (y[0] - x[0]) ** 2 + (y[1] - x[1]) ** 2,
            equality=lambda y, x: y[0] - 2 * y[1] + x[2],
            inequality=lambda y, x: x[3] * y[0] ** 2 + y[1] ** 2 - 1,
            optimum=9 - 23 * math.sqrt(7) / 8,
            solution=(0.5 * (math.sqrt(7) - 1), 0.25 * (math.sqrt(7) + 1)),
        ),
        _hs(
            15,
            (100, 1, 1, 0.5),
            (-2, 1),
            _banana,
            inequality=lambda y, x: (x[2] - y[0] * y[1], -y[0] - y[1] ** 2),
            bounds=lambda x: (-INF, (x[3], INF)),
            optimum=306.5,
            solution=(0.5, 2),
            tags=("nonconvex", "several solutions"),
        ),
        _hs(
            16,
            (100, 1, 0.5, 1),
            (-2, 1),
            _banana,
            inequality=lambda y, x: (-y[0] - y[1] ** 2, -(y[0] ** 2) - y[1]),
            bounds=lambda x: ((-0.5, -INF), (x[2], x[3])),
            optimum=0.25,
            solution=(0.5, 0.25),
            tags=("nonconvex", "several solutions"),
        ),
        _hs(
            17,
            (100, 1),
            (-2, 1),
            _banana,
            inequality=lambda y, x: (y[0] - y[1] ** 2, y[1] - y[0] ** 2),
            bounds=lambda x: ((-0.5, -INF), (0.5, 1.0)),
            optimum=1.0,
            solution=(0, 0),
            regular=False,
            tags=("nonconvex", "weakly active", "several solutions"),
        ),
        _hs(
            18,
            (0.01, 25, 25),
            (2, 2),
            lambda y, x: x[0] * y[0] ** 2 + y[1] ** 2,
            inequality=lambda y, x: (x[1] - y[0] * y[1], x[2] - y[0] ** 2 - y[1] ** 2),
            bounds=lambda x: ((2.0, 0.0), 50.0),
            optimum=5.0,
            solution=(math.sqrt(250), math.sqrt(2.5)),
        ),
        _hs(
            19,
            (10, 20, 100, 82.81),
            (20.1, 5.84),
            lambda y, x: (y[0] - x[0]) ** 3 + (y[1] - x[1]) ** 3,
            inequality=lambda y, x: (
                x[2] - (y[0] - 5) ** 2 - (y[1] - 5) ** 2,
                (y[1] - 5) ** 2 + (y[0] - 6) ** 2 - x[3],
            ),
            bounds=lambda x: ((13.0, 0.0), 100.0),
            optimum=-6961.8138755801,
            solution=(14.095, 0.8429607892),
            tags=("nonconvex",),
            spread=1e-4,
        ),
        _hs(
            20,
            (100, 1, 1),
            (-2, 1),
            _banana,
            inequality=lambda y, x: (-y[0] - y[1] ** 2, -(y[0] ** 2) - y[1], x[2] - y[0] ** 2 - y[1] ** 2),
            bounds=lambda x: ((-0.5, -INF), (0.5, INF)),
            optimum=81.5 - 25 * math.sqrt(3),
            solution=(0.5, math.sqrt(3) / 2),
            tags=("nonconvex", "several solutions"),
        ),
        _hs(
            21,
            (0.01, 100, 10, 2),
            (-1, -1),
            lambda y, x: x[0] * y[0] ** 2 + y[1] ** 2 - x[1],
            inequality=lambda y, x: x[2] + y[1] - 10 * y[0],
            bounds=lambda x: ((x[3], -50.0), 50.0),
            optimum=-99.96,
            solution=(2, 0),
        ),
        _hs(
            22,
            (2, 1, 2),
            (2, 2),
            lambda y, x: (y[0] - x[0]) ** 2 + (y[1] - x[1]) ** 2,
            inequality=lambda y, x: (y[0] + y[1] - x[2], y[0] ** 2 - y[1]),
            optimum=1.0,
            solution=(1, 1),
        ),
        _hs(
            23,
            (1, 1),
            (3, 1),
            lambda y, x: x[0] * y[0] ** 2 + x[1] * y[1] ** 2,
            inequality=lambda y, x: (
                1 - y[0] - y[1],
                1 - y[0] ** 2 - y[1] ** 2,
                9 - 9 * y[0] ** 2 - y[1] ** 2,
                y[1] - y[0] ** 2,
                y[0] - y[1] ** 2,
            ),
            bounds=lambda x: (-50.0, 50.0),
            optimum=2.0,
            solution=(1, 1),
            tags=("nonconvex",),
        ),
        _hs(
            24,
            (3, 9, 6),
            (1, 0.5),
            lambda y, x: ((y[0] - x[0]) ** 2 - x[1]) * y[1] ** 3 / (27 * math.sqrt(3)),
            inequality=lambda y, x: (
                y[1] - y[0] / math.sqrt(3),
                -y[0] - math.sqrt(3) * y[1],
                y[0] + math.sqrt(3) * y[1] - x[2],
            ),
            bounds=lambda x: (0.0, INF),
            optimum=-1.0,
            solution=(3, math.sqrt(3)),
            tags=("nonconvex", "several solutions"),
        ),
    ]


def _product(y: Tensor, x: Tensor) -> Tensor:
    return -x[0] * y[0] * y[1] * y[2]


def _levy(y: Tensor, x: Tensor) -> Tensor:
    """Of problem 25: the exponential model at 99 points minus the data."""
    i = torch.arange(1, 100).to(y)
    u = 25 + (-50 * torch.log(0.01 * i)) ** (2 / 3)
    exponent = -((u - y[1]).clamp_min(1e-12) ** y[2]) / y[0]
    return (torch.exp(exponent) - x[0] * i).square().sum()


def _machines(y: Tensor, x: Tensor) -> Tensor:
    """Of problem 62."""
    first = (y[0] + y[1] + y[2] + 0.03) / (0.09 * y[0] + y[1] + y[2] + 0.03)
    second = (y[1] + y[2] + 0.03) / (0.07 * y[1] + y[2] + 0.03)
    third = (y[2] + 0.03) / (0.13 * y[2] + 0.03)
    return -32.174 * (x[0] * first.log() + x[1] * second.log() + x[2] * third.log())


def _three_variables() -> list[ReferenceProblem]:
    chain = {
        "inequality": lambda y, x: (torch.exp(y[0]) - y[1], torch.exp(y[1]) - y[2]),
        "bounds": lambda x: (0.0, (100.0, 100.0, x[2])),
    }
    return [
        _hs(
            25,
            (0.01,),
            (100, 12.5, 3),
            _levy,
            bounds=lambda x: ((0.1, 0.0, 0.0), (100.0, 25.6, 5.0)),
            optimum=0.0,
            solution=(50, 25, 1.5),
            tags=("nonconvex", "flat start"),
            spread=1e-4,
        ),
        _hs(
            26,
            (3, 1),
            (-2.6, 2, 2),
            lambda y, x: (y[0] - x[1] * y[1]) ** 2 + (y[1] - y[2]) ** 4,
            equality=lambda y, x: (1 + y[1] ** 2) * y[0] + y[2] ** 4 - x[0],
            optimum=0.0,
            solution=(1, 1, 1),
            regular=False,
            tags=("nonconvex", "singular reduced Hessian"),
        ),
        _hs(
            27,
            (0.01, 1, 1),
            (2, 2, 2),
            lambda y, x: x[0] * (y[0] - x[1]) ** 2 + (y[1] - y[0] ** 2) ** 2,
            equality=lambda y, x: y[0] + y[2] ** 2 + x[2],
            optimum=0.04,
            solution=(-1, 1, 0),
            tags=("nonconvex",),
        ),
        _hs(
            28,
            (1, 2, 3, 1),
            (-4, 1, 1),
            lambda y, x: (y[0] + y[1]) ** 2 + (y[1] + y[2]) ** 2,
            equality=lambda y, x: x[:3] @ y - x[3],
            optimum=0.0,
            solution=(0.5, -0.5, 0.5),
            tags=("singular Hessian",),
        ),
        _hs(
            29,
            (1, 2, 4, 48),
            (1, 1, 1),
            _product,
            inequality=lambda y, x: y[0] ** 2 + x[1] * y[1] ** 2 + x[2] * y[2] ** 2 - x[3],
            optimum=-16 * math.sqrt(2),
            solution=(4, 2 * math.sqrt(2), 2),
            tags=("nonconvex", "several solutions"),
        ),
        _hs(
            30,
            (1, 1),
            (1, 1, 1),
            lambda y, x: y.square().sum(),
            inequality=lambda y, x: x[0] * (x[1] - y[0] ** 2 - y[1] ** 2),
            bounds=lambda x: ((1.0, -10.0, -10.0), 10.0),
            optimum=1.0,
            solution=(1, 0, 0),
            regular=False,
            tags=("LICQ fails", "redundant"),
            spread=0.0,
        ),
        _hs(
            31,
            (9, 1, 9, 1),
            (1, 1, 1),
            lambda y, x: x[0] * y[0] ** 2 + x[1] * y[1] ** 2 + x[2] * y[2] ** 2,
            inequality=lambda y, x: x[3] - y[0] * y[1],
            bounds=lambda x: ((-10.0, 1.0, -10.0), (10.0, 10.0, 1.0)),
            optimum=6.0,
            solution=(1 / math.sqrt(3), math.sqrt(3), 0),
        ),
        _hs(
            32,
            (3, 4, 3, 1),
            (0.1, 0.7, 0.2),
            lambda y, x: (y[0] + x[0] * y[1] + y[2]) ** 2 + x[1] * (y[0] - y[1]) ** 2,
            equality=lambda y, x: x[3] - y.sum(),
            inequality=lambda y, x: y[0] ** 3 + x[2] - 6 * y[1] - 4 * y[2],
            bounds=lambda x: (0.0, INF),
            optimum=1.0,
            solution=(0, 0, 1),
            regular=False,
            tags=("weakly active",),
        ),
        _hs(
            33,
            (1, 2, 3, 4),
            (0, 0, 3),
            lambda y, x: (y[0] - x[0]) * (y[0] - x[1]) * (y[0] - x[2]) + y[2],
            inequality=lambda y, x: (y[0] ** 2 + y[1] ** 2 - y[2] ** 2, x[3] - y.square().sum()),
            bounds=lambda x: (0.0, (INF, INF, 5.0)),
            optimum=math.sqrt(2) - 6,
            solution=(0, math.sqrt(2), math.sqrt(2)),
            tags=("nonconvex", "several solutions"),
        ),
        _hs(
            34,
            (1, 0, 10),
            (0, 1.05, 2.9),
            lambda y, x: -x[0] * y[0],
            optimum=-math.log(math.log(10)),
            solution=(math.log(math.log(10)), math.log(10), 10),
            tags=("singular Hessian",),
            **chain,
        ),
        _hs(
            35,
            (8, 6, 4, 3),
            (0.5, 0.5, 0.5),
            lambda y, x: 9 - x[:3] @ y + 2 * y[0] ** 2 + 2 * y[1] ** 2 + y[2] ** 2 + 2 * y[0] * y[1] + 2 * y[0] * y[2],
            inequality=lambda y, x: y[0] + y[1] + 2 * y[2] - x[3],
            bounds=lambda x: (0.0, INF),
            optimum=1 / 9,
            solution=(4 / 3, 7 / 9, 4 / 9),
        ),
        _hs(
            36,
            (1, 72, 20, 11),
            (10, 10, 10),
            _product,
            inequality=lambda y, x: y[0] + 2 * y[1] + 2 * y[2] - x[1],
            bounds=lambda x: (0.0, (x[2], x[3], 42.0)),
            optimum=-3300.0,
            solution=(20, 11, 15),
            tags=("nonconvex",),
        ),
        _hs(
            37,
            (1, 72, 2),
            (10, 10, 10),
            _product,
            inequality=lambda y, x: (y[0] + x[2] * (y[1] + y[2]) - x[1], -y[0] - 2 * y[1] - 2 * y[2]),
            bounds=lambda x: (0.0, 42.0),
            optimum=-3456.0,
            solution=(24, 12, 12),
            tags=("nonconvex",),
        ),
        _hs(
            60,
            (1, 4 + 3 * math.sqrt(2)),
            (2, 2, 2),
            lambda y, x: (y[0] - x[0]) ** 2 + (y[0] - y[1]) ** 2 + (y[1] - y[2]) ** 4,
            equality=lambda y, x: y[0] * (1 + y[1] ** 2) + y[2] ** 4 - x[1],
            bounds=lambda x: (-10.0, 10.0),
            optimum=0.03256820025507,
            solution=(1.10485901973, 1.19667418229, 1.53526226033),
        ),
        _hs(
            61,
            (33, 16, 24, 7, 11),
            (0, 0, 0),
            lambda y, x: 4 * y[0] ** 2 + 2 * y[1] ** 2 + 2 * y[2] ** 2 - x[0] * y[0] + x[1] * y[1] - x[2] * y[2],
            equality=lambda y, x: (3 * y[0] - 2 * y[1] ** 2 - x[3], 4 * y[0] - y[2] ** 2 - x[4]),
            optimum=-143.6461421978,
            solution=(5.32677013556, -2.11899863222, 3.21046422535),
            tags=("nonconvex", "several solutions"),
        ),
        _hs(
            62,
            (255, 280, 290),
            (0.7, 0.2, 0.1),
            _machines,
            equality=lambda y, x: y.sum() - 1,
            bounds=lambda x: (0.0, 1.0),
            optimum=-26272.51448,
            solution=(0.6178126908, 0.328202223, 0.05398508606),
        ),
        _hs(
            63,
            (1000, 2, 56, 25),
            (2, 2, 2),
            lambda y, x: x[0] - y[0] ** 2 - x[1] * y[1] ** 2 - y[2] ** 2 - y[0] * y[1] - y[0] * y[2],
            equality=lambda y, x: (8 * y[0] + 14 * y[1] + 7 * y[2] - x[2], y.square().sum() - x[3]),
            bounds=lambda x: (0.0, INF),
            optimum=961.7151721301,
            solution=(3.51212134187, 0.216987941515, 3.55217115483),
            tags=("nonconvex",),
            spread=1e-3,
        ),
        _hs(
            64,
            (5, 50000, 20, 72000, 10, 144000),
            (1, 1, 1),
            lambda y, x: (x[::2] * y + x[1::2] / y).sum(),
            inequality=lambda y, x: 4 / y[0] + 32 / y[1] + 120 / y[2] - 1,
            bounds=lambda x: (1e-5, INF),
            optimum=6299.842427922,
            solution=(108.734704911, 85.1262127909, 204.324596613),
        ),
        _hs(
            65,
            (10, 5, 48),
            (-5, 5, 0),
            lambda y, x: (y[0] - y[1]) ** 2 + (y[0] + y[1] - x[0]) ** 2 / 9 + (y[2] - x[1]) ** 2,
            inequality=lambda y, x: y.square().sum() - x[2],
            bounds=lambda x: ((-4.5, -4.5, -5.0), (4.5, 4.5, 5.0)),
            optimum=0.9535288568048,
            solution=(3.65046172521, 3.65046172521, 4.62041755532),
        ),
        _hs(
            66,
            (0.2, 0.8, 10),
            (0, 1.05, 2.9),
            lambda y, x: x[0] * y[2] - x[1] * y[0],
            optimum=0.5181632741,
            solution=(0.1841264879, 1.202167873, 3.327322322),
            tags=("singular Hessian",),
            **chain,
        ),
    ]


def _inspection(y: Tensor, x: Tensor) -> Tensor:
    """Of problems 68 and 69, with data a, b, d, n."""
    growth = torch.expm1(y[0])
    return (x[0] * x[3] - (x[1] * growth - y[2]) * y[3] / (growth + y[3])) / y[0]


_INSPECTION = {
    "equality": lambda y, x: (
        y[2] - 2 * torch.special.ndtr(-y[1]),
        y[3] - torch.special.ndtr(-y[1] + x[2] * x[3].sqrt()) - torch.special.ndtr(-y[1] - x[2] * x[3].sqrt()),
    ),
    "bounds": lambda x: ((0.0001, 0.0, 0.0, 0.0), (100.0, 100.0, 2.0, 2.0)),
}


def _power_flow(number: int, angle: float, optimum: float, solution: tuple[float, ...]) -> ReferenceProblem:
    """Problems 74 and 75 differ in the largest angle."""
    return _hs(
        number,
        (3, 2, 894.8, 894.8, 1294.8, angle),
        (0, 0, 0, 0),
        lambda y, x: x[0] * y[0] + 1e-6 * y[0] ** 3 + x[1] * y[1] + 2e-6 / 3 * y[1] ** 3,
        equality=lambda y, x: (
            1000 * torch.sin(-y[2] - 0.25) + 1000 * torch.sin(-y[3] - 0.25) + x[2] - y[0],
            1000 * torch.sin(y[2] - 0.25) + 1000 * torch.sin(y[2] - y[3] - 0.25) + x[3] - y[1],
            1000 * torch.sin(y[3] - 0.25) + 1000 * torch.sin(y[3] - y[2] - 0.25) + x[4],
        ),
        inequality=lambda y, x: (y[2] - y[3] - x[5], y[3] - y[2] - x[5]),
        bounds=lambda x: ((0.0, 0.0, -x[5], -x[5]), (1200.0, 1200.0, x[5], x[5])),
        optimum=optimum,
        solution=solution,
        tags=("nonconvex",),
        spread=1e-3,
    )


def _four_variables() -> list[ReferenceProblem]:
    hs40 = (2 ** (-1 / 3), 2 ** (-1 / 2), 2 ** (-11 / 12), 2 ** (-1 / 4))
    return [
        _hs(
            38,
            (100, 90, 10.1, 19.8),
            (-3, -1, -3, -1),
            lambda y, x: (
                x[0] * (y[1] - y[0] ** 2) ** 2
                + (1 - y[0]) ** 2
                + x[1] * (y[3] - y[2] ** 2) ** 2
                + (1 - y[2]) ** 2
                + x[2] * ((y[1] - 1) ** 2 + (y[3] - 1) ** 2)
                + x[3] * (y[1] - 1) * (y[3] - 1)
            ),
            bounds=lambda x: (-10.0, 10.0),
            optimum=0.0,
            solution=(1, 1, 1, 1),
            tags=("nonconvex",),
            spread=1e-3,
        ),
        _hs(
            39,
            (1, 1, 1),
            (2, 2, 2, 2),
            lambda y, x: -x[0] * y[0],
            equality=lambda y, x: (y[1] - x[1] * y[0] ** 3 - y[2] ** 2, x[2] * y[0] ** 2 - y[1] - y[3] ** 2),
            optimum=-1.0,
            solution=(1, 1, 0, 0),
            tags=("nonconvex",),
        ),
        _hs(
            40,
            (1, 1, 1),
            (0.8, 0.8, 0.8, 0.8),
            lambda y, x: -x[0] * y.prod(),
            equality=lambda y, x: (
                y[0] ** 3 + y[1] ** 2 - x[1],
                x[2] * y[0] ** 2 * y[3] - y[2],
                y[3] ** 2 - y[1],
            ),
            optimum=-0.25,
            solution=hs40,
            tags=("nonconvex", "several solutions"),
        ),
        _hs(
            41,
            (2, 1, 2, 2),
            (2, 2, 2, 2),
            lambda y, x: x[0] - y[0] * y[1] * y[2],
            equality=lambda y, x: x[1] * y[0] + x[2] * y[1] + x[3] * y[2] - y[3],
            bounds=lambda x: (0.0, (1.0, 1.0, 1.0, 2.0)),
            optimum=52 / 27,
            solution=(2 / 3, 1 / 3, 1 / 3, 2),
            tags=("nonconvex",),
        ),
        _hs(
            42,
            (1, 2, 3, 4, 2, 2),
            (1, 1, 1, 1),
            lambda y, x: (y - x[:4]).square().sum(),
            equality=lambda y, x: (y[0] - x[4], y[2] ** 2 + y[3] ** 2 - x[5]),
            optimum=28 - 10 * math.sqrt(2),
            solution=(2, 2, 0.6 * math.sqrt(2), 0.8 * math.sqrt(2)),
        ),
        _hs(
            43,
            (5, 5, 21, -7, 8, 10, 5),
            (0, 0, 0, 0),
            lambda y, x: y[0] ** 2 + y[1] ** 2 + 2 * y[2] ** 2 + y[3] ** 2 - x[:4] @ y,
            inequality=lambda y, x: (
                y.square().sum() + y[0] - y[1] + y[2] - y[3] - x[4],
                y[0] ** 2 + 2 * y[1] ** 2 + y[2] ** 2 + 2 * y[3] ** 2 - y[0] - y[3] - x[5],
                2 * y[0] ** 2 + y[1] ** 2 + y[2] ** 2 + 2 * y[0] - y[1] - y[3] - x[6],
            ),
            optimum=-44.0,
            solution=(0, 1, 2, -1),
        ),
        _hs(
            44,
            (8, 12, 12, 8, 8, 5),
            (0, 0, 0, 0),
            lambda y, x: y[0] - y[1] - y[2] - y[0] * y[2] + y[0] * y[3] + y[1] * y[2] - y[1] * y[3],
            inequality=lambda y, x: (
                y[0] + 2 * y[1] - x[0],
                4 * y[0] + y[1] - x[1],
                3 * y[0] + 4 * y[1] - x[2],
                2 * y[2] + y[3] - x[3],
                y[2] + 2 * y[3] - x[4],
                y[2] + y[3] - x[5],
            ),
            bounds=lambda x: (0.0, INF),
            optimum=-15.0,
            solution=(0, 3, 0, 4),
            tags=("nonconvex", "several solutions"),
        ),
        _hs(
            68,
            (0.0001, 1, 1, 24),
            (1, 1, 1, 1),
            _inspection,
            optimum=-0.9204250036398,
            solution=(0.0678585770855, 3.64621085569, 0.000266135625215, 0.894855039374),
            tags=("nonconvex",),
            **_INSPECTION,
        ),
        _hs(
            69,
            (0.1, 1000, 1, 4),
            (1, 1, 1, 1),
            _inspection,
            optimum=-956.71288665,
            solution=(0.0293714174217, 1.19025345041, 0.233946790667, 0.791667811244),
            tags=("nonconvex",),
            **_INSPECTION,
        ),
        _hs(
            71,
            (1, 1, 25, 40),
            (1, 5, 5, 1),
            lambda y, x: x[0] * y[0] * y[3] * (y[0] + y[1] + y[2]) + x[1] * y[2],
            equality=lambda y, x: y.square().sum() - x[3],
            inequality=lambda y, x: x[2] - y.prod(),
            bounds=lambda x: (1.0, 5.0),
            optimum=17.01401728916,
            solution=(1, 4.74299963726, 3.82114998418, 1.37940829317),
            tags=("nonconvex",),
        ),
        _hs(
            72,
            (4, 2.25, 1, 0.25, 0.0401, 0.16, 0.36, 0.64, 0.64, 0.010085),
            (1, 1, 1, 1),
            lambda y, x: 1 + y.sum(),
            inequality=lambda y, x: ((x[:4] / y).sum() - x[4], (x[5:9] / y).sum() - x[9]),
            bounds=lambda x: (0.001, (4e5, 3e5, 2e5, 1e5)),
            optimum=727.6793577896,
            solution=(193.407427272, 179.547076032, 185.018063358, 168.706791127),
        ),
        _hs(
            73,
            (24.55, 26.75, 39, 40.5, 5, 21),
            (1, 1, 1, 1),
            lambda y, x: x[:4] @ y,
            equality=lambda y, x: y.sum() - 1,
            inequality=lambda y, x: (
                x[4] - 2.3 * y[0] - 5.6 * y[1] - 11.1 * y[2] - 1.3 * y[3],
                x[5]
                - 12 * y[0]
                - 11.9 * y[1]
                - 41.8 * y[2]
                - 52.1 * y[3]
                + 1.645 * torch.sqrt(0.28 * y[0] ** 2 + 0.19 * y[1] ** 2 + 20.5 * y[2] ** 2 + 0.62 * y[3] ** 2),
            ),
            bounds=lambda x: (0.0, INF),
            optimum=29.89437815914,
            solution=(0.635521568635, 0, 0.312701880752, 0.0517765506134),
        ),
        _power_flow(74, 0.55, 5126.4981095953, (679.945319851, 1026.06713261, 0.118876364493, -0.396233553203)),
        _power_flow(75, 0.48, 5174.4126953777, (776.159026586, 925.195138469, 0.0511089285384, -0.428891071462)),
        _hs(
            76,
            (1, 3, -1, 1, 5, 4, 1.5),
            (0.5, 0.5, 0.5, 0.5),
            lambda y, x: (
                y[0] ** 2 + 0.5 * y[1] ** 2 + y[2] ** 2 + 0.5 * y[3] ** 2 - y[0] * y[2] + y[2] * y[3] - x[:4] @ y
            ),
            inequality=lambda y, x: (
                y[0] + 2 * y[1] + y[2] + y[3] - x[4],
                3 * y[0] + y[1] + 2 * y[2] - y[3] - x[5],
                x[6] - y[1] - 4 * y[2],
            ),
            bounds=lambda x: (0.0, INF),
            optimum=-103 / 22,
            solution=(3 / 11, 23 / 11, 0, 6 / 11),
        ),
    ]


_SUM_IS_FIVE = (3.0, 5.0, -3.0, 2.0, -2.0)
_ONES = (1.0, 1.0, 1.0, 1.0, 1.0)

# Of problems 78, 80 and 81.
_SPHERE_AND_PRODUCTS: ItemFunction = lambda y, x: (  # noqa: E731
    y.square().sum() - x[0],
    y[1] * y[2] - x[1] * y[3] * y[4],
    y[0] ** 3 + y[1] ** 3 + x[2],
)
_BOX_OF_80 = ((-2.3, -2.3, -3.2, -3.2, -3.2), (2.3, 2.3, 3.2, 3.2, 3.2))
_ANSWER_OF_80 = (-1.71714357039, 1.59570969018, 1.82724575293, -0.763643078184, -0.763643078184)


def _pairs(y: Tensor, x: Tensor) -> Tensor:
    """Of problems 52 and 53: rows that all vanish where the data are zero."""
    return torch.stack((y[0] + x[0] * y[1], y[2] + y[3] - x[1] * y[4], y[1] - x[2] * y[4]))


def _colville_1(y: Tensor, x: Tensor) -> Tensor:
    C = y.new_tensor(_C)
    return x[:5] @ y + y @ C @ y + x[5:] @ y**3


_C = (
    (30.0, -20.0, -10.0, 32.0, -10.0),
    (-20.0, 39.0, -6.0, -31.0, 32.0),
    (-10.0, -6.0, 10.0, -6.0, -10.0),
    (32.0, -31.0, -6.0, 39.0, -20.0),
    (-10.0, 32.0, -10.0, -20.0, 30.0),
)
_A = (
    (-16.0, 2.0, 0.0, 1.0, 0.0),
    (0.0, -2.0, 0.0, 0.4, 2.0),
    (-3.5, 0.0, 2.0, 0.0, 0.0),
    (0.0, -2.0, 0.0, -4.0, -1.0),
    (0.0, -9.0, -2.0, 1.0, -2.8),
    (2.0, 0.0, -4.0, 0.0, 0.0),
    (-1.0, -1.0, -1.0, -1.0, -1.0),
    (-1.0, -2.0, -3.0, -2.0, -1.0),
    (1.0, 2.0, 3.0, 4.0, 5.0),
    (1.0, 1.0, 1.0, 1.0, 1.0),
)
_B = (-40.0, -2.0, -0.25, -4.0, -4.0, -1.0, -40.0, -60.0, 5.0, 1.0)
_D = (4.0, 8.0, 10.0, 6.0, 2.0)
_E = (-15.0, -27.0, -36.0, -18.0, -12.0)


def _colville_3(y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    first = 85.334407 + 0.0056858 * y[1] * y[4] + 0.0006262 * y[0] * y[3] - 0.0022053 * y[2] * y[4]
    second = 80.51249 + 0.0071317 * y[1] * y[4] + 0.0029955 * y[0] * y[1] + 0.0021813 * y[2] ** 2 - 90
    third = 9.300961 + 0.0047026 * y[2] * y[4] + 0.0012547 * y[0] * y[2] + 0.0019085 * y[2] * y[3] - 20
    return -first, first - x[3], -second, second - x[4], -third, third - x[5]


def _five_variables() -> list[ReferenceProblem]:
    root = math.sqrt(2)
    return [
        _hs(
            45,
            (120, 1, 2, 3, 4, 5),
            (2, 2, 2, 2, 2),
            lambda y, x: 2 - y.prod() / x[0],
            bounds=lambda x: (0.0, tuple(x[1:])),
            optimum=1.0,
            solution=(1, 2, 3, 4, 5),
            tags=("nonconvex",),
        ),
        _hs(
            46,
            (1, 2),
            (root / 2, 1.75, 0.5, 2, 2),
            lambda y, x: (y[0] - y[1]) ** 2 + (y[2] - 1) ** 2 + (y[3] - 1) ** 4 + (y[4] - 1) ** 6,
            equality=lambda y, x: (
                y[0] ** 2 * y[3] + torch.sin(y[3] - y[4]) - x[0],
                y[1] + y[2] ** 4 * y[3] ** 2 - x[1],
            ),
            optimum=0.0,
            solution=_ONES,
            regular=False,
            tags=("nonconvex", "singular reduced Hessian"),
        ),
        _hs(
            48,
            (1, 5, 2, 3),
            _SUM_IS_FIVE,
            lambda y, x: (y[0] - x[0]) ** 2 + (y[1] - y[2]) ** 2 + (y[3] - y[4]) ** 2,
            equality=lambda y, x: (y.sum() - x[1], y[2] - x[2] * (y[3] + y[4]) + x[3]),
            optimum=0.0,
            solution=_ONES,
            tags=("singular Hessian",),
        ),
        _hs(
            49,
            (1, 7, 6),
            (10, 7, 2, -3, 0.8),
            lambda y, x: (y[0] - x[0] * y[1]) ** 2 + (y[2] - 1) ** 2 + (y[3] - 1) ** 4 + (y[4] - 1) ** 6,
            equality=lambda y, x: (y[0] + y[1] + y[2] + 4 * y[3] - x[1], y[2] + 5 * y[4] - x[2]),
            optimum=0.0,
            solution=_ONES,
            regular=False,
            tags=("singular reduced Hessian",),
        ),
        _hs(
            50,
            (1, 6, 6, 6),
            (35, -31, 11, 5, -5),
            lambda y, x: (y[0] - y[1]) ** 2 + x[0] * (y[1] - y[2]) ** 2 + (y[2] - y[3]) ** 4 + (y[3] - y[4]) ** 2,
            equality=lambda y, x: y[:3] + 2 * y[1:4] + 3 * y[2:] - x[1:],
            optimum=0.0,
            solution=_ONES,
        ),
        _hs(
            51,
            (2, 1, 1, 4),
            (2.5, 0.5, 2, -1, 0.5),
            lambda y, x: (y[0] - y[1]) ** 2 + (y[1] + y[2] - x[0]) ** 2 + (y[3] - x[1]) ** 2 + (y[4] - x[2]) ** 2,
            equality=lambda y, x: (y[0] + 3 * y[1] - x[3], y[2] + y[3] - 2 * y[4], y[1] - y[4]),
            optimum=0.0,
            solution=_ONES,
            tags=("singular Hessian",),
        ),
        _hs(
            52,
            (3, 2, 1, 4, 2),
            (2, 2, 2, 2, 2),
            lambda y, x: (x[3] * y[0] - y[1]) ** 2 + (y[1] + y[2] - x[4]) ** 2 + (y[3] - 1) ** 2 + (y[4] - 1) ** 2,
            equality=_pairs,
            optimum=1859 / 349,
            solution=(-33 / 349, 11 / 349, 180 / 349, -158 / 349, 11 / 349),
            tags=("singular Hessian",),
        ),
        _hs(
            53,
            (3, 2, 1, 2),
            (2, 2, 2, 2, 2),
            lambda y, x: (y[0] - y[1]) ** 2 + (y[1] + y[2] - x[3]) ** 2 + (y[3] - 1) ** 2 + (y[4] - 1) ** 2,
            equality=_pairs,
            bounds=lambda x: (-10.0, 10.0),
            optimum=176 / 43,
            solution=(-33 / 43, 11 / 43, 27 / 43, -5 / 43, 11 / 43),
            tags=("singular Hessian",),
        ),
        _hs(
            77,
            (1, 2 * root, 8 + root),
            (2, 2, 2, 2, 2),
            lambda y, x: (y[0] - x[0]) ** 2 + (y[0] - y[1]) ** 2 + (y[2] - 1) ** 2 + (y[3] - 1) ** 4 + (y[4] - 1) ** 6,
            equality=lambda y, x: (
                y[0] ** 2 * y[3] + torch.sin(y[3] - y[4]) - x[1],
                y[1] + y[2] ** 4 * y[3] ** 2 - x[2],
            ),
            optimum=0.2415051287902,
            solution=(1.16617218971, 1.1821113888, 1.38025704315, 1.50603627362, 0.610920196043),
            tags=("nonconvex",),
        ),
        _hs(
            78,
            (10, 5, 1),
            (-2, 1.5, 2, -1, -1),
            lambda y, x: y.prod(),
            equality=_SPHERE_AND_PRODUCTS,
            optimum=-2.919700408964,
            solution=(-1.71714357039, 1.59570969018, 1.82724575293, -0.763643078184, -0.763643078184),
            tags=("nonconvex", "several solutions"),
        ),
        _hs(
            79,
            (1, 2 + 3 * root, 2 - 2 * root, 2),
            (2, 2, 2, 2, 2),
            lambda y, x: (
                (y[0] - x[0]) ** 2 + (y[0] - y[1]) ** 2 + (y[1] - y[2]) ** 2 + (y[2] - y[3]) ** 4 + (y[3] - y[4]) ** 4
            ),
            equality=lambda y, x: (
                y[0] + y[1] ** 2 + y[2] ** 3 - x[1],
                y[1] - y[2] ** 2 + y[3] + x[2],
                y[0] * y[4] - x[3],
            ),
            optimum=0.07877682087106,
            solution=(1.19112745631, 1.36260316496, 1.47281793151, 1.63501661917, 1.67908143617),
            tags=("nonconvex",),
        ),
        _hs(
            80,
            (10, 5, 1),
            (-2, 2, 2, -1, -1),
            lambda y, x: torch.exp(y.prod()),
            equality=_SPHERE_AND_PRODUCTS,
            bounds=lambda x: _BOX_OF_80,
            optimum=0.0539498477703,
            solution=_ANSWER_OF_80,
            tags=("nonconvex", "several solutions"),
        ),
        _hs(
            81,
            (10, 5, 1),
            (-2, 2, 2, -1, -1),
            lambda y, x: torch.exp(y.prod()) - 0.5 * (y[0] ** 3 + y[1] ** 3 + 1) ** 2,
            equality=_SPHERE_AND_PRODUCTS,
            bounds=lambda x: _BOX_OF_80,
            optimum=0.0539498477703,
            solution=_ANSWER_OF_80,
            tags=("nonconvex", "several solutions"),
        ),
        _hs(
            83,
            (5.3578547, 0.8356891, 37.293239, 92, 20, 5),
            (78, 33, 27, 27, 27),
            lambda y, x: x[0] * y[2] ** 2 + x[1] * y[0] * y[4] + x[2] * y[0] - 40792.141,
            inequality=_colville_3,
            bounds=lambda x: ((78.0, 33.0, 27.0, 27.0, 27.0), (102.0, 45.0, 45.0, 45.0, 45.0)),
            optimum=-30665.53867178,
            solution=(78, 33, 29.9952560257, 45, 36.7758129058),
            tags=("nonconvex",),
        ),
        _hs(
            86,
            (*_E, *_D),
            (0, 0, 0, 0, 1),
            _colville_1,
            inequality=lambda y, x: y.new_tensor(_B) - y.new_tensor(_A) @ y,
            bounds=lambda x: (0.0, INF),
            optimum=-32.34867896572,
            solution=(0.3, 0.333467606535, 0.4, 0.428310104782, 0.223964873561),
        ),
    ]


def _equilibrium(y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Rows of problems 111 and 112: conservation of the three elements in amounts ``y``."""
    return (
        y[0] + 2 * y[1] + 2 * y[2] + y[5] + y[9] - x[10],
        y[3] + 2 * y[4] + y[5] + y[6] - x[11],
        y[2] + y[6] + y[7] + 2 * y[8] + y[9] - x[12],
    )


_ENERGY = (-6.089, -17.164, -34.054, -5.914, -24.721, -14.986, -24.1, -10.708, -26.662, -22.179)


def _himmelblau_16(number: int, b: tuple[float, float, float, float], optimum: float) -> ReferenceProblem:
    """Problems 95 to 98 differ in the right-hand side."""
    return _hs(
        number,
        (4.3, 31.8, 63.3, 15.8, 68.5, 4.7, *b),
        (0, 0, 0, 0, 0, 0),
        lambda y, x: x[:6] @ y,
        inequality=lambda y, x: (
            x[6]
            - y @ y.new_tensor((17.1, 38.2, 204.2, 212.3, 623.4, 1495.5))
            + 169 * y[0] * y[2]
            + 3580 * y[2] * y[4]
            + 3810 * y[3] * y[4]
            + 18500 * y[3] * y[5]
            + 24300 * y[4] * y[5],
            x[7]
            - y @ y.new_tensor((17.9, 36.8, 113.9, 169.7, 337.8, 1385.2))
            + 139 * y[0] * y[2]
            + 2450 * y[3] * y[4]
            + 16600 * y[3] * y[5]
            + 17200 * y[4] * y[5],
            x[8] + 273 * y[1] + 70 * y[3] + 819 * y[4] - 26000 * y[3] * y[4],
            x[9] - 159.9 * y[0] + 311 * y[1] - 587 * y[3] - 391 * y[4] - 2198 * y[5] + 14000 * y[0] * y[5],
        ),
        bounds=lambda x: (0.0, (0.31, 0.046, 0.068, 0.042, 0.028, 0.0134)),
        optimum=optimum,
        tags=("nonconvex",),
        spread=1e-3,
    )


def _hexagon(y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Rows of problem 108."""
    return (
        y[2] ** 2 + y[3] ** 2 - x[0],
        y[8] ** 2 - x[0],
        y[4] ** 2 + y[5] ** 2 - x[0],
        y[0] ** 2 + (y[1] - y[8]) ** 2 - x[0],
        (y[0] - y[4]) ** 2 + (y[1] - y[5]) ** 2 - x[0],
        (y[0] - y[6]) ** 2 + (y[1] - y[7]) ** 2 - x[0],
        (y[2] - y[4]) ** 2 + (y[3] - y[5]) ** 2 - x[0],
        (y[2] - y[6]) ** 2 + (y[3] - y[7]) ** 2 - x[0],
        y[6] ** 2 + (y[7] - y[8]) ** 2 - x[0],
        y[1] * y[2] - y[0] * y[3],
        -y[2] * y[8],
        y[4] * y[8],
        y[5] * y[6] - y[4] * y[7],
    )


def _alkylation(y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Rows of problem 114, with data a and b behind the five prices."""
    a, b = x[5], x[6]
    g1 = 35.82 - 0.222 * y[9] - b * y[8]
    g2 = -133 + 3 * y[6] - a * y[9]
    g5 = 1.12 * y[0] + 0.13167 * y[0] * y[7] - 0.00667 * y[0] * y[7] ** 2 - a * y[3]
    g6 = 57.425 + 1.098 * y[7] - 0.038 * y[7] ** 2 + 0.325 * y[5] - a * y[6]
    width = 1 / a - a
    return (
        -g1,
        -g2,
        g1 - y[8] * (1 / b - b),
        g2 - width * y[9],
        -g5,
        -g6,
        g5 - width * y[3],
        g6 - width * y[6],
    )


def _membrane(y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Rows of problem 116."""
    cost = y[10] + y[11] + y[12]
    return (
        y[1] - y[2],
        y[0] - y[1],
        0.002 * (y[6] - y[7]) - 1,
        50 - cost,
        cost - 250,
        1.262626 * y[9] - 1.231059 * y[2] * y[9] - y[12],
        0.03475 * y[1] + 0.975 * y[1] * y[4] - 0.00975 * y[1] ** 2 - y[4],
        0.03475 * y[2] + 0.975 * y[2] * y[5] - 0.00975 * y[2] ** 2 - y[5],
        y[0] * y[7] + y[3] * y[6] - y[3] * y[7] - y[4] * y[6],
        0.002 * (y[1] * y[8] + y[4] * y[7] - y[0] * y[7] - y[5] * y[8]) + y[4] + y[5] - 1,
        y[2] * y[9] + y[5] * y[8] - y[1] * y[8] + 500 * y[1] - 500 * y[5] - y[1] * y[9],
        x[1] + 0.002 * (y[1] * y[9] - y[2] * y[9]) - y[1],
        0.03475 * y[0] + 0.975 * y[0] * y[3] - 0.00975 * y[0] ** 2 - y[3],
        1.262626 * y[7] - 1.231059 * y[0] * y[7] - y[10],
        1.262626 * y[8] - 1.231059 * y[1] * y[8] - y[11],
    )


_AGES = (8, 8, 10, 10, 10, 10, 12, 12, 12, 12, 14, 14, 14, 16, 16, 16, 18, 18, 20, 20, 20, 22, 22, 22, 24, 24, 24)
_AGES += (26, 26, 26, 28, 28, 30, 30, 30, 32, 32, 34, 36, 36, 38, 38, 40, 42)
_CHLORINE = (0.49, 0.49, 0.48, 0.47, 0.48, 0.47, 0.46, 0.46, 0.45, 0.43, 0.45, 0.43, 0.43, 0.44, 0.43, 0.43, 0.46)
_CHLORINE += (0.45, 0.42, 0.42, 0.43, 0.41, 0.41, 0.40, 0.42, 0.40, 0.40, 0.41, 0.40, 0.41, 0.41, 0.40, 0.40, 0.40)
_CHLORINE += (0.38, 0.41, 0.40, 0.40, 0.41, 0.38, 0.40, 0.40, 0.39, 0.39)


def _chlorine(y: Tensor, x: Tensor) -> Tensor:
    """Of problem 57."""
    model = y[0] + (0.49 - y[0]) * torch.exp(-y[1] * (y.new_tensor(_AGES) - 8))
    return (x[:-1] - model).square().sum()


def _schedule(y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Rows of problem 118: three products in five quarters, in turn."""
    quarters = y.reshape(5, 3)
    change = quarters[1:] - quarters[:-1]
    return tuple(
        torch.cat(
            ((-7 - change).flatten(), (change - y.new_tensor((6.0, 7.0, 6.0))).flatten(), x[6:] - quarters.sum(1))
        )
    )


def _schedule_cost(y: Tensor, x: Tensor) -> Tensor:
    return (x[:3] * y.reshape(5, 3) + x[3:6] * y.reshape(5, 3) ** 2).sum()


_SCHEDULE_LIMITS = (
    (8.0, 43.0, 3.0, *(0.0,) * 12),
    (21.0, 57.0, 16.0, *(90.0, 120.0, 60.0) * 4),
)


def _more_variables() -> list[ReferenceProblem]:
    arc, wide = math.asin(math.sqrt(1 / 4.2)), math.asin(math.sqrt(5 / 7.2))
    return [
        _hs(
            55,
            (2, 4, 1),
            (1, 2, 0, 0, 0, 2),
            lambda y, x: y[0] + x[0] * y[1] + x[1] * y[4] + torch.exp(x[2] * y[0] * y[3]),
            equality=lambda y, x: (
                y[0] + 2 * y[1] + 5 * y[4] - 6,
                y[0] + y[1] + y[2] - 3,
                y[3] + y[4] + y[5] - 2,
                y[0] + y[3] - 1,
                y[1] + y[4] - 2,
                y[2] + y[5] - 2,
            ),
            bounds=lambda x: (0.0, (1.0, INF, INF, 1.0, INF, INF)),
            optimum=19 / 3,
            solution=(0, 4 / 3, 5 / 3, 1, 2 / 3, 1 / 3),
            regular=False,
            tags=("redundant", "LICQ fails", "nonconvex"),
        ),
        _hs(
            56,
            (4.2, 7.2),
            (1, 1, 1, arc, arc, arc, wide),
            lambda y, x: -y[0] * y[1] * y[2],
            equality=lambda y, x: (
                y[0] - x[0] * torch.sin(y[3]) ** 2,
                y[1] - x[0] * torch.sin(y[4]) ** 2,
                y[2] - x[0] * torch.sin(y[5]) ** 2,
                y[0] + 2 * y[1] + 2 * y[2] - x[1] * torch.sin(y[6]) ** 2,
            ),
            optimum=-3.456,
            solution=(2.4, 1.2, 1.2, 0.85707194785, 0.563942641361, 0.563942641361, 1.57079632679),
            tags=("nonconvex", "several solutions"),
        ),
        _hs(
            57,
            (*_CHLORINE, 0.09),
            (0.42, 5),
            _chlorine,
            inequality=lambda y, x: y[0] * y[1] + x[-1] - 0.49 * y[1],
            bounds=lambda x: ((0.4, -4.0), INF),
            optimum=0.02845966972299,
            solution=(0.419952650758, 1.28484519362),
            tags=("nonconvex",),
            spread=1e-3,
        ),
        _hs(
            93,
            (0.0204, 0.0187, 0.0607, 0.0437, 2.07),
            (5.54, 4.4, 12.02, 11.82, 0.702, 0.852),
            lambda y, x: (
                x[0] * y[0] * y[3] * (y[0] + y[1] + y[2])
                + x[1] * y[1] * y[2] * (y[0] + 1.57 * y[1] + y[3])
                + x[2] * y[0] * y[3] * y[4] ** 2 * (y[0] + y[1] + y[2])
                + x[3] * y[1] * y[2] * y[5] ** 2 * (y[0] + 1.57 * y[1] + y[3])
            ),
            inequality=lambda y, x: (
                x[4] - 0.001 * y.prod(),
                0.00062 * y[0] * y[3] * y[4] ** 2 * (y[0] + y[1] + y[2])
                + 0.00058 * y[1] * y[2] * y[5] ** 2 * (y[0] + 1.57 * y[1] + y[3])
                - 1,
            ),
            bounds=lambda x: (0.0, INF),
            optimum=135.0759628292,
            solution=(5.33266633553, 4.65674405917, 10.4329919405, 12.0823063401, 0.752607436224, 0.878650874659),
            tags=("nonconvex",),
        ),
        _himmelblau_16(95, (4.97, -1.88, -29.08, -78.02), 0.0156195252478),
        _himmelblau_16(96, (4.97, -1.88, -69.08, -118.02), 0.0156195252478),
        _himmelblau_16(97, (32.97, 25.12, -29.08, -78.02), 3.1358091228),
        _himmelblau_16(98, (32.97, 25.12, -124.08, -173.02), 3.1358091228),
        _hs(
            100,
            (10, 12, 11, 127, 282, 196),
            (1, 2, 0, 4, 0, 1, 1),
            lambda y, x: (
                (y[0] - x[0]) ** 2
                + 5 * (y[1] - x[1]) ** 2
                + y[2] ** 4
                + 3 * (y[3] - x[2]) ** 2
                + 10 * y[4] ** 6
                + 7 * y[5] ** 2
                + y[6] ** 4
                - 4 * y[5] * y[6]
                - 10 * y[5]
                - 8 * y[6]
            ),
            inequality=lambda y, x: (
                2 * y[0] ** 2 + 3 * y[1] ** 4 + y[2] + 4 * y[3] ** 2 + 5 * y[4] - x[3],
                7 * y[0] + 3 * y[1] + 10 * y[2] ** 2 + y[3] - y[4] - x[4],
                23 * y[0] + y[1] ** 2 + 6 * y[5] ** 2 - 8 * y[6] - x[5],
                4 * y[0] ** 2 + y[1] ** 2 - 3 * y[0] * y[1] + 2 * y[2] ** 2 + 5 * y[5] - 11 * y[6],
            ),
            optimum=680.6300573744,
            solution=(
                2.33049937288,
                1.9513723729,
                -0.477541392389,
                4.36572623366,
                -0.624486970527,
                1.03813101861,
                1.59422671161,
            ),
        ),
        _hs(
            104,
            (0.4, 0.4, 0.0588, 0.1),
            (6, 3, 0.4, 0.2, 6, 6, 1, 0.5),
            lambda y, x: _reactor_cost(y, x),
            inequality=lambda y, x: (
                x[2] * y[4] * y[6] + x[3] * y[0] - 1,
                x[2] * y[5] * y[7] + x[3] * (y[0] + y[1]) - 1,
                4 * y[2] / y[4] + 2 * y[2] ** -0.71 / y[4] + x[2] * y[2] ** -1.3 * y[6] - 1,
                4 * y[3] / y[5] + 2 * y[3] ** -0.71 / y[5] + x[2] * y[3] ** -1.3 * y[7] - 1,
                1 - _reactor_cost(y, x),
                _reactor_cost(y, x) - 4.2,
            ),
            bounds=lambda x: (0.1, 10.0),
            optimum=3.951163440103,
            solution=(
                6.46511402837,
                2.23270864799,
                0.667397491287,
                0.5957564229,
                5.93267567791,
                5.52723456498,
                1.0133220089,
                0.400668229126,
            ),
            tags=("nonconvex",),
        ),
        _hs(
            106,
            (833.33252, 83333.333, 1250, 1250000),
            (5000, 5000, 5000, 200, 350, 150, 225, 425),
            lambda y, x: y[:3].sum(),
            inequality=lambda y, x: (
                0.0025 * (y[3] + y[5]) - 1,
                0.0025 * (y[4] + y[6] - y[3]) - 1,
                0.01 * (y[7] - y[4]) - 1,
                x[0] * y[3] + 100 * y[0] - y[0] * y[5] - x[1],
                x[2] * y[4] + y[1] * y[3] - y[1] * y[6] - x[2] * y[3],
                x[3] + y[2] * y[4] - 2500 * y[4] - y[2] * y[7],
            ),
            bounds=lambda x: ((100.0, 1000.0, 1000.0, *(10.0,) * 5), (*(10000.0,) * 3, *(1000.0,) * 5)),
            optimum=7049.248020529,
            solution=(
                579.306684425,
                1359.97066805,
                5109.97066805,
                182.017699581,
                295.601173278,
                217.982300419,
                286.416526303,
                395.601173278,
            ),
            tags=("nonconvex", "badly scaled"),
            spread=1e-3,
        ),
        _hs(
            108,
            (1, 0.5),
            (1, 1, 1, 1, 1, 1, 1, 1, 1),
            lambda y, x: -x[1] * (y[0] * y[3] - y[1] * y[2] + y[2] * y[8] - y[4] * y[8] + y[4] * y[7] - y[5] * y[6]),
            inequality=_hexagon,
            bounds=lambda x: ((*(-INF,) * 8, 0.0), INF),
            optimum=-0.8660254038,
            regular=False,
            tags=("nonconvex", "non-isolated", "several solutions"),
        ),
        _hs(
            110,
            (2, 10, 0.2),
            (9,) * 10,
            lambda y, x: (torch.log(y - x[0]) ** 2 + torch.log(x[1] - y) ** 2).sum() - y.prod() ** x[2],
            bounds=lambda x: (2.001, 9.999),
            optimum=-45.77846970745,
            solution=(
                9.35026583307,
                9.35026583307,
                9.35026583307,
                9.35026583307,
                9.35026583307,
                9.35026583307,
                9.35026583307,
                9.35026583307,
                9.35026583307,
                9.35026583307,
            ),
            tags=("nonconvex",),
            spread=1e-5,
        ),
        _hs(
            111,
            (*_ENERGY, 2, 1, 1),
            (-2.3,) * 10,
            lambda y, x: torch.exp(y) @ (x[:10] + y - torch.logsumexp(y, 0)),
            equality=lambda y, x: _equilibrium(torch.exp(y), x),
            bounds=lambda x: (-100.0, 100.0),
            optimum=-47.76109085937,
            solution=(
                -3.20231158855,
                -1.91236659708,
                -0.24442674775,
                -6.56117727166,
                -0.723097963295,
                -7.27423228019,
                -3.59723742233,
                -4.02031673069,
                -3.28837688136,
                -2.33437173922,
            ),
            tags=("nonconvex",),
        ),
        _hs(
            112,
            (*_ENERGY, 2, 1, 1),
            (0.1,) * 10,
            lambda y, x: y @ (x[:10] + torch.log(y / y.sum())),
            equality=_equilibrium,
            bounds=lambda x: (1e-6, INF),
            optimum=-47.76109085937,
            solution=(
                0.0406680873567,
                0.147730354342,
                0.783153354007,
                0.00141421980994,
                0.485246648698,
                0.000693172079336,
                0.0273993107147,
                0.0179472795857,
                0.0373143659134,
                0.0968713238662,
            ),
        ),
        _hs(
            113,
            (14, 16, 10, 5, 3, 105, 12),
            (2, 3, 5, 5, 1, 2, 7, 3, 6, 10),
            lambda y, x: (
                y[0] ** 2
                + y[1] ** 2
                + y[0] * y[1]
                - x[0] * y[0]
                - x[1] * y[1]
                + (y[2] - x[2]) ** 2
                + 4 * (y[3] - x[3]) ** 2
                + (y[4] - x[4]) ** 2
                + 2 * (y[5] - 1) ** 2
                + 5 * y[6] ** 2
                + 7 * (y[7] - 11) ** 2
                + 2 * (y[8] - 10) ** 2
                + (y[9] - 7) ** 2
                + 45
            ),
            inequality=lambda y, x: (
                4 * y[0] + 5 * y[1] - 3 * y[6] + 9 * y[7] - x[5],
                10 * y[0] - 8 * y[1] - 17 * y[6] + 2 * y[7],
                -8 * y[0] + 2 * y[1] + 5 * y[8] - 2 * y[9] - x[6],
                3 * (y[0] - 2) ** 2 + 4 * (y[1] - 3) ** 2 + 2 * y[2] ** 2 - 7 * y[3] - 120,
                5 * y[0] ** 2 + 8 * y[1] + (y[2] - 6) ** 2 - 2 * y[3] - 40,
                0.5 * (y[0] - 8) ** 2 + 2 * (y[1] - 4) ** 2 + 3 * y[4] ** 2 - y[5] - 30,
                y[0] ** 2 + 2 * (y[1] - 2) ** 2 - 2 * y[0] * y[1] + 14 * y[4] - 6 * y[5],
                -3 * y[0] + 6 * y[1] + 12 * (y[8] - 8) ** 2 - 7 * y[9],
            ),
            optimum=24.30620906818,
            solution=(
                2.17199637126,
                2.3636829737,
                8.77392573848,
                5.09598448795,
                0.990654764964,
                1.43057397894,
                1.32164420816,
                9.82872580789,
                8.2800916701,
                8.37592666392,
            ),
        ),
        _hs(
            114,
            (5.04, 0.035, 10, 3.36, 0.063, 0.99, 0.9),
            (1745, 12000, 110, 3048, 1974, 89.2, 92.8, 8, 3.6, 145),
            lambda y, x: x[0] * y[0] + x[1] * y[1] + x[2] * y[2] + x[3] * y[4] - x[4] * y[3] * y[6],
            equality=lambda y, x: (
                1.22 * y[3] - y[0] - y[4],
                98000 * y[2] / (y[3] * y[8] + 1000 * y[2]) - y[5],
                (y[1] + y[4]) / y[0] - y[7],
            ),
            inequality=_alkylation,
            bounds=lambda x: (
                (*(1e-5,) * 5, 85.0, 90.0, 3.0, 1.2, 145.0),
                (2000.0, 16000.0, 120.0, 5000.0, 2000.0, 93.0, 95.0, 12.0, 4.0, 162.0),
            ),
            optimum=-1768.806963716,
            solution=(
                1698.09476519,
                15818.6149242,
                54.1026823332,
                3031.22521737,
                2000,
                90.115422199,
                95,
                10.4932983067,
                1.56163636364,
                153.535353535,
            ),
            tags=("nonconvex", "badly scaled"),
            spread=1e-4,
        ),
        _hs(
            116,
            (1, 0.9),
            (0.5, 0.8, 0.9, 0.1, 0.14, 0.5, 489, 80, 650, 450, 150, 150, 150),
            lambda y, x: x[0] * y[10:].sum(),
            inequality=_membrane,
            bounds=lambda x: (
                (0.1, 0.1, 0.1, 1e-4, 0.1, 0.1, 0.1, 0.1, 500.0, 0.1, 1.0, 1e-4, 1e-4),
                (1.0, 1.0, 1.0, 0.1, 0.9, 0.9, 1000.0, 1000.0, 1000.0, 500.0, 150.0, 150.0, 150.0),
            ),
            optimum=97.58750955807,
            solution=(
                0.803773157377,
                0.899985800673,
                0.970982435484,
                0.1,
                0.190813176216,
                0.460654782853,
                574.077573583,
                74.0775735828,
                500.016160169,
                0.1,
                20.2330906974,
                77.3476899273,
                0.00672893339557,
            ),
            regular=False,
            tags=("nonconvex", "badly scaled", "LICQ fails"),
            spread=1e-3,
        ),
        _hs(
            117,
            (*_B, *_E),
            (*(0.001,) * 6, 60, *(0.001,) * 8),
            lambda y, x: -x[:10] @ y[:10] + y[10:] @ y.new_tensor(_C) @ y[10:] + 2 * y.new_tensor(_D) @ y[10:] ** 3,
            inequality=lambda y, x: (
                y[:10] @ y.new_tensor(_A) - 2 * y.new_tensor(_C) @ y[10:] - 3 * y.new_tensor(_D) * y[10:] ** 2 - x[10:]
            ),
            bounds=lambda x: (0.0, INF),
            optimum=32.34867896573,
            solution=(
                0,
                0,
                5.1740407277,
                0,
                3.06110868776,
                11.8395456648,
                0,
                0,
                0.103896190778,
                0,
                0.3,
                0.333467606534,
                0.4,
                0.428310104782,
                0.223964873562,
            ),
        ),
        _hs(
            118,
            (2.3, 1.7, 2.2, 1e-4, 1e-4, 1.5e-4, 60, 50, 70, 85, 100),
            (20, 55, 15, 20, 60, 20, 20, 60, 20, 20, 60, 20, 20, 60, 20),
            _schedule_cost,
            inequality=_schedule,
            bounds=lambda x: _SCHEDULE_LIMITS,
            optimum=664.82045,
            solution=(8, 49, 3, 1, 56, 0, 1, 63, 6, 3, 70, 12, 5, 77, 18),
            spread=1e-4,
        ),
    ]


def _reactor_cost(y: Tensor, x: Tensor) -> Tensor:
    return x[0] * (y[0] / y[6]) ** 0.67 + x[1] * (y[1] / y[7]) ** 0.67 + 10 - y[0] - y[1]
