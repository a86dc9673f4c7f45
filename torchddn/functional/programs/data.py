"""The door of quadratic programs: what a user passes becomes flat batches of one shape, or an error that helps."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_floating, wide
from torchddn.functional.nodes.reading import read
from torchddn.solvers.vectors import times

__all__ = ["ProgramData", "check_given", "check_limits", "check_values", "prepare"]

# What each argument is called in messages, and its number of axes for one item.
_SHAPES = {
    "Q": ("(*B, m, m)", 2),
    "q": ("(*B, m)", 1),
    "A": ("(*B, p, m)", 2),
    "b": ("(*B, p)", 1),
    "G": ("(*B, q, m)", 2),
    "h": ("(*B, q)", 1),
    "lower": ("(*B, m)", 1),
    "upper": ("(*B, m)", 1),
}
_PAIRS = (("A", "b"), ("G", "h"))


class ProgramData(NamedTuple):
    """Flat batches, ``(R, ...)``, differentiable in what they came from; what differs for sparse ones has a name."""

    Q: Tensor
    q: Tensor
    rows: Tensor  # (R, p + q, m)
    right: Tensor  # (R, p + q)
    lower: Tensor
    upper: Tensor

    @property
    def numbers(self) -> tuple[Tensor, ...]:
        """What is differentiable."""
        return tuple(self)

    @property
    def places(self) -> tuple[Tensor, ...]:
        """What says where in the matrices the numbers are: nothing."""
        return ()

    def replaced(self, numbers: Iterable[Tensor]) -> "ProgramData":
        """The same with other numbers."""
        return ProgramData(*numbers)

    def selected(self, items: Tensor) -> "ProgramData":
        """Some items only; ``items`` holds their indices."""
        return ProgramData(*(part[items] for part in self))

    def curve(self, y: Tensor) -> Tensor:
        """``Q y``, with the symmetric part of Q."""
        return 0.5 * (times(self.Q, y) + times(self.Q.mT, y))

    def apply(self, y: Tensor) -> Tensor:
        """What the rows are at ``y``."""
        return times(self.rows, y)

    def pull(self, dual: Tensor) -> Tensor:
        """The rows, transposed, times their multipliers."""
        return times(self.rows.mT, dual)

    def softened(self) -> "ProgramData":
        """The programs of the violations t, in ``(y, t)``: min |t|^2 / 2 with rows y - t (=, <=) right."""
        _, q, rows, right, lower, upper = self
        R, r, _ = rows.shape
        wide_Q = torch.diag_embed(torch.cat([torch.zeros_like(q), torch.ones_like(right)], dim=1))
        wide_rows = torch.cat([rows, -torch.eye(r, dtype=q.dtype, device=q.device).expand(R, r, r)], dim=2)
        limits = [
            torch.nn.functional.pad(lower, (0, r), value=-torch.inf),
            torch.nn.functional.pad(upper, (0, r), value=torch.inf),
        ]
        return ProgramData(wide_Q, torch.zeros_like(wide_Q[:, 0]), wide_rows, right, *limits)


def check_given(call: str, given: dict[str, Tensor | float | None]) -> dict[str, Tensor]:
    """The tensors that are there, in the dtype to compute in, if their sizes fit together, or an error."""
    like = given["q"]
    check_floating(call, "q", like, "(*B, m)", 1)
    assert isinstance(like, Tensor)
    m = like.shape[-1]
    if m == 0:
        raise InvalidInputError(f"`{call}(q=...)` must have variables, got shape {tuple(like.shape)}.")
    tensors = {
        name: _tensor(call, name, value, like) for name, value in given.items() if value is not None and name != "q"
    }
    tensors["q"] = wide(like)
    for matrix, vector in _PAIRS:
        _check_pair(call, matrix, vector, tensors)
    for name, tensor in tensors.items():
        shape = _SHAPES[name][0]
        wrong = name not in ("b", "h") and tensor.shape[-1] != m
        if wrong or (name == "Q" and tensor.shape[-2] != m):
            raise InvalidInputError(
                f"`{call}({name}=...)` must have shape {shape} with m = {m}, as `q` says, got {tuple(tensor.shape)}."
            )
    _check_batch(call, tensors)
    return tensors


def prepare(
    call: str, given: dict[str, Tensor | float | None], smoothing: float
) -> tuple[ProgramData, torch.Size, int, bool]:
    """The data, the batch shape, how many rows are equalities, and whether there are bounds."""
    tensors = check_given(call, given)
    m = tensors["q"].shape[-1]
    batch, axes = _check_batch(call, tensors), {name: _SHAPES[name][1] for name in tensors}
    R = batch.numel()
    flat = {
        name: tensor.expand(*batch, *tensor.shape[-axes[name] :]).reshape(R, *tensor.shape[-axes[name] :])
        for name, tensor in tensors.items()
    }
    q = flat["q"]
    Q = flat.get("Q", q.new_zeros(R, m, m))
    if smoothing:
        Q = Q + smoothing * torch.eye(m, dtype=q.dtype, device=q.device)
    rows = torch.cat([flat[name] for name in ("A", "G") if name in flat] or [q.new_zeros(R, 0, m)], dim=1)
    right = torch.cat([flat[name] for name in ("b", "h") if name in flat] or [q.new_zeros(R, 0)], dim=1)
    lower, upper = (flat.get(name, torch.full_like(q, limit)) for name, limit in _LIMITS)
    bounded = any(name in flat for name, _ in _LIMITS)
    return ProgramData(Q, q, rows, right, lower, upper), batch, flat["A"].shape[1] if "A" in flat else 0, bounded


def _check_batch(call: str, tensors: dict[str, Tensor]) -> torch.Size:
    try:
        return torch.broadcast_shapes(*(tensor.shape[: -_SHAPES[name][1]] for name, tensor in tensors.items()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise InvalidInputError(
            f"`{call}`: the batch axes of the arguments must broadcast to one shape, got {shapes}."
        ) from None


_LIMITS = (("lower", -torch.inf), ("upper", torch.inf))


def check_limits(call: str, lower: Tensor, upper: Tensor) -> None:
    """Raises for an item with limits that cross."""

    def look(lower: Tensor, upper: Tensor) -> None:
        crossed = torch.nonzero((lower.flatten(0, -2) > upper.flatten(0, -2)).any(1)).flatten().tolist()
        if crossed:
            raise InvalidInputError(
                f"`{call}(lower=...)` must not exceed `upper`, but does for a variable of item {crossed[0]}."
            )

    read(look, lower, upper)


def check_values(call: str, data: ProgramData) -> None:
    """Raises for an item with a Q that is not symmetric positive semidefinite, or limits that cross."""
    check_limits(call, data.lower, data.upper)

    def look(Q: Tensor) -> None:
        Q = Q.flatten(0, -3)
        tolerance = torch.finfo(Q.dtype).eps ** 0.5
        size = Q.diagonal(dim1=-2, dim2=-1).abs().amax(-1)
        skew = (Q - Q.mT).abs().amax((-2, -1))
        lopsided = torch.nonzero(skew > tolerance * torch.maximum(size, skew * tolerance)).flatten().tolist()
        if lopsided:
            raise InvalidInputError(
                f"`{call}(Q=...)` must be symmetric, got one of item {lopsided[0]} that differs from its transpose by "
                f"{skew[lopsided[0]].item():.2e}. Pass `0.5 * (Q + Q.mT)`, which is the same objective."
            )
        shifted = Q.clone()
        shifted.diagonal(dim1=-2, dim2=-1).add_((tolerance * size + torch.finfo(Q.dtype).tiny ** 0.5).unsqueeze(-1))
        doubtful = torch.nonzero((torch.linalg.cholesky_ex(shifted, upper=True)[1] != 0) & size.isfinite()).flatten()
        if doubtful.numel():
            least = torch.linalg.eigvalsh(Q[doubtful].double())[:, 0]
            wrong = least < -tolerance * size[doubtful]
            if bool(wrong.any()):
                item = int(doubtful[wrong][0])
                raise InvalidInputError(
                    f"`{call}(Q=...)` must be positive semidefinite, got one of item {item} with the eigenvalue "
                    f"{least[wrong][0].item():.2e}. Use `argmin` for a problem that is not convex."
                )

    read(look, data.Q)


def _tensor(call: str, name: str, value: Tensor | float, like: Tensor) -> Tensor:
    shape, num_axes = _SHAPES[name]
    if name in ("lower", "upper") and isinstance(value, (int, float)) and not isinstance(value, bool):
        return wide(like).new_full((like.shape[-1],), float(value))
    check_floating(call, name, value, shape, num_axes)
    assert isinstance(value, Tensor)
    if value.dtype != like.dtype or value.device != like.device:
        raise InvalidInputError(
            f"`{call}({name}=...)` must have the dtype and device of `q`, {like.dtype} on {like.device}, got "
            f"{value.dtype} on {value.device}. Convert it with `.to(q)`."
        )
    return wide(value)


def _check_pair(call: str, matrix: str, vector: str, tensors: dict[str, Tensor]) -> None:
    if (matrix in tensors) != (vector in tensors):
        missing, there = (vector, matrix) if matrix in tensors else (matrix, vector)
        raise InvalidInputError(
            f"`{call}({missing}=...)` is missing: `{matrix}` and `{vector}` belong together, and `{there}` is given."
        )
    if matrix in tensors and tensors[matrix].shape[-2] != tensors[vector].shape[-1]:
        raise InvalidInputError(
            f"`{call}({vector}=...)` must have an entry for each row of `{matrix}`, {tensors[matrix].shape[-2]}, got "
            f"shape {tuple(tensors[vector].shape)}."
        )
