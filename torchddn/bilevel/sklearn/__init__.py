"""Estimators of scikit-learn that learn their hyperparameters, one or one per feature, from the cross-validation error.

The lower level fits all folds, as one batch; the upper one minimizes the error on what the folds left out, by its
hypergradient with respect to the logarithms of the hyperparameters.
"""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError("`torchddn.bilevel.sklearn` needs scikit-learn: pip install 'torchddn[experiments]'.") from error

from torchddn.bilevel.sklearn.linear_models import BilevelElasticNetCV, BilevelLogisticRegressionCV, BilevelRidgeCV
from torchddn.bilevel.sklearn.support_vectors import BilevelSVC, BilevelSVR

__all__ = ["BilevelElasticNetCV", "BilevelLogisticRegressionCV", "BilevelRidgeCV", "BilevelSVC", "BilevelSVR"]
