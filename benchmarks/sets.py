"""What projections onto cones and polyhedra, isotonic regression and total variation cost, beside peers.

* *scikit-learn*: ``isotonic_regression``, compiled, one vector after the other, forward only;
* *TVDCondat2013* (``pip install TVDCondat2013``): Condat's direct method in C++, one vector after the other, forward
  only; *unrolled*: 200 accelerated steps on the dual, differentiated by autograd;
* *Clarabel*: through ``qpsolvers``, one sparse program per matrix, forward only;
* *eigh*: the positive part by ``torch.linalg.eigh`` and autograd;
* *quadratic_program*: our own general node, with the identity for Q.

Times are processor time, one thread, side by side in one process: of the forward pass where the peer has nothing else,
else of forward and backward. A miss is the largest difference of two answers, or of two gradients; it is
NaN where a peer's are. Run it with ``MALLOC_TRIM_THRESHOLD_`` and ``MALLOC_MMAP_THRESHOLD_`` set to 10000000000.
"""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sparse
import torch
from torch import Tensor

from benchmarks.timing import cpu_ms, table
from torchddn.functional import (
    isotonic_regression,
    project_birkhoff,
    project_polyhedron,
    project_psd,
    quadratic_program,
    total_variation,
)

Line = tuple[object, ...]
SECONDS = 0.5


