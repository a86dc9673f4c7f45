"""Unconstrained problems, most of them the classics of Moré, Garbow and Hillstrom.

References:
    Moré, Garbow, Hillstrom, Testing Unconstrained Optimization Software, ACM Transactions on Mathematical Software 7,
    1981.
"""

import math
from typing import Any

import torch
from torch import Tensor

from torchddn.testing.reference import ItemFunction, ReferenceProblem, stated

__all__ = ["unconstrained"]

_KOWALIK_DATA = (0.1957, 0.1947, 0.1735, 0.16, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246)
_KOWALIK_TIMES = (4.0, 2.0, 1.0, 0.5, 0.25, 1 / 6, 0.125, 0.1, 1 / 12, 1 / 14, 0.0625)
_BARD_DATA = (0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.1, 4.39)


def _classic(
    name: str, data: tuple[float, ...], start: tuple[float, ...], objective: ItemFunction, **rest: Any
) -> ReferenceProblem:
    return stated(name, data, start, objective, source="Moré, Garbow, Hillstrom 1981", **rest)


def _helical_valley(y: Tensor, x: Tensor) -> Tensor:
    turn = torch.atan2(y[1], y[0]) / (2 * math.pi)
    radius = torch.sqrt(y[0] ** 2 + y[1] ** 2)
    return x[0] * ((y[2] - x[1] * turn) ** 2 + (radius - 1) ** 2) + y[2] ** 2


def _box(y: Tensor, x: Tensor) -> Tensor:
    t = 0.1 * torch.arange(1, 11).to(y)
    model = torch.exp(-t * y[0]) - torch.exp(-t * y[1]) - y[2] * (torch.exp(-t * x[0]) - torch.exp(-t * x[1]))
    return model.square().sum()


def _kowalik(y: Tensor, x: Tensor) -> Tensor:
    u = y.new_tensor(_KOWALIK_TIMES)
    return (x - y[0] * (u**2 + u * y[1]) / (u**2 + u * y[2] + y[3])).square().sum()


def _bard(y: Tensor, x: Tensor) -> Tensor:
    u = torch.arange(1, 16).to(y)
    v = 16 - u
    return (x - y[0] - u / (v * y[1] + torch.minimum(u, v) * y[2])).square().sum()


def _trigonometric(y: Tensor, x: Tensor) -> Tensor:
    index = torch.arange(1, 6).to(y)
    rows = 5 - torch.cos(y).sum() + index * (1 - torch.cos(y)) - torch.sin(y)
    return (x * rows).square().sum()


def _broyden(y: Tensor, x: Tensor) -> Tensor:
    before, after = torch.cat((y.new_zeros(1), y[:-1])), torch.cat((y[1:], y.new_zeros(1)))
    return ((x[0] - x[1] * y) * y - before - 2 * after + 1).square().sum()


