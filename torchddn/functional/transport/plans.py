r"""Entropic optimal transport: how to move one distribution onto another, smoothed so that it has a gradient.

Solves, for marginals r and c of the same sum::

    P(M, r, c, gamma) = argmin_P  <P, M> + 1/gamma sum_ij P_ij (log P_ij - 1)   subject to   P 1 = r,  P^T 1 = c

so ``P_ij = exp(u_i + v_j - gamma M_ij)``. gamma *multiplies* the cost: the larger, the sharper the plan, and the more
steps Sinkhorn's iteration needs.

References:
    Gould, Campbell, Ben-Shabat, Koneputugodage, Xu, Exploiting Problem Structure in Deep Declarative Networks,
    equations 11 to 27. Their regularizer is KL(P | r c^T), which has the same solution. Cuturi, Sinkhorn Distances,
    2013. Chizat, Peyre, Schmitzer, Vialard, Scaling Algorithms for Unbalanced Optimal Transport Problems, 2018. Feydy,
    Sejourne, Vialard, Amari, Trouve, Peyre, Interpolating between Optimal Transport and MMD, 2019.
"""

from typing import Literal, overload

import torch
from torch import Tensor

from torchddn.functional.nodes.arguments import check_flag
from torchddn.functional.nodes.outcome import solution_of
from torchddn.functional.transport.door import MAX_STEPS, Penalty, transport, value_of
from torchddn.functional.transport.entropic import finite_cost, potentials
from torchddn.functional.transport.value import entropy
from torchddn.status import Solution

__all__ = ["optimal_transport", "transport_cost"]


@overload
def optimal_transport(
    cost: Tensor,
    r: Tensor | None = ...,
    c: Tensor | None = ...,
    gamma: float | Tensor = ...,
    *,
    atol: float | None = ...,
    max_steps: int = ...,
    normalize: bool = ...,
    marginal_penalty: Penalty | tuple[Penalty | None, Penalty | None] | None = ...,
    mass: float | Tensor | None = ...,
    gradient: str = ...,
    on_failure: str = ...,
    solution: Literal[False] = ...,
) -> Tensor: ...
@overload
def optimal_transport(
    cost: Tensor,
    r: Tensor | None = ...,
    c: Tensor | None = ...,
    gamma: float | Tensor = ...,
    *,
    atol: float | None = ...,
    max_steps: int = ...,
    normalize: bool = ...,
    marginal_penalty: Penalty | tuple[Penalty | None, Penalty | None] | None = ...,
    mass: float | Tensor | None = ...,
    gradient: str = ...,
    on_failure: str = ...,
    solution: Literal[True],
) -> Solution: ...
def optimal_transport(
    cost: Tensor,
    r: Tensor | None = None,
    c: Tensor | None = None,
    gamma: float | Tensor = 1.0,
    *,
    atol: float | None = None,
    max_steps: int = MAX_STEPS,
    normalize: bool = False,
    marginal_penalty: Penalty | tuple[Penalty | None, Penalty | None] | None = None,
    mass: float | Tensor | None = None,
    gradient: str = "exact",
    on_failure: str = "warn",
    solution: bool = False,
) -> Tensor | Solution:
    r"""Returns the entropic transport plan of each cost matrix.

    Sinkhorn's iteration in its multiplicative form, its scalings absorbed into potentials when they grow. An item
    whose error falls too slowly goes on with Newton's method on the dual, along a path of growing gamma where the
    problem is sharp. A step of the first costs O(m n), one of the second O(m n min(m, n)) at most.

    Args:
        cost: ``M``, ``(*B, m, n)``. An infinite cost is a move that is not allowed: the plan is zero there.
        r: Sums of the rows, non-negative, broadcastable to ``(*B, m)``; ``1 / m`` unless given.
        c: Sums of the columns, non-negative, broadcastable to ``(*B, n)``; ``1 / n`` unless given.
        gamma: Sharpness, positive, broadcastable to ``(*B,)``.
        atol: Largest error of the marginals, ``|P 1 - r|_1 + |P^T 1 - c|_1``, as a part of their mass; 1e-6 in
            float32 and 1e-13 in float64 unless given; in any case what float64 can resolve, 2e-15 gamma max |M|.
        max_steps: Steps of both methods together, at most.
        normalize: Whether to divide r and c by their sums first; the gradient is then that through the division.
        marginal_penalty: In place of the constraints, ``rho KL(P 1 | r) + rho KL(P^T 1 | c)`` with this rho, positive
            and broadcastable to ``(*B,)``, or a pair of them, of which one may be None for a constraint. The sums of r
            and c may differ then (unbalanced transport).
        mass: Moves this mass in all, no more than r from a row and no more than c to a column (partial transport);
            positive, below the sums of r and c, broadcastable to ``(*B,)``. Not together with ``marginal_penalty``.
        gradient: ``"exact"``, or ``"ignore_constraints"``: that of ``exp(-gamma M)`` with fixed scalings, which is
            cheap and wrong, and is what the paper compares with.
        on_failure: What to do about items that fail: ``"warn"``, ``"raise"``, ``"nan"`` (their plan is NaN) or
            ``"ignore"``. Items without a finite problem or without a plan are NaN in any case.
        solution: Whether to return a :class:`torchddn.Solution` in place of the plan. Its ``equality_multipliers`` are
            those of the marginals, ``-(u, v) / gamma``, ``(*B, m + n)``, differentiable, the ones of least norm (they
            are free up to ``(u + s, v - s)``); None for unbalanced and partial transport.

    Returns:
        ``P``, ``(*B, m, n)``, non-negative, of the dtype of ``cost`` (half precision computes in float32). Columns (of
        ``m <= n``, else rows) have their sums to rounding, the others to ``atol``. A marginal of zero gives zeros.

    Raises:
        InvalidInputError: If an argument is wrong; if r and c have different sums, unless ``normalize`` or
            ``marginal_penalty`` or ``mass`` allows it.
        SolveError: If an item fails and ``on_failure="raise"``.

    Status:
        MAX_STEPS: the error is above ``atol``; the plan is usable. Raise ``max_steps`` or ``atol``, or use float64.
        INFEASIBLE: infinite costs leave no plan with these marginals: a set of rows is known that has more than the
            columns that it may use. Where none is found the item has MAX_STEPS.
        NON_FINITE: the item contains NaN, or a cost of minus infinity.

    Gradients:
        Exact in ``cost``, ``r``, ``c``, ``gamma``, ``marginal_penalty`` and ``mass``, of every order and in every mode,
        by one linear solve on the smaller side and one pass over the plan. With constraints on both sides, only
        changes that keep the sums of r and c equal have a meaning; the gradient in (r, c) is the one of least norm.
        At a marginal of zero the gradient in it is zero, not its one-sided derivative. Where parts of the plan are not
        linked, by infinite costs or by mass below rounding, it is the one of least norm too. A
        DegenerateGradientWarning tells of both if r or c has a gradient, and of a solve whose residual, which is
        measured every time, stays above rounding. Items that are NaN have a gradient of zero.

    Example:
        >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> optimal_transport(cost, gamma=2.0)
        tensor([[0.4404, 0.0596],
                [0.0596, 0.4404]])

    References:
        Gould, Campbell, Ben-Shabat, Koneputugodage, Xu, Exploiting Problem Structure in Deep Declarative Networks,
        equations 11 to 27.
    """
    call = "optimal_transport"
    check_flag(call, "solution", solution)
    found = transport(call, cost, r, c, gamma, atol, max_steps, normalize, marginal_penalty, mass, gradient, on_failure)
    batch, (m, n) = cost.shape[:-2], cost.shape[-2:]
    y = found.P.reshape(*batch, m, n).to(cost.dtype)
    if not solution:
        return y
    plain = found.P.detach()
    linear = (plain * finite_cost(found.cost.detach())).sum(dim=(1, 2))
    multipliers = None
    feasibility = torch.zeros_like(linear)
    if found.potentials is not None:
        u, v = potentials(call, found.P, found.cost, found.gamma, found.potentials, told=False)
        multipliers = (-torch.cat([u, v], dim=1) / found.gamma.unsqueeze(1)).to(cost.dtype).reshape(*batch, m + n)
        violation = (plain.sum(dim=2) - found.r).abs().amax(dim=1)
        feasibility = torch.maximum(violation, (plain.sum(dim=1) - found.c).abs().amax(dim=1))
    fields = {
        "objective": linear + entropy(plain) / found.gamma.detach(),
        "status": found.status,
        "num_steps": found.num_steps,
        "stationarity": torch.zeros_like(linear),
        "feasibility": feasibility,
    }
    shaped = {name: tensor.reshape(batch) for name, tensor in fields.items()}
    return solution_of(y, **shaped, equality_multipliers=multipliers, solver=found.solver)


