"""The numbers of the student report: those that can be reproduced are, to every printed digit and beyond."""

import math

import pytest
import torch

from torchddn.bilevel import hypergradient
from torchddn.errors import InvalidInputError
from torchddn.experiments.ridge_hyperparameter import Descent, RidgeHyperparameter, draw, read_folds, reproduce

# mu, and the error at it; by the sum of squares of a fold, and divided by the size of the fold.
MINIMA = {
    "iris": ((345.26995, 21.58386), (345.26995, 0.7194620)),
    "diabetes": ((210.1159, 1203053.9), (209.239, 13607.63)),
}


@pytest.mark.parametrize("data", MINIMA)
def test_every_method_finds_the_exact_minimum(data):
    (mu, error), (mu_by_size, error_by_size) = MINIMA[data]
    found = reproduce(data, most_iterations=100)
    for start in (0.1, 800.0):
        mine = {entry["method"]: entry for entry in found if entry["start"] == start}
        ours, by_size = mine["torchddn"], mine["torchddn, divided by the size of the fold"]
        assert ours["mu"] == pytest.approx(mu, rel=1e-6)
        assert ours["loss"] == pytest.approx(error, rel=1e-6)
        assert by_size["mu"] == pytest.approx(mu_by_size, rel=5e-6)
        assert by_size["loss_by_size"] == pytest.approx(error_by_size, rel=1e-6)
        assert ours["iterations"] <= 30 and by_size["iterations"] <= 30
    brent, grid = found[-2:]
    ours = next(entry for entry in found if entry["method"] == "torchddn")
    assert ours["mu"] == pytest.approx(brent["mu"], rel=1e-6)
    assert ours["loss"] == pytest.approx(brent["loss"], rel=1e-12)
    assert grid["loss"] > ours["loss"]
    assert grid["mu"] == pytest.approx(mu_by_size, rel=0.2)


def test_gradient_descent_of_the_report_ends_at_the_same_minimum():
    found = reproduce("diabetes", starts=(0.1, 800.0))
    for entry in found:
        if entry["method"] == "gradient descent":
            assert entry["mu"] == pytest.approx(210.1159, rel=1e-5)
            assert 100 < entry["iterations"] < 5000
            assert entry["way"][-1][2] == pytest.approx(entry["loss"], rel=1e-10)


def test_hypergradient_is_equation_9():
    folds = read_folds("diabetes")
    mu = torch.tensor(50.0, dtype=torch.float64)
    found = hypergradient(lambda mu, beta: folds.error(beta, by_size=False), folds.solve, mu)
    beta = folds.solve(mu)
    derivative = -torch.linalg.solve(folds.G + mu * torch.eye(10), beta)
    residual = (folds.X @ beta.unsqueeze(2)).squeeze(2) - folds.y
    expected = (residual.unsqueeze(1) @ folds.X @ derivative.unsqueeze(2)).sum() / 5
    assert float(found.gradient) == pytest.approx(float(expected), rel=1e-12)
    value, slope = Descent(folds).value_and_slope(50.0)
    assert value == pytest.approx(float(found.value), rel=1e-12)
    assert slope == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.slow
def test_iris_takes_gradient_descent_about_a_million_iterations_to_end_short_of_the_minimum():
    found = reproduce("iris", starts=(0.1,))
    descent, ours = found[0], found[1]
    assert descent["iterations"] == pytest.approx(1_099_113, rel=1e-3)
    assert descent["mu"] == pytest.approx(327.51, abs=0.01)
    assert ours["mu"] == pytest.approx(345.26995, rel=1e-6)


def test_the_picture_shows_both_starts():
    found = reproduce("diabetes", most_iterations=50)
    figure = draw(found)
    assert [len(ax.lines) for ax in figure.axes] == [2, 2]
    assert all(math.isfinite(entry["seconds"]) for entry in found)


def test_wrong_configurations_are_refused():
    with pytest.raises(InvalidInputError, match="'iris' and 'diabetes', got 'wine'"):
        RidgeHyperparameter(data=("wine",))
    with pytest.raises(InvalidInputError, match="must be positive, got 0"):
        RidgeHyperparameter(starts=(0.0,))
