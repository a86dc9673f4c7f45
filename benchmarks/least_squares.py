r"""Least squares, eigenvectors and banded systems beside what torch, SciPy and scikit-learn have.

Accuracy first: the relative error of the gradient in A and b of ``v . y`` over the condition number of A, against
numbers with 64 bits of mantissa. Then time, float32 unless said otherwise, of a forward and a backward pass:

* least squares:  ``torch.linalg.lstsq``, the pseudo-inverse, and the normal equations, all by autograd.
* total least squares:  the same by ``torch.linalg.svd`` and autograd.
* eigenvectors:  ``torch.linalg.eigh`` and autograd, for a loss of the projector, also where eigenvalues of the block
  come close.
* banded systems:  ``scipy.linalg.solve_banded``, which has no derivative, and a dense ``torch.linalg.solve``.

Set ``MALLOC_TRIM_THRESHOLD_`` and ``MALLOC_MMAP_THRESHOLD_`` to a large number, as for a long training run: or else the
C library returns memory to the system after every pass.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.linalg
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from benchmarks.timing import cpu_ms, table
from torchddn.functional import banded_solve, top_eigenvectors, total_least_squares, weighted_least_squares
from torchddn.linear import BandedMatrix
from torchddn.nn import RidgeRegression

D = torch.float64
PICTURE = pathlib.Path(__file__).parent.parent / "docs" / "_static" / "least-squares.svg"
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

Method = Callable[..., Tensor]


def lstsq(A: Tensor, b: Tensor) -> Tensor:
    # The default driver is for full rank, as all matrices here are; the one for any rank is slower.
    driver = "gelsd" if A.shape[-2] < A.shape[-1] else None
    return torch.linalg.lstsq(A, b.unsqueeze(-1), driver=driver).solution.squeeze(-1)


def pinv(A: Tensor, b: Tensor) -> Tensor:
    return (torch.linalg.pinv(A) @ b.unsqueeze(-1)).squeeze(-1)


def normal_equations(A: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.solve(A.mT @ A, (A.mT @ b.unsqueeze(-1))).squeeze(-1)


def svd(A: Tensor, b: Tensor) -> Tensor:
    V = torch.linalg.svd(torch.cat([A, b.unsqueeze(-1)], dim=-1), full_matrices=False)[2].mT[..., -1]
    return -V[..., :-1] / V[..., -1:]


METHODS: dict[str, Method] = {
    "torchddn": weighted_least_squares,
    "lstsq": lstsq,
    "pinv": pinv,
    "normal equations": normal_equations,
}


def gradients(method: Method, *inputs: Tensor, v: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """A forward and a backward pass."""
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    return lambda: torch.autograd.grad(method(*inputs), inputs, v)


def worst(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative error; NaN wins."""
    errors = [(f.double() - e.double()).norm() / e.double().norm() for f, e in zip(found, expected, strict=True)]
    return torch.stack(errors).max().item()


