"""Derivatives beside finite differences, and in words where they differ."""

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.gradcheck import GradcheckError

from torchddn.testing.conformance.report import FailedError, SkippedError, first_line
from torchddn.testing.conformance.subject import Subject, Tensors

__all__ = ["check_gradient", "check_second_derivative"]

# Finite differences of a tensor cost two calls per entry: a larger one is moved along a few random directions.
_MOST_ENTRIES, _NUM_DIRECTIONS = 24, 3

_STEP = 1e-6  # as in `gradcheck`


@dataclasses.dataclass(frozen=True)
class Small:
    """A function of few numbers with few values, so that finite differences of all of them are cheap.

    A tensor of at most ``_MOST_ENTRIES`` moves freely, a larger one along a few random directions; of a larger output
    a few random sums are taken.
    """

    function: Callable[..., tuple[Tensor, ...]]
    tensors: tuple[Tensor, ...]
    names: tuple[str, ...]

    @staticmethod
    def of(subject: Subject) -> "Small":
        whole, tensors, names = subject.function()
        values = whole(*tensors)
        for i, value in enumerate(values):
            if value.dtype != torch.float64:
                raise SkippedError(f"Finite differences need a float64 output, output {i} is {value.dtype}.")
            if not value.requires_grad:
                raise FailedError(
                    f"Output {i} carries no graph: it does not depend on its inputs in a way that torch sees. Look for "
                    f"`.detach()`, `no_grad`, NumPy."
                )
        moves = [_directions(subject, t) for t in tensors]
        sums = [_directions(subject, v) for v in values]

        def function(*short: Tensor) -> tuple[Tensor, ...]:
            moved = [
                s if D is None else t.detach() + (s @ D).reshape(t.shape)
                for s, t, D in zip(short, tensors, moves, strict=True)
            ]
            found = whole(*moved)
            return tuple(v if D is None else D @ v.flatten() for v, D in zip(found, sums, strict=True))

        starts = [t if D is None else t.new_zeros(len(D)) for t, D in zip(tensors, moves, strict=True)]
        return Small(function, tuple(s.detach().clone().requires_grad_() for s in starts), names)

    def entry(self, i: int, k: int) -> str:
        """What to call number ``k`` of tensor ``i``."""
        t = self.tensors[i]
        index = ", ".join(str(int(j)) for j in torch.unravel_index(torch.tensor(k), t.shape)) if t.dim() else ""
        return f"`{self.names[i]}`[{index}]" if index else f"`{self.names[i]}`"


def _directions(subject: Subject, tensor: Tensor) -> Tensor | None:
    if tensor.numel() <= _MOST_ENTRIES:
        return None
    (D,) = subject.random(tensor.new_empty(_NUM_DIRECTIONS, tensor.numel()))
    return D / D.norm(dim=1, keepdim=True)


def check_gradient(subject: Subject) -> str:
    """Reverse mode agrees with finite differences of the outputs, in inputs and parameters."""
    small = Small.of(subject.items(slice(2)))
    return _judge(gradcheck, small, small.function, subject, "The derivative of output")


def check_second_derivative(subject: Subject) -> str:
    """Reverse mode through reverse mode agrees with finite differences of the gradient."""
    small = Small.of(subject.items(slice(2)))
    v = subject.random(*small.function(*small.tensors))

    def slope(*tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = small.function(*tensors)
        return torch.autograd.grad(outputs, tensors, v, create_graph=True, materialize_grads=True)

    # By random projections: entry by entry it would cost most of the time of all checks together.
    return _judge(
        functools.partial(gradgradcheck, fast_mode=True),
        small,
        slope,
        subject,
        "The second derivative, of gradient entry",
    )


def _judge(
    judge: Callable[..., bool], small: Small, derived: Callable[..., tuple[Tensor, ...]], subject: Subject, what: str
) -> str:
    """Lets torch's own check judge; if it fails, looks for the worst entry and says so in words."""
    tolerances = {"rtol": subject.rtol, "atol": subject.atol}
    try:
        judge(small.function, small.tensors, **tolerances)
    except RuntimeError as error:
        sentence = _worst_entry(small, derived, subject, what)
        if not sentence:
            raise
        if not isinstance(error, GradcheckError):
            sentence += f" Beside it, {first_line(error)}"
        raise FailedError(sentence) from error
    return f"Agrees with finite differences in {', '.join(f'`{name}`' for name in small.names)}."


def _worst_entry(small: Small, derived: Callable[..., tuple[Tensor, ...]], subject: Subject, what: str) -> str:
    values = _row(derived(*small.tensors))
    exact = [
        torch.autograd.grad(value, small.tensors, retain_graph=True, materialize_grads=True)
        if value.requires_grad
        else [torch.zeros_like(t) for t in small.tensors]
        for value in values
    ]
    worst, sentence = 0.0, ""
    for i, tensor in enumerate(small.tensors):
        for k in range(tensor.numel()):
            ends = []
            for sign in (1.0, -1.0):
                moved = [t.detach().clone() for t in small.tensors]
                moved[i].view(-1)[k] += sign * _STEP
                ends.append(_row(derived(*(t.requires_grad_() for t in moved))).detach())
            differences = (ends[0] - ends[1]) / (2 * _STEP)
            by_node = torch.stack([row[i].flatten()[k] for row in exact])
            excess = (by_node - differences).abs() / (subject.atol + subject.rtol * differences.abs())
            o = int(excess.nan_to_num(nan=torch.inf).argmax())
            if not excess[o] <= max(1.0, worst):
                worst = float(excess[o])
                sentence = (
                    f"{what} {o} with respect to {small.entry(i, k)} is {by_node[o]:.6g} by the node and "
                    f"{differences[o]:.6g} by finite differences."
                )
    return sentence


def _row(tensors: Tensors) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])
