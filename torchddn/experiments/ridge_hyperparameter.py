r"""The penalty of a ridge regression by gradient descent on its cross-validation error, as a student report did it.

::

    minimize over mu   CV(mu) = 1/K sum_k 1/2 |X_k beta_k - y_k|^2,    beta_k = (X'X + mu I)^-1 X'y without fold k

The report does not say which folds, scaling or labels it used. Its numbers for iris are those of standardized features,
labels 0, 1, 2 without an intercept, five contiguous folds, and a sum of squares divided by the size of the fold.

References:
    Pan, Wang, Zhou, SI251 Final Project: Deep Declarative Networks, section 4.3, equations 5 to 11, figures 4 and 5.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import torch
from matplotlib.figure import Figure
from sklearn import datasets
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from torchddn.bilevel import minimize_bilevel
from torchddn.errors import InvalidInputError
from torchddn.experiments.experiment import Experiment, Job, Row, Table
from torchddn.experiments.session import Session

__all__ = ["RIDGE_HYPERPARAMETER", "RidgeHyperparameter", "draw", "reproduce"]

DATA = {"iris": datasets.load_iris, "diabetes": datasets.load_diabetes}
NUM_FOLDS = 5


@dataclass(frozen=True)
class RidgeHyperparameter:
    """The configuration; the defaults are those of the report.

    Attributes:
        seeds: Nothing here is random.
        data: ``"iris"``, ``"diabetes"``.
        starts: Of mu.
        step_size: Of gradient descent.
        tol: Gradient descent stops when an iteration gains less.
        most_iterations: Of gradient descent.
    """

    seeds: tuple[int, ...] = (0,)
    data: tuple[str, ...] = ("iris", "diabetes")
    starts: tuple[float, ...] = (0.1, 800.0)
    step_size: float = 0.1
    tol: float = 1e-8
    most_iterations: int = 1_500_000

    def __post_init__(self) -> None:
        for name in self.data:
            if name not in DATA:
                raise InvalidInputError(f"`RidgeHyperparameter(data=...)` has 'iris' and 'diabetes', got {name!r}.")
        for start in self.starts:
            if not 0 < start < math.inf:
                raise InvalidInputError(f"`RidgeHyperparameter(starts=...)` must be positive, got {start!r}.")


class Folds(NamedTuple):
    """What the error depends on: G = X'X and c = X'y of the training parts; X, y of the others, padded with zeros."""

    G: Tensor
    c: Tensor
    X: Tensor
    y: Tensor
    size: Tensor

    def solve(self, mu: Tensor) -> Tensor:
        """``beta`` of every fold, ``(K, n)``: equation 8."""
        return torch.linalg.solve(self.G + mu * torch.eye(self.G.shape[1], dtype=mu.dtype), self.c)

    def error(self, beta: Tensor, by_size: bool) -> Tensor:
        """``CV``: equation 6, or with the sum of squares of each fold divided by its size."""
        squares = 0.5 * ((self.X @ beta.unsqueeze(2)).squeeze(2) - self.y).square().sum(1)
        return (squares / self.size if by_size else squares).mean()


def read_folds(data: str) -> Folds:
    """The folds of a data set."""
    X, y = DATA[data](return_X_y=True)
    X, y = StandardScaler().fit_transform(X), y.astype(float)
    parts = list(KFold(NUM_FOLDS).split(X))
    sizes = [len(test) for _, test in parts]
    X_test, y_test = np.zeros((NUM_FOLDS, max(sizes), X.shape[1])), np.zeros((NUM_FOLDS, max(sizes)))
    for k, (_, test) in enumerate(parts):
        X_test[k, : len(test)], y_test[k, : len(test)] = X[test], y[test]
    G = np.stack([X[train].T @ X[train] for train, _ in parts])
    c = np.stack([X[train].T @ y[train] for train, _ in parts])
    G, c, X_test, y_test, size = map(torch.from_numpy, (G, c, X_test, y_test, np.array(sizes, dtype=float)))
    return Folds(G, c, X_test, y_test, size)


def reproduce(
    data: str,
    *,
    starts: Sequence[float] = (0.1, 800.0),
    step_size: float = 0.1,
    tol: float = 1e-8,
    most_iterations: int = 1_500_000,
) -> list[dict[str, Any]]:
    """Returns what each method found from each start: mu, both losses, iterations, lower solves, seconds, and its way.

    Args:
        data: ``"iris"`` or ``"diabetes"``.
        starts: Of mu.
        step_size: Of gradient descent.
        tol: Of gradient descent.
        most_iterations: Of gradient descent.
    """
    folds = read_folds(data)
    found = []
    for start in starts:
        descent = Descent(folds)
        clock = time.perf_counter()
        way, iterations = descent.run(start, step_size, tol, most_iterations)
        found.append(_entry(folds, "gradient descent", start, way, iterations, clock))
        for by_size in (False, True):
            clock = time.perf_counter()
            way, steps = _by_hypergradients(folds, start, by_size)
            name = "torchddn, divided by the size of the fold" if by_size else "torchddn"
            found.append(_entry(folds, name, start, way, steps, clock))
    clock = time.perf_counter()
    way = _by_brent(folds)
    found.append(_entry(folds, "Brent", math.nan, way, way[-1][0], clock))
    clock = time.perf_counter()
    way = _by_grid(data)
    found.append(_entry(folds, "RidgeCV, grid of 100", math.nan, way, way[-1][0], clock))
    return found


Way = list[tuple[int, float, float]]  # lower solves so far, mu, and the error there


class Descent:
    """Gradient descent as in the report, in the eigenvectors of each fold, where an iteration needs no solve."""

    def __init__(self, folds: Folds) -> None:
        eigenvalues, V = torch.linalg.eigh(folds.G)
        P = folds.X @ V / math.sqrt(NUM_FOLDS)
        y = folds.y / math.sqrt(NUM_FOLDS)
        self.eigenvalues = eigenvalues.numpy()
        self.z = (V.mT @ folds.c.unsqueeze(2)).squeeze(2).numpy()
        self.A, self.b = (P.mT @ P).numpy(), (P.mT @ y.unsqueeze(2)).squeeze(2).numpy()
        self.constant = 0.5 * float(y.square().sum())

    def value_and_slope(self, mu: float) -> tuple[float, float]:
        """``CV`` and its derivative, equation 10."""
        q = self.z / (self.eigenvalues + mu)
        slope = (self.A @ q[..., None])[..., 0] - self.b
        value = 0.5 * float(np.vdot(slope - self.b, q)) + self.constant
        return value, -float(np.vdot(slope, q / (self.eigenvalues + mu)))

    def run(self, mu: float, step_size: float, tol: float, most_iterations: int) -> tuple[Way, int]:
        """Some of the points on the way, the last one included, and the iterations."""
        way: Way = []
        last = [math.inf, math.inf]
        iteration = 0
        for iteration in range(most_iterations):
            value, slope = self.value_and_slope(mu)
            # As many for every doubling of the iterations: the picture has a logarithmic axis.
            if iteration < 64 or iteration % (1 << (iteration.bit_length() - 5)) == 0:
                way.append((iteration + 1, mu, value))
            if iteration > 2 and last[-1] - value < tol:
                break
            last = [last[-1], value]
            mu -= step_size * slope
        way.append((iteration + 1, mu, self.value_and_slope(mu)[0]))
        return way, iteration + 1


def _by_hypergradients(folds: Folds, start: float, by_size: bool) -> tuple[Way, int]:
    way: Way = []

    def upper(log_mu: Tensor, beta: Tensor) -> Tensor:
        error = folds.error(beta, by_size)
        way.append((len(way) + 1, float(log_mu.detach().exp()), float(error.detach())))
        return error

    theta_0 = torch.tensor(start, dtype=torch.float64).log()
    found = minimize_bilevel(upper, lambda log_mu: folds.solve(log_mu.exp()), theta_0)
    way.append((found.num_lower_solves, float(found.theta.exp()), float(found.value)))
    return way, found.num_steps


def _by_brent(folds: Folds) -> Way:
    way: Way = []

    def at(log_mu: float) -> float:
        mu = math.exp(log_mu)
        error = folds.error(folds.solve(torch.tensor(mu, dtype=torch.float64)), by_size=False)
        way.append((len(way) + 1, mu, float(error)))
        return float(error)

    found = scipy.optimize.minimize_scalar(at, bracket=(math.log(0.1), math.log(800.0)), tol=1e-9)
    way.append((len(way), math.exp(found.x), float(found.fun)))
    return way


def _by_grid(data: str) -> Way:
    X, y = DATA[data](return_X_y=True)
    grid = np.geomspace(1e-3, 1e5, 100)
    model: Any = RidgeCV(grid, fit_intercept=False, cv=KFold(NUM_FOLDS), scoring="neg_mean_squared_error")
    model.fit(StandardScaler().fit_transform(X), y)
    return [(len(grid), float(model.alpha_), -0.5 * float(model.best_score_))]


def _entry(folds: Folds, method: str, start: float, way: Way, iterations: int, clock: float) -> dict[str, Any]:
    seconds = time.perf_counter() - clock
    solves, mu, _ = way[-1]
    beta = folds.solve(torch.tensor(mu, dtype=torch.float64))
    return {
        "method": method,
        "start": start,
        "mu": mu,
        "loss": float(folds.error(beta, by_size=False)),
        "loss_by_size": float(folds.error(beta, by_size=True)),
        "iterations": iterations,
        "lower_solves": solves,
        "seconds": seconds,
        "way": way,
    }


def draw(found: Sequence[dict[str, Any]]) -> Figure:
    """Returns the error against the iterations, from every start, as figures 4 and 5 of the report show it."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    starts = [entry["start"] for entry in found if entry["method"] == "gradient descent"]
    axes = figure.subplots(1, len(starts), squeeze=False)[0]
    for ax, start in zip(axes, starts, strict=True):
        for entry in found:
            if entry["start"] != start or entry["method"] not in ("gradient descent", "torchddn"):
                continue
            solves, _, errors = zip(*entry["way"], strict=True)
            style, color = ("-", "#000000") if entry["method"] == "gradient descent" else ("o-", "#D55E00")
            ax.plot(solves, errors, style, color=color, ms=4, label=f"{entry['method']}: $\\mu$ = {entry['mu']:.2f}")
        ax.set(xscale="log", xlabel="lower solves", ylabel="cross-validation error", title=f"from $\\mu$ = {start:g}")
        ax.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)
    return figure


