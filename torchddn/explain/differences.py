r"""The gradient beside finite differences of the solution, along random directions.

For a random ``v`` and random directions ``d`` of everything that the solution depends on, ::

    g . d    is compared with    v . (y(x + t d) - y(x - t d)) / 2t,        g = gradient of v . y

and the two sides of the difference with each other: they disagree where the solution has a kink or jumps.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchddn.errors import SingularError
from torchddn.explain.anatomy import Anatomy
from torchddn.explain.subject import Answer, Subject
from torchddn.status import Status

__all__ = ["Differences"]

# Without a solution, what a solver returns does not change in a way that a gradient describes.
_NO_SOLUTION = (Status.INFEASIBLE, Status.UNBOUNDED, Status.NON_FINITE)


class Differences(NamedTuple):
    """The gradient of a random sum of ``y``, and how it compares.

    Attributes:
        grads: For each of the subject's tensors; empty if it could not be computed.
        error: Largest relative difference of gradient and finite differences; None if not compared.
        kink: Largest relative difference of the two sides.
        tolerance: Up to which ``error`` is that of the finite differences.
        jumps: Whether the solution jumps.
        unsolved: Directions in which a neighbor was not solved, so that nothing is compared.
        refusal: Why the node refused to compute a gradient.
    """

    grads: tuple[Tensor, ...] = ()
    error: float | None = None
    kink: float | None = None
    tolerance: float = 0.0
    jumps: bool = False
    unsolved: int = 0
    refusal: str = ""

    @staticmethod
    def of(subject: Subject, answer: Answer, anatomy: Anatomy, num_directions: int, seed: int) -> "Differences":
        """Solves twice per direction."""
        if not answer.is_finite or not subject.tensors:
            return Differences()
        generator = np.random.default_rng(seed)

        def normal(like: Tensor) -> Tensor:
            return torch.as_tensor(generator.standard_normal(like.shape)).to(like)

        v = normal(answer.y[0])
        tensors = [tensor.clone().requires_grad_() for tensor in subject.tensors]
        try:
            with torch.enable_grad():
                y, _ = subject.solve(tensors)
                grads = torch.autograd.grad(y, tensors, v.to(y), materialize_grads=True)
        except SingularError as error:
            return Differences(refusal=str(error))
        if answer.status in _NO_SOLUTION:
            return Differences(grads)
        # Solves are polished to eps^0.85 of their length, at best.
        eps = torch.finfo(y.dtype).eps
        exact = max(eps**0.85, min(anatomy.error, eps**0.5) if anatomy.error >= 0 else 0.0)
        length = _size_of(torch.cat([answer.y, answer.x[-1].detach()]))
        sides = _Sides(subject, y.detach(), answer.status, v.to(y), exact ** (1 / 3), 4 * exact * length)
        directions = [[normal(p) * _size_of(p) for p in subject.tensors] for _ in range(num_directions)]
        compared = [sides.compare(along, grads) for along in directions]
        found = [comparison for comparison in compared if comparison is not None]
        unsolved = num_directions - len(found)
        if not found:
            return Differences(grads, unsolved=unsolved)
        errors, kinks, jumps = zip(*found, strict=True)
        return Differences(grads, max(errors), max(kinks), 10 * sides.t, any(jumps), unsolved)


class _Sides(NamedTuple):
    """The solution ``y``, and steps of length ``t`` away from it to either side; solves differ by ``noise``."""

    subject: Subject
    y: Tensor
    status: Status
    v: Tensor
    t: float  # a cube root: the error of a central difference, t^2, and that of the solves, noise / t, are equal there
    noise: float

    def compare(self, along: list[Tensor], grads: tuple[Tensor, ...]) -> tuple[float, float, bool] | None:
        """Error of the gradient, difference of the sides, whether there is a jump; None if there is no neighbor."""
        t = self.t
        steps = self._steps(along, t)
        if steps is None:
            return None
        ahead, behind = steps
        by_node = sum(float((g * d).sum()) for g, d in zip(grads, along, strict=True))
        scale = float(self.v.norm() * torch.maximum(ahead.norm(), behind.norm())) / t + abs(by_node)
        # A derivative so small that the solves' errors hide it is compared with the smallest that shows.
        scale = max(scale, float(self.v.norm()) * self.noise / t**2)
        error = abs(by_node - float((self.v * (ahead + behind)).sum()) / (2 * t)) / scale
        kink = float((self.v * (ahead - behind)).sum().abs()) / t / scale
        return error, kink, self._jumps(along, _largest(ahead, behind))

    def _steps(self, along: list[Tensor], t: float) -> tuple[Tensor, Tensor] | None:
        """From the solution to the one ahead, and from the one behind to it; None if one of them fails."""
        ends = []
        for sign in (t, -t):
            moved = [p + sign * d for p, d in zip(self.subject.tensors, along, strict=True)]
            with torch.no_grad():
                y, status = self.subject.solve(moved)
            if status not in (Status.CONVERGED, self.status) or not bool(y.isfinite().all()):
                return None
            ends.append(y)
        return ends[0] - self.y, self.y - ends[1]

    def _jumps(self, along: list[Tensor], far: float) -> bool:
        """Whether a step that is large stays large when it starts closer."""
        if far <= self.t**0.5 * _size_of(self.y):
            return False
        steps = self._steps(along, self.t / 16)
        return steps is not None and _largest(*steps) >= 0.5 * far


def _largest(*tensors: Tensor) -> float:
    return max((float(tensor.abs().max()) for tensor in tensors if tensor.numel()), default=0.0)


def _size_of(tensor: Tensor) -> float:
    """Largest entry, one if there is none but zero."""
    return _largest(tensor) or 1.0
