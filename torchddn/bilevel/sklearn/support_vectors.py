"""Support-vector machines that learn C and the width of their kernel, or one for each feature."""

import itertools
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.svm import SVC, SVR
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor

from torchddn.bilevel.sklearn.folds import Folds, split
from torchddn.bilevel.sklearn.machines import Machine
from torchddn.bilevel.sklearn.options import check_choice, check_search, is_number, read_limits, read_positive, score
from torchddn.bilevel.sklearn.search import Limits, Path, search
from torchddn.errors import InvalidInputError

__all__ = ["BilevelSVC", "BilevelSVR"]

WIDTHS = ("shared", "per_feature")

# Where the search looks for its start: C, and multiples of the usual gamma.
_SCAN_C = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
_SCAN_GAMMA = torch.tensor([1.0, 0.1], dtype=torch.float64)

# Of the last fit: what repeated samples would change is not visible then.
_TOL = 1e-9


class BilevelSVC(ClassifierMixin, BaseEstimator):
    r"""Support-vector classification that learns C and the width of its Gaussian kernel, by hypergradients.

    ::

        minimize over C, gamma   mean_k  mean_(i in fold k)  max(0, 1 - t_i f_k(x_i))^2
        subject to               f_k the decision of a machine that is trained without fold k

    With more than two classes this is the mean over the pairs of classes, as in ``sklearn.svm.SVC``, whose C and gamma
    these are; the kernel is ``exp(-sum_j gamma_j (x_j - x'_j)^2)``. libsvm finds the support vectors of a fold, faster
    than a batch of dense programs; values and derivatives of all folds are then one batch of linear systems. The error
    has a kink wherever a vector joins or leaves the margin of a fold, and a search may end at one. Kernels are
    dense: memory O(N^2). Features should have similar scales.

    Args:
        width: ``"shared"``, one gamma for all features, or ``"per_feature"``.
        C_init: Where the search of C starts; None for the best of 1, 10 and 100.
        gamma_init: Where that of gamma starts: a positive number or one per feature. None for the better of
            scikit-learn's ``gamma="scale"`` and a tenth, and with one per feature for the best shared one.
        C_bounds: Limits of C.
        gamma_bounds: Limits of gamma.
        cv: How the samples are split, as for scikit-learn's ``check_cv``; None for five folds.
        scoring: What :meth:`score` returns, a name or function as in scikit-learn; None for the accuracy. The
            search minimizes the above whatever is said here.
        max_iter: Most upper steps of a search.
        tol: The search ends when the derivatives with respect to log C and log gamma are as small as this beside the
            largest met; None for 1e-3.
        warm_start: Whether a second call of :meth:`fit` starts at the hyperparameters of the first.

    Attributes:
        C_: The weight of the losses.
        gamma_: The widths, a number or ``(n,)``.
        machine_: The ``sklearn.svm.SVC`` that they make of all samples, whose features are multiplied by
            ``sqrt(gamma_)``.
        cv_path_: The cross-validation error at each lower solve, ``(S,)``; a lower solve is one of all folds.
        C_path_: C there, ``(S,)``.
        gamma_path_: gamma there, ``(S,)`` or ``(S, n)``.
        n_iter_: Upper steps.
        support_, dual_coef_, intercept_: Of ``machine_``.
        n_features_in_: ``n``.

    Raises:
        InvalidInputError: By :meth:`fit`, if an option is wrong.
        ValueError: By :meth:`fit`, as scikit-learn, if the data are: NaN, fewer samples than folds, and so on.

    Status:
        ConvergenceWarning: ``max_iter`` steps were not enough. The best point is used.

    References:
        Chapelle, Vapnik, Bousquet, Mukherjee, Choosing multiple parameters for support vector machines, 2002. Klatzer,
        Pock, Continuous hyper-parameter learning for support vector machines, 2015.
    """

    def __init__(
        self,
        *,
        width: str = "shared",
        C_init: float | None = None,
        gamma_init: Any = None,
        C_bounds: tuple[float, float] = (1e-3, 1e4),
        gamma_bounds: tuple[float, float] = (1e-6, 1e3),
        cv: Any = None,
        scoring: Any = None,
        max_iter: int = 200,
        tol: float | None = None,
        warm_start: bool = False,
    ) -> None:
        self.width = width
        self.C_init = C_init
        self.gamma_init = gamma_init
        self.C_bounds = C_bounds
        self.gamma_bounds = gamma_bounds
        self.cv = cv
        self.scoring = scoring
        self.max_iter = max_iter
        self.tol = tol
        self.warm_start = warm_start

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "BilevelSVC":
        """Learns C, gamma and the machine.

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
            raise ValueError(f"BilevelSVC needs samples of at least 2 classes, got one class: {self.classes_[0]!r}.")
        folds = split(self.cv, X, y, sample_weight, classifier=True)
        targets, training, validation = _pairs(torch.tensor(labels), len(self.classes_), folds)
        lower = Machine(torch.tensor(X), targets, training, validation, None)
        scale = _learn(self, lower, _gamma_scale(X, sample_weight), X.shape[1], limits)
        _keep(self, SVC, {}, X * scale, y, sample_weight)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Returns the scores, ``(N,)`` with two classes, ``(N, C)`` with more, as ``sklearn.svm.SVC``."""
        return _machine(self).decision_function(_scaled(self, X))

    def predict(self, X: Any) -> np.ndarray:
        """Returns the classes, ``(N,)``."""
        return _machine(self).predict(_scaled(self, X))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Returns what ``scoring`` says of the predictions, the accuracy unless said otherwise."""
        return score(self, "accuracy", X, y, sample_weight)


class BilevelSVR(RegressorMixin, BaseEstimator):
    r"""Support-vector regression that learns C and the width of its Gaussian kernel, by hypergradients.

    ::

        minimize over C, gamma   mean_k  mean_(i in fold k)  (y_i - f_k(x_i))^2
        subject to               f_k the decision of a machine that is trained without fold k

    C, gamma and epsilon are those of ``sklearn.svm.SVR``; all else is as in :class:`BilevelSVC`.

    Args:
        epsilon: Half the width of the tube in which an error costs nothing; not learned.
        width: ``"shared"``, one gamma for all features, or ``"per_feature"``.
        C_init: Where the search of C starts; None for the best of 1, 10 and 100.
        gamma_init: Where that of gamma starts: a positive number or one per feature. None for the better of
            scikit-learn's ``gamma="scale"`` and a tenth, and with one per feature for the best shared one.
        C_bounds: Limits of C.
        gamma_bounds: Limits of gamma.
        cv: How the samples are split, as for scikit-learn's ``check_cv``; None for five folds.
        scoring: What :meth:`score` returns, a name or function as in scikit-learn; None for the coefficient of
            determination. The search minimizes the above whatever is said here.
        max_iter: Most upper steps of a search.
        tol: The search ends when the derivatives with respect to log C and log gamma are as small as this beside the
            largest met; None for 1e-3.
        warm_start: Whether a second call of :meth:`fit` starts at the hyperparameters of the first.

    Attributes:
        C_: The weight of the losses.
        gamma_: The widths, a number or ``(n,)``.
        machine_: The ``sklearn.svm.SVR`` that they make of all samples, whose features are multiplied by
            ``sqrt(gamma_)``.
        cv_path_: The cross-validation error at each lower solve, ``(S,)``; a lower solve is one of all folds.
        C_path_: C there, ``(S,)``.
        gamma_path_: gamma there, ``(S,)`` or ``(S, n)``.
        n_iter_: Upper steps.
        support_, dual_coef_, intercept_: Of ``machine_``.
        n_features_in_: ``n``.

    Raises:
        InvalidInputError: By :meth:`fit`, if an option is wrong.
        ValueError: By :meth:`fit`, as scikit-learn, if the data are: NaN, fewer samples than folds, and so on.

    Status:
        ConvergenceWarning: ``max_iter`` steps were not enough. The best point is used.
    """

    def __init__(
        self,
        *,
        epsilon: float = 0.1,
        width: str = "shared",
        C_init: float | None = None,
        gamma_init: Any = None,
        C_bounds: tuple[float, float] = (1e-3, 1e4),
        gamma_bounds: tuple[float, float] = (1e-6, 1e3),
        cv: Any = None,
        scoring: Any = None,
        max_iter: int = 200,
        tol: float | None = None,
        warm_start: bool = False,
    ) -> None:
        self.epsilon = epsilon
        self.width = width
        self.C_init = C_init
        self.gamma_init = gamma_init
        self.C_bounds = C_bounds
        self.gamma_bounds = gamma_bounds
        self.cv = cv
        self.scoring = scoring
        self.max_iter = max_iter
        self.tol = tol
        self.warm_start = warm_start

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "BilevelSVR":
        """Learns C, gamma and the machine.

        Args:
            X: ``(N, n)``.
            y: Targets, ``(N,)``.
            sample_weight: ``(N,)``, not negative; counts in training and in validation.
        """
        limits = _check(self)
        if not (is_number(self.epsilon) and self.epsilon >= 0):
            raise InvalidInputError(
                f"`BilevelSVR(epsilon=...)` must be a number that is not negative, got {self.epsilon!r}."
            )
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        y = y.astype(np.float64)
        sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        folds = split(self.cv, X, y, sample_weight, classifier=False)
        targets = torch.tensor(y).expand(len(folds.training), -1)
        lower = Machine(torch.tensor(X), targets, folds.training, folds.validation, float(self.epsilon))
        scale = _learn(self, lower, _gamma_scale(X, sample_weight), X.shape[1], limits)
        _keep(self, SVR, {"epsilon": self.epsilon}, X * scale, y, sample_weight)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Returns the values, ``(N,)``."""
        return _machine(self).predict(_scaled(self, X))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Returns what ``scoring`` says of the predictions, the coefficient of determination unless said otherwise."""
        return score(self, "r2", X, y, sample_weight)


def _check(estimator: Any) -> tuple[Limits, Limits]:
    """Raises if an option is wrong; the limits of log C and log gamma."""
    call = type(estimator).__name__
    check_choice(call, "width", estimator.width, WIDTHS)
    check_search(estimator)
    return read_limits(call, "C_bounds", estimator.C_bounds), read_limits(call, "gamma_bounds", estimator.gamma_bounds)


def _pairs(labels: Tensor, num_classes: int, folds: Folds) -> tuple[Tensor, Tensor, Tensor]:
    """Targets, training and validation weights of every fold and pair of classes, ``(P, N)``."""
    pairs = torch.tensor(list(itertools.combinations(range(num_classes), 2)))
    t = (labels == pairs[:, 1:]).double() - (labels == pairs[:, :1]).double()
    training, validation = ((side.unsqueeze(1) * t.abs()).flatten(0, 1) for side in folds)
    # A sample is judged by one pair less than there are classes.
    return t.repeat(len(folds.training), 1), training, validation / (num_classes - 1)


def _gamma_scale(X: np.ndarray, sample_weight: np.ndarray) -> float:
    """As ``gamma="scale"`` in scikit-learn, with weights: where the search starts."""
    weights = np.broadcast_to(sample_weight[:, None], X.shape)
    variance = np.average((X - np.average(X, weights=weights)) ** 2, weights=weights)
    return 1.0 / (X.shape[1] * (float(variance) or 1.0))


def _learn(
    estimator: Any, lower: Machine, gamma_scale: float, num_features: int, limits: tuple[Limits, Limits]
) -> np.ndarray:
    """Searches C and gamma, keeps what was found, and returns the factors of the features that gamma stands for."""
    call, per_feature = type(estimator).__name__, estimator.width == "per_feature"
    size = num_features if per_feature else 1
    C, gamma = estimator.C_init, estimator.gamma_init
    if estimator.warm_start and np.size(getattr(estimator, "gamma_", ())) == size:
        C, gamma = estimator.C_, estimator.gamma_
    log_C = _SCAN_C.log() if C is None else read_positive(call, "C_init", C, 1)

    def run(log_C: Tensor, log_gamma: Tensor) -> Path:
        """From the best pair of a C and a row of gammas."""
        starts = torch.cat([log_C.repeat_interleave(len(log_gamma))[:, None], log_gamma.repeat(len(log_C), 1)], dim=1)
        sides = (torch.cat([side, other.expand(log_gamma.shape[1])]) for side, other in zip(*limits, strict=True))
        return search(call, lower, starts, Limits(*sides), estimator.max_iter, estimator.tol)

    if gamma is None:
        path = run(log_C, (gamma_scale * _SCAN_GAMMA).log()[:, None])
        if per_feature:
            path = path.then(run(path.found[:1], path.found[1:].expand(1, size)))
    else:
        path = run(log_C, read_positive(call, "gamma_init", gamma, size).expand(1, size))
    found, all_found = path.found.exp().numpy(), path.theta.exp().numpy()
    estimator.C_, estimator.C_path_ = float(found[0]), all_found[:, 0]
    estimator.gamma_ = found[1:] if per_feature else float(found[1])
    estimator.gamma_path_ = all_found[:, 1:] if per_feature else all_found[:, 1]
    estimator.cv_path_, estimator.n_iter_ = path.error.numpy(), path.num_steps
    return np.sqrt(estimator.gamma_)


def _keep(
    estimator: Any, kind: Any, options: dict[str, Any], X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray
) -> None:
    """Fits the machine with all samples and keeps what it found."""
    machine = kind(C=estimator.C_, gamma=1.0, tol=_TOL, **options).fit(X, y, sample_weight=sample_weight)
    estimator.machine_ = machine
    estimator.support_, estimator.dual_coef_ = machine.support_, machine.dual_coef_
    estimator.intercept_ = machine.intercept_


def _machine(estimator: Any) -> Any:
    check_is_fitted(estimator)
    return estimator.machine_


def _scaled(estimator: Any, X: Any) -> np.ndarray:
    return validate_data(estimator, X, dtype=np.float64, reset=False) * np.sqrt(estimator.gamma_)
