"""The door of entropic transport: what a user passes, checked and flat, and the way to the node that solves it."""

from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.diagnostics import timed
from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_choice, check_flag, check_floating, check_positive, positive, wide
from torchddn.functional.nodes.handmade import solve
from torchddn.functional.nodes.outcome import conclude
from torchddn.functional.nodes.reading import read
from torchddn.functional.transport.entropic import EntropicPlan, finite_cost
from torchddn.functional.transport.partial import PartialPlan
from torchddn.functional.transport.value import Value, entropy
from torchddn.status import check_failure_policy

__all__ = [
    "GRADIENTS",
    "MAX_STEPS",
    "Found",
    "Penalty",
    "check_sums",
    "marginal",
    "tolerance",
    "transport",
    "value_of",
]

GRADIENTS = ("exact", "ignore_constraints")
MAX_STEPS = 1000

Penalty = float | Tensor


class Found(NamedTuple):
    """Everything flat, ``(R, ...)``, in the dtype that is computed in; ``P`` is differentiable."""

    P: Tensor
    cost: Tensor
    r: Tensor
    c: Tensor
    gamma: Tensor
    rho: tuple[Tensor, Tensor] | None
    potentials: tuple[Tensor, Tensor] | None  # where both marginals are constraints, and no mass is given
    status: Tensor
    num_steps: Tensor
    solver: str


def transport(
    call: str,
    cost: Tensor,
    r: Tensor | None,
    c: Tensor | None,
    gamma: float | Tensor,
    atol: float | None,
    max_steps: int,
    normalize: bool,
    marginal_penalty: Penalty | tuple[Penalty | None, Penalty | None] | None,
    mass: float | Tensor | None,
    gradient: str,
    on_failure: str,
) -> Found:
    """The plan of what a user passes, checked, with everything that its value needs."""
    check_floating(call, "cost", cost, "(*B, m, n)", 2)
    check_flag(call, "normalize", normalize)
    check_choice(call, "gradient", gradient, GRADIENTS)
    check_failure_policy(call, on_failure)
    *batch, m, n = cost.shape
    if m == 0 or n == 0:
        raise InvalidInputError(f"`{call}(cost=...)` must have rows and columns, got shape {tuple(cost.shape)}.")
    shape = torch.Size(batch)
    flat = wide(cost).reshape(shape.numel(), m, n)
    precision = tolerance(call, atol, max_steps, flat.dtype)
    rows = marginal(call, "r", r, (*shape, m), flat, normalize).reshape(-1, m)
    columns = marginal(call, "c", c, (*shape, n), flat, normalize).reshape(-1, n)
    sharpness = positive(call, "gamma", gamma, shape, flat).reshape(-1)
    rho = None
    if marginal_penalty is not None:
        if mass is not None:
            raise InvalidInputError(
                f"`{call}(mass=...)` must not be given together with `marginal_penalty`. Choose one of both."
            )
        rho = _penalties(call, marginal_penalty, shape, flat)
    elif mass is None and not (normalize or r is c is None):
        check_sums(call, rows, columns)
    inputs = (flat, rows, columns, sharpness) if rho is None else (flat, rows, columns, sharpness, *rho)
    if mass is None:
        formula = EntropicPlan(call, precision, max_steps, gradient == "exact", rho is not None)
        solver = "Sinkhorn and Newton"
    else:
        moved = positive(call, "mass", mass, shape, flat).reshape(-1)
        _check_mass(call, rows, columns, moved)
        formula, inputs = PartialPlan(call, precision, max_steps, gradient == "exact"), (*inputs, moved)
        solver = "dual ascent and Newton"
    with timed() as file:
        P, status, num_steps, error, *found = solve(formula, *inputs)
        P = conclude(call, P, status, error, on_failure, num_steps=num_steps, solver=solver, file=file)
    known = (found[0], found[1]) if found and rho is None else None
    return Found(P, flat, rows, columns, sharpness, rho, known, status, num_steps, solver)


def value_of(call: str, found: Found, regularized: bool) -> Tensor:
    """``<P, M>``, ``(R,)``, or the whole objective, differentiable."""
    if not regularized:
        return (found.P * finite_cost(found.cost)).sum(dim=(1, 2))
    if found.potentials is not None:
        return solve(Value(call), found.P, found.cost, found.r, found.c, found.gamma, *found.potentials)[0]
    value = (found.P * finite_cost(found.cost)).sum(dim=(1, 2)) + entropy(found.P) / found.gamma
    if found.rho is None:
        return value
    for rho, dim, target in ((found.rho[0], 2, found.r), (found.rho[1], 1, found.c)):
        penalized = rho.isfinite()
        value = value + torch.where(penalized, torch.where(penalized, rho, 1) * _kl(found.P.sum(dim=dim), target), 0)
    return value


