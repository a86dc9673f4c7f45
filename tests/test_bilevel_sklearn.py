"""The estimators are scikit-learn's own in every check of its, and their gradients are those of what they minimize."""

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import sklearn.linear_model
import torch
from sklearn import datasets, svm
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from torchddn.bilevel.sklearn import (
    BilevelElasticNetCV,
    BilevelLogisticRegressionCV,
    BilevelRidgeCV,
    BilevelSVC,
    BilevelSVR,
)
from torchddn.bilevel.sklearn.elastic_net import ElasticNet
from torchddn.bilevel.sklearn.folds import split, whole
from torchddn.bilevel.sklearn.logistic import Logistic
from torchddn.bilevel.sklearn.machines import Machine
from torchddn.bilevel.sklearn.regression import Regression
from torchddn.bilevel.sklearn.ridge import Ridge

LINEAR = (BilevelRidgeCV, BilevelElasticNetCV, BilevelLogisticRegressionCV)
MACHINES = (BilevelSVC, BilevelSVR)
ALL = (*LINEAR, *MACHINES)


def one_each(estimator: type, **options: Any) -> Any:
    """With a hyperparameter per feature."""
    return estimator(**{"width" if estimator in MACHINES else "penalty": "per_feature"}, **options)


def noisy_line(N: int = 60, n: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N, n))
    return X, X[:, : n // 2].sum(1) + 2.0 + rng.normal(size=N)


@pytest.mark.filterwarnings("ignore")  # what scikit-learn's checks feed to an estimator, it may well warn about
@parametrize_with_checks([estimator(max_iter=5) for estimator in LINEAR])
def test_estimators_are_those_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([*(estimator() for estimator in ALL), *(one_each(estimator) for estimator in ALL)])
def test_estimators_with_every_option_are_those_of_scikit_learn(estimator, check):
    check(estimator)


def fold_errors(make: Any, X: np.ndarray, y: np.ndarray, w: np.ndarray, cv: Any, loss: Any) -> float:
    """The mean over the folds of the weighted mean loss, by scikit-learn, one fold after the other."""
    errors = []
    for train, test in cv.split(X, y):
        model = make().fit(X[train], y[train], sample_weight=w[train])
        errors.append(np.average(loss(model, X[test], y[test]), weights=w[test]))
    return float(np.mean(errors))


def squared(model: Any, X: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (model.predict(X) - y) ** 2


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("N, n", [(60, 8), (20, 30)])
@pytest.mark.parametrize("alpha", [1e-2, 1.0, 30.0])
def test_folds_of_ridge_and_elastic_net_are_solved_as_scikit_learn_does(alpha, N, n, fit_intercept):
    X, y = noisy_line(N, n)
    X[:, 2] = 3.0  # a constant feature
    w = np.random.default_rng(1).uniform(0.5, 2.0, N)
    cv = KFold(4)
    regression = Regression(torch.tensor(X), torch.tensor(y), split(cv, X, y, w, False), fit_intercept)
    one, many = torch.tensor([alpha]).double().log(), torch.full((n,), alpha).double().log()
    ridge = lambda: sklearn.linear_model.Ridge(alpha, fit_intercept=fit_intercept)  # noqa: E731
    expected = fold_errors(ridge, X, y, w, cv, squared)
    for theta in (one, many):
        lower = Ridge(regression)
        assert float(lower.error(lower.solve(theta).y)) == pytest.approx(expected, rel=1e-9)
    options = {"l1_ratio": 0.6, "fit_intercept": fit_intercept, "tol": 1e-12, "max_iter": 1000000}
    net = lambda: sklearn.linear_model.ElasticNet(alpha, **options)  # noqa: E731
    expected = fold_errors(net, X, y, w, cv, squared)
    for theta in (one, many):
        lower = ElasticNet(regression, 0.6)
        assert float(lower.error(lower.solve(theta).y)) == pytest.approx(expected, rel=1e-7)


def test_lasso_with_more_features_than_samples_ends_at_a_minimum():
    X, y = noisy_line(20, 60)
    regression = Regression(torch.tensor(X), torch.tensor(y), split(3, X, y, np.ones(20), False), True)
    lower = ElasticNet(regression, 1.0)
    for alpha in (1e-3, 0.3, 1e-2):  # each starts at the last one's answer
        found = lower.solve(torch.tensor([alpha]).double().log())
        assert found.status.tolist() == [0, 0, 0]
        G, c = regression.normal_equations()
        total = regression.folds.training.sum(1, keepdim=True)
        slope = ((G @ found.y.unsqueeze(2)).squeeze(2) - c) / total
        at_zero = found.y == 0
        assert bool((slope.abs()[at_zero] <= alpha * (1 + 1e-9)).all())
        assert torch.allclose(slope[~at_zero], -alpha * found.y.sign()[~at_zero], atol=1e-9)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("load", [datasets.load_breast_cancer, datasets.load_wine])
def test_folds_of_logistic_regression_are_solved_as_scikit_learn_does(load, fit_intercept):
    X, y = load(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    w, cv = np.random.default_rng(0).uniform(0.5, 2.0, len(y)), StratifiedKFold(3)
    folds = split(cv, X, y, w, True)
    options = {"fit_intercept": fit_intercept, "tol": 1e-10, "max_iter": 1000, "solver": "newton-cholesky"}
    for alpha in (0.3, 30.0):
        make = lambda: sklearn.linear_model.LogisticRegression(C=1 / alpha, **options)  # noqa: B023, E731
        expected = fold_errors(
            make, X, y, w, cv, lambda model, X, y: -np.log(model.predict_proba(X)[np.arange(len(y)), y])
        )
        lower = Logistic(torch.tensor(X), torch.tensor(y), folds, fit_intercept)
        found = lower.solve(torch.tensor([alpha]).double().log())
        assert found.status.tolist() == [0, 0, 0]
        assert float(lower.error(found.y)) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("C, gamma", [(1.0, 0.03), (100.0, 0.01), (1e-3, 0.03), (10.0, 1.0)])
def test_folds_of_support_vector_machines_are_solved_as_libsvm_does(C, gamma):
    X, y = datasets.load_breast_cancer(return_X_y=True)
    X, t = StandardScaler().fit_transform(X)[:200], (2.0 * y - 1)[:200]
    w = np.random.default_rng(0).uniform(0.5, 2.0, len(t))
    folds = split(4, X, t, w, True)
    theta = torch.tensor([C, gamma]).double().log()
    options = {"C": C, "gamma": gamma, "tol": 1e-9}
    for epsilon, targets in ((None, t), (0.1, X[:, 3] ** 2 + X[:, 5])):
        lower = Machine(torch.tensor(X), torch.tensor(targets).expand(4, -1), *folds, epsilon)
        decisions = lower.solve(theta).y
        for k in range(4):
            used = folds.training[k].numpy() > 0
            machine: Any = svm.SVC(**options) if epsilon is None else svm.SVR(epsilon=epsilon, **options)
            machine.fit(X[used], targets[used], sample_weight=w[used])
            expected = machine.decision_function(X) if epsilon is None else machine.predict(X)
            np.testing.assert_allclose(decisions[k], expected, atol=3e-6 * np.abs(expected).max())


def lower_problems() -> dict[str, tuple[Any, int]]:
    """Each with the number of its hyperparameters."""
    X, y = noisy_line(40, 5)
    labels = torch.tensor(np.digitize(y, [1.0, 3.0]))
    folds = split(3, X, y, np.ones(40), False)
    regression = Regression(torch.tensor(X), torch.tensor(y), folds, True)
    wide_X, wide_y = noisy_line(12, 20)
    wide = Regression(torch.tensor(wide_X), torch.tensor(wide_y), split(3, wide_X, wide_y, np.ones(12), False), True)
    signs = torch.tensor(np.where(y > 2, 1.0, -1.0)).expand(3, -1)
    data = torch.tensor(X)
    return {
        "ridge": (Ridge(regression), 5),
        "wide ridge": (Ridge(wide), 20),
        "elastic net": (ElasticNet(regression, 0.5), 5),
        "lasso": (ElasticNet(regression, 1.0), 5),
        "logistic": (Logistic(data, labels, folds, True), 5),
        "logistic, two classes": (Logistic(data, (labels > 1).long(), folds, False), 5),
        "classes": (Machine(data, signs, *folds, None), 6),
        "values": (Machine(data, torch.tensor(y).expand(3, -1), *folds, 0.1), 6),
    }


@pytest.mark.parametrize("name", lower_problems())
@pytest.mark.parametrize("shared", [True, False])
def test_hypergradient_agrees_with_finite_differences(name, shared):
    lower, size = lower_problems()[name]
    size = size if not shared else size if name in ("classes", "values") else 1
    theta = -1.5 + 0.5 * torch.rand(size, dtype=torch.float64)
    theta.requires_grad_()
    error = lower.error(lower.solve(theta).y)
    (gradient,) = torch.autograd.grad(error, theta)
    h = 1e-5
    with torch.no_grad():
        for i, unit in enumerate(torch.eye(size, dtype=torch.float64)):
            ends = [float(lower.error(lower.solve(theta + side * h * unit).y)) for side in (1, -1)]
            assert float(gradient[i]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-5, abs=1e-7)


def test_machine_without_a_free_vector_has_a_gradient():
    X = torch.tensor([[0.0], [0.1], [1.0], [1.1]], dtype=torch.float64)
    t, ones = torch.tensor([[1.0, -1.0, 1.0, -1.0]]).double(), torch.ones(1, 4).double()
    lower = Machine(X, t, ones, ones / 4, None)
    theta = torch.tensor([1e-2, 0.3]).double().log().requires_grad_()
    assert torch.autograd.gradcheck(lambda theta: lower.error(lower.solve(theta).y), theta, eps=1e-6)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_one_penalty_ends_where_brent_does_in_few_steps(fit_intercept):
    X, y = datasets.load_diabetes(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    ridge = lambda alpha: sklearn.linear_model.Ridge(alpha, fit_intercept=fit_intercept)  # noqa: E731
    error = lambda t: -cross_val_score(ridge(np.exp(t)), X, y, cv=KFold(5), scoring="neg_mean_squared_error").mean()  # noqa: E731
    found = BilevelRidgeCV(cv=KFold(5), fit_intercept=fit_intercept).fit(X, y)
    near = np.log(found.alpha_)
    brent = scipy.optimize.minimize_scalar(error, bracket=(near - 2, near + 2), tol=1e-10)
    assert found.cv_path_.min() == pytest.approx(brent.fun, rel=1e-12)
    assert found.alpha_ == pytest.approx(np.exp(brent.x), rel=1e-5)
    assert found.n_iter_ <= 30
    assert len(found.cv_path_) <= 30


def test_coefficients_are_those_of_scikit_learn_at_the_penalty_found():
    X, y = noisy_line()
    for found, peer in (
        (BilevelRidgeCV().fit(X, y), sklearn.linear_model.Ridge),
        (BilevelElasticNetCV(l1_ratio=0.7).fit(X, y), sklearn.linear_model.ElasticNet),
    ):
        options = {} if peer is sklearn.linear_model.Ridge else {"l1_ratio": 0.7, "tol": 1e-12}
        expected = peer(alpha=found.alpha_, **options).fit(X, y)
        np.testing.assert_allclose(found.coef_, expected.coef_, atol=1e-8)
        assert found.intercept_ == pytest.approx(expected.intercept_)


@pytest.mark.parametrize("estimator", [BilevelRidgeCV, BilevelElasticNetCV, BilevelSVR])
def test_a_penalty_per_feature_is_not_worse_than_one(estimator):
    X, y = noisy_line(60, 8)
    options = {"tol": 0.1} if estimator in MACHINES else {}
    one, many = estimator().fit(X, y), one_each(estimator, **options).fit(X, y)
    assert many.cv_path_.min() < one.cv_path_.min()
    per_feature = many.gamma_ if estimator in MACHINES else many.alpha_
    assert per_feature.shape == (8,)
    if estimator is BilevelRidgeCV:  # the last four features are noise
        assert per_feature[4:].mean() > 10 * per_feature[:4].max()


def test_sample_weights_count_as_repeated_samples():
    X, y = noisy_line()
    w = np.random.default_rng(3).integers(0, 3, len(y))
    parts = list(KFold(3).split(X))
    repeated = np.repeat(np.arange(len(y)), w)
    parts_repeated = [tuple(np.flatnonzero(np.isin(repeated, side)) for side in part) for part in parts]
    weighted = BilevelRidgeCV(cv=parts).fit(X, y, sample_weight=w)
    longer = BilevelRidgeCV(cv=parts_repeated).fit(X[repeated], y[repeated])
    assert weighted.alpha_ == pytest.approx(longer.alpha_, rel=1e-4)
    np.testing.assert_allclose(weighted.coef_, longer.coef_, rtol=1e-4)


def test_warm_start_begins_at_the_last_answer():
    X, y = noisy_line()
    model = BilevelRidgeCV(warm_start=True).fit(X, y)
    first = model.alpha_
    model.fit(X, y)
    assert model.alpha_path_[0] == pytest.approx(first)
    assert model.n_iter_ <= 3
    model = one_each(BilevelSVR, warm_start=True, max_iter=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        gamma = model.fit(X, y).gamma_
        np.testing.assert_allclose(model.fit(X, y).gamma_path_[0], gamma)


def test_pipeline_and_grid_search_work_around_them():
    X, y = datasets.load_wine(return_X_y=True)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), BilevelLogisticRegressionCV(cv=3)),
        {"bilevellogisticregressioncv__fit_intercept": [True, False]},
        cv=3,
        scoring="neg_log_loss",
    ).fit(X, y)
    assert search.best_estimator_.score(X, y) > 0.98
    model = search.best_estimator_[-1]
    assert log_loss(y, search.predict_proba(X)) < 0.1
    assert model.coef_.shape == (3, 13)


def test_scoring_says_what_score_returns():
    X, y = noisy_line()
    model = BilevelRidgeCV(scoring="neg_mean_squared_error").fit(X, y)
    assert model.score(X, y) == pytest.approx(-np.mean((model.predict(X) - y) ** 2))
    assert BilevelRidgeCV().fit(X, y).score(X, y) == pytest.approx(sklearn.metrics.r2_score(y, model.predict(X)))


def test_classifiers_learn_three_classes():
    X, y = datasets.load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    for estimator in (BilevelLogisticRegressionCV, BilevelSVC):
        model = make_pipeline(StandardScaler(), estimator()).fit(X, names)
        assert model.score(X, names) > 0.95
        assert model.decision_function(X).shape == (150, 3)


def test_three_classes_have_coefficients_of_sum_zero_however_small_their_penalty():
    """The same row for all classes changes no probability, and the penalty alone, which is tiny, says what it is."""
    X, labels = (
        torch.rand(15, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        torch.arange(15) % 3,
    )
    lower = Logistic(X, labels, whole(np.ones(15)), True)
    B = lower.solve(torch.full((1,), 1e-8, dtype=torch.float64).log()).y[0]
    assert B.sum(0).abs().max() <= 1e-13 * B.abs().max()


def test_constant_targets_and_features_are_no_problem():
    X, y = noisy_line(30, 4)
    for estimator in (BilevelRidgeCV, BilevelElasticNetCV):
        assert estimator().fit(X, np.full(30, 2.0)).intercept_ == pytest.approx(2.0)
        model = estimator().fit(np.zeros((30, 4)), y)
        assert model.coef_.tolist() == [0.0] * 4 and model.intercept_ == pytest.approx(y.mean())


def test_a_penalty_at_its_bound_is_the_bound():
    X, _ = noisy_line(40, 5)
    y = np.random.default_rng(5).normal(size=40)
    model = BilevelRidgeCV(alpha_bounds=(1e-3, 2.0)).fit(X, y)
    assert model.alpha_ == pytest.approx(2.0)


@pytest.mark.parametrize("estimator", ALL)
def test_bad_data_is_refused_as_scikit_learn_does(estimator):
    X, y = noisy_line(20, 3)
    y = (y > y.mean()).astype(float)
    with pytest.raises(ValueError, match="NaN"):
        estimator().fit(np.where(X > 1, np.nan, X), y)
    with pytest.raises(ValueError, match=r"cannot be greater|Cannot have number of splits"):
        estimator(cv=50).fit(X, y)
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        estimator().fit(X, y, sample_weight=-np.ones(20))


@pytest.mark.parametrize(
    "estimator, options, message",
    [
        (BilevelRidgeCV, {"penalty": "l2"}, r"penalty=...\)` must be 'shared' or 'per_feature', got 'l2'"),
        (BilevelRidgeCV, {"alpha_init": -1.0}, r"alpha_init=...\)` must be a positive number, got -1.0"),
        (BilevelRidgeCV, {"alpha_init": [1.0, 2.0]}, "must be a positive number, got"),
        (BilevelRidgeCV, {"alpha_init": "x"}, "must be a positive number, got 'x'"),
        (BilevelRidgeCV, {"penalty": "per_feature", "alpha_init": [1.0, 2.0]}, "or 8 of them, one per feature"),
        (BilevelLogisticRegressionCV, {"alpha_bounds": (1.0, 0.1)}, "the smaller one first, got"),
        (BilevelLogisticRegressionCV, {"alpha_bounds": 1.0}, "two positive numbers"),
        (BilevelElasticNetCV, {"l1_ratio": 0.0}, "above 0 and at most 1, got 0.0. For 0 use BilevelRidgeCV"),
        (BilevelElasticNetCV, {"l1_ratio": "half"}, "above 0 and at most 1, got 'half'"),
        (BilevelElasticNetCV, {"max_iter": 0}, "must be a positive integer, got 0"),
        (BilevelSVC, {"tol": 0.0}, "must be a number between 0 and 1, or None, got 0.0"),
        (BilevelSVC, {"width": None}, "must be 'shared' or 'per_feature', got None"),
        (BilevelSVR, {"epsilon": -1}, "must be a number that is not negative, got -1"),
        (BilevelSVR, {"C_init": 0}, r"C_init=...\)` must be a positive number, got 0"),
        (BilevelSVR, {"gamma_init": np.nan}, "must be a positive number"),
        (BilevelRidgeCV, {"fit_intercept": "yes"}, "must be True or False, got 'yes'"),
    ],
)
def test_wrong_options_name_themselves(estimator, options, message):
    X, y = noisy_line()
    with pytest.raises(ValueError, match=message):
        estimator(**options).fit(X, (y > 2).astype(int) if estimator in (BilevelSVC, LINEAR[2]) else y)


def test_a_fold_that_trains_with_nothing_is_refused():
    X, y = noisy_line(20, 3)
    w = np.r_[np.zeros(10), np.ones(10)]
    with pytest.raises(ValueError, match="without training samples"):
        BilevelRidgeCV(cv=[(np.arange(10), np.arange(10, 20))]).fit(X, y, sample_weight=w)
    with pytest.raises(ValueError, match="no fold with validation samples"):
        BilevelRidgeCV(cv=[(np.arange(10, 20), np.arange(10))]).fit(X, y, sample_weight=w)


def test_too_few_steps_are_reported():
    X, y = noisy_line()
    with pytest.warns(ConvergenceWarning, match="BilevelRidgeCV: the search of hyperparameters did not converge"):
        one_each(BilevelRidgeCV, max_iter=1, tol=1e-12).fit(X, y)
