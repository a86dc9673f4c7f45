"""What a node costs, forward and backward, beside the ways in which one would do it by hand.

* *rows*: the gradient as the papers' formula reads, ``H^-1 B`` with ``B`` formed row by row;
* *unrolled*: automatic differentiation of the solver's own steps.

Each row also prints the error of its gradient against the closed form or the dense reference.
"""

import torch
from torch import Tensor

import torchddn as ddn
from benchmarks.timing import median_ms, table


def bowl(y: Tensor, x: Tensor) -> Tensor:
    return 0.5 * (y - x).square().sum() + 0.1 * y.pow(4).sum() + 0.3 * torch.logsumexp(y, 0)


def sphere(y: Tensor, x: Tensor) -> Tensor:
    return y.square().sum() - 1.0


def rows_formula(f, h, y: Tensor, nu: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """``v' Dy`` by proposition 4.5, with every matrix formed, batch item by batch item as a whole."""
    with torch.enable_grad():
        y, x = y.detach().requires_grad_(), x.detach().requires_grad_()
        value = torch.func.vmap(f)(y, x)
        if h is not None:
            value = value + nu[:, 0].detach() * torch.func.vmap(h)(y, x)
        (L_y,) = torch.autograd.grad(value.sum(), y, create_graph=True)
        rows = [torch.autograd.grad(L_y[:, i].sum(), (y, x), retain_graph=True) for i in range(y.shape[1])]
        H, B = (torch.stack(parts, dim=1) for parts in zip(*rows, strict=True))
        if h is None:
            return -torch.einsum("bm,bmn->bn", v, torch.linalg.solve(H, B))
        A = torch.autograd.grad(torch.func.vmap(h)(y, x).sum(), y)[0][:, None, :]
    HA, HB = torch.linalg.solve(H, A.mT), torch.linalg.solve(H, B)
    return torch.einsum("bm,bmn->bn", v, HA @ torch.linalg.solve(A @ HA, A @ HB) - HB)


def run() -> str:
    """The table."""
    rows = []
    for size, m, h in ((64, 10, None), (64, 10, sphere), (256, 10, sphere), (64, 50, sphere)):
        torch.manual_seed(0)
        x = torch.randn(size, m, dtype=torch.float64, requires_grad=True)
        v = torch.randn(size, m, dtype=torch.float64)
        start = torch.full((m,), 0.3, dtype=torch.float64)

        def node(adjoint: object, x: Tensor = x, start: Tensor = start, h=h) -> ddn.Solution:
            return ddn.argmin(bowl, start, x, equality=h, adjoint=adjoint, solution=True)

        exact = node(ddn.Implicit())
        nu = exact.equality_multipliers
        expected = rows_formula(bowl, h, exact.y, nu, x, v)
        kind = "unconstrained" if h is None else "one equality"
        forward = median_ms(lambda: node(ddn.Implicit()))

        def add(name: str, time: float, g: Tensor, forward: float, kind=kind, expected=expected) -> None:
            rows.append((size, m, kind, name, forward, time, ((g - expected).norm() / expected.norm()).item()))

        for name, adjoint in (("implicit (torchddn)", ddn.Implicit()), ("unrolled (torchddn)", ddn.Unrolled())):
            forward = median_ms(lambda adjoint=adjoint: node(adjoint))
            y = node(adjoint).y
            (g,) = torch.autograd.grad(y, x, v, retain_graph=True)
            add(name, median_ms(lambda y=y: torch.autograd.grad(y, x, v, retain_graph=True)), g, forward)
        by_rows = lambda: rows_formula(bowl, h, exact.y, nu, x, v)  # noqa: E731
        add("rows, H and B formed", median_ms(by_rows), by_rows(), forward)
    return table(
        "A node on the CPU, float64, milliseconds (median)",
        ("B", "m", "problem", "gradient by", "forward", "backward", "relative error of the gradient"),
        rows,
    )
