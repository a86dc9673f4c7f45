"""One node, forward and gradient, beside the libraries that a user would pick instead.

The problem is the same for all, B = 64 items of m = 10 variables in float64::

    min_y  1/2 |y - x|^2 + 0.1 sum y^4 + 0.3 logsumexp(y)

Peers (``pip install -e '.[bench]'``): *jaxopt* compiles LBFGS and implicit differentiation with ``jit`` and ``vmap``;
*torchopt* differentiates implicitly through ``custom_root``, one item at a time, its forward pass being the user's own
(here Newton's method). A peer that is not installed is left out.
"""

import importlib.util
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import torchddn as ddn
from benchmarks.timing import median_ms, table

B, M = 64, 10


def bowl(y: Tensor, x: Tensor) -> Tensor:
    return 0.5 * (y - x).square().sum() + 0.1 * y.pow(4).sum() + 0.3 * torch.logsumexp(y, 0)


def _torchddn(x: np.ndarray) -> Callable[[], np.ndarray]:
    start = torch.zeros(M, dtype=torch.float64)
    inputs = torch.tensor(x, requires_grad=True)

    def call() -> np.ndarray:
        y = ddn.argmin(bowl, start, inputs)
        return torch.autograd.grad(y.square().sum(), inputs)[0].numpy()

    return call


def _jaxopt(x: np.ndarray) -> Callable[[], np.ndarray]:
    import jax
    import jax.numpy as jnp
    import jaxopt

    jax.config.update("jax_enable_x64", True)

    def f(y, x):
        return 0.5 * jnp.sum((y - x) ** 2) + 0.1 * jnp.sum(y**4) + 0.3 * jax.nn.logsumexp(y)

    solver = jaxopt.LBFGS(f, tol=1e-12, maxiter=100, implicit_diff=True)

    def loss(x):
        y = jax.vmap(lambda x: solver.run(jnp.zeros(M), x).params)(x)
        return jnp.sum(y**2)

    gradient = jax.jit(jax.grad(loss))
    inputs = jnp.array(x)
    return lambda: np.asarray(gradient(inputs).block_until_ready())


def _torchopt(x: np.ndarray) -> Callable[[], np.ndarray]:
    import torchopt

    warnings.filterwarnings("ignore", category=FutureWarning, module="torchopt")

    def stationarity(y: Tensor, x: Tensor) -> Tensor:
        return torch.func.grad(bowl)(y, x)

    @torchopt.diff.implicit.custom_root(stationarity, argnums=1, has_aux=False)
    def solve(y: Tensor, x: Tensor) -> Tensor:
        for _ in range(8):
            y = y - torch.linalg.solve(torch.func.hessian(bowl)(y, x), stationarity(y, x))
        return y

    inputs = torch.tensor(x, requires_grad=True)
    start = torch.zeros(M, dtype=torch.float64)

    def call() -> np.ndarray:
        y = torch.stack([solve(start, item) for item in inputs.unbind()])
        return torch.autograd.grad(y.square().sum(), inputs)[0].numpy()

    return call


PEERS = {"torchddn": _torchddn, "jaxopt": _jaxopt, "torchopt": _torchopt}


def run() -> str:
    """The table."""
    x = np.random.default_rng(0).normal(size=(B, M))
    y = ddn.argmin(bowl, torch.zeros(M, dtype=torch.float64), torch.tensor(x), solver=ddn.solvers.Newton(rtol=1e-14))
    H = torch.func.vmap(torch.func.hessian(bowl))(y, torch.tensor(x))
    expected = torch.linalg.solve(H, 2 * y).numpy()  # L_xy = -I
    rows = []
    for name, make in PEERS.items():
        if importlib.util.find_spec(name) is None:
            continue
        call = make(x)
        error = np.abs(call() - expected).max() / np.abs(expected).max()
        rows.append((name, median_ms(call, seconds=1.0), float(error)))
    fastest = min(time for _, time, _ in rows)
    return table(
        f"Forward and gradient, B = {B}, m = {M}, milliseconds (median)",
        ("library", "forward and backward", "times the fastest", "relative error of the gradient"),
        [(name, time, time / fastest, error) for name, time, error in rows],
    )
