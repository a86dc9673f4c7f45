"""Linear models that learn their penalties, one for all features or one for each, from the cross-validation error."""

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor

from torchddn.bilevel.sklearn.elastic_net import ElasticNet
from torchddn.bilevel.sklearn.fit import Fit
from torchddn.bilevel.sklearn.folds import split, whole
from torchddn.bilevel.sklearn.logistic import Logistic
from torchddn.bilevel.sklearn.options import (
    check_choice,
    check_flag,
    check_search,
    is_number,
    read_limits,
    read_positive,
    score,
)
from torchddn.bilevel.sklearn.regression import Regression
from torchddn.bilevel.sklearn.ridge import Ridge
from torchddn.bilevel.sklearn.search import Limits, search
from torchddn.errors import InvalidInputError

__all__ = ["BilevelElasticNetCV", "BilevelLogisticRegressionCV", "BilevelRidgeCV"]

PENALTIES = ("shared", "per_feature")

# Where the search looks for its start, from much penalty to little, as multiples of one that matters.
_SCAN = np.array([1.0, 0.1, 0.01, 1e-3, 1e-4])


class BilevelRidgeCV(RegressorMixin, BaseEstimator):
    r"""Ridge regression that learns its penalties from the cross-validation error, by hypergradients.

    ::

        minimize over alpha   mean_k  mean_(i in fold k)  (y_i - x_i'b_k - c_k)^2
        subject to            b_k, c_k = argmin  sum_(i not in fold k) (y_i - x_i'b - c)^2 + sum_j alpha_j b_j^2

    The penalty means what it means in ``sklearn.linear_model.Ridge``. All folds are one batch; with one penalty they
    share nothing but an eigendecomposition, and a step costs O(N n K). With one per feature a step is a Cholesky factor
    of min(N, n) variables per fold, and the cross-validation error has as many hyperparameters as there are features,
    more than a grid can visit. It is not convex: what is found is a local minimum.

    Args:
        penalty: ``"shared"``, one for all features, or ``"per_feature"``.
        alpha_init: Where the search of the penalties starts: a positive number or one per feature. None for the best of
            five penalties, and with a penalty per feature for the best shared one.
        alpha_bounds: Limits of the penalties.
        fit_intercept: Whether there is an intercept, without penalty.
        cv: How the samples are split, as for scikit-learn's ``check_cv``; None for five folds.
        scoring: What :meth:`score` returns, a name or function as in scikit-learn; None for the coefficient of
            determination. The search minimizes the mean squared error whatever is said here.
        max_iter: Most upper steps of a search.
        tol: The search ends when the derivatives with respect to log alpha are as small as this beside the largest met;
            None for 1e-6 with one penalty and 1e-3 with many, whose errors are the square of that.
        warm_start: Whether a second call of :meth:`fit` starts at the penalties of the first.

    Attributes:
        alpha_: The penalties, a number or ``(n,)``.
        coef_: ``(n,)``.
        intercept_: A number.
        cv_path_: The cross-validation error at each lower solve, ``(S,)``; a lower solve is one of all folds.
        alpha_path_: The penalties there, ``(S,)`` or ``(S, n)``.
        n_iter_: Upper steps.
        n_features_in_: ``n``.

    Raises:
        InvalidInputError: By :meth:`fit`, if an option is wrong.
        ValueError: By :meth:`fit`, as scikit-learn, if the data are: NaN, fewer samples than folds, and so on.

    Status:
        ConvergenceWarning: ``max_iter`` steps were not enough. The best point is used.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(50, 3))
        >>> y = X[:, 0] + 0.1 * np.random.default_rng(1).normal(size=50)
        >>> BilevelRidgeCV(penalty="per_feature").fit(X, y).coef_.round(1) + 0.0
        array([1., 0., 0.])

    References:
        Bengio, Gradient-based optimization of hyperparameters, 2000. Gould, Hartley, Campbell, Deep Declarative
        Networks, 2019, for the derivative.
    """

    def __init__(
        self,
        *,
        penalty: str = "shared",
        alpha_init: Any = None,
        alpha_bounds: tuple[float, float] = (1e-8, 1e8),
        fit_intercept: bool = True,
        cv: Any = None,
        scoring: Any = None,
        max_iter: int = 300,
        tol: float | None = None,
        warm_start: bool = False,
    ) -> None:
        self.penalty = penalty
        self.alpha_init = alpha_init
        self.alpha_bounds = alpha_bounds
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.scoring = scoring
        self.max_iter = max_iter
        self.tol = tol
        self.warm_start = warm_start

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "BilevelRidgeCV":
        """Learns penalties and coefficients.

        Args:
            X: ``(N, n)``.
            y: ``(N,)``.
            sample_weight: ``(N,)``, not negative; counts in training and in validation.
        """
        limits = _check(self)
        X, y, sample_weight = _read_regression(self, X, y, sample_weight)
        folds = split(self.cv, X, y, sample_weight, classifier=False)
        data = torch.tensor(X), torch.tensor(y)
        lower = Ridge(Regression(*data, folds, self.fit_intercept))
        log_alpha = _learn_alpha(self, lower, X.shape[1], _halving(X, sample_weight) * _SCAN, limits)
        regression = Regression(*data, whole(sample_weight), self.fit_intercept)
        _keep_line(self, regression, Ridge(regression).solve(log_alpha).y)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Returns ``X @ coef_ + intercept_``, ``(N,)``."""
        return _line(self, X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Returns what ``scoring`` says of the predictions, the coefficient of determination unless said otherwise."""
        return score(self, "r2", X, y, sample_weight)


