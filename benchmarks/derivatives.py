"""Which engine computes batched derivatives cheapest: plain autograd, torch.func, or a captured graph?

The subject is one Hessian, one Hessian-vector product and one gradient of a function of m = 10 variables on a
batch of 64 (and other sizes). ``torchddn.derivatives`` uses the first engine, and the second inside transforms.
A captured graph (``make_fx``) is listed because it is the obvious idea: it freezes what Python computed while it
was traced, so that a changed attribute of a problem would go unnoticed; it saves about a third.
"""

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from benchmarks.timing import median_ms, table
from torchddn.derivatives import gradient, hessian, vjp


def f(y: Tensor, x: Tensor) -> Tensor:
    """Separable plus coupled, as a small node is."""
    return 0.5 * (y - x).square().sum() + 0.1 * y.pow(4).sum() + 0.3 * torch.logsumexp(y, 0)


def run() -> str:
    """The table."""
    rows = []
    for size, m in ((64, 10), (1, 10), (256, 10), (64, 64)):
        y, x = torch.randn(2, size, m, dtype=torch.float64)
        batched = vmap(f)

        def ours(y: Tensor, x: Tensor = x, batched=batched) -> Tensor:
            return batched(y, x)

        engines = {
            "plain autograd (torchddn)": (
                lambda y=y: gradient(ours, y),
                lambda y=y: vjp(lambda y: gradient(ours, y), (y,), y),
                lambda y=y: hessian(ours, y),
            ),
            "torch.func": (
                lambda y=y, x=x: vmap(grad(f))(y, x),
                lambda y=y, x=x: torch.func.vjp(lambda y: vmap(grad(f))(y, x), y)[1](y),
                lambda y=y, x=x: vmap(jacrev(jacrev(f)))(y, x),
            ),
        }
        captured = (
            make_fx(lambda y, x: vmap(grad(f))(y, x))(y, x),
            make_fx(lambda y, x: torch.func.vjp(lambda y: vmap(grad(f))(y, x), y)[1](y)[0])(y, x),
            make_fx(lambda y, x: vmap(jacrev(jacrev(f)))(y, x))(y, x),
        )
        engines["captured graph (make_fx)"] = tuple(lambda g=g, y=y, x=x: g(y, x) for g in captured)
        expected = vmap(jacrev(jacrev(f)))(y, x)
        for name, calls in engines.items():
            error = (calls[2]() - expected).abs().max().item()
            rows.append((size, m, name, *(median_ms(call) for call in calls), error))
    return table(
        "Derivatives of a batched function, milliseconds (median)",
        ("B", "m", "engine", "gradient", "Hessian product", "dense Hessian", "largest difference"),
        rows,
    )
