"""Transport between point clouds: a divergence by matrices, and a way without them.

Both compute the regularized value of :func:`torchddn.functional.transport_cost` for costs that are distances.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchddn.diagnostics import timed
from torchddn.errors import InvalidInputError
from torchddn.functional.nodes.arguments import check_choice, check_flag, check_floating, positive, wide
from torchddn.functional.nodes.handmade import solve
from torchddn.functional.nodes.outcome import conclude
from torchddn.functional.transport.cloud_blocks import CloudSearch, CloudValue
from torchddn.functional.transport.door import MAX_STEPS, check_sums, marginal, tolerance, transport, value_of
from torchddn.status import check_failure_policy

__all__ = ["CloudSolution", "sinkhorn_divergence", "transport_between"]

METRICS = ("squared_euclidean", "euclidean")

Metric = str | Callable[[Tensor, Tensor], Tensor]


def sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    r: Tensor | None = None,
    c: Tensor | None = None,
    gamma: float | Tensor = 1.0,
    *,
    metric: Metric = "squared_euclidean",
    atol: float | None = None,
    max_steps: int = MAX_STEPS,
    normalize: bool = False,
    on_failure: str = "warn",
) -> Tensor:
    r"""Returns how far two weighted point clouds are from each other, zero if they are the same.

    ``W(x, y) - (W(x, x) + W(y, y)) / 2`` with the regularized value W of :func:`transport_cost`; taking away the
    values of the clouds with themselves takes away the bias of the entropy.

    Args:
        x: ``(*B, m, d)``.
        y: ``(*B, n, d)``.
        r: Weights of x, as of :func:`optimal_transport`.
        c: Weights of y, likewise.
        gamma: As of :func:`optimal_transport`.
        metric: ``"squared_euclidean"``, ``"euclidean"``, or a function of two clouds that returns ``(*B, m, n)``.
        atol: As of :func:`optimal_transport`.
        max_steps: As there.
        normalize: As there.
        on_failure: As there.

    Returns:
        ``(*B,)``, non-negative up to rounding for the two metrics that have a name.

    Raises:
        InvalidInputError: As of :func:`optimal_transport`.
        SolveError: If an item fails and ``on_failure="raise"``.

    Gradients:
        Exact in ``x``, ``y``, ``r``, ``c`` and ``gamma``, of every order and in every mode; those of first order need
        no linear solve. The Euclidean distance has a kink where points meet; its gradient is zero there.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> sinkhorn_divergence(x, x + 0.5, gamma=10.0)
        tensor(0.5000)

    References:
        Feydy, Sejourne, Vialard, Amari, Trouve, Peyre, Interpolating between Optimal Transport and MMD, 2019.
    """
    call = "sinkhorn_divergence"
    _check_clouds(call, x, y)
    pairs = ((x, y, r, c), (x, x, r, r), (y, y, c, c))
    values = []
    for a, b, weights_a, weights_b in pairs:
        cost = _distances(call, a, b, metric)
        found = transport(
            call, cost, weights_a, weights_b, gamma, atol, max_steps, normalize, None, None, "exact", on_failure
        )
        values.append(value_of(call, found, regularized=True).reshape(cost.shape[:-2]))
    return (values[0] - (values[1] + values[2]) / 2).to(x.dtype)


class CloudSolution(NamedTuple):
    """What :func:`transport_between` returns.

    Attributes:
        value: ``<P, M> + 1/gamma sum P (log P - 1)``, ``(*B,)``, differentiable. The rest is for reading.
        cost: ``<P, M>``, ``(*B,)``.
        u: Potentials of x: ``P_ij = exp(u_i + v_j - gamma M_ij)``, ``(*B, m)``; about -700 at a weight of zero.
        v: Potentials of y, ``(*B, n)``.
        transported_x: Where the mass of each x goes on average, ``(P y)_i / r_i``, ``(*B, m, d)``; x where r is zero.
        transported_y: Where that of each y comes from, ``(P^T x)_j / c_j``, ``(*B, n, d)``.
        status: Integer tensor of :class:`torchddn.Status`, ``(*B,)``.
        num_steps: ``(*B,)``.
        error: ``|P 1 - r|_1`` as a part of the mass, ``(*B,)``.
    """

    value: Tensor
    cost: Tensor
    u: Tensor
    v: Tensor
    transported_x: Tensor
    transported_y: Tensor
    status: Tensor
    num_steps: Tensor
    error: Tensor


def transport_between(
    x: Tensor,
    y: Tensor,
    r: Tensor | None = None,
    c: Tensor | None = None,
    gamma: float | Tensor = 1.0,
    *,
    atol: float | None = None,
    max_steps: int = MAX_STEPS,
    normalize: bool = False,
    on_failure: str = "warn",
) -> CloudSolution:
    r"""Returns transport between two point clouds with the squared Euclidean cost, without ever holding a matrix.

    Sinkhorn's iteration in blocks of the plan, gamma doubling in the first steps. A step costs O(m n d) time; memory is
    that of the points and a few megabytes.

    Args:
        x: ``(*B, m, d)``.
        y: ``(*B, n, d)``.
        r: Weights of x, as of :func:`optimal_transport`.
        c: Weights of y, likewise.
        gamma: Sharpness, positive, broadcastable to ``(*B,)``.
        atol: Largest error of the marginals, as a part of their mass; 1e-4 in float32, where the clouds that need
            this are so large that a step takes a second, and 1e-9 in float64, unless given.
        max_steps: Steps at most.
        normalize: Whether to divide r and c by their sums first.
        on_failure: As of :func:`optimal_transport`; concerns ``value``.

    Returns:
        A :class:`CloudSolution`.

    Raises:
        InvalidInputError: If an argument is wrong; if a derivative of second order is asked for.
        SolveError: If an item fails and ``on_failure="raise"``.

    Status:
        MAX_STEPS: the error is above ``atol``; the answer is usable. Raise ``max_steps`` or ``atol``, or lower gamma.
        NON_FINITE: the item contains NaN or infinity.

    Gradients:
        Of ``value``, in ``x``, ``y``, ``r``, ``c`` and ``gamma``, of first order, in reverse and forward mode, without
        another pass over the plan: ``dJ/dx_i = 2 (r_i x_i - (P y)_i)``. They are exact at the optimum; an error of the
        marginals is one of the gradient.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> found = transport_between(x, x + 3.0, gamma=20.0)
        >>> found.cost, found.transported_x.squeeze(1)
        (tensor(9.), tensor([3., 4.]))

    References:
        Feydy, Sejourne, Vialard, Amari, Trouve, Peyre, Interpolating between Optimal Transport and MMD, 2019.
    """
    call = "transport_between"
    _check_clouds(call, x, y)
    check_flag(call, "normalize", normalize)
    check_failure_policy(call, on_failure)
    shape, (m, d), n = x.shape[:-2], x.shape[-2:], y.shape[-2]
    points_x, points_y = wide(x).reshape(-1, m, d), wide(y).reshape(-1, n, d)
    if atol is None:
        atol = 1e-4 if points_x.dtype == torch.float32 else 1e-9
    precision = tolerance(call, atol, max_steps, points_x.dtype)
    rows = marginal(call, "r", r, (*shape, m), points_x, normalize).reshape(-1, m)
    columns = marginal(call, "c", c, (*shape, n), points_x, normalize).reshape(-1, n)
    sharpness = positive(call, "gamma", gamma, shape, points_x).reshape(-1)
    check_sums(call, rows, columns)
    inputs = (points_x, points_y, rows, columns, sharpness)
    with timed() as file:
        search = CloudSearch(precision, max_steps)
        *found, status, num_steps, error = (t.detach() for t in solve(search, *(t.detach() for t in inputs)))
        (value,) = solve(CloudValue(), *inputs, *found)
        value = conclude(call, value, status, error, on_failure, num_steps=num_steps, solver="Sinkhorn", file=file)
    u, v, p, q, cost, Py, Px = found
    plain_x, plain_y = points_x.detach(), points_y.detach()
    images_x = torch.where((p > 0).unsqueeze(2), Py / torch.where(p > 0, p, 1).unsqueeze(2), plain_x)
    images_y = torch.where((q > 0).unsqueeze(2), Px / torch.where(q > 0, q, 1).unsqueeze(2), plain_y)
    return CloudSolution(
        value.reshape(shape).to(x.dtype),
        cost.reshape(shape).to(x.dtype),
        u.reshape(*shape, m).to(x.dtype),
        v.reshape(*shape, n).to(x.dtype),
        images_x.reshape(*shape, m, d).to(x.dtype),
        images_y.reshape(*shape, n, d).to(x.dtype),
        status.reshape(shape),
        num_steps.reshape(shape),
        error.reshape(shape),
    )


def _check_clouds(call: str, x: Tensor, y: Tensor) -> None:
    """Raises unless ``x`` and ``y`` are point clouds, ``(*B, m, d)`` and ``(*B, n, d)``, in the same space."""
    check_floating(call, "x", x, "(*B, m, d)", 2)
    check_floating(call, "y", y, "(*B, n, d)", 2)
    if x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-1] or x.device != y.device or x.dtype != y.dtype:
        raise InvalidInputError(
            f"`{call}(y=...)` must have the batch, the dimension, the dtype and the device of x, {tuple(x.shape)}, "
            f"{x.dtype}, {x.device}, got {tuple(y.shape)}, {y.dtype}, {y.device}."
        )
    for name, points in (("x", x), ("y", y)):
        if points.shape[-2] == 0:
            raise InvalidInputError(f"`{call}({name}=...)` must have points, got shape {tuple(points.shape)}.")


def _distances(call: str, x: Tensor, y: Tensor, metric: Metric) -> Tensor:
    """The cost matrix, ``(*B, m, n)``."""
    if callable(metric):
        return metric(x, y)
    check_choice(call, "metric", metric, METRICS)
    square = (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(dim=-1)
    if metric == "squared_euclidean":
        return square
    apart = square > 0
    return torch.where(apart, torch.where(apart, square, 1).sqrt(), 0)
