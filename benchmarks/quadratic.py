r"""Our quadratic program beside the layers that people use: forward and backward, and how wrong the gradient is.

Random dense programs of n variables, n inequalities and 2 equalities, each with a point inside; B = 128, float64,
gradients of all six inputs of a random linear function of y. The reference is the solution of the optimality system of
the active rows, with gradients by autograd through a dense solve. Peers:

* qpth: the batched interior-point method of OptNet;
* QPLayer of proxsuite: ProxQP, an augmented Lagrangian, on a loop over the items in C++;
* cvxpylayers: canonicalization by cvxpy, then diffcp, a loop over items in threads;
* moreau: a compiled solver with an active-set method for small programs.

They have requirements of their own: ``make bench-qp`` makes an environment for them. Without one of them its column is
left out. Backward alone is what is left of both after forward alone.
"""

import importlib.util
import pathlib
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import torchddn as ddn
from benchmarks.timing import table

D = torch.float64
B, P = 128, 2
SIZES = (10, 50, 100)
HERE = pathlib.Path(__file__).parent.parent / "docs" / "_static" / "quadratic"

Inputs = tuple[Tensor, ...]
Layer = Callable[..., Tensor]


def programs(n: int) -> Inputs:
    """Q, q, A, b, G, h, each requiring a gradient."""
    generator = torch.Generator().manual_seed(n)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=D, generator=generator)

    L, q, G, inside, A = randn(B, n, n), randn(B, n), randn(B, n, n), randn(B, n), randn(B, P, n)
    Q = L @ L.mT + 1e-4 * torch.eye(n, dtype=D)
    Q = 0.5 * (Q + Q.mT)
    h = times(G, inside) + torch.rand(B, n, dtype=D, generator=generator)
    return tuple(tensor.requires_grad_() for tensor in (Q, q, A, times(A, inside), G, h))


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def reference(*data: Tensor) -> Tensor:
    """The solution by the rows that are active, differentiable by autograd through a dense solve."""
    Q, q, A, b, G, h = data
    found = ddn.functional.quadratic_program(*data, solution=True)
    assert found.inequality_multipliers is not None
    active = (found.inequality_multipliers.detach() > 0).to(D)
    n, r = q.shape[1], P + h.shape[1]
    rows = torch.cat([A, G * active.unsqueeze(2)], dim=1)
    corner = torch.diag_embed(torch.cat([torch.zeros(B, P, dtype=D), 1 - active], dim=1))
    K = torch.cat([torch.cat([Q, rows.mT], dim=2), torch.cat([rows, corner], dim=2)], dim=1)
    right = torch.cat([-q, b, h * active], dim=1)
    assert K.shape[1] == n + r
    return torch.linalg.solve(K, right)[:, :n]


def torchddn_layer(n: int) -> Layer:
    return ddn.functional.quadratic_program


def qpth_layer(n: int) -> Layer:
    solve = importlib.import_module("qpth.qp").QPFunction(verbose=-1, check_Q_spd=False)
    return lambda Q, q, A, b, G, h: solve(Q, q, G, h, A, b)


def proxsuite_layer(n: int) -> Layer:
    solve = importlib.import_module("proxsuite.torch.qplayer").QPFunction(structural_feasibility=True)
    low = torch.full((B, n), -1e20, dtype=D)
    return lambda Q, q, A, b, G, h: solve(Q, q, A, b, G, low, h)[0]


def cvxpy_layer(n: int) -> Layer:
    cp: Any = importlib.import_module("cvxpy")
    root, q, A, b, G, h = (cp.Parameter(shape) for shape in ((n, n), n, (P, n), P, (n, n), n))
    y = cp.Variable(n)
    objective = cp.Minimize(0.5 * cp.sum_squares(root @ y) + q @ y)
    layer = importlib.import_module("cvxpylayers.torch").CvxpyLayer(
        cp.Problem(objective, [A @ y == b, G @ y <= h]), parameters=[root, q, A, b, G, h], variables=[y]
    )
    # A quadratic form is no affine function of its matrix: it is given by the root, whose gradient autograd knows.
    return lambda Q, *rest: layer(torch.linalg.cholesky(Q).mT, *rest)[0]


