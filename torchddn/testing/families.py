"""Random families of problems that have no solution, provably so by how they are made."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from torchddn.problem import Problem
from torchddn.status import Status

__all__ = ["RandomFamily", "families"]

Make = Callable[[int, torch.Generator | None], tuple[Tensor, ...]]

_M = 4  # variables
_ROWS = 6  # linear rows


@dataclasses.dataclass(frozen=True, eq=False)
class RandomFamily:
    """Problems of one form with random data.

    Attributes:
        name: Unique.
        problem: A function of the tensors that ``make`` returns.
        outcome: How a solver should end.
        make: ``make(size, generator)`` returns the inputs of ``size`` random items, float64.
    """

    name: str
    problem: Problem
    outcome: Status
    make: Make


def families() -> tuple[RandomFamily, ...]:
    """Returns the families, half of them infeasible and half unbounded.

    Example:
        >>> family = families()[0]
        >>> family.name, family.outcome.name
        ('linear rows in conflict', 'INFEASIBLE')
        >>> [tensor.shape for tensor in family.make(2, None)]
        [torch.Size([2, 6, 4]), torch.Size([2, 6]), torch.Size([2, 4])]
    """
    functions = Problem.from_functions
    infeasible, unbounded = Status.INFEASIBLE, Status.UNBOUNDED
    return (
        RandomFamily(
            "linear rows in conflict",
            functions(_bowl, inequality=lambda y, A, b, c: A @ y - b, initial=lambda A, b, c: c),
            infeasible,
            _rows_in_conflict,
        ),
        RandomFamily(
            "a ball and a halfspace apart",
            functions(
                lambda y, a, c, r: a @ y,
                inequality=lambda y, a, c, r: torch.stack(
                    ((y - c).square().sum() - r[0] ** 2, a @ c + a.norm() * (r[0] + r[1]) - a @ y)
                ),
                initial=lambda a, c, r: c + a,
            ),
            infeasible,
            _ball_and_plane,
        ),
        RandomFamily(
            "a sphere and a plane apart",
            functions(
                lambda y, a, c, r: 0.5 * (y - a).square().sum(),
                lambda y, a, c, r: torch.stack(
                    ((y - c).square().sum() - r[0] ** 2, a @ (y - c) - a.norm() * (r[0] + r[1]))
                ),
                initial=lambda a, c, r: c + a,
            ),
            infeasible,
            _ball_and_plane,
        ),
        RandomFamily(
            "equalities outside of a box",
            functions(
                _bowl,
                lambda y, A, b, c: A @ y - b,
                bounds=lambda A, b, c: (-torch.ones_like(c), torch.ones_like(c)),
                initial=lambda A, b, c: 0.1 * c,
            ),
            infeasible,
            _outside_of_box,
        ),
        RandomFamily(
            "a linear objective along a ray",
            functions(
                lambda y, A, b, c, d: c @ y,
                inequality=lambda y, A, b, c, d: A @ y - b,
                initial=lambda A, b, c, d: torch.zeros_like(c),
            ),
            unbounded,
            _ray,
        ),
        RandomFamily(
            "negative curvature along a ray",
            functions(
                lambda y, A, b, c, d: 0.5 * y.square().sum() - (d @ y) ** 2 + 0.1 * (c @ y),
                inequality=lambda y, A, b, c, d: A @ y - b,
                initial=lambda A, b, c, d: torch.zeros_like(c),
            ),
            unbounded,
            _ray,
        ),
        RandomFamily(
            "a linear objective along a subspace",
            functions(
                lambda y, A, b, c: c @ y,
                lambda y, A, b, c: A @ y - b,
                initial=lambda A, b, c: torch.zeros_like(c),
            ),
            unbounded,
            lambda size, generator: (
                _randn(generator, size, 2, _M),
                _randn(generator, size, 2),
                _randn(generator, size, _M),
            ),
        ),
        RandomFamily(
            "a cubic in an orthant",
            functions(
                lambda y, a, c: -(a * y**3).sum() + 0.5 * (y - c).square().sum(),
                bounds=lambda a, c: (torch.zeros_like(a), torch.full_like(a, torch.inf)),
                initial=lambda a, c: a,
            ),
            unbounded,
            # 12 a c > 1: no local minimum anywhere.
            lambda size, generator: (0.2 + _rand(generator, size, _M), 0.5 + _randn(generator, size, _M).abs()),
        ),
    )


def _bowl(y: Tensor, A: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return 0.5 * (y - c).square().sum()


def _randn(generator: torch.Generator | None, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _rand(generator: torch.Generator | None, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def _rows_in_conflict(size: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
    """Rows with ``weights A = 0`` and ``weights b < 0`` for positive weights: Farkas' certificate."""
    weights = 0.2 + _rand(generator, size, _ROWS)
    A = _randn(generator, size, _ROWS, _M)
    A[:, -1] = -(weights[:, :-1, None] * A[:, :-1]).sum(1) / weights[:, -1:]
    slack = _rand(generator, size, _ROWS)
    gap = 0.2 + _rand(generator, size)
    slack[:, -1] = -((weights[:, :-1] * slack[:, :-1]).sum(1) + gap) / weights[:, -1]
    b = (A @ _randn(generator, size, _M, 1))[..., 0] + slack
    return A, b, _randn(generator, size, _M)


def _ball_and_plane(size: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
    """Normal, center, and radius with the gap between the two."""
    return _randn(generator, size, _M), _randn(generator, size, _M), 0.2 + _rand(generator, size, 2)


def _outside_of_box(size: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
    """The first row reaches ``|A_1|_1`` in the box, and must be more."""
    A, b = _randn(generator, size, 2, _M), _randn(generator, size, 2)
    b[:, 0] = A[:, 0].abs().sum(1) + 0.2 + _rand(generator, size)
    return A, b, _randn(generator, size, _M)


def _ray(size: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
    """Rows, objective and a direction of norm 1 along which the rows and the objective fall; 0 is feasible."""
    A, c, d = _randn(generator, size, _ROWS, _M), _randn(generator, size, _M), _randn(generator, size, _M)
    d = d / d.norm(dim=1, keepdim=True)
    A = -A * torch.sign(A @ d[..., None])
    c = -c * torch.sign((c * d).sum(1, keepdim=True))
    return A, 0.2 + _rand(generator, size, _ROWS), c, d