class BilevelElasticNetCV(RegressorMixin, BaseEstimator):
    r"""Linear regression with an elastic net that learns its penalties, by hypergradients.

    ::

        minimize over alpha   mean_k  mean_(i in fold k)  (y_i - x_i'b_k - c_k)^2
        subject to            b_k, c_k = argmin  1/(2 N_k) sum_(i not in fold k) (y_i - x_i'b - c)^2
                                                 + sum_j alpha_j ( l1_ratio |b_j| + (1 - l1_ratio)/2 b_j^2 )

    The penalty means what it means in ``sklearn.linear_model.ElasticNet``; with ``l1_ratio=1`` it is the lasso. All
    folds are one batch, and each starts at its last answer. The error has a kink wherever a feature joins or leaves a
    fold: there the derivative is that of the features that are in, and a search may end at a kink. A penalty above the
    one that leaves no feature in any fold is not tried.

    Args:
        l1_ratio: Share of the absolute values in the penalty, above 0 and at most 1.
        penalty: ``"shared"``, one for all features, or ``"per_feature"``.
        alpha_init: Where the search of the penalties starts: a positive number or one per feature. None for the best of
            five penalties, and with a penalty per feature for the best shared one.
        alpha_bounds: Limits of the penalties.
        fit_intercept: Whether there is an intercept, without penalty.
        cv: How the samples are split, as for scikit-learn's ``check_cv``; None for five folds.
        scoring: What :meth:`score` returns, a name or function as in scikit-learn; None for the coefficient of
            determination. The search minimizes the mean squared error whatever is said here.
        max_iter: Most upper steps of a search.
        tol: The search ends when the derivatives with respect to log alpha are as small as this beside the largest met;
            None for 1e-6 with one penalty and 1e-3 with many, whose errors are the square of that.
        warm_start: Whether a second call of :meth:`fit` starts at the penalties of the first.

    Attributes:
        alpha_: The penalties, a number or ``(n,)``.
        coef_: ``(n,)``.
        intercept_: A number.
        cv_path_: The cross-validation error at each lower solve, ``(S,)``; a lower solve is one of all folds.
        alpha_path_: The penalties there, ``(S,)`` or ``(S, n)``.
        n_iter_: Upper steps.
        n_features_in_: ``n``.

    Raises:
        InvalidInputError: By :meth:`fit`, if an option is wrong.
        ValueError: By :meth:`fit`, as scikit-learn, if the data are: NaN, fewer samples than folds, and so on.

    Status:
        ConvergenceWarning: ``max_iter`` steps were not enough, or a fold was not solved. The best point is used.

    References:
        Zou, Hastie, Regularization and variable selection via the elastic net, 2005. Bertrand, Klopfenstein, Blondel,
        Vaiter, Gramfort, Salmon, Implicit differentiation of Lasso-type models for hyperparameter optimization, 2020.
    """

    def __init__(
        self,
        *,
        l1_ratio: float = 0.5,
        penalty: str = "shared",
        alpha_init: Any = None,
        alpha_bounds: tuple[float, float] = (1e-8, 1e8),
        fit_intercept: bool = True,
        cv: Any = None,
        scoring: Any = None,
        max_iter: int = 300,
        tol: float | None = None,
        warm_start: bool = False,
    ) -> None:
        self.l1_ratio = l1_ratio
        self.penalty = penalty
        self.alpha_init = alpha_init
        self.alpha_bounds = alpha_bounds
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.scoring = scoring
        self.max_iter = max_iter
        self.tol = tol
        self.warm_start = warm_start

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "BilevelElasticNetCV":
        """Learns penalties and coefficients; arguments as of :meth:`BilevelRidgeCV.fit`."""
        limits = _check(self)
        if not (is_number(self.l1_ratio) and 0 < self.l1_ratio <= 1):
            raise InvalidInputError(
                f"`BilevelElasticNetCV(l1_ratio=...)` must be above 0 and at most 1, got {self.l1_ratio!r}. For 0 use "
                f"BilevelRidgeCV."
            )
        X, y, sample_weight = _read_regression(self, X, y, sample_weight)
        folds = split(self.cv, X, y, sample_weight, classifier=False)
        data = torch.tensor(X), torch.tensor(y)
        lower = ElasticNet(Regression(*data, folds, self.fit_intercept), self.l1_ratio)
        # Above this penalty all coefficients are zero, and so are all derivatives.
        top = float(lower.largest_alpha().max()) or 1.0
        limits = Limits(*(side.clamp(max=np.log(top)) for side in limits))
        log_alpha = _learn_alpha(self, lower, X.shape[1], 0.5 * top * _SCAN, limits, 0.5 * top)
        regression = Regression(*data, whole(sample_weight), self.fit_intercept)
        _keep_line(self, regression, ElasticNet(regression, self.l1_ratio).solve(log_alpha).y)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Returns ``X @ coef_ + intercept_``, ``(N,)``."""
        return _line(self, X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Returns what ``scoring`` says of the predictions, the coefficient of determination unless said otherwise."""
        return score(self, "r2", X, y, sample_weight)


