"""Problems with inequalities and bounds, each with inputs, a start and the answer, for the solvers that take them."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from torchddn import solvers
from torchddn.door import prepare
from torchddn.problem import BatchedProblem, Problem

f64 = torch.float64


@dataclasses.dataclass(frozen=True)
class Case:
    """Some items of one problem; ``answer`` is ``(B, m)`` and ``dual``, where it is unique, ``(B, p + q)``."""

    name: str
    problem: Callable[[Tensor], Problem]  # of the start
    x: tuple[Tensor, ...]
    y_0: Tensor
    answer: Tensor
    dual: Tensor | None

    def on(self, device: torch.device, dtype: torch.dtype = f64) -> "Case":
        x = tuple(tensor.to(device, dtype) for tensor in self.x)
        dual = None if self.dual is None else self.dual.to(device, dtype)
        parts = {"x": x, "y_0": self.y_0.to(device, dtype), "answer": self.answer.to(device, dtype), "dual": dual}
        return dataclasses.replace(self, **parts)

    def items(self, index: list[int]) -> "Case":
        """Some of the items."""
        dual = None if self.dual is None else self.dual[index]
        x = tuple(tensor[index] for tensor in self.x)
        return dataclasses.replace(self, x=x, y_0=self.y_0[index], answer=self.answer[index], dual=dual)

    def bound(self) -> tuple[BatchedProblem, tuple[Tensor, ...]]:
        """The problem as solvers see it."""
        prepared = prepare("node", self.problem(self.y_0), self.x, "batch")
        return prepared.problem, prepared.x

    def run(self, solver) -> solvers.Result:
        """The result of a solve without gradients."""
        batched, x = self.bound()
        with torch.no_grad():
            return solvers.solve(solver, batched, x, x[-1])


def tensor(*rows) -> Tensor:
    return torch.tensor(rows, dtype=f64)


def case(name: str, functions: dict, x, y_0, answer, dual=None) -> Case:
    """A case from the arguments of ``Problem.from_functions``."""
    x = x if isinstance(x, tuple) else (x,)
    y_0 = torch.as_tensor(y_0, dtype=f64).expand(len(x[0]), -1).clone()
    answer = torch.as_tensor(answer, dtype=f64).expand(len(x[0]), -1)
    dual = None if dual is None else torch.as_tensor(dual, dtype=f64).expand(len(x[0]), -1)
    return Case(name, lambda y_0: Problem.from_functions(**functions, initial=y_0), x, y_0, answer, dual)


def project_simplex(x: Tensor) -> Tensor:
    """The nearest points whose entries are not negative and sum to one, by sorting."""
    u = x.sort(dim=1, descending=True).values
    tau = (u.cumsum(1) - 1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype)
    last = (u > tau).sum(1, keepdim=True) - 1
    return (x - tau.gather(1, last)).clamp(min=0)


def _make() -> list[Case]:
    generator = torch.Generator().manual_seed(0)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=f64)

    def distance(y, x):
        return 0.5 * (y - x).square().sum()

    stack, one = torch.stack, torch.ones(6, 1, dtype=f64)
    points = 1.5 * randn(6, 3)
    outside = (points.norm(dim=1, keepdim=True) - 1).clamp(min=0)
    nonnegative = (0.0, None)
    costs = randn(6, 4) - 1.0
    factor = randn(6, 4, 4)
    A = factor @ factor.mT + torch.eye(4, dtype=f64)
    inside = randn(6, 4)
    cheapest = torch.nn.functional.one_hot(costs.argmin(1), 4).to(f64)
    tilt = torch.linspace(0.5, 2, 6, dtype=f64)[:, None]
    weights = 4 * randn(6, 3).sigmoid()
    return [
        case(
            "ball",
            {"objective": distance, "inequality": lambda y, x: 0.5 * (y.square().sum() - 1)},
            points,
            [0.1, 0.2, 0.3],
            points / (1 + outside),
            outside,
        ),
        case("box", {"objective": distance, "bounds": (-1.0, 0.5)}, points, [0.1] * 3, points.clamp(-1.0, 0.5)),
        case(
            "box, by rows",
            {"objective": distance, "inequality": lambda y, x: torch.cat([-1 - y, y - 0.5])},
            points,
            [0.1] * 3,
            points.clamp(-1.0, 0.5),
            torch.cat([(-1 - points).clamp(min=0), (points - 0.5).clamp(min=0)], 1),
        ),
        case(
            "simplex",
            {"objective": distance, "equality": lambda y, x: y.sum() - 1, "bounds": nonnegative},
            points,
            [0.2, 0.3, 0.5],
            project_simplex(points),
            (points - project_simplex(points)).amax(1, keepdim=True),
        ),
        case(
            "curved quadratic in a box",
            {"objective": lambda y, A, z: 0.5 * (y - z) @ A @ (y - z), "bounds": (-5.0, 5.0)},
            (A, inside.clamp(-3, 3)),
            [0.0] * 4,
            inside.clamp(-3, 3),
        ),
        # At a vertex: no curvature at all.
        case(
            "linear program",
            {"objective": lambda y, x: x @ y, "inequality": lambda y, x: y.sum() - 1, "bounds": nonnegative},
            costs,
            [0.25] * 4,
            cheapest,
            -costs.amin(1, keepdim=True),
        ),
        # Curved down but for the constraint: the largest rectangle.
        case(
            "saddle in a disk",
            {"objective": lambda y, x: -y[0] * y[1], "inequality": lambda y, x: y.square().sum() - 2 * x[0] ** 2},
            tilt,
            [0.3, 0.2],
            tilt.expand(6, 2),
            0.5 * one,
        ),
        case(
            "logarithm",
            {"objective": lambda y, x: (y - x * y.log()).sum(), "bounds": (1.0, 3.0)},
            weights,
            [1.5, 2.0, 2.5],
            weights.clamp(1.0, 3.0),
        ),
        # Hock and Schittkowski, numbers 2 (from a start on the right side), 35, 43 and 71.
        case(
            "HS2",
            {
                "objective": lambda y, x: x[0] * (100 * (y[1] - y[0] ** 2) ** 2 + (1 - y[0]) ** 2),
                "bounds": (None, None),
                "inequality": lambda y, x: 1.5 - y[1:],
            },
            tilt,
            [1.3, 1.6],
            [1.2243707487363527, 1.5],
        ),
        case(
            "HS35",
            {
                "objective": lambda y, x: (
                    (
                        9
                        - 8 * y[0]
                        - 6 * y[1]
                        - 4 * y[2]
                        + 2 * y[0] ** 2
                        + 2 * y[1] ** 2
                        + y[2] ** 2
                        + 2 * y[0] * y[1]
                        + 2 * y[0] * y[2]
                    )
                    * x[0]
                ),
                "inequality": lambda y, x: y[0] + y[1] + 2 * y[2] - 3,
                "bounds": nonnegative,
            },
            tilt,
            [0.5, 0.5, 0.5],
            [4 / 3, 7 / 9, 4 / 9],
            2 / 9 * tilt,
        ),
        case(
            "HS43",
            {
                "objective": lambda y, x: (
                    y[0] ** 2 + y[1] ** 2 + 2 * y[2] ** 2 + y[3] ** 2 - 5 * y[0] - 5 * y[1] - 21 * y[2] + 7 * y[3]
                ),
                "inequality": lambda y, x: (
                    stack(
                        [
                            y[0] ** 2 + y[1] ** 2 + y[2] ** 2 + y[3] ** 2 + y[0] - y[1] + y[2] - y[3] - 8,
                            y[0] ** 2 + 2 * y[1] ** 2 + y[2] ** 2 + 2 * y[3] ** 2 - y[0] - y[3] - 10,
                            2 * y[0] ** 2 + y[1] ** 2 + y[2] ** 2 + 2 * y[0] - y[1] - y[3] - 5,
                        ]
                    )
                    * x[0]
                ),
            },
            tilt,
            [0.0] * 4,
            [0.0, 1.0, 2.0, -1.0],
            tensor([1.0, 0.0, 2.0]) / tilt,
        ),
        case(
            "HS71",
            {
                "objective": lambda y, x: y[0] * y[3] * (y[0] + y[1] + y[2]) + y[2],
                "equality": lambda y, x: (y.square().sum() - 40) * x[0],
                "inequality": lambda y, x: 25 - y.prod(),
                "bounds": (1.0, 5.0),
            },
            tilt,
            [1.0, 5.0, 5.0, 1.0],
            [1.0, 4.742999637264417, 3.8211499841848746, 1.3794082931726725],
            torch.cat([0.16146856677050895 / tilt, 0.5522936601207268 * one], 1),
        ),
    ]


CASES = {case.name: case for case in _make()}
BOUNDS_ONLY = ("box", "curved quadratic in a box", "logarithm")
