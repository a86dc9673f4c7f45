r"""Hyperparameters by hypergradients, beside grids and random search: how many fits of all folds, and how good.

One hyperparameter: the ridge penalty of the diabetes and breast cancer data. The accuracy is the distance to the exact
minimum of the cross-validation error, in log alpha. A grid of steps h is up to h / 2 away, and so the grid that is as
accurate for sure needs 1 + range / (2 accuracy) points on the range from 1e-3 to 1e5; Brent's method is given, too.

64 hyperparameters: one ridge penalty for each pixel of the digits, with the target "how large is the number". Random
search draws log-uniform penalties for every pixel, or around the best one for all pixels, and has 20 times the fits.
The test error is on a quarter of the digits that no method has seen.
"""

import pathlib
import time
from functools import partial

import numpy as np
import scipy.optimize
import torch
from sklearn import datasets
from sklearn.model_selection import KFold, train_test_split
from sklearn.preprocessing import StandardScaler

from benchmarks.timing import machine, table
from torchddn.bilevel.sklearn import BilevelRidgeCV
from torchddn.bilevel.sklearn.folds import split
from torchddn.bilevel.sklearn.regression import Regression
from torchddn.bilevel.sklearn.ridge import Ridge

HERE = pathlib.Path(__file__).parent.parent / "docs" / "_static" / "bilevel"
RANGE = (1e-3, 1e5)
CV = KFold(5)


def error_of(X: np.ndarray, y: np.ndarray) -> Ridge:
    """The cross-validation error as a function of log penalties."""
    folds = split(CV, X, y, np.ones(len(y)), classifier=False)
    return Ridge(Regression(torch.tensor(X), torch.tensor(y), folds, fit_intercept=True))


def evaluate(lower: Ridge, log_alpha: np.ndarray) -> float:
    with torch.no_grad():
        return float(lower.error(lower.solve(torch.tensor(np.atleast_1d(log_alpha))).y))


def one_hyperparameter() -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for name, load in (("diabetes", datasets.load_diabetes), ("breast cancer", datasets.load_breast_cancer)):
        X, y = load(return_X_y=True)
        X, y = StandardScaler().fit_transform(X), y.astype(float)
        lower = error_of(X, y)
        start = time.perf_counter()
        model = BilevelRidgeCV(cv=CV).fit(X, y)
        ours = time.perf_counter() - start
        near = np.log(model.alpha_)
        exact = scipy.optimize.brentq(partial(slope, lower), near - 0.1, near + 0.1, xtol=1e-14)
        accuracy = max(abs(near - exact), 1e-15)
        points = 1 + np.log(RANGE[1] / RANGE[0]) / (2 * accuracy)
        rows.append((name, "BilevelRidgeCV", model.alpha_, accuracy, len(model.cv_path_), ours))
        rows.append((name, "a grid of that accuracy", "", accuracy, float(points), ""))
        brent = scipy.optimize.minimize_scalar(partial(evaluate, lower), bracket=np.log(RANGE), tol=1e-9)
        rows.append((name, "Brent", np.exp(brent.x), abs(brent.x - exact), brent.nfev, ""))
        for size in (10, 100, 1000):
            start = time.perf_counter()
            grid = np.log(np.geomspace(*RANGE, size))
            best = grid[np.argmin([evaluate(lower, t) for t in grid])]
            seconds = time.perf_counter() - start
            rows.append((name, f"grid of {size}", np.exp(best), abs(best - exact), size, seconds))
    return rows


def slope(lower: Ridge, t: float) -> float:
    theta = torch.tensor([t], dtype=torch.float64, requires_grad=True)
    return float(torch.autograd.grad(lower.error(lower.solve(theta).y), theta)[0])


def many_hyperparameters() -> list[tuple[object, ...]]:
    X, y = datasets.load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y.astype(float), test_size=0.25, random_state=0)
    scaler = StandardScaler().fit(X)
    X, X_test = scaler.transform(X), scaler.transform(X_test)
    lower = error_of(X, y)
    rows: list[tuple[object, ...]] = []

    def note(method: str, log_alpha: np.ndarray, solves: int, seconds: float) -> None:
        fitted = BilevelRidgeCV(
            penalty="per_feature" if len(log_alpha) > 1 else "shared",
            alpha_init=np.exp(log_alpha) if len(log_alpha) > 1 else float(np.exp(log_alpha[0])),
            alpha_bounds=(1e-9, 1e9),
            tol=0.999,  # the hyperparameters are given: no step
            cv=CV,
        ).fit(X, y)
        test = float(np.mean((fitted.predict(X_test) - y_test) ** 2))
        rows.append((method, len(log_alpha), evaluate(lower, log_alpha), test, solves, seconds))

    found = {}
    for penalty in ("shared", "per_feature"):
        start = time.perf_counter()
        model = BilevelRidgeCV(penalty=penalty, cv=CV).fit(X, y)
        found[penalty] = np.atleast_1d(np.log(model.alpha_)), len(model.cv_path_), time.perf_counter() - start
        note("BilevelRidgeCV", *found[penalty])
    budget = 20 * found["per_feature"][1]
    generator = np.random.default_rng(0)
    for method, draw in (
        ("random search, 1e-3 to 1e5", lambda: generator.uniform(*np.log(RANGE), 64)),
        ("random search around the shared one", lambda: found["shared"][0] + generator.normal(0, 2, 64)),
    ):
        start = time.perf_counter()
        tried = [draw() for _ in range(budget)]
        best = tried[int(np.argmin([evaluate(lower, t) for t in tried]))]
        note(method, best, budget, time.perf_counter() - start)
    return rows


def run() -> str:
    torch.set_num_threads(1)
    one = table(
        "One hyperparameter",
        ("data", "method", "penalty", "error of log alpha", "lower solves", "seconds"),
        one_hyperparameter(),
    )
    many = table(
        "64 hyperparameters: one ridge penalty per pixel",
        ("method", "hyperparameters", "cross-validation error", "test error", "lower solves", "seconds"),
        many_hyperparameters(),
    )
    text = "\n".join([one, many, f"A lower solve is one of all five folds. {machine()}.", ""])
    HERE.mkdir(parents=True, exist_ok=True)
    (HERE / "hyperparameters.md").write_text(text, encoding="utf-8")
    return text