def unconstrained() -> list[ReferenceProblem]:
    """The problems."""
    return [
        _classic(
            "Rosenbrock",
            (100, 1),
            (-1.2, 1),
            lambda y, x: x[0] * (y[1] - y[0] ** 2) ** 2 + (x[1] - y[0]) ** 2,
            optimum=0.0,
            solution=(1, 1),
            tags=("nonconvex",),
        ),
        _classic(
            "extended Rosenbrock",
            (100, 1),
            (-1.2, 1) * 5,
            lambda y, x: (x[0] * (y[1::2] - y[::2] ** 2) ** 2 + (x[1] - y[::2]) ** 2).sum(),
            optimum=0.0,
            solution=(1,) * 10,
            tags=("nonconvex",),
        ),
        _classic(
            "Freudenstein and Roth",
            (13, 29),
            (0.5, -2),
            lambda y, x: (
                (y[0] - x[0] + ((5 - y[1]) * y[1] - 2) * y[1]) ** 2
                + (y[0] - x[1] + ((y[1] + 1) * y[1] - 14) * y[1]) ** 2
            ),
            optimum=0.0,
            solution=(5, 4),
            tags=("nonconvex", "several solutions"),
        ),
        _classic(
            "Powell badly scaled",
            (1e4, 1, 1.0001),
            (0, 1),
            lambda y, x: (x[0] * y[0] * y[1] - x[1]) ** 2 + (torch.exp(-y[0]) + torch.exp(-y[1]) - x[2]) ** 2,
            optimum=0,
            solution=(1.09815941892e-05, 9.106146),
            tags=("nonconvex", "badly scaled"),
            spread=1e-6,
        ),
        _classic(
            "Brown badly scaled",
            (1e6, 2e-6, 2),
            (1, 1),
            lambda y, x: (y[0] - x[0]) ** 2 + (y[1] - x[1]) ** 2 + (y[0] * y[1] - x[2]) ** 2,
            optimum=0.0,
            solution=(1e6, 2e-6),
            tags=("nonconvex", "badly scaled"),
        ),
        _classic(
            "Beale",
            (1.5, 2.25, 2.625),
            (1, 1),
            lambda y, x: (
                (x[0] - y[0] * (1 - y[1])) ** 2
                + (x[1] - y[0] * (1 - y[1] ** 2)) ** 2
                + (x[2] - y[0] * (1 - y[1] ** 3)) ** 2
            ),
            optimum=0.0,
            solution=(3, 0.5),
            tags=("nonconvex",),
        ),
        _classic(
            "helical valley",
            (100, 10),
            (-1, 0, 0),
            _helical_valley,
            optimum=0.0,
            solution=(1, 0, 0),
            tags=("nonconvex",),
        ),
        _classic(
            "Bard",
            _BARD_DATA,
            (1, 1, 1),
            _bard,
            optimum=0.008214877306579,
            solution=(0.0824105597498, 1.13303609203, 2.34369517864),
            tags=("nonconvex",),
            spread=1e-3,
        ),
        _classic(
            "Box three-dimensional",
            (1, 10),
            (0, 10, 20),
            _box,
            optimum=0.0,
            solution=(1, 10, 1),
            tags=("nonconvex", "several solutions"),
        ),
        _classic(
            "Powell singular",
            (10, 5, 2, 10),
            (3, -1, 0, 1),
            lambda y, x: (
                (y[0] + x[0] * y[1]) ** 2
                + x[1] * (y[2] - y[3]) ** 2
                + (y[1] - x[2] * y[2]) ** 4
                + x[3] * (y[0] - y[3]) ** 4
            ),
            optimum=0.0,
            solution=(0, 0, 0, 0),
            regular=False,
            tags=("singular reduced Hessian",),
        ),
        _classic(
            "Wood",
            (100, 90, 10),
            (-3, -1, -3, -1),
            lambda y, x: (
                x[0] * (y[1] - y[0] ** 2) ** 2
                + (1 - y[0]) ** 2
                + x[1] * (y[3] - y[2] ** 2) ** 2
                + (1 - y[2]) ** 2
                + x[2] * (y[1] + y[3] - 2) ** 2
                + (y[1] - y[3]) ** 2 / x[2]
            ),
            optimum=0.0,
            solution=(1, 1, 1, 1),
            tags=("nonconvex",),
        ),
        _classic(
            "Kowalik and Osborne",
            _KOWALIK_DATA,
            (0.25, 0.39, 0.415, 0.39),
            _kowalik,
            optimum=0.0003074859878056,
            solution=(0.192833452983, 0.190836238782, 0.123117296278, 0.135765989981),
            tags=("nonconvex",),
            spread=1e-3,
        ),
        _classic(
            "trigonometric",
            (1, 1, 1, 1, 1),
            (0.2,) * 5,
            _trigonometric,
            optimum=0,
            solution=(0.104548506885, 0.111562497281, 0.12120260702, 0.353394364572, 0.190489900411),
            tags=("nonconvex", "several solutions"),
        ),
        _classic(
            "variably dimensioned",
            (1, 1, 1, 1, 1, 1),
            (5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0),
            lambda y, x: (
                (y - x).square().sum()
                + (torch.arange(1, 7).to(y) * (y - x)).sum() ** 2
                + (torch.arange(1, 7).to(y) * (y - x)).sum() ** 4
            ),
            optimum=0.0,
            solution=(1,) * 6,
        ),
        _classic(
            "Broyden tridiagonal",
            (3, 2),
            (-1,) * 10,
            _broyden,
            optimum=0,
            solution=(
                -0.570722132011,
                -0.681806949984,
                -0.702210076018,
                -0.705510629895,
                -0.704906155729,
                -0.70149660703,
                -0.691889322355,
                -0.665796514406,
                -0.596035109026,
                -0.416412257529,
            ),
            tags=("nonconvex", "several solutions"),
        ),
        stated(
            "Himmelblau",
            (11, 7),
            (0, 0),
            lambda y, x: (y[0] ** 2 + y[1] - x[0]) ** 2 + (y[0] + y[1] ** 2 - x[1]) ** 2,
            optimum=0.0,
            solution=(3, 2),
            tags=("nonconvex", "several solutions"),
            source="Himmelblau, Applied Nonlinear Programming, 1972",
        ),
        stated(
            "scalar polynomial",
            (1,),
            (-4,),
            lambda y, x: x[0] * y[0] ** 4 + 2 * x[0] ** 2 * y[0] ** 3 - 12 * y[0] ** 2,
            optimum=-83.96655720,
            solution=(-3.3117376914898995,),
            tags=("nonconvex", "several solutions"),
            source="Gould, Hartley, Campbell, Deep Declarative Networks, section 5",
        ),
    ]