def moreau_layer(n: int) -> Layer:
    moreau: Any = importlib.import_module("moreau")
    rows = P + n
    solver = importlib.import_module("moreau.torch").Solver(
        n=n,
        m=rows,
        P_row_offsets=n * torch.arange(n + 1),
        P_col_indices=torch.arange(n).repeat(n),
        A_row_offsets=n * torch.arange(rows + 1),
        A_col_indices=torch.arange(n).repeat(rows),
        cones=moreau.Cones(num_zero_cones=P, num_nonneg_cones=n),
        settings=moreau.Settings(device="cpu", batch_size=B, enable_grad=True),
    )

    def solve(Q: Tensor, q: Tensor, A: Tensor, b: Tensor, G: Tensor, h: Tensor) -> Tensor:
        rows, right = torch.cat([A, G], dim=1), torch.cat([b, h], dim=1)
        return solver.solve(Q.flatten(1), rows.flatten(1), q, right).x

    return solve


LAYERS = {
    "torchddn": ("torchddn", torchddn_layer),
    "moreau": ("moreau", moreau_layer),
    "QPLayer": ("proxsuite", proxsuite_layer),
    "qpth": ("qpth", qpth_layer),
    "cvxpylayers": ("cvxpylayers", cvxpy_layer),
}


def measure(layer: Layer, data: Inputs, v: Tensor, seconds: float = 3.0) -> tuple[float, float, Tensor, Inputs]:
    """Median milliseconds forward and backward, ``y`` and its gradients."""
    forward, backward = [], []
    y, grads = v, data
    while sum(forward) + sum(backward) < seconds or len(forward) < 4:
        start = time.perf_counter()
        y = layer(*data)
        middle = time.perf_counter()
        grads = torch.autograd.grad((y * v).sum(), data)
        end = time.perf_counter()
        forward.append(middle - start)
        backward.append(end - middle)
    return 1e3 * statistics.median(forward[1:]), 1e3 * statistics.median(backward[1:]), y, grads


def error(mine: Tensor, exact: Tensor) -> float:
    return ((mine - exact).norm() / exact.norm()).item()


def rows_of(n: int) -> list[tuple[object, ...]]:
    data = programs(n)
    v = torch.randn(B, n, dtype=D, generator=torch.Generator().manual_seed(1))
    exact = reference(*data)
    exact_grads = list(torch.autograd.grad((exact * v).sum(), data))
    exact_grads[0] = 0.5 * (exact_grads[0] + exact_grads[0].mT)
    found: list[tuple[object, ...]] = []
    ours = 0.0
    for name, (package, make) in LAYERS.items():
        if importlib.util.find_spec(package) is None:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                forward, backward, y, grads = measure(make(n), data, v)
            except Exception as problem:  # a peer that cannot do it says so in its row
                found.append((n, name, type(problem).__name__, "", "", "", "", ""))
                continue
        ours = ours or forward + backward
        grads = (0.5 * (grads[0] + grads[0].mT), *grads[1:])
        worst = max(error(mine, true) for mine, true in zip(grads, exact_grads, strict=True))
        total = forward + backward
        found.append((n, name, forward, backward, total, total / ours, error(y.detach(), exact.detach()), worst))
    return found


def draw(rows: list[tuple[object, ...]], path: pathlib.Path) -> None:
    """Time over n, and error of the gradient over n."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    colors = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00")
    for name, color in zip(LAYERS, colors, strict=True):
        mine = [row for row in rows if row[1] == name and isinstance(row[2], float)]
        sizes = [row[0] for row in mine]
        for ax, column in zip(axes, (4, 7), strict=True):
            ax.loglog(sizes, [row[column] for row in mine], "o-", color=color, label=name)
    axes[0].set(xlabel="variables", ylabel="ms forward and backward, B = 128")
    axes[1].set(xlabel="variables", ylabel="relative error of the worst gradient")
    for ax in axes:
        ax.set_xticks(SIZES, [str(n) for n in SIZES])
        ax.minorticks_off()
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)
    plt.close(figure)


def run() -> str:
    """The table; also written to docs, with the picture, where matplotlib is installed."""
    rows = [row for n in SIZES for row in rows_of(n)]
    head = ("n", "layer", "forward", "backward", "both", "times ours", "error of y", "error of the worst gradient")
    text = table("Quadratic programs, B = 128, float64, one thread: milliseconds (median)", head, rows)
    if importlib.util.find_spec("matplotlib") is not None:
        HERE.mkdir(exist_ok=True)
        (HERE / "table.md").write_text("\n".join(text.split("\n")[2:]))
        draw(rows, HERE / "quadratic.png")
    return text
