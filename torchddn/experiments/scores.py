"""Scores of a classifier, from its logits ``(N, c)`` and the labels ``(N,)``."""

from collections.abc import Sequence

import sklearn.metrics
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["expected_calibration_error", "mean_average_precision", "top_k"]


def top_k(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """Returns the share of items whose label is among the ``k`` largest logits."""
    chosen = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (chosen == labels.unsqueeze(1)).any(dim=1).double().mean().item()


def mean_average_precision(logits: Tensor, labels: Tensor, classes: Sequence[int] | None = None) -> float:
    """Returns the mean over the classes of the average precision of "this class or not", scikit-learn's.

    A class of which there is no item has no precision and is left out of the mean.

    Args:
        logits: ``(N, c)``.
        labels: ``(N,)``.
        classes: Over which the mean goes; all unless given.

    References:
        Average precision is the sum of the precisions at each increase of the recall, without interpolation.
    """
    truth = F.one_hot(labels, logits.shape[1])
    present = [label for label in classes or range(logits.shape[1]) if truth[:, label].any()]
    score = logits.double().softmax(dim=1)
    return float(
        sklearn.metrics.average_precision_score(truth[:, present].numpy(), score[:, present].numpy(), average="macro")
    )


def expected_calibration_error(logits: Tensor, labels: Tensor, num_bins: int = 15) -> float:
    """Returns the mean distance between confidence and accuracy.

    The items are sorted into ``num_bins`` equal intervals of the largest probability; of each the distance between
    the mean probability and the share of right answers counts by the number of its items.

    References:
        Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks, 2017, equation 3.
    """
    confidence, answer = logits.double().softmax(dim=1).max(dim=1)
    right = (answer == labels).double()
    # Intervals are open on the left, as in the reference: a confidence of exactly 1 belongs to the last.
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    gaps = torch.zeros(num_bins, dtype=torch.float64).index_add(0, bins, right - confidence)
    return (gaps.abs().sum() / len(labels)).item()