def transport_cost(
    cost: Tensor,
    r: Tensor | None = None,
    c: Tensor | None = None,
    gamma: float | Tensor = 1.0,
    *,
    regularized: bool = False,
    atol: float | None = None,
    max_steps: int = MAX_STEPS,
    normalize: bool = False,
    marginal_penalty: Penalty | tuple[Penalty | None, Penalty | None] | None = None,
    mass: float | Tensor | None = None,
    on_failure: str = "warn",
) -> Tensor:
    r"""Returns what the entropic plan costs: ``<P, M>``.

    Args:
        cost: As of :func:`optimal_transport`, and so are the others.
        r: As there.
        c: As there.
        gamma: As there.
        regularized: Whether to return what the plan minimizes, ``<P, M> + 1/gamma sum P (log P - 1)`` and the
            penalties of the marginals, instead. Its gradient needs no linear solve (the envelope theorem).
        atol: As there.
        max_steps: As there.
        normalize: As there.
        marginal_penalty: As there.
        mass: As there.
        on_failure: As there.

    Returns:
        ``(*B,)``, of the dtype of ``cost``.

    Raises:
        InvalidInputError: As of :func:`optimal_transport`.
        SolveError: If an item fails and ``on_failure="raise"``.

    Gradients:
        Exact, of every order and in every mode.

    Example:
        >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> transport_cost(cost, gamma=2.0)
        tensor(0.1192)
    """
    call = "transport_cost"
    check_flag(call, "regularized", regularized)
    found = transport(call, cost, r, c, gamma, atol, max_steps, normalize, marginal_penalty, mass, "exact", on_failure)
    return value_of(call, found, regularized).reshape(cost.shape[:-2]).to(cost.dtype)