def extended(A: Tensor, b: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients in A and b by ``R^-1 R^-T v``, in extended precision; Gram and Schmidt, twice over."""
    columns, target, loss = (x.numpy().astype(np.longdouble) for x in (A.mT, b, v))
    m = len(columns)
    Q, R = np.zeros_like(columns), np.zeros((m, m), np.longdouble)
    for j in range(m):
        Q[j] = columns[j]
        for _ in range(2):
            share = Q[:j] @ Q[j]
            R[:j, j] += share
            Q[j] = Q[j] - share @ Q[:j]
        R[j, j] = np.sqrt(Q[j] @ Q[j])
        Q[j] /= R[j, j]
    y, z = Q @ target, np.zeros_like(loss)
    for j in range(m):
        z[j] = (loss[j] - R[:j, j] @ z[:j]) / R[j, j]
    for solved in (y, z):
        for j in reversed(range(m)):
            solved[j] = (solved[j] - R[j, j + 1 :] @ solved[j + 1 :]) / R[j, j]
    r, Az = target - y @ columns, z @ columns
    dA = np.outer(r, z) - np.outer(Az, y)
    return torch.from_numpy(dA.astype(np.float64)), torch.from_numpy(Az.astype(np.float64))


def accuracy(conditions: Sequence[float], num_seeds: int = 5) -> dict[str, list[float]]:
    """Per method the worst error of the gradient at each condition number, 60 x 12, float64."""
    errors: dict[str, list[float]] = {name: [] for name in METHODS}
    for condition in conditions:
        worsts = dict.fromkeys(METHODS, 0.0)
        for seed in range(num_seeds):
            torch.manual_seed(seed)
            U, V = (torch.linalg.qr(torch.randn(size, 12, dtype=D)).Q for size in (60, 12))
            A = (U * torch.logspace(0, -np.log10(condition), 12, dtype=D)) @ V.mT
            b, v = torch.randn(60, dtype=D), torch.randn(12, dtype=D)
            expected = extended(A, b, v)
            for name, method in METHODS.items():
                worsts[name] = max(worsts[name], worst(gradients(method, A, b, v=v)(), expected))
        for name, error in worsts.items():
            errors[name].append(error)
    return errors


def compare(methods: dict[str, Method], *inputs: Tensor, v: Tensor, expected: Sequence[Tensor]) -> list[object]:
    """Milliseconds and error of each method; how many times the first is faster than the best that is as accurate.

    The normal equations are not: they square the condition number.
    """
    passes = [gradients(method, *inputs, v=v) for method in methods.values()]
    times = [cpu_ms(run) for run in passes]
    errors = [worst(run(), expected) for run in passes]
    cells: list[object] = [f"{time:.3g} ({error:.0e})" for time, error in zip(times, errors, strict=True)]
    peers = [time for name, time in zip(methods, times, strict=True) if name not in ("torchddn", "normal equations")]
    return [*cells, min(peers) / times[0]]


def least_squares_rows() -> list[list[object]]:
    rows = []
    for shape in ((1, 1000, 20), (64, 100, 10), (1000, 20, 4), (16, 1000, 50), (1, 10000, 100), (16, 20, 100)):
        torch.manual_seed(0)
        A, b, v = torch.randn(shape), torch.randn(shape[:2]), torch.randn(shape[0], shape[2])
        expected = gradients(pinv, A.double(), b.double(), v=v.double())()
        methods = METHODS if shape[1] >= shape[2] else {name: METHODS[name] for name in ("torchddn", "lstsq", "pinv")}
        cells = compare(methods, A, b, v=v, expected=expected)
        rows.append([*shape, *cells[:-1], *["" for _ in range(len(METHODS) - len(methods))], cells[-1]])
    return rows


def total_rows() -> list[list[object]]:
    rows = []
    for shape in ((64, 100, 10), (16, 1000, 50)):
        torch.manual_seed(0)
        A, truth = torch.randn(shape), torch.randn(shape[0], shape[2])
        b = (A @ truth.unsqueeze(-1)).squeeze(-1) + 0.1 * torch.randn(shape[:2])
        v = torch.randn_like(truth)
        expected = gradients(svd, A.double(), b.double(), v=v.double())()
        methods: dict[str, Method] = {"torchddn": total_least_squares, "svd": svd}
        rows.append([*shape, *compare(methods, A, b, v=v, expected=expected)])
    return rows


def ridge_rows() -> list[list[object]]:
    rows = []
    for n, m, k in ((200, 10, 1), (2000, 50, 1), (2000, 50, 10)):
        torch.manual_seed(0)
        X, Y = torch.randn(n, m, dtype=D), torch.randn(n, k, dtype=D)
        model, theirs = RidgeRegression(2.0), Ridge(alpha=2.0)
        ours = cpu_ms(lambda X=X, Y=Y, model=model: model.fit(X, Y))
        features, v = X.clone().requires_grad_(), torch.randn(m, k, dtype=D)
        both = cpu_ms(lambda X=features, Y=Y, v=v, model=model: torch.autograd.grad(model.fit(X, Y).coefficients, X, v))
        arrays = X.numpy(), Y.numpy()
        fitted = cpu_ms(lambda arrays=arrays, theirs=theirs: theirs.fit(*arrays))
        coefficients = torch.from_numpy(np.asarray(theirs.coef_).reshape(k, m)).mT
        rows.append([n, m, k, fitted, ours, both, worst([model.fit(X, Y).coefficients], [coefficients])])
    return rows


def by_eigh(k: int) -> Method:
    def projector(X: Tensor) -> Tensor:
        Y = torch.linalg.eigh((X + X.mT) / 2)[1][..., -k:]
        return Y @ Y.mT

    return projector


def by_node(k: int) -> Method:
    def projector(X: Tensor) -> Tensor:
        Y = top_eigenvectors(X, k)
        return Y @ Y.mT

    return projector


def projector_gradient(X: Tensor, k: int, v: Tensor) -> Tensor:
    """By the formula that knows only the gaps between the block and the rest, float64."""
    values, Q = torch.linalg.eigh(X)
    Y, rest = Q[..., -k:], Q[..., :-k]
    gap = values[..., -k:].unsqueeze(-2) - values[..., :-k].unsqueeze(-1)
    G = rest @ ((rest.mT @ (v + v.mT) @ Y) / gap) @ Y.mT
    return (G + G.mT) / 2


def eigenvector_rows() -> list[list[object]]:
    rows = []
    cases = ((64, 10, 2, 1.0), (16, 50, 3, 1.0), (1, 500, 3, 1.0), (1, 500, 50, 1.0))
    for B, m, k, distance in (*cases, *((16, 50, 3, d) for d in (1e-3, 1e-6, 0.0))):
        torch.manual_seed(0)
        Q = torch.linalg.qr(torch.randn(B, m, m, dtype=D)).Q
        values = torch.arange(m, dtype=D) / m
        values[-k:] = 2 + distance * torch.arange(k)
        X, v = (Q * values) @ Q.mT, torch.randn(B, m, m, dtype=D)
        X = (X + X.mT) / 2
        expected = [projector_gradient(X, k, v)]
        methods = {"torchddn": by_node(k), "eigh": by_eigh(k)}
        rows.append([B, m, k, distance, *compare(methods, X, v=v, expected=expected)])
    return rows


def banded_case(n: int, w: int, dominant: bool) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    band = BandedMatrix(torch.randn(1, 2 * w + 1, n, dtype=D)).band
    for k in range(1, w + 1):
        band[:, w - k, :k] = 0
        band[:, w + k, n - k :] = 0
    band[:, w] = band.abs().sum(1) + 1 if dominant else 0
    return band[0], torch.randn(n, dtype=D)


def scipy_banded(band: Tensor, b: Tensor) -> Callable[[], Any]:
    """The forward pass alone, its band laid out by columns."""
    w, n = band.shape[0] // 2, band.shape[1]
    rows = np.zeros((2 * w + 1, n))
    for k in range(-w, w + 1):
        rows[w - k, max(0, k) : n + min(0, k)] = band[w + k, max(0, -k) : n - max(0, k)].numpy()
    return lambda: scipy.linalg.solve_banded((w, w), rows, b.numpy())


def dense_solve(band: Tensor, b: Tensor) -> Tensor:
    w, n = band.shape[0] // 2, band.shape[1]
    diagonals = [torch.diag(band[w + k, max(0, -k) : n - max(0, k)], k) for k in range(-w, w + 1)]
    return torch.linalg.solve(torch.stack(diagonals).sum(0), b)


def banded_rows() -> list[list[object]]:
    rows = []
    for n, w, dominant in (
        *((n, 1, True) for n in (100, 1000, 10_000, 100_000, 1_000_000)),
        *((n, 3, True) for n in (1000, 100_000)),
        *((n, 1, False) for n in (1000, 100_000, 1_000_000)),
    ):
        band, b = banded_case(n, w, dominant)
        if not dominant and w == 1:
            band = torch.where(band == 0, 0, 1 + 0.01 * band)  # or else the condition number grows with exp(n^1/2)
        v = torch.ones(n, dtype=D)
        found = banded_solve(band, b, solution=True)
        forward, both = (
            cpu_ms(lambda band=band, b=b: banded_solve(band, b)),
            cpu_ms(gradients(banded_solve, band, b, v=v)),
        )
        theirs = scipy_banded(band, b)
        error = worst([found.y], [torch.from_numpy(theirs())])
        dense = cpu_ms(gradients(dense_solve, band, b, v=v)) if n <= 1000 else ""
        kind = "dominant" if dominant else "diagonal of zeros"
        rows.append([n, w, kind, cpu_ms(theirs), forward, both, dense, found.stationarity.item(), error])
    return rows


def draw(path: pathlib.Path) -> None:
    """Errors of gradients over the condition number, and banded times over n."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    conditions = [10.0**k for k in range(1, 14)]
    for (name, errors), color in zip(accuracy(conditions).items(), COLORS, strict=False):
        left.loglog(conditions, errors, "o-", color=color, label=name, markersize=3)
    left.set(xlabel="condition number of A", ylabel="relative error of the gradient", ylim=(1e-16, 10))
    left.legend(frameon=False)
    sizes = (100, 300, 1000, 3000, 10_000, 100_000, 1_000_000)
    times: dict[str, list[float]] = {"torchddn, forward + backward": [], "scipy, forward": [], "torch dense, both": []}
    for n in sizes:
        band, b = banded_case(n, 1, True)
        v = torch.ones(n, dtype=D)
        runs = [gradients(banded_solve, band, b, v=v), scipy_banded(band, b), gradients(dense_solve, band, b, v=v)]
        for (name, values), run in zip(times.items(), runs, strict=True):
            if n <= 3000 or not name.startswith("torch dense"):
                values.append(cpu_ms(run, least=1))
    for (name, values), color in zip(times.items(), COLORS, strict=False):
        right.loglog(sizes[: len(values)], values, "o-", color=color, label=name, markersize=3)
    right.set(xlabel="rows of a tridiagonal system", ylabel="ms")
    right.legend(frameon=False, loc="upper right", fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def run() -> str:
    """The tables."""
    conditions = [1e2, 1e4, 1e6, 1e8, 1e10, 1e12]
    errors = accuracy(conditions)
    return "\n".join(
        [
            table(
                "Gradients of least squares: worst relative error, 60 x 12, float64",
                ("condition number", *METHODS),
                [(f"{c:.0e}", *(f"{errors[name][i]:.1e}" for name in METHODS)) for i, c in enumerate(conditions)],
            ),
            table(
                "Least squares, float32: ms for forward and backward (relative error of the gradient)",
                ("B", "n", "m", *METHODS, "best of lstsq, pinv / torchddn"),
                least_squares_rows(),
            ),
            table(
                "Total least squares, float32: ms for forward and backward (relative error of the gradient)",
                ("B", "n", "m", "torchddn", "svd", "svd / torchddn"),
                total_rows(),
            ),
            table(
                "Ridge regression, float64: ms",
                ("n", "m", "outputs", "scikit-learn fit", "torchddn fit", "torchddn fit + backward", "difference"),
                ridge_rows(),
            ),
            table(
                "Projector of k eigenvectors, float64: ms for forward and backward (relative error of the gradient)",
                ("B", "m", "k", "distance inside", "torchddn", "eigh", "eigh / torchddn"),
                eigenvector_rows(),
            ),
            table(
                "Banded systems, float64: ms",
                (
                    *("n", "w", "matrix", "SciPy forward", "torchddn forward", "torchddn both", "dense torch both"),
                    *("backward error", "difference from SciPy"),
                ),
                banded_rows(),
            ),
        ]
    )