def _kl(p: Tensor, r: Tensor) -> Tensor:
    """``KL(p | r)``, ``(R,)``."""
    both = (p > 0) & (r > 0)
    ratio = torch.where(both, p, 1) / torch.where(both, r, 1)
    return (p * ratio.log() - p + r).sum(dim=1)


def tolerance(call: str, atol: float | None, max_steps: int, dtype: torch.dtype) -> float:
    """``atol``, or what the dtype can reach, once it and ``max_steps`` are checked."""
    if not isinstance(max_steps, int) or isinstance(max_steps, bool) or max_steps < 1:
        raise InvalidInputError(f"`{call}(max_steps=...)` must be a positive integer, got {max_steps!r}.")
    if atol is None:
        return 1e-6 if dtype == torch.float32 else 1e-13
    if isinstance(atol, Tensor):
        raise InvalidInputError(f"`{call}(atol=...)` must be a number, got a tensor. Pass `float(atol)`.")
    check_positive(call, "atol", atol)
    return float(atol)


def marginal(
    call: str, name: str, value: Tensor | None, shape: tuple[int, ...], like: Tensor, normalize: bool
) -> Tensor:
    """A marginal as a tensor of ``shape`` with the dtype of ``like``; uniform for None."""
    if value is None:
        return like.new_full((), 1 / shape[-1]).expand(shape)
    check_floating(call, name, value, f"(*B, {shape[-1]})", 1)
    if value.device != like.device:
        raise InvalidInputError(
            f"`{call}({name}=...)` must be on the device of the data, {like.device}, got {value.device}. Move it with "
            f"`.to({str(like.device)!r})`."
        )
    try:
        value = value.to(like.dtype).broadcast_to(shape)
    except RuntimeError:
        raise InvalidInputError(
            f"`{call}({name}=...)` must have a shape that broadcasts to {shape}, got {tuple(value.shape)}. Reshape it."
        ) from None

    def look(value: Tensor) -> None:
        wrong = (value < 0) | value.isinf()
        if bool(wrong.any()):
            raise InvalidInputError(
                f"`{call}({name}=...)` must be non-negative and finite, got {value[wrong][0].item()} among its entries."
            )
        if normalize and bool((value.sum(dim=-1) == 0).any()):
            raise InvalidInputError(f"`{call}({name}=...)` must not be all zero if `normalize=True`.")

    read(look, value)
    return value / value.sum(dim=-1, keepdim=True) if normalize else value


def check_sums(call: str, r: Tensor, c: Tensor) -> None:
    """Raises if the sums of the marginals, ``(R, m)`` and ``(R, n)``, differ by more than rounding explains."""

    def look(r: Tensor, c: Tensor) -> None:
        row, column = r.double(), c.double()
        # Any mapped axes come first, and on both.
        row, column = row.sum(dim=-1), column.sum(dim=-1)
        wrong = (row - column).abs() > torch.finfo(r.dtype).eps ** 0.5 * (row + column)
        if bool(wrong.any()):
            raise InvalidInputError(
                f"`{call}(r=..., c=...)` must have the same sum, got {row[wrong][0].item():.6g} and "
                f"{column[wrong][0].item():.6g}. Pass `normalize=True`, or `marginal_penalty` for unbalanced transport."
            )

    read(look, r, c)


def _check_mass(call: str, r: Tensor, c: Tensor, mass: Tensor) -> None:
    def look(r: Tensor, c: Tensor, mass: Tensor) -> None:
        most = torch.minimum(r.double().sum(dim=-1), c.double().sum(dim=-1))
        wrong = mass > most * (1 + torch.finfo(r.dtype).eps ** 0.5)
        if bool(wrong.any()):
            raise InvalidInputError(
                f"`{call}(mass=...)` must not exceed the sums of r and c, got {mass[wrong][0].item():.6g} where the "
                f"smaller is {most[wrong][0].item():.6g}. Lower it."
            )

    read(look, r, c, mass)


def _penalties(
    call: str, value: Penalty | tuple[Penalty | None, Penalty | None], shape: torch.Size, like: Tensor
) -> tuple[Tensor, Tensor]:
    pair = value if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or pair[0] is pair[1] is None:
        raise InvalidInputError(
            f"`{call}(marginal_penalty=...)` must be positive, or a pair with at most one None, got {value!r}."
        )
    rows, columns = (
        like.new_full((), torch.inf).expand(shape)
        if rho is None
        else positive(call, "marginal_penalty", rho, shape, like)
        for rho in pair
    )
    return rows.reshape(-1), columns.reshape(-1)
