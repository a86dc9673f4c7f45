"""One item of a problem as NumPy functions with exact derivatives: what solvers of other libraries take."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchddn.problem import Problem

__all__ = ["Item"]


class Item:
    """A problem at one vector of data, in NumPy and float64.

    It uses nothing of the library but the functions that the problem states, so that what judges or rivals the
    library's solvers is independent of them.

    Args:
        problem: Its functions take one tensor ``y``, ``(m,)``, and one tensor of data.
        x: The data, ``(n,)``.

    Attributes:
        start: ``(m,)``.
        lower: Limits of ``y``, ``(m,)``, infinite where there is none.
        upper: Likewise.
        p: Number of equalities.
        q: Number of inequalities.

    Example:
        >>> from torchddn.testing import collection
        >>> example = collection("HS 6")[0]
        >>> item = Item(example.problem, example.x()[0])
        >>> round(item.objective(item.start), 4), [round(float(h), 4) for h in item.equality(item.start)]
        (4.84, [-4.4])
    """

    def __init__(self, problem: Problem, x: Tensor) -> None:
        self._problem = problem
        self._x = x.detach().double()
        self.start = _array(problem.function("initial")(self._x))
        limits = problem.function("bounds")
        lower, upper = limits(self._x) if limits is not None else (torch.tensor(-np.inf), torch.tensor(np.inf))
        self.lower = np.broadcast_to(_array(lower), self.start.shape)
        self.upper = np.broadcast_to(_array(upper), self.start.shape)
        self.p = len(self.equality(self.start))
        self.q = len(self.inequality(self.start))

    def objective(self, y: np.ndarray) -> float:
        """``f``."""
        with torch.no_grad():
            return float(self._f(torch.tensor(y)))

    def gradient(self, y: np.ndarray) -> np.ndarray:
        """``f_y``, ``(m,)``."""
        return self._gradient(self._f, y)

    def equality(self, y: np.ndarray) -> np.ndarray:
        """``h``, ``(p,)``."""
        with torch.no_grad():
            return _array(self._rows("equality", torch.tensor(y)))

    def inequality(self, y: np.ndarray) -> np.ndarray:
        """``g``, ``(q,)``."""
        with torch.no_grad():
            return _array(self._rows("inequality", torch.tensor(y)))

    def constraints(self, y: np.ndarray) -> np.ndarray:
        """``h`` and ``g``, ``(p + q,)``."""
        return np.concatenate((self.equality(y), self.inequality(y)))

    def jacobian(self, y: np.ndarray) -> np.ndarray:
        """Derivative of :meth:`constraints`, ``(p + q, m)``."""
        point = torch.tensor(y, requires_grad=True)
        rows = self._constraints(point)
        if not rows.requires_grad:
            return np.zeros((len(rows), len(y)))
        parts = [torch.autograd.grad(row, point, retain_graph=True, allow_unused=True)[0] for row in rows.unbind()]
        return np.stack([np.zeros(len(y)) if part is None else _array(part) for part in parts])

    def hessian(self, y: np.ndarray, dual: np.ndarray, weight: float = 1.0) -> np.ndarray:
        """Second derivative of ``weight * f + dual.(h, g)``, ``(m, m)``."""
        multipliers = torch.tensor(dual)

        def lagrangian(y: Tensor) -> Tensor:
            return weight * self._f(y) + multipliers @ self._constraints(y)

        point = torch.tensor(y, requires_grad=True)
        value = lagrangian(point)
        slope = None
        if value.requires_grad:
            (slope,) = torch.autograd.grad(value, point, create_graph=True, allow_unused=True)
        if slope is None or not slope.requires_grad:
            return np.zeros((len(y), len(y)))
        parts = [torch.autograd.grad(part, point, retain_graph=True, allow_unused=True)[0] for part in slope.unbind()]
        return np.stack([np.zeros(len(y)) if part is None else _array(part) for part in parts])

    def _f(self, y: Tensor) -> Tensor:
        f = self._problem.function("objective")
        return f(y, self._x) if f is not None else y.new_zeros(())

    def _rows(self, name: str, y: Tensor) -> Tensor:
        function = self._problem.function(name)
        return function(y, self._x).reshape(-1) if function is not None else y.new_zeros(0)

    def _constraints(self, y: Tensor) -> Tensor:
        return torch.cat((self._rows("equality", y), self._rows("inequality", y)))

    @staticmethod
    def _gradient(function: Any, y: np.ndarray) -> np.ndarray:
        point = torch.tensor(y, requires_grad=True)
        value = function(point)
        if not value.requires_grad:
            return np.zeros(len(y))
        (slope,) = torch.autograd.grad(value, point, allow_unused=True)
        return np.zeros(len(y)) if slope is None else _array(slope)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()