class BilevelLogisticRegressionCV(ClassifierMixin, BaseEstimator):
    r"""Logistic regression that learns its penalties from the cross-validation error, by hypergradients.

    ::

        minimize over alpha   mean_k  mean_(i in fold k)  loss(B_k x_i + c_k, y_i)
        subject to            B_k, c_k = argmin  sum_(i not in fold k) loss(B x_i + c, y_i) + 1/2 sum_j alpha_j |B_j|^2

    where loss is the negative log-likelihood, of a softmax if there are more than two classes. The penalty is ``1 / C``
    of ``sklearn.linear_model.LogisticRegression``. All folds are one batch of Newton's method, and each starts at its
    last answer; a step costs a Cholesky factor of (n + 1) C variables per fold.

    Args:
        penalty: ``"shared"``, one for all features, or ``"per_feature"``.
        alpha_init: Where the search of the penalties starts: a positive number or one per feature. None for the best of
            five penalties, and with a penalty per feature for the best shared one.
        alpha_bounds: Limits of the penalties.
        fit_intercept: Whether there is an intercept, without penalty.
        cv: How the samples are split, as for scikit-learn's ``check_cv``; None for five folds.
        scoring: What :meth:`score` returns, a name or function as in scikit-learn; None for the accuracy. The
            search minimizes the negative log-likelihood whatever is said here.
        max_iter: Most upper steps of a search.
        tol: The search ends when the derivatives with respect to log alpha are as small as this beside the largest met;
            None for 1e-6 with one penalty and 1e-3 with many, whose errors are the square of that.
        warm_start: Whether a second call of :meth:`fit` starts at the penalties of the first.

    Attributes:
        alpha_: The penalties, a number or ``(n,)``.
        coef_: ``(1, n), or (C, n) with more than two classes``.
        intercept_: ``(1,)`` or ``(C,)``.
        cv_path_: The cross-validation error at each lower solve, ``(S,)``; a lower solve is one of all folds.
        alpha_path_: The penalties there, ``(S,)`` or ``(S, n)``.
        n_iter_: Upper steps.
        n_features_in_: ``n``.

    Raises:
        InvalidInputError: By :meth:`fit`, if an option is wrong.
        ValueError: By :meth:`fit`, as scikit-learn, if the data are: NaN, fewer samples than folds, and so on.

    Status:
        ConvergenceWarning: ``max_iter`` steps were not enough, or a fold was not solved. The best point is used.

    References:
        Bengio, Gradient-based optimization of hyperparameters, 2000. Pedregosa, Hyperparameter optimization with
        approximate gradient, 2016.
    """

    def __init__(
        self,
        *,
        penalty: str = "shared",
        alpha_init: Any = None,
        alpha_bounds: tuple[float, float] = (1e-8, 1e8),
        fit_intercept: bool = True,
        cv: Any = None,
        scoring: Any = None,
        max_iter: int = 300,
        tol: float | None = None,
        warm_start: bool = False,
    ) -> None:
        self.penalty = penalty
        self.alpha_init = alpha_init
        self.alpha_bounds = alpha_bounds
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.scoring = scoring
        self.max_iter = max_iter
        self.tol = tol
        self.warm_start = warm_start

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "BilevelLogisticRegressionCV":
        """Learns penalties and coefficients.

        Args:
            X: ``(N, n)``.
            y: Classes, ``(N,)``.
            sample_weight: ``(N,)``, not negative; counts in training and in validation.
        """
        limits = _check(self)
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"BilevelLogisticRegressionCV needs samples of at least 2 classes, got one class: {self.classes_[0]!r}."
            )
        folds = split(self.cv, X, y, sample_weight, classifier=True)
        data = torch.tensor(X), torch.tensor(labels)
        lower = Logistic(*data, folds, self.fit_intercept)
        # The loss has at most a quarter of the curvature of a square.
        log_alpha = _learn_alpha(self, lower, X.shape[1], 0.25 * _halving(X, sample_weight) * _SCAN, limits)
        B = Logistic(*data, whole(sample_weight), self.fit_intercept).solve(log_alpha).y[0].numpy()
        self.coef_, self.intercept_ = B[:, :-1], B[:, -1] if self.fit_intercept else np.zeros(len(B))
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Returns the scores, ``(N,)`` with two classes, ``(N, C)`` with more."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        scores = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.coef_) == 1 else scores

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Returns the logarithms of the probabilities of all classes, ``(N, C)``."""
        scores = torch.from_numpy(self.decision_function(X))
        if scores.ndim == 1:
            scores = torch.stack([torch.zeros_like(scores), scores], dim=1)
        return scores.log_softmax(1).numpy()

    def predict_proba(self, X: Any) -> np.ndarray:
        """Returns the probabilities of all classes, ``(N, C)``."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """Returns the most probable classes, ``(N,)``."""
        best = self.predict_log_proba(X).argmax(1)
        return self.classes_[best]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Returns what ``scoring`` says of the predictions, the accuracy unless said otherwise."""
        return score(self, "accuracy", X, y, sample_weight)


