"""What a node costs, forward and backward, beside the ways in which one would do it by hand.

* *rows*: the gradient as the papers' formula reads, ``H^-1 B`` with ``B`` formed row by row;
* *unrolled*: automatic differentiation of the solver's own steps.

Each row also prints the error of its gradient against that of *rows*. A third kind of node pools n numbers into m:
there ``B`` is ``m x n`` for each item, which the implicit gradient never forms.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import torchddn as ddn
from benchmarks.timing import median_ms, table


def bowl(y: Tensor, x: Tensor) -> Tensor:
    return 0.5 * (y - x).square().sum() + 0.1 * y.pow(4).sum() + 0.3 * torch.logsumexp(y, 0)


def center(y: Tensor, x: Tensor) -> Tensor:
    """Robust center of the points in the rows of ``x``."""
    return (1 + (y - x).square().sum(-1)).sqrt().sum()


def sphere(y: Tensor, x: Tensor) -> Tensor:
    return y.square().sum() - 1.0


class Case(NamedTuple):
    """One line of the table."""

    name: str
    f: Callable[[Tensor, Tensor], Tensor]
    h: Callable[[Tensor, Tensor], Tensor] | None
    shape: tuple[int, ...]

    def run(self) -> list[tuple[object, ...]]:
        """Rows of the table."""
        x = torch.randn(self.shape, dtype=torch.float64, requires_grad=True)
        size, m = self.shape[0], self.shape[-1]
        v = torch.randn(size, m, dtype=torch.float64)
        rows = []

        def add(name: str, forward: float | str, pull: Callable[[], Tensor]) -> None:
            error = ((pull() - expected).norm() / expected.norm()).item()
            rows.append((self.name, size, m, x[0].numel(), name, forward, median_ms(pull), error))

        exact = self.node(ddn.Implicit(), x)
        expected = self.by_rows(exact, x, v)
        for name, adjoint in (("implicit (torchddn)", ddn.Implicit()), ("unrolled (torchddn)", ddn.Unrolled())):
            forward = median_ms(lambda adjoint=adjoint: self.node(adjoint, x))
            y = self.node(adjoint, x).y
            add(name, forward, lambda y=y: torch.autograd.grad(y, x, v, retain_graph=True)[0])
        add("rows, H and B formed", "", lambda: self.by_rows(exact, x, v))
        return rows

    def node(self, adjoint: object, x: Tensor) -> ddn.Solution:
        """The solution by the library."""
        start = torch.full(self.shape[-1:], 0.3, dtype=torch.float64)
        return ddn.argmin(self.f, start, x, equality=self.h, adjoint=adjoint, solution=True)

    def by_rows(self, solution: ddn.Solution, x: Tensor, v: Tensor) -> Tensor:
        """``v' Dy`` by proposition 4.4 or 4.5, every matrix formed, for the batch as a whole."""
        y, x = solution.y.detach().requires_grad_(), x.detach().requires_grad_()
        value = torch.func.vmap(self.f)(y, x)
        if self.h is not None:
            value = value + solution.equality_multipliers[:, 0].detach() * torch.func.vmap(self.h)(y, x)
        (L_y,) = torch.autograd.grad(value.sum(), y, create_graph=True)
        rows = [torch.autograd.grad(L_y[:, i].sum(), (y, x), retain_graph=True) for i in range(y.shape[1])]
        H, B = (torch.stack([row.flatten(1) for row in part], dim=1) for part in zip(*rows, strict=True))
        HB = torch.linalg.solve(H, B)
        if self.h is None:
            return -torch.einsum("bm,bmn->bn", v, HB).reshape(x.shape)
        A = torch.autograd.grad(torch.func.vmap(self.h)(y, x).sum(), y)[0][:, None, :]
        HA = torch.linalg.solve(H, A.mT)
        return torch.einsum("bm,bmn->bn", v, HA @ torch.linalg.solve(A @ HA, A @ HB) - HB).reshape(x.shape)


CASES = (
    Case("unconstrained", bowl, None, (64, 10)),
    Case("one equality", bowl, sphere, (64, 10)),
    Case("one equality", bowl, sphere, (256, 10)),
    Case("one equality", bowl, sphere, (64, 50)),
    Case("robust center", center, None, (64, 1000, 10)),
)


def run() -> str:
    """The table."""
    torch.manual_seed(0)
    return table(
        "A node on the CPU, float64, milliseconds (median)",
        ("problem", "B", "m", "n", "gradient by", "forward", "backward", "relative error of the gradient"),
        [row for case in CASES for row in case.run()],
    )
