"""The problems on which solvers are tried: each with inputs, a start and the answer, bound to a batch."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import torchddn as ddn
from torchddn import solvers
from torchddn._shapes import layout_of
from torchddn.problem import BatchedProblem, FixedPoint, LeastSquares, Problem, Root, bind

CONVERGED = int(ddn.Status.CONVERGED)


def bound(problem: Problem, x: tuple[Tensor, ...], y_0: Tensor) -> tuple[BatchedProblem, tuple[Tensor, ...]]:
    """The problem as solvers see it."""
    batched, tensors = bind("node", problem, pytree.tree_structure(x), x, len(y_0))
    batched = dataclasses.replace(batched, layout=layout_of(y_0[0]) if len(y_0) else layout_of(y_0.sum(0)))
    p = batched.equality(y_0, tensors).shape[1] if batched.kind == "minimize" else 0
    return dataclasses.replace(batched, p=p), tensors


def run(solver, problem: Problem, x: tuple[Tensor, ...], y_0: Tensor) -> solvers.Result:
    """The result of a solve without gradients."""
    batched, tensors = bound(problem, x, y_0)
    with torch.no_grad():
        return solvers.solve(solver, batched, tensors, y_0)


class Residuals(LeastSquares):
    """Least squares from a function."""

    def __init__(self, residual: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function_of = residual

    def residual(self, y, *x):
        return self.function_of(y, *x)


@dataclasses.dataclass(frozen=True)
class Case:
    """A problem, eight items of input, starts ``(8, m)`` and answers ``(8, m)``, all float64."""

    name: str
    problem: Callable[[], Problem]
    x: tuple[Tensor, ...]
    y_0: Tensor
    answer: Tensor

    def on(self, device: torch.device, dtype: torch.dtype = torch.float64) -> "Case":
        x = tuple(tensor.to(device, dtype) for tensor in self.x)
        return dataclasses.replace(self, x=x, y_0=self.y_0.to(device, dtype), answer=self.answer.to(device, dtype))


def _case(name: str, problem: Callable[[], Problem], x, y_0, answer) -> Case:
    return Case(name, problem, x, torch.as_tensor(y_0).expand(8, -1).clone(), answer)


def _make() -> dict[str, Case]:
    generator = torch.Generator().manual_seed(0)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    functions = Problem.from_functions
    zeros = torch.zeros(1, dtype=torch.float64)
    positive = torch.linspace(0.5, 3.0, 8, dtype=torch.float64)[:, None]
    cases = []

    factor = randn(8, 4, 4)
    A, b = factor @ factor.mT + torch.eye(4, dtype=torch.float64), randn(8, 4)
    cases.append(
        _case(
            "quadratic",
            lambda: functions(lambda y, A, b: 0.5 * y @ A @ y - b @ y),
            (A, b),
            zeros.expand(4),
            torch.linalg.solve(A, b),
        )
    )
    # Known answer 1: the left of two minima.
    x = positive
    left = (-3 * x**2 - (9 * x**4 + 96 * x).sqrt()) / (4 * x)
    cases.append(
        _case(
            "polynomial",
            lambda: functions(lambda y, x: (x * y**4 + 2 * x**2 * y**3 - 12 * y**2).sum()),
            (x,),
            left - 1.5,
            left,
        )
    )
    cases.append(
        _case(
            "rosenbrock",
            lambda: functions(lambda y, a: (a[0] - y[0]) ** 2 + 100 * (y[1] - y[0] ** 2) ** 2),
            (x,),
            torch.tensor([-1.2, 1.0], dtype=torch.float64),
            torch.cat([x, x**2], 1),
        )
    )
    # Known answer 2.
    cases.append(
        _case(
            "circle",
            lambda: functions(lambda y, x: y[0] + x[0] * y[1], lambda y, x: y.square().sum() - 1),
            (x,),
            torch.tensor([0.3, -0.8], dtype=torch.float64),
            -torch.cat([torch.ones_like(x), x], 1) / (1 + x**2).sqrt(),
        )
    )
    # Known answer 4, the sphere, and known answer 5, a hyperplane, at once.
    points = randn(8, 5)
    centred = points - points.mean(1, keepdim=True)
    cases.append(
        _case(
            "sphere and plane",
            lambda: functions(
                lambda y, x: 0.5 * (y - x).square().sum(), lambda y, x: torch.stack([y.square().sum() - 1, y.sum()])
            ),
            (points,),
            points,
            centred / centred.norm(dim=1, keepdim=True),
        )
    )
    # Known answer 6: the input is in the right-hand side only.
    rows, right = randn(8, 2, 4), randn(8, 2)
    cases.append(
        _case(
            "right-hand side",
            lambda: functions(lambda y, A, x: 0.5 * y.square().sum(), lambda y, A, x: A @ y - x),
            (rows, right),
            zeros.expand(4),
            (rows.mT @ torch.linalg.solve(rows @ rows.mT, right[..., None]))[..., 0],
        )
    )
    # Known answer 7, inside y > 0.
    mass = randn(8, 4).exp()
    cases.append(
        _case(
            "divergence",
            lambda: functions(lambda y, x: (y * (y / x).log()).sum(), lambda y, x: y.sum() - 1),
            (mass,),
            torch.full((4,), 0.25, dtype=torch.float64),
            mass / mass.sum(1, keepdim=True),
        )
    )
    cases.append(
        _case(
            "no objective",
            lambda: functions(None, lambda y, x: (y - 1) ** 2 - x**2),
            (x,),
            1 + 1.5 * x,
            1 + x,
        )
    )
    times = torch.linspace(0, 2, 12, dtype=torch.float64)
    truth = torch.cat([positive, 0.3 * positive.flip(0)], 1)
    data = truth[:, :1] * torch.exp(-truth[:, 1:] * times)
    cases.append(
        _case(
            "exponential",
            lambda: Residuals(lambda y, data: y[0] * torch.exp(-y[1] * times.to(y)) - data),
            (data,),
            torch.tensor([1.0, 1.0], dtype=torch.float64),
            truth,
        )
    )
    design, target = torch.eye(6, 3, dtype=torch.float64) + 0.3 * randn(8, 6, 3), randn(8, 6)
    cases.append(
        _case(
            "regression",
            lambda: Residuals(lambda y, A, b: A @ y - b),
            (design, target),
            zeros.expand(3),
            torch.linalg.lstsq(design, target[..., None]).solution[..., 0],
        )
    )
    cases.append(_case("square root", lambda: Root(lambda y, x: y**2 - x, zeros), (x,), 1 + x, x.sqrt()))
    direction = torch.cat([x, torch.ones_like(x)], 1)
    cases.append(
        _case(
            "circle and line",
            lambda: Root(lambda y, x: torch.stack([y.square().sum() - 1, y[0] - x[0] * y[1]]), zeros.expand(2)),
            (x,),
            torch.tensor([0.5, 2.0], dtype=torch.float64),
            direction / direction.norm(dim=1, keepdim=True),
        )
    )
    weights = 0.4 * randn(8, 3, 3) / 3**0.5
    cases.append(
        _case(
            "linear map",
            lambda: FixedPoint(lambda y, W, b: W @ y + b, zeros.expand(3)),
            (weights, randn(8, 3)),
            zeros.expand(3),
            zeros.expand(3),
        )
    )
    W, c = cases[-1].x
    cases[-1] = dataclasses.replace(cases[-1], answer=torch.linalg.solve(torch.eye(3, dtype=torch.float64) - W, c))
    cases.append(_case("kepler", lambda: FixedPoint(lambda y, x: x + 0.6 * torch.sin(y), zeros), (x,), x, _kepler(x)))
    return {case.name: case for case in cases}


def _kepler(x: Tensor) -> Tensor:
    y = x.clone()
    for _ in range(60):
        y = y - (y - 0.6 * torch.sin(y) - x) / (1 - 0.6 * torch.cos(y))
    return y


CASES = _make()

# Which solvers are for which cases; with the accuracy that each must reach in float64.
_UNCONSTRAINED = ("quadratic", "polynomial")
_CONSTRAINED = ("circle", "sphere and plane", "right-hand side", "divergence", "no objective")
_SQUARES = ("exponential", "regression")
_ROOTS = ("square root", "circle and line")
_FIXED_POINTS = ("linear map", "kepler")
_ALL: list[tuple[object, tuple[str, ...], float]] = [
    (solvers.Newton(), (*_UNCONSTRAINED, "rosenbrock", *_SQUARES, *_ROOTS, *_FIXED_POINTS), 1e-12),
    (solvers.SQP(), (*_UNCONSTRAINED, "rosenbrock", *_CONSTRAINED), 1e-12),
    (solvers.GaussNewton(), (*_SQUARES, *_ROOTS, *_FIXED_POINTS), 1e-12),
    (solvers.LevenbergMarquardt(), (*_SQUARES, *_ROOTS, *_FIXED_POINTS), 1e-12),
    (solvers.LBFGS(), (*_UNCONSTRAINED, "rosenbrock", *_SQUARES), 1e-9),
    (solvers.GradientDescent(), (*_UNCONSTRAINED, *_SQUARES), 1e-9),
    (solvers.AugmentedLagrangian(), (*_UNCONSTRAINED, *_CONSTRAINED), 1e-9),
    (solvers.Anderson(), _FIXED_POINTS, 1e-11),
    (solvers.Broyden(), (*_ROOTS, *_FIXED_POINTS), 1e-11),
    (solvers.Bisection(), ("square root", "kepler"), 1e-12),
    (solvers.MultiStart(solvers.Newton(), num_starts=3, spread=0.1), _UNCONSTRAINED, 1e-12),
    (solvers.WarmStart(solvers.SQP()), ("quadratic", "circle"), 1e-12),
]
PAIRS = [(solver, name, accuracy) for solver, names, accuracy in _ALL for name in names]
IDS = [f"{type(solver).__name__}, {name}" for solver, name, _ in PAIRS]