def _check(estimator: Any) -> Limits:
    """Raises if an option is wrong; the limits of log alpha."""
    call = type(estimator).__name__
    check_choice(call, "penalty", estimator.penalty, PENALTIES)
    check_flag(call, "fit_intercept", estimator.fit_intercept)
    check_search(estimator)
    return read_limits(call, "alpha_bounds", estimator.alpha_bounds)


def _read_regression(estimator: Any, X: Any, y: Any, sample_weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    X, y = validate_data(estimator, X, y, dtype=np.float64, y_numeric=True)
    weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    return X, y.astype(np.float64), weight


def _halving(X: np.ndarray, sample_weight: np.ndarray) -> float:
    """A ridge penalty as large as the mean sum of squares of a feature: it would halve one that has no companions."""
    spread = X - np.average(X, axis=0, weights=sample_weight)
    return float((sample_weight[:, None] * spread**2).sum() / X.shape[1]) or 1.0


def _learn_alpha(
    estimator: Any, lower: Fit, num_features: int, scan: np.ndarray, limits: Limits, highest: float = np.inf
) -> Tensor:
    """Searches the penalties, keeps what was found in the estimator, and returns their logarithms."""
    call, per_feature = type(estimator).__name__, estimator.penalty == "per_feature"
    size = num_features if per_feature else 1
    options = limits, estimator.max_iter, estimator.tol
    begin = estimator.alpha_init
    if estimator.warm_start and np.size(getattr(estimator, "alpha_", ())) == size:
        begin = estimator.alpha_
    if begin is None:
        path = search(call, lower, torch.from_numpy(scan).log().unsqueeze(1), *options)
        if per_feature:  # where one penalty for all is best, none of many is far off
            path = path.then(search(call, lower, path.found.expand(1, size), *options))
    else:
        start = read_positive(call, "alpha_init", begin, size).clamp(max=np.log(highest))
        path = search(call, lower, start.expand(1, size), *options)
    alpha, alphas = path.found.exp().numpy(), path.theta.exp().numpy()
    estimator.alpha_ = alpha if per_feature else float(alpha[0])
    estimator.alpha_path_ = alphas if per_feature else alphas[:, 0]
    estimator.cv_path_, estimator.n_iter_ = path.error.numpy(), path.num_steps
    return path.found


def _keep_line(estimator: Any, regression: Regression, coef: Tensor) -> None:
    estimator.coef_ = coef[0].numpy()
    estimator.intercept_ = float(regression.intercept(coef)[0])


def _line(estimator: Any, X: Any) -> np.ndarray:
    check_is_fitted(estimator)
    return validate_data(estimator, X, dtype=np.float64, reset=False) @ estimator.coef_ + estimator.intercept_
