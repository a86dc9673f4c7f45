"""The problems on which solvers, adjoints and nodes are tried, each with a way to make its inputs.

A new kind of problem joins ``ALL`` and inherits the conformance tests of ``test_conformance.py``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import torchddn as ddn


@dataclasses.dataclass(frozen=True)
class Case:
    """A node and inputs for it; ``make(B)`` gives float64 inputs of batch size B."""

    name: str
    node: Callable[[], ddn.DeclarativeNode]
    make: Callable[[int], tuple[Tensor, ...]]


class SmoothBowl(ddn.Problem):
    """Convex, coupled, with a parameter that has its own gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.7, 1.3, 0.4], dtype=torch.float64))

    def objective(self, y, x):
        return 0.5 * (self.weight * (y - x).square()).sum() + 0.1 * y.pow(4).sum() + torch.logsumexp(y, 0)

    def initial(self, x):
        return torch.zeros_like(x)


class LinearOnEllipse(ddn.Problem):
    """No curvature in the objective: the constraint supplies it."""

    def objective(self, y, c, a):
        return (c * y).sum()

    def equality(self, y, c, a):
        return (a.exp() * y.square()).sum() - 1.0

    def initial(self, c, a):
        return -c / c.norm()


class CurvedAndFlat(ddn.Problem):
    """Non-convex objective, one curved and one linear constraint, both depending on the input."""

    def objective(self, y, x):
        return 0.5 * (y - x).square().sum() + 0.2 * torch.sin(y).prod()

    def equality(self, y, x):
        return torch.stack([y.square().sum() - 2.0 - 0.1 * x[0].tanh(), y.sum() - 0.5 * torch.sin(x[1])])

    def initial(self, x):
        return x


class Matrix(ddn.Problem):
    """A decision that is a dict of a matrix and a scalar, from nested inputs."""

    def objective(self, y, x):
        fit = (y["matrix"] - torch.outer(x["left"], x["right"])).square().sum()
        return 0.5 * fit + (y["scale"] - y["matrix"].sum()).square() + 0.05 * y["scale"].pow(4)

    def initial(self, x):
        return {"matrix": torch.zeros_like(torch.outer(x["left"], x["right"])), "scale": x["left"].new_zeros(())}


class Curve(ddn.LeastSquares):
    """Exponential curve fit."""

    def residual(self, y, t, b):
        return y[0] * torch.exp(-y[1] * t) - b

    def initial(self, t, b):
        return t.new_tensor([1.0, 0.5])


class BallAndPlane(ddn.Problem):
    """Two inequalities, of which each item has others active."""

    def objective(self, y, x):
        return 0.5 * (y - x).square().sum() + 0.1 * torch.sin(y).prod()

    def inequality(self, y, x):
        return torch.stack([y.square().sum() - 1.0 - 0.1 * x[0].tanh(), y.sum() - 0.3 + 0.1 * x[1]])

    def initial(self, x):
        return torch.zeros_like(x)


class Box(ddn.Problem):
    """Bounds that depend on the input, on a parameter, and on nothing; a coupled objective."""

    def __init__(self) -> None:
        super().__init__()
        self.width = nn.Parameter(torch.tensor([0.5, 0.7, 0.4], dtype=torch.float64))

    def objective(self, y, x):
        return 0.5 * (y - x).square().sum() + 0.2 * (y.sum() - x[0]).square()

    def bounds(self, x):
        return -self.width, 0.5 + 0.1 * x[1].tanh()

    def initial(self, x):
        return torch.zeros_like(x)


class Everything(ddn.Problem):
    """Equality, inequality and bounds."""

    def objective(self, y, x):
        return (y * torch.log(y / x.exp())).sum() + 0.1 * y.square().sum()

    def equality(self, y, x):
        return y.sum() - 1.0

    def inequality(self, y, x):
        return y[0] - 0.3 - 0.1 * torch.sin(x[2])

    def bounds(self, x):
        return 0.05, 0.6

    def initial(self, x):
        return torch.full_like(x, 1 / 4)


def _equations(y, x):
    return torch.stack([y[0] + 0.3 * torch.sin(y[1]) - x[0], y[1] + 0.5 * y[0].tanh() - x[1] * x[0]])


def _contraction(y, x):
    return 0.5 * torch.tanh(y.flip(0) + x) + 0.1 * x


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Normal float64 numbers that depend on nothing but the arguments."""
    generator = torch.Generator("cpu").manual_seed(seed)
    numbers = torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")
    return numbers.to(torch.get_default_device())


def _curve_inputs(size: int) -> tuple[Tensor, ...]:
    t = torch.linspace(0, 2, 6, dtype=torch.float64).expand(size, 6).contiguous()
    rate = 0.5 + randn(size, 1, seed=3).abs()
    return t, 1.5 * torch.exp(-rate * t) + 0.01 * randn(size, 6, seed=4)


def _node(problem: type[ddn.Problem], **options: Any) -> Callable[[], ddn.DeclarativeNode]:
    return lambda: ddn.DeclarativeNode(problem(), **options)


class Equations(nn.Module):
    """``ddn.root`` as a module, so that it joins the list."""

    def forward(self, x):
        return ddn.root(_equations, torch.zeros(2, dtype=x.dtype), x, start="item")


class Equilibrium(nn.Module):
    """``ddn.fixed_point`` as a module."""

    def forward(self, x):
        return ddn.fixed_point(_contraction, torch.zeros(3, dtype=x.dtype), x, start="item")


class FlatMatrix(nn.Module):
    """The node of ``Matrix`` with tensors in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.node = ddn.DeclarativeNode(Matrix())

    def forward(self, left, right):
        y = self.node({"left": left, "right": right})
        return torch.cat([y["matrix"].flatten(1), y["scale"][:, None]], dim=1)


class Prices(nn.Module):
    """The solution of ``Everything`` with all its multipliers."""

    def __init__(self) -> None:
        super().__init__()
        self.node = ddn.DeclarativeNode(Everything())

    def forward(self, x):
        solution = self.node.solve(x)
        multipliers = (solution.equality_multipliers, solution.inequality_multipliers)
        return torch.cat([solution.y, *multipliers, solution.lower_multipliers, solution.upper_multipliers], dim=1)


ALL = [
    Case("unconstrained", _node(SmoothBowl), lambda B: (randn(B, 3),)),
    Case("equality without curvature", _node(LinearOnEllipse), lambda B: (randn(B, 3, seed=1), 0.3 * randn(B, 3))),
    Case("two equalities", _node(CurvedAndFlat), lambda B: (randn(B, 4, seed=2),)),
    Case("inequalities", _node(BallAndPlane), lambda B: (randn(B, 3, seed=9),)),
    Case("bounds", _node(Box), lambda B: (randn(B, 3, seed=10),)),
    Case("everything and its multipliers", Prices, lambda B: (randn(B, 4, seed=11),)),
    Case("nested", FlatMatrix, lambda B: (randn(B, 2, seed=5), randn(B, 2, seed=6))),
    Case("least squares", _node(Curve), _curve_inputs),
    Case("root", Equations, lambda B: (randn(B, 2, seed=7),)),
    Case("fixed point", Equilibrium, lambda B: (randn(B, 3, seed=8),)),
]