def optional(name: str) -> Any:
    """A package that may be missing; its lines are then left out."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def with_backward(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    """A call that returns the gradient of a fixed sum of the answer."""
    x, v = x.detach().requires_grad_(), torch.cos(torch.arange(x.numel(), dtype=x.dtype)).reshape(x.shape)
    return lambda: torch.autograd.grad(function(x), x, v)[0]


def compared(name: str, size: str, ours: Callable[[], Any], peer: str, theirs: Callable[[], Any], what: str) -> Line:
    miss = np.abs(np.asarray(ours()) - np.asarray(theirs())).max()
    our_ms, their_ms = cpu_ms(ours, SECONDS), cpu_ms(theirs, SECONDS)
    return name, size, what, our_ms, peer, their_ms, our_ms / their_ms, float(miss)


def unrolled(x: Tensor, strength: float) -> Tensor:
    """Total variation by 200 accelerated projected gradient steps on the dual."""

    def adjoint(p: Tensor) -> Tensor:
        return -torch.nn.functional.pad(p, (1, 1)).diff(dim=1)

    p = last = torch.zeros_like(x[:, 1:])
    for k in range(200):
        ahead = p + k / (k + 3) * (p - last)
        last, p = p, (ahead + 0.25 * (x - adjoint(ahead)).diff(dim=1)).clamp(-strength, strength)
    return x - adjoint(p)


def sequences() -> list[Line]:
    """Isotonic regression and total variation."""
    lines: list[Line] = []
    isotonic, condat = optional("sklearn.isotonic"), optional("TVDCondat2013")
    for rows, n in ((256, 512), (16, 20_000)):
        x, size = drawn(rows, n), f"{rows} x {n}"
        if isotonic is not None:
            w = 0.1 + drawn(rows, n).abs()
            lines.append(
                compared(
                    "isotonic, weighted",
                    size,
                    lambda x=x, w=w: isotonic_regression(x, w),
                    "scikit-learn",
                    lambda x=x, w=w: np.stack(
                        [
                            isotonic.isotonic_regression(row, sample_weight=weight)
                            for row, weight in zip(x.numpy(), w.numpy(), strict=True)
                        ]
                    ),
                    "forward",
                )
            )
        walk = drawn(rows, n) + torch.arange(n).div(64, rounding_mode="floor").mul(2.4).sin()
        if condat is not None:
            lines.append(
                compared(
                    "total variation",
                    size,
                    lambda x=walk: total_variation(x, 2.0),
                    "TVDCondat2013",
                    lambda x=walk: np.stack([condat.tvd_2017(row, 2.0) for row in x.numpy()]),
                    "forward",
                )
            )
        lines.append(
            compared(
                "total variation",
                size,
                with_backward(lambda x: total_variation(x, 2.0), walk),
                "unrolled",
                with_backward(lambda x: unrolled(x, 2.0), walk),
                "both",
            )
        )
    return lines


def by_clarabel(X: Tensor) -> np.ndarray:
    """The nearest doubly stochastic matrices, one after the other."""
    qpsolvers = importlib.import_module("qpsolvers")
    n = X.shape[1]
    eye, ones = sparse.eye(n, format="csc"), np.ones((1, n))
    A = sparse.vstack([sparse.kron(eye, ones), sparse.kron(ones, eye)], format="csc")[:-1]
    P, zeros, b = sparse.eye(n * n, format="csc"), np.zeros(n * n), np.ones(2 * n - 1)
    answers = [
        qpsolvers.solve_qp(P, -x, A=A, b=b, lb=zeros, solver="clarabel", tol_gap_abs=1e-9, tol_gap_rel=1e-9)
        for x in X.flatten(1).numpy()
    ]
    return np.stack(answers).reshape(X.shape)


def matrices() -> list[Line]:
    """Doubly stochastic and positive semidefinite matrices."""
    lines: list[Line] = []
    for batch, n, size in ((64, 10, 1.0), (8, 50, 1.0), (8, 50, 100.0), (1, 200, 1.0)):
        X = size * drawn(batch, n, n)
        name, shape = f"Birkhoff, entries of {size:g}", f"{batch} x {n} x {n}"
        lines.append(
            compared(name, shape, lambda X=X: project_birkhoff(X), "Clarabel", lambda X=X: by_clarabel(X), "forward")
        )
        both = cpu_ms(with_backward(project_birkhoff, X), SECONDS)
        lines.append((name, shape, "both", both, "-", "-", "-", "-"))

    def by_eigh(X: Tensor) -> Tensor:
        values, Q = torch.linalg.eigh((X + X.mT) / 2)
        return (Q * values.clamp(min=0).unsqueeze(-2)) @ Q.mT

    plain = drawn(128, 20, 20)
    repeated = torch.block_diag(torch.ones(10, 10), -torch.ones(10, 10)).double().expand(128, 20, 20)
    for name, X in (("semidefinite", plain), ("semidefinite, eigenvalues repeat", repeated)):
        step = with_backward(project_psd, X)
        lines.append(compared(name, "128 x 20 x 20", step, "eigh", with_backward(by_eigh, X), "both"))
    return lines


def polyhedra() -> list[Line]:
    """Few rows, many rows, and limits."""
    lines: list[Line] = []
    for m, q, limited in ((100, 5, False), (100, 50, False), (100, 50, True), (20, 100, False)):
        x, G, h = drawn(64, m), drawn(q, m) / m**0.5, torch.full((q,), 0.5, dtype=torch.float64)
        limits = {"lower": -1.0, "upper": 1.0} if limited else {}
        eye = torch.eye(m, dtype=torch.float64)

        def general(x: Tensor, G: Tensor = G, h: Tensor = h, eye: Tensor = eye, limits: Any = limits) -> Tensor:
            return quadratic_program(eye, -x, G=G, h=h, check=False, **limits)

        ours = with_backward(lambda x, G=G, h=h, limits=limits: project_polyhedron(x, G, h, **limits), x)
        name = f"polyhedron of {q} rows{' and limits' if limited else ''}"
        lines.append(compared(name, f"64 x {m}", ours, "quadratic_program", with_backward(general, x), "both"))
    return lines


def run() -> str:
    """The tables."""
    torch.set_num_threads(1)
    head = ("node", "size", "passes", "ours, ms", "beside", "its ms", "ratio", "miss")
    return "\n".join(
        table(f"{title}, float64", head, lines())
        for title, lines in (("Sequences", sequences), ("Matrices", matrices), ("Polyhedra", polyhedra))
    )
