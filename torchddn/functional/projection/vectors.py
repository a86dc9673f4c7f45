r"""The door of the nodes that send each vector of a tensor to a vector.

Vectors lie along one axis of ``x`` and become the rows of a matrix, ``(R, m)``. Every formula of such a node returns
the answer ``y``, ``(R, m)``, whose rows are NaN throughout for vectors that are not finite, and status, steps and
violation of the constraints, ``(R,)`` each.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from torchddn.compiler import constant
from torchddn.diagnostics import File, Record, is_recording, timed
from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import broadcast, check_dims, check_flag, check_floating, positive, wide
from torchddn.functional.nodes.handmade import Answer
from torchddn.functional.nodes.outcome import conclude, solution_of
from torchddn.functional.nodes.reading import read
from torchddn.status import Solution, Status, check_failure_policy

__all__ = [
    "Vectors",
    "along",
    "answer_of",
    "broadcast",
    "check_tensor",
    "clean",
    "finite_rows",
    "nan_unless",
    "outline_of",
    "safely",
]


@dataclasses.dataclass(frozen=True)
class Vectors:
    """What a call was given: the vectors of ``x`` as rows, and how the answer is wanted."""

    call: str
    rows: Tensor
    batch: torch.Size
    axis: int
    dtype: torch.dtype
    on_failure: str
    solution: bool

    @classmethod
    def enter(cls, call: str, x: Tensor, dim: int, on_failure: str, solution: bool) -> "Vectors":
        """Checks the arguments that all of these nodes have."""
        check_floating(call, "x", x, "(*B, m)", 1)
        if isinstance(dim, tuple | list):
            raise InvalidInputError(
                f"`{call}(dim=...)` must be one integer, got {dim!r}. Flatten the axes of the vector."
            )
        (axis,) = check_dims(call, dim, x.dim())
        check_failure_policy(call, on_failure)
        check_flag(call, "solution", solution)
        moved = wide(x).movedim(axis, -1)
        m = moved.shape[-1]
        if m == 0:
            raise InvalidInputError(
                f"`{call}(x=...)` must have coordinates along dim={dim}, got shape {tuple(x.shape)}."
            )
        # Formulas sum along rows, which is fast only where these lie in a piece.
        rows = moved.reshape(math.prod(moved.shape[:-1]), m).contiguous()
        return cls(call, rows, moved.shape[:-1], axis, x.dtype, on_failure, solution)

    def positive(self, name: str, value: float | Tensor) -> Tensor:
        """A positive number for each vector, ``(R, 1)``."""
        return positive(self.call, name, value, self.batch, self.rows).reshape(-1, 1)

    def numbers(self, name: str, value: float | Tensor, legal: str = "finite") -> Tensor:
        """A number for each vector, ``(R, 1)``; see :meth:`beside` for ``legal``."""
        return self._checked(name, value, self.batch, legal).reshape(-1, 1)

    def beside(self, name: str, value: float | Tensor, legal: str = "finite") -> Tensor:
        """A number for each coordinate, given as one, or as a tensor that broadcasts to ``x``; ``(R, m)``.

        Args:
            name: The argument, for messages.
            value: What was given.
            legal: ``"finite"``, ``"non-negative and finite"``, ``"positive"`` or ``"not NaN"``.
        """
        shape = list(self.batch)
        shape.insert(self.axis, self.rows.shape[1])
        full = self._checked(name, value, torch.Size(shape), legal)
        return full.movedim(self.axis, -1).reshape(self.rows.shape)

    def _checked(self, name: str, value: float | Tensor, shape: torch.Size, legal: str) -> Tensor:
        check_legal(self.call, name, value, legal, self.rows.device)
        return broadcast(self.call, name, value, shape, self.rows)

    def leave(
        self,
        compute: Callable[[], Answer],
        method: str,
        details: Callable[[Tensor], Mapping[str, Tensor]],
        notes: Callable[[], Mapping[str, Tensor]] | None = None,
    ) -> Tensor | Solution:
        """Computes, reports, and returns what was asked for.

        Args:
            compute: Gives ``y``, status, steps and violation.
            method: Its name, for the record.
            details: Fields of the solution from ``y``: multipliers, ``(R, ...)``, which keep their graph, and numbers,
                ``(R,)``, in place of those that follow from y.
            notes: Remarks for the record, with the vectors, ``(R,)``, for which each is true.
        """
        with timed() as file:
            y, status, num_steps, violation = compute()
            if notes is not None and is_recording():
                file = _with_notes(file, notes())
            y = conclude(
                self.call, y, status, violation, self.on_failure, num_steps=num_steps, solver=method, file=file
            )
        result = y.reshape(self.batch + y.shape[1:]).movedim(-1, self.axis).to(self.dtype)
        if not self.solution:
            return result
        fields: dict[str, Tensor] = {
            "objective": (y - self.rows).detach().square().flatten(1).sum(dim=1) / 2,
            "status": status,
            "num_steps": num_steps,
            "stationarity": torch.zeros_like(violation),
            "feasibility": violation,
            **details(y),
        }
        shaped = {name: field.reshape(self.batch + field.shape[1:]) for name, field in fields.items()}
        return solution_of(result, solver=method, **shaped)  # pyright: ignore[reportArgumentType]


_LEGAL: dict[str, Callable[[Any], Any]] = {
    "finite": lambda value: abs(value) < math.inf,
    "non-negative and finite": lambda value: (value >= 0) & (value < math.inf),
    "positive": lambda value: value > 0,
    "not NaN": lambda value: value == value,
}


def check_legal(call: str, name: str, value: object, legal: str, device: torch.device) -> None:
    """Raises unless ``value`` is a number, or a real floating-point tensor on ``device``, of the kind ``legal``."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        if not _LEGAL[legal](float(value)):
            raise InvalidInputError(f"`{call}({name}=...)` must be {legal}, got {constant(value)}.")
        return
    check_tensor(call, name, value, device)

    def look(value: Tensor) -> None:
        wrong = ~_LEGAL[legal](value)
        if bool(wrong.any()):
            raise InvalidInputError(
                f"`{call}({name}=...)` must be {legal}, got {value[wrong][0].item():g} among its entries."
            )

    read(look, cast(Tensor, value))


