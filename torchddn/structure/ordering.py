"""The order of variables in which a sparse matrix is banded."""

import numpy as np
from torch import Tensor

__all__ = ["narrowest"]


def narrowest(pattern: Tensor) -> tuple[tuple[int, ...], int]:
    """An order that brings the entries of a symmetric pattern near the diagonal, and the bandwidth in it.

    Reverse Cuthill and McKee: each connected component breadth first from an end of it, neighbors of low degree first.

    Example:
        >>> import torch
        >>> star = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 1]], dtype=torch.bool)
        >>> narrowest(star)
        ((1, 2, 0), 1)

    References:
        Cuthill, McKee, Reducing the bandwidth of sparse symmetric matrices, 1969.
    """
    occupied = pattern.cpu().numpy().copy()
    np.fill_diagonal(occupied, False)
    neighbors = [np.flatnonzero(row) for row in occupied]
    degree = np.array([len(each) for each in neighbors])
    order: list[int] = []
    seen = np.zeros(len(degree), dtype=bool)
    for start in np.argsort(degree, kind="stable"):
        if not seen[start]:
            order += _by_level(_far_end(int(start), neighbors, degree), neighbors, degree, seen)
    order.reverse()
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    rows, columns = np.nonzero(occupied)
    width = int(np.abs(place[rows] - place[columns]).max()) if len(rows) else 0
    return tuple(order), width


def _far_end(start: int, neighbors: list[np.ndarray], degree: np.ndarray) -> int:
    """A vertex at an end of the component: the last that is reached from ``start``, twice."""
    for _ in range(2):
        start = _by_level(start, neighbors, degree, np.zeros(len(degree), dtype=bool))[-1]
    return start


def _by_level(root: int, neighbors: list[np.ndarray], degree: np.ndarray, seen: np.ndarray) -> list[int]:
    """The component of ``root`` breadth first, neighbors of low degree first; marks what it has ``seen``."""
    order, first = [root], 0
    seen[root] = True
    while first < len(order):
        new = [int(j) for j in neighbors[order[first]] if not seen[j]]
        new.sort(key=degree.__getitem__)
        seen[new] = True
        order += new
        first += 1
    return order