def _jobs(config: RidgeHyperparameter) -> list[Job]:
    return [{"data": data, "seed": seed} for seed in config.seeds for data in config.data]


def _run(config: RidgeHyperparameter, job: Job, session: Session) -> list[Row]:
    found = reproduce(
        job["data"],
        starts=config.starts,
        step_size=config.step_size,
        tol=config.tol,
        most_iterations=config.most_iterations,
    )
    session.picture(job["data"], draw(found))
    # A method without a start stands in the tables of every start.
    return [
        {**{name: value for name, value in entry.items() if name != "way"}, "start": start}
        for start in config.starts
        for entry in found
        if entry["start"] == start or math.isnan(entry["start"])
    ]


def _tables(config: RidgeHyperparameter) -> list[Table]:
    shown: tuple[tuple[str, str, dict[str, float]], ...] = (
        ("Penalty", "mu", {"iris": 345.0, "diabetes": 210.147}),
        ("Cross-validation error", "loss", {}),
        ("Cross-validation error divided by the size of the fold", "loss_by_size", {"iris": 0.7194, "diabetes": 0.901}),
        ("Lower solves", "lower_solves", {"iris": 1e6}),
        ("Seconds", "seconds", {}),
    )
    return [
        Table(
            title=f"{title}, from {start:g}",
            value=value,
            row="method",
            column="data",
            where={"start": start},
            log=value != "mu",
            paper={"source": "student report, section 4.3", "gradient descent": printed} if printed else None,
        )
        for start in config.starts
        for title, value, printed in shown
    ]


def _prepare(config: RidgeHyperparameter, data: Path | None) -> None:
    if data is not None:
        raise InvalidInputError("The data come with scikit-learn. Leave out --data, or choose by --set data=iris.")


RIDGE_HYPERPARAMETER = Experiment(
    name="ridge-hyperparameter",
    summary="A ridge penalty by descent on the cross-validation error, as in a student report: how many steps?",
    presets={"paper": RidgeHyperparameter(), "small": RidgeHyperparameter(most_iterations=100_000)},
    jobs=_jobs,
    run=_run,
    tables=_tables,
    prepare=_prepare,
    serial=True,
)