def check_tensor(call: str, name: str, value: object, device: torch.device) -> None:
    """Raises unless ``value`` is a real floating-point tensor on ``device``."""
    if not isinstance(value, Tensor):
        raise InvalidInputError(f"`{call}({name}=...)` must be a number or a tensor, got {type(value).__name__}.")
    if not value.dtype.is_floating_point:
        raise InvalidInputError(
            f"`{call}({name}=...)` must be a real floating-point tensor, got {value.dtype}. Convert it with `.float()`."
        )
    if value.device != device:
        raise InvalidInputError(
            f"`{call}({name}=...)` must be on the device of the data, {device}, got {value.device}. Move it with "
            f"`.to({str(device)!r})`."
        )


def _with_notes(file: File, notes: Mapping[str, Tensor]) -> File:
    """``file`` such that the record tells which vectors a remark is true for."""
    remarks: list[str] = []
    for text, which in notes.items():

        def look(which: Tensor, text: str = text) -> None:
            items = which.flatten().nonzero().flatten().tolist()
            if items:
                shown = ", ".join(map(str, items[:8])) + (", ..." if len(items) > 8 else "")
                remarks.append(f"{len(items)} {text} (items {shown})")

        read(look, which)

    def filed(make: Callable[[float], Record]) -> None:
        def remade(seconds: float) -> Record:
            record = make(seconds)
            return dataclasses.replace(record, notes=(*record.notes, *remarks))

        file(remade)

    return filed


def finite_rows(x: Tensor) -> Tensor | None:
    """Which rows of plain ``x`` hold no NaN and no infinity, ``(R, 1)``, at the price of a sum; None if all do."""
    finite = x.sum(dim=1, keepdim=True).isfinite()
    # A sum may overflow where no number does.
    return None if bool(finite.all()) else x.isfinite().all(dim=1, keepdim=True)


def nan_unless(finite: Tensor | None, x: Tensor) -> Tensor:
    """``x``, with NaN in the rows that are not finite."""
    return x if finite is None else torch.where(finite, x, torch.nan)


def answer_of(y: Tensor, finite: Tensor | None, num_steps: Tensor | None = None) -> Answer:
    """``y`` with the status, steps and violation of an exact method; None stands for rows that are all finite."""
    if finite is None:
        zeros = y.new_zeros(y.shape[:1], dtype=torch.int64)
        status = zeros + int(Status.CONVERGED)
        return y, status, zeros if num_steps is None else num_steps, y.new_zeros(y.shape[:1])
    finite = finite.squeeze(1)
    status = torch.where(finite, int(Status.CONVERGED), int(Status.NON_FINITE))
    violation = torch.where(finite, 0.0, torch.nan).to(y.dtype)
    return y, status, torch.zeros_like(status) if num_steps is None else num_steps, violation


def outline_of(x: Tensor) -> Answer:
    """Empty tensors of the shapes and dtypes of an answer for ``x``."""
    integers = x.new_empty(x.shape[:1], dtype=torch.int64)
    return torch.empty_like(x), integers, integers.clone(), x.new_empty(x.shape[:1])


def clean(y: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``y`` and ``v`` with zeros for NaN, and which rows failed, ``(R, 1)``.

    A fraction of the time of ``where``, and for y the same, since only rows that failed hold NaN. A NaN in v belongs
    to a sound row as well: see :func:`along`.
    """
    return _without_nan(y), _without_nan(v), y[:, :1].isnan()


def along(s: Tensor, v: Tensor, failed: Tensor) -> Tensor:
    """``s.v``, ``(R, 1)``, with the ``v`` that came: NaN where it holds NaN, but zero in the rows that failed."""
    return torch.where(failed, 0, (s * v).sum(dim=1, keepdim=True))


def _without_nan(x: Tensor) -> Tensor:
    return torch.nan_to_num(x, nan=0.0, posinf=torch.inf, neginf=-torch.inf)


def safely(rows: Tensor, project: Callable[[Tensor], Tensor]) -> Answer:
    """The answer of a projection made of differentiable operations, which sees zeros for rows that are not finite."""
    finite = rows.detach().isfinite().all(dim=1, keepdim=True)
    return answer_of(torch.where(finite, project(torch.where(finite, rows, 0)), torch.nan), finite)
