"""Entropic transport: plans against other methods, exact derivatives, hard numbers, and mistakes that are told."""

import math

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacfwd, jacrev, vmap
from torch.profiler import ProfilerActivity, profile

import torchddn as ddn
from torchddn.errors import ConvergenceWarning, DegenerateGradientWarning, InfeasibleError, InvalidInputError
from torchddn.functional import optimal_transport, sinkhorn_divergence, transport_between, transport_cost
from torchddn.functional.transport import balance as _balance
from torchddn.nn import OptimalTransport
from torchddn.status import Status

INF = float("inf")
DOUBLE = torch.float64
seeds = st.integers(0, 2**32 - 1)


def data(batch=3, m=4, n=5, seed=0, normal=False):
    generator = torch.Generator().manual_seed(seed)
    make = torch.randn if normal else torch.rand
    cost = make(batch, m, n, generator=generator, dtype=DOUBLE)
    r, c = (0.1 + torch.rand(batch, size, generator=generator, dtype=DOUBLE) for size in (m, n))
    return cost, r / r.sum(1, keepdim=True), c / c.sum(1, keepdim=True)


def log_domain(cost, r, c, gamma, num_steps=20000, rho_r=INF, rho_c=INF):
    """The pure iteration on potentials in float64: slow, and hard to get wrong."""
    E = -gamma * cost
    u, v = torch.zeros_like(r), torch.zeros_like(c)
    share_r, share_c = (1 / (1 + 1 / (gamma * rho)) for rho in (rho_r, rho_c))
    for _ in range(num_steps):
        u = share_r * (r.log() - torch.logsumexp(E + v[:, None, :], 2))
        v_next = share_c * (c.log() - torch.logsumexp(E + u[:, :, None], 1))
        moved = (v_next - v).abs().max()
        v = v_next
        if moved < 1e-15:
            break
    return (E + u[:, :, None] + v[:, None, :]).exp()


def dense_gradient(P, gamma, v):
    """Equation 3 of the paper with every matrix formed, for one item."""
    m, n = P.shape
    H_inverse = torch.diag(gamma * P.flatten())
    A = torch.cat([torch.eye(m, dtype=DOUBLE).repeat_interleave(n, 1), torch.eye(n, dtype=DOUBLE).repeat(1, m)])[1:]
    HA = H_inverse @ A.T
    return (v.flatten() @ (HA @ torch.linalg.solve(A @ HA, HA.T) - H_inverse)).reshape(m, n)


def peak(function):
    """Most bytes alive at once among those that the call allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    live = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


# Values


@pytest.mark.parametrize("gamma", [0.5, 10.0, 25.0])
@pytest.mark.parametrize("shape", [(4, 5), (6, 3), (1, 4), (4, 1), (7, 7)])
def test_plan_is_that_of_the_log_domain_iteration(gamma, shape):
    cost, r, c = data(2, *shape)
    expected = log_domain(cost, r, c, gamma)
    torch.testing.assert_close(optimal_transport(cost, r, c, gamma), expected, rtol=0, atol=1e-12)
    single = optimal_transport(cost.float(), r.float(), c.float(), gamma)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gamma", [10.0, 1000.0])
@pytest.mark.parametrize("normal", [False, True])
def test_float32_agrees_with_float64_where_many_steps_are_needed(gamma, normal):
    cost, r, c = data(3, 30, 40, normal=normal)
    with ddn.diagnostics() as seen:
        P = optimal_transport(cost, r, c, gamma)
        single = optimal_transport(cost.float(), r.float(), c.float(), gamma)
    assert all(record.statuses == {"CONVERGED": 3} and record.num_steps < 200 for record in seen.records)
    torch.testing.assert_close(single.double(), P, rtol=0, atol=2e-6)
    assert (P.sum(2) - r).abs().sum(1).max() < 1e-12 and (P.sum(1) - c).abs().sum(1).max() < 1e-12


def test_sharp_plan_is_the_assignment_of_linear_programming():
    from scipy.optimize import linear_sum_assignment

    cost, _, _ = data(1, 12, 12, normal=True)
    P = optimal_transport(cost, gamma=1e4)
    rows, columns = linear_sum_assignment(cost[0].numpy())
    expected = torch.zeros(12, 12, dtype=DOUBLE)
    expected[rows, columns] = 1 / 12
    torch.testing.assert_close(P[0], expected, rtol=0, atol=1e-10)


def test_plan_is_what_a_general_solver_finds():
    cost, r, c = data(1, 3, 3)
    node = ddn.argmin(
        lambda y, M, r, c: (y * M).sum() + (y * (y.log() - 1)).sum() / 2.0,
        torch.full((3, 3), 1 / 9, dtype=DOUBLE),
        *(cost, r, c),
        equality=lambda y, M, r, c: torch.cat([y.sum(1) - r, (y.sum(0) - c)[1:]]),
        on_failure="ignore",
    )
    torch.testing.assert_close(optimal_transport(cost, r, c, 2.0), node, rtol=0, atol=1e-7)


@pytest.mark.parametrize("rho", [(0.5, 2.0), (INF, 1.0), (1.0, INF)])
def test_unbalanced_plan_is_that_of_the_log_domain_iteration(rho):
    cost, r, c = data()
    penalty = tuple(None if size == INF else size for size in rho)
    P = optimal_transport(cost, 3 * r, 0.5 * c, 5.0, marginal_penalty=penalty)
    expected = log_domain(cost, 3 * r, 0.5 * c, 5.0, rho_r=rho[0], rho_c=rho[1])
    torch.testing.assert_close(P, expected, rtol=0, atol=1e-11)


def test_partial_plan_satisfies_its_optimality_conditions():
    cost, r, c = data()
    P = optimal_transport(cost, r, 1.3 * c, 8.0, mass=0.7)
    torch.testing.assert_close(P.sum((1, 2)), torch.full((3,), 0.7, dtype=DOUBLE), rtol=0, atol=1e-12)
    spare_r, spare_c = r - P.sum(2), 1.3 * c - P.sum(1)
    assert spare_r.min() > -1e-12 and spare_c.min() > -1e-12
    # u and v vanish where something is left, and are negative where not.
    z = P.log() + 8.0 * cost
    for item in range(3):
        open_r, open_c = spare_r[item] > 1e-9, spare_c[item] > 1e-9
        total = z[item][open_r][:, open_c]
        assert total.numel() and (total - total[0, 0]).abs().max() < 1e-8
        assert (z[item] <= total[0, 0] + 1e-9).all()


def test_partial_transport_of_all_mass_is_balanced_transport():
    cost, r, c = data()
    torch.testing.assert_close(
        optimal_transport(cost, r, c, 3.0, mass=1.0), optimal_transport(cost, r, c, 3.0), rtol=0, atol=1e-10
    )


def test_known_answer_of_two_points():
    cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=DOUBLE)
    P = optimal_transport(cost, gamma=2.0)
    stays = 0.5 / (1 + math.exp(-2.0))
    torch.testing.assert_close(P, torch.tensor([[stays, 0.5 - stays], [0.5 - stays, stays]], dtype=DOUBLE))
    torch.testing.assert_close(transport_cost(cost, gamma=2.0), torch.tensor(1 - 2 * stays, dtype=DOUBLE))


def test_adding_potentials_to_the_cost_changes_nothing_and_gradients_sum_to_zero():
    cost, r, c = data()
    cost.requires_grad_()
    shifted = cost + torch.randn(3, 4, 1, dtype=DOUBLE) + torch.randn(3, 1, 5, dtype=DOUBLE)
    P = optimal_transport(cost, r, c, 6.0)
    torch.testing.assert_close(optimal_transport(shifted, r, c, 6.0), P, rtol=0, atol=1e-12)
    (slope,) = torch.autograd.grad((P**2).sum(), cost)
    assert slope.sum(1).abs().max() < 1e-12 and slope.sum(2).abs().max() < 1e-12


def test_transposing_and_permuting_the_problem_does_so_to_the_plan():
    cost, r, c = data()
    P = optimal_transport(cost, r, c, 6.0)
    torch.testing.assert_close(optimal_transport(cost.mT, c, r, 6.0), P.mT, rtol=0, atol=1e-12)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(optimal_transport(cost[:, order], r[:, order], c, 6.0), P[:, order], rtol=0, atol=1e-12)


# Batches


@pytest.mark.parametrize("options", [{}, {"marginal_penalty": 1.0}, {"mass": 0.5}])
def test_an_item_alone_or_among_others_is_solved_alike(options):
    cost, r, c = data(4, 8, 9, normal=True)
    gamma = torch.tensor([0.5, 3.0, 20.0, 300.0], dtype=DOUBLE)
    whole = optimal_transport(cost, r, c, gamma, **options, solution=True)
    for i in range(4):
        item = optimal_transport(cost[i], r[i], c[i], gamma[i], **options, solution=True)
        torch.testing.assert_close(item.y, whole.y[i], rtol=0, atol=1e-12)
        assert item.status == whole.status[i] and item.num_steps == whole.num_steps[i]


@pytest.mark.parametrize("options", [{}, {"marginal_penalty": 1.0}, {"mass": 0.5}])
def test_a_poisoned_item_spoils_only_itself(options):
    cost, r, c = data()
    clean = optimal_transport(cost, r, c, 4.0, **options)
    cost[1, 0, 0] = math.nan
    gamma = torch.tensor(4.0, dtype=DOUBLE, requires_grad=True)
    cost.requires_grad_()
    with pytest.warns(ConvergenceWarning, match="NON_FINITE"):
        P = optimal_transport(cost, r, c, gamma, **options)
    assert P[1].isnan().all()
    torch.testing.assert_close(P[::2], clean[::2], rtol=0, atol=1e-12)
    slopes = torch.autograd.grad((P**2).sum(), (cost, gamma))
    assert (slopes[0][1] == 0).all() and all(slope.isfinite().all() for slope in slopes)


def test_any_batch_axes_and_none():
    cost, r, c = data(6)
    P = optimal_transport(cost, r, c, 2.0)
    shaped = optimal_transport(cost.reshape(2, 3, 4, 5), r.reshape(2, 3, 4), c.reshape(2, 3, 5), 2.0)
    torch.testing.assert_close(shaped.reshape(6, 4, 5), P, rtol=0, atol=0)
    assert optimal_transport(cost[:0]).shape == (0, 4, 5)
    none = cost[:0].requires_grad_()
    assert torch.autograd.grad(optimal_transport(none).sum(), none)[0].shape == (0, 4, 5)
    assert transport_cost(cost[0]).shape == ()


# Derivatives


@pytest.mark.parametrize("gamma", [1.0, 30.0])
@pytest.mark.parametrize("shape", [(4, 5), (5, 3)])
def test_gradient_is_the_dense_formula(gamma, shape):
    cost, r, c = data(1, *shape)
    v = torch.randn(shape, dtype=DOUBLE)
    item = cost[0].requires_grad_()
    P = optimal_transport(item, r[0], c[0], gamma)
    expected = dense_gradient(P.detach(), gamma, v)
    (slope,) = torch.autograd.grad(P, item, v)
    torch.testing.assert_close(slope, expected, rtol=1e-9, atol=1e-11)
    single = item.detach().float().requires_grad_()
    (slope,) = torch.autograd.grad(optimal_transport(single, r[0].float(), c[0].float(), gamma), single, v.float())
    torch.testing.assert_close(slope.double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


OPTIONS = [{"normalize": True}, {"marginal_penalty": 0.7}, {"marginal_penalty": (0.7, None)}, {"mass": 0.6}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_derivatives_of_every_argument_are_those_of_finite_differences(options):
    cost, r, c = data(2, 2, 3)
    gamma = torch.tensor([2.0, 4.0], dtype=DOUBLE)
    inputs = [t.requires_grad_() for t in (cost, 1.1 * r, c, gamma)]

    def plan(cost, r, c, gamma):
        return optimal_transport(cost, r, c, gamma, **options)

    assert gradcheck(plan, inputs, check_forward_ad=True)
    first = [t[:1].detach().requires_grad_() for t in inputs]
    assert gradgradcheck(plan, first, check_fwd_over_rev=True)


def test_derivatives_in_penalty_and_mass_are_those_of_finite_differences():
    cost, r, c = data(2, 3, 4)
    rho = torch.tensor([0.5, 2.0], dtype=DOUBLE, requires_grad=True)
    assert gradcheck(
        lambda rho: optimal_transport(cost, r, 2 * c, 3.0, marginal_penalty=rho), rho, check_forward_ad=True
    )
    mass = torch.tensor([0.5, 0.3], dtype=DOUBLE, requires_grad=True)
    assert gradcheck(lambda mass: optimal_transport(cost, r, c, 3.0, mass=mass), mass, check_forward_ad=True)


@pytest.mark.parametrize(
    "options", [{}, {"regularized": True}, {"regularized": True, "marginal_penalty": 0.5}], ids=str
)
def test_derivatives_of_the_cost_are_those_of_finite_differences(options):
    cost, r, c = data(1, 2, 3)
    inputs = [t.requires_grad_() for t in (cost, r, c, torch.tensor([3.0], dtype=DOUBLE))]

    def value(cost, r, c, gamma):
        return transport_cost(cost, r, c, gamma, normalize=True, **options)

    assert gradcheck(value, inputs, check_forward_ad=True)
    assert gradgradcheck(value, inputs, check_fwd_over_rev=True)


def test_derivatives_of_the_cost_of_partial_transport_are_those_of_finite_differences():
    cost, r, c = data(1, 2, 3)
    inputs = [t.requires_grad_() for t in (cost, r, 1.2 * c, torch.tensor([0.6], dtype=DOUBLE))]
    assert gradcheck(lambda cost, r, c, mass: transport_cost(cost, r, c, 3.0, mass=mass, regularized=True), inputs)


@pytest.mark.parametrize("gamma", [1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("normal", [False, True])
@pytest.mark.parametrize("shape", [(2, 100, 100), (1, 200, 200)])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_plan_meets_the_conditions_that_make_it_optimal(dtype, shape, normal, gamma):
    # The problem is convex: marginals and the form exp(u + v - gamma M) are a proof, whoever found them.
    make = torch.randn if normal else torch.rand
    cost = make(shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE).to(dtype)
    solution = optimal_transport(cost, gamma=gamma, solution=True)
    P, n = solution.y.to(DOUBLE), shape[1]
    double = dtype == DOUBLE
    missed = (P.sum(2) - 1 / n).abs().sum(1) + (P.sum(1) - 1 / n).abs().sum(1)
    goal = 2e-15 * gamma * cost.abs().amax((1, 2)).to(DOUBLE)
    assert (missed <= (2e-13 + goal if double else 1.3e-6 + goal)).all()
    nu = solution.equality_multipliers.to(DOUBLE)
    u, v = -gamma * nu[:, :n], -gamma * nu[:, n:]
    # Multipliers come in the dtype of the cost: rounding, times gamma, is an error of their exponent.
    rounding = 4 * gamma * torch.finfo(dtype).eps * nu.abs().max().item() + (1e-10 if double else 2e-5)
    exponent = u[:, :, None] + v[:, None] - gamma * cost.to(DOUBLE)
    large = P > 1e-20
    assert ((P.log() - exponent).abs() <= rounding + 1e-15 * (gamma * cost.abs().max()))[large].all()
    assert (exponent[~large] <= math.log(1e-20) + 1).all()
    # Weak duality, with no look at the form: no plan costs less than any potentials promise.
    primal = (P * cost.to(DOUBLE)).sum((1, 2)) + (torch.special.xlogy(P, P) - P).sum((1, 2)) / gamma
    dual = ((u.sum(1) + v.sum(1)) / n - exponent.exp().sum((1, 2))) / gamma
    assert ((primal - dual).abs() <= 1e-12 * (1 + gamma) if double else (primal - dual).abs() <= 1e-4).all()


def test_multipliers_satisfy_stationarity_and_are_differentiable():
    cost, r, c = data(2, 3, 4)
    solution = optimal_transport(cost, r, c, 3.0, solution=True)
    nu = solution.equality_multipliers
    gap = cost + solution.y.log() / 3.0 + nu[:, :3, None] + nu[:, None, 3:]
    assert gap.abs().max() < 1e-12 and solution.feasibility.max() < 1e-12
    assert gradcheck(
        lambda cost: optimal_transport(cost, r, c, 3.0, solution=True).equality_multipliers, cost.requires_grad_()
    )


def test_transforms_agree_with_the_batch():
    cost, r, c = data()
    P = optimal_transport(cost, r, c, 3.0)
    torch.testing.assert_close(vmap(lambda *x: optimal_transport(*x, 3.0))(cost, r, c), P, rtol=0, atol=1e-13)
    shared = vmap(lambda M: optimal_transport(M, r[0], c[0], 3.0))(cost)
    torch.testing.assert_close(shared, optimal_transport(cost, r[0], c[0], 3.0), rtol=0, atol=1e-13)
    slopes = vmap(grad(lambda M, a, b: (optimal_transport(M, a, b, 3.0) ** 2).sum()))(cost, r, c)
    expected = torch.autograd.grad((optimal_transport(cost.requires_grad_(), r, c, 3.0) ** 2).sum(), cost)[0]
    torch.testing.assert_close(slopes, expected, rtol=0, atol=1e-13)
    item = cost.detach()[0, :2, :3]
    torch.testing.assert_close(jacfwd(optimal_transport)(item), jacrev(optimal_transport)(item), rtol=0, atol=1e-12)


def test_gradient_that_ignores_constraints_is_that_of_fixed_scalings():
    cost, r, c = data()
    cost.requires_grad_()
    P = optimal_transport(cost, r, c, 3.0, gradient="ignore_constraints")
    v = torch.randn_like(P)
    torch.testing.assert_close(torch.autograd.grad(P, cost, v)[0], -3.0 * P * v)


def test_normalization_is_differentiated():
    cost, r, c = data(1)
    scale = torch.tensor(2.0, dtype=DOUBLE, requires_grad=True)
    P = optimal_transport(cost, scale * r, c, 3.0, normalize=True)
    assert torch.autograd.grad((P**2).sum(), scale)[0].abs() < 1e-13


# Hard numbers


def test_zero_marginals_and_infinite_costs_give_zeros_and_finite_gradients():
    cost = torch.rand(3, 5)
    cost[0, 0] = INF
    cost.requires_grad_()
    r = torch.tensor([0.5, 0.0, 0.5], requires_grad=True)
    c = torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0])
    P = optimal_transport(cost, r, c, 10.0)
    assert (P[1] == 0).all() and (P[:, 4] == 0).all() and P[0, 0] == 0 and P.isfinite().all()
    torch.testing.assert_close(P.sum(1), r, rtol=0, atol=2e-6)
    # The gradient in the cost alone is determined, and nothing is told.
    alone = torch.autograd.grad((optimal_transport(cost, r.detach(), c, 10.0) ** 2).sum(), cost)[0]
    with pytest.warns(DegenerateGradientWarning, match="marginals of zero"):
        slopes = torch.autograd.grad((P**2).sum(), (cost, r))
    assert slopes[0][0, 0] == 0 and slopes[1][1] == 0 and all(slope.isfinite().all() for slope in slopes)
    torch.testing.assert_close(slopes[0], alone, rtol=1e-4, atol=1e-6)


def in_two_parts(dtype):
    """A problem of two blocks that no allowed move links, and the gradient of v . P by the pseudo-inverse."""
    generator = torch.Generator().manual_seed(0)
    cost = torch.full((4, 5), INF, dtype=DOUBLE)
    cost[:2, :2] = torch.rand(2, 2, generator=generator, dtype=DOUBLE)
    cost[2:, 2:] = torch.rand(2, 3, generator=generator, dtype=DOUBLE)
    r = torch.tensor([0.2, 0.2, 0.3, 0.3], dtype=DOUBLE)
    c = torch.tensor([0.3, 0.1, 0.2, 0.2, 0.2], dtype=DOUBLE)
    v = torch.randn(4, 5, generator=generator, dtype=DOUBLE)
    P = optimal_transport(cost, r, c, 3.0)
    return [t.to(dtype) for t in (cost, r, c, v)], *pseudo_inverse_gradient(P, 3.0, v)


def pseudo_inverse_gradient(P, gamma, v):
    """In the cost, r and c, for one item, with the whole matrix of the normal equations."""
    p, q, G = P.sum(1), P.sum(0), P * v
    K = torch.cat([torch.cat([torch.diag(p), P], 1), torch.cat([P.T, torch.diag(q)], 1)])
    z = torch.linalg.pinv(K, rtol=1e-13, hermitian=True) @ torch.cat([G.sum(1), G.sum(0)])
    x, y = z[: len(p)], z[len(p) :]
    return -gamma * P * (v - x[:, None] - y), x, y


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_plan_in_parts_has_the_gradient_of_minimum_norm_and_says_so(dtype):
    (cost, r, c, v), *expected = in_two_parts(dtype)
    inputs = [t.requires_grad_() for t in (cost, r, c)]
    P = optimal_transport(*inputs, 3.0)
    with pytest.warns(DegenerateGradientWarning, match="parts of the plan"):
        slopes = torch.autograd.grad(P, inputs, v)
    for slope, right in zip(slopes, expected, strict=True):
        torch.testing.assert_close(slope.to(DOUBLE), right, rtol=0, atol=1e-12 if dtype == DOUBLE else 1e-6)
    P = optimal_transport(cost, r.detach(), c.detach(), 3.0)
    torch.testing.assert_close(torch.autograd.grad(P, cost, v)[0], slopes[0], rtol=1e-5, atol=1e-6)
    with pytest.warns(DegenerateGradientWarning, match="parts of the plan"):
        jacobian = jacfwd(lambda r: optimal_transport(cost.detach(), r, c.detach(), 3.0), randomness="same")(r.detach())
    torch.testing.assert_close((jacobian * v[..., None]).sum((0, 1)), slopes[1], rtol=1e-5, atol=1e-6)


def test_a_wrong_solve_of_the_derivatives_is_found_and_mended(monkeypatch):
    cost, r, c = data(3, 6, 8)
    v = torch.randn_like(cost)
    cost.requires_grad_()
    P = optimal_transport(cost, r, c, 20.0)
    right = torch.autograd.grad(P, cost, v, retain_graph=True)[0]
    # One item of a method that says it has arrived has not.
    true = _balance.conjugate_gradients

    def deluded(*arguments):
        x, done = true(*arguments)
        return x * torch.tensor([1.0, 0.99, 1.0], dtype=DOUBLE)[:, None], torch.ones_like(done)

    monkeypatch.setattr(_balance, "conjugate_gradients", deluded)
    torch.testing.assert_close(torch.autograd.grad(P, cost, v, retain_graph=True)[0], right, rtol=1e-10, atol=1e-12)
    # And so has the factorization.
    monkeypatch.setattr(_balance, "_anchored", lambda S, *_: S.diagonal_scatter(S.new_full(S.shape[:2], 9.0), 0, 1, 2))
    torch.testing.assert_close(torch.autograd.grad(P, cost, v, retain_graph=True)[0], right, rtol=1e-8, atol=1e-10)
    # Nothing is left that could help: it is told.
    monkeypatch.setattr(_balance, "_pseudo_inverse", torch.zeros_like)
    with pytest.warns(DegenerateGradientWarning, match="relative residual"):
        torch.autograd.grad(P, cost, v)


@pytest.mark.parametrize("gamma", [300.0, 3000.0])
def test_gradients_of_nearly_disconnected_plans_are_certified(gamma):
    cost, r, c = data(1, 7, 7, normal=True)
    v = torch.randn(7, 7, dtype=DOUBLE)
    item = cost[0].requires_grad_()
    P = optimal_transport(item, r[0], c[0], gamma)
    expected = pseudo_inverse_gradient(P.detach(), gamma, v)[0]
    (slope,) = torch.autograd.grad(P, item, v)
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-12 * gamma)
    single = item.detach().float().requires_grad_()
    P = optimal_transport(single, r[0].float(), c[0].float(), gamma, normalize=True)
    (slope,) = torch.autograd.grad(P, single, v.float())
    torch.testing.assert_close(slope.double(), expected, rtol=0, atol=2e-6 * gamma)


def test_a_masked_problem_is_that_of_its_entries():
    cost, r, c = data(2)
    small = optimal_transport(cost, r, c, 5.0)
    wide = torch.cat([cost, torch.full((2, 4, 2), INF, dtype=DOUBLE)], dim=2)
    padded = torch.cat([c, torch.zeros(2, 2, dtype=DOUBLE)], dim=1)
    torch.testing.assert_close(optimal_transport(wide, r, padded, 5.0)[:, :, :5], small, rtol=0, atol=1e-12)


def test_a_row_that_cannot_be_filled_is_infeasible():
    cost = torch.rand(2, 3, 4)
    cost[1, 2] = INF
    found = optimal_transport(cost, on_failure="ignore", solution=True)
    assert found.status.tolist() == [Status.CONVERGED, Status.INFEASIBLE] and found.y[1].isnan().all()
    with pytest.raises(InfeasibleError):
        optimal_transport(cost, on_failure="raise")
    # Each row alone could be filled, both not: the first column would have to give twice what it has.
    blocked = torch.tensor([[0.0, INF, INF], [0.0, INF, INF], [0.0, 0.0, 0.0]])
    found = optimal_transport(blocked, on_failure="ignore", solution=True)
    assert found.status == Status.INFEASIBLE and found.y.isnan().all()


@pytest.mark.parametrize("transposed", [False, True])
def test_infeasible_is_said_where_it_is_proven_only(transposed):
    def status(cost, **options):
        cost, r, c = (cost, None, None) if not isinstance(cost, tuple) else cost
        cost, r, c = (cost.mT, c, r) if transposed else (cost, r, c)
        return optimal_transport(cost, r, c, 5.0, on_failure="ignore", solution=True, **options).status

    # Two parts, of which one has too much.
    parts = torch.rand(4, 6, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    parts[:2, 2:], parts[2:, :2] = INF, INF
    assert status(parts, max_steps=60) == Status.INFEASIBLE
    # Mass that is equal only if the corner stays empty: the iteration comes near a plan, but slowly.
    corner = torch.zeros(2, 2, dtype=DOUBLE)
    corner[0, 1] = INF
    assert status(corner, max_steps=3, atol=1e-15) in (Status.CONVERGED, Status.MAX_STEPS)
    # Feasible, and not given the steps that it needs.
    # One row has more than the others may take; with less of it, a plan is there but not found in one step.
    scarce = 100 * torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    scarce[0, 0] = INF
    c = torch.full((3,), 1 / 3, dtype=DOUBLE)
    for share, expected in ((0.7, Status.INFEASIBLE), (0.3, Status.MAX_STEPS)):
        r = torch.tensor([share, 1 - share], dtype=DOUBLE)
        assert status((scarce, r, c), max_steps=1) == expected
    # Partial transport has more freedom, and less is infeasible.
    assert status(parts, mass=0.8) == Status.CONVERGED
    assert status(parts, mass=0.9, max_steps=60) == Status.INFEASIBLE


def test_a_row_without_allowed_moves_stays_where_a_penalty_lets_it():
    cost, r, c = data(1)
    cost[0, 1] = INF
    P = optimal_transport(cost, r, c, 4.0, marginal_penalty=(1.0, 2.0))
    assert (P[0, 1] == 0).all()
    rest = torch.tensor([0, 2, 3])
    expected = optimal_transport(cost[:, rest], r[:, rest], c, 4.0, marginal_penalty=(1.0, 2.0))
    torch.testing.assert_close(P[:, rest], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gamma", [1e-3, 1e-1, 10.0, 1e3, 1e5, 1e6])
def test_float32_is_never_nan_and_converges(gamma):
    for normal in (False, True):
        cost, r, c = (t.float() for t in data(2, 20, 25, normal=normal))
        cost.requires_grad_()
        found = optimal_transport(cost, r, c, gamma, solution=True, normalize=True)
        assert (found.status == Status.CONVERGED).all() and found.y.isfinite().all()
        assert torch.autograd.grad((found.y**2).sum(), cost)[0].isfinite().all()


def test_too_few_steps_are_reported():
    cost, r, c = data()
    with pytest.warns(ConvergenceWarning, match="MAX_STEPS"):
        optimal_transport(cost, r, c, 50.0, max_steps=2)
    assert optimal_transport(cost, r, c, 50.0, max_steps=2, on_failure="nan").isnan().all()
    loose = optimal_transport(cost, r, c, 5.0, atol=1e-2, solution=True)
    assert (loose.num_steps < optimal_transport(cost, r, c, 5.0, solution=True).num_steps).all()


@hypothesis.settings(max_examples=25)
@hypothesis.given(
    seed=seeds, m=st.integers(1, 9), n=st.integers(1, 9), power=st.integers(-12, 8), sharp=st.integers(-2, 3)
)
def test_any_shape_and_scale_has_its_marginals(seed, m, n, power, sharp):
    cost, r, c = data(2, m, n, seed=seed, normal=True)
    scale = 10.0**power
    P = optimal_transport(scale * cost, scale * r, scale * c, 10.0**sharp / scale)
    assert P.isfinite().all() and (P >= 0).all()
    assert (P.sum(2) - scale * r).abs().sum(1).max() <= 1e-12 * scale
    assert (P.sum(1) - scale * c).abs().sum(1).max() <= 1e-12 * scale


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_in_float32(dtype):
    cost = torch.rand(2, 4, 5).to(dtype).requires_grad_()
    P = optimal_transport(cost, gamma=5.0)
    assert P.dtype == dtype
    torch.testing.assert_close(P, optimal_transport(cost.detach().float(), gamma=5.0).to(dtype), rtol=0, atol=0)
    assert torch.autograd.grad(P.float().square().sum(), cost)[0].dtype == dtype


@pytest.mark.parametrize("shape", [(1, 300, 300), (16, 100, 100), (16, 120, 100)])
@pytest.mark.parametrize("gamma, most", [(1.0, 2.5), (10.0, 4), (100.0, 4), (1000.0, 4)])
def test_memory_stays_under_four_plans_also_where_factors_are_needed(shape, gamma, most):
    generator = torch.Generator().manual_seed(0)
    cost = (torch.rand if gamma < 10 else torch.randn)(shape, generator=generator).requires_grad_()
    v = torch.randn(shape, generator=generator)
    used = peak(lambda: torch.autograd.grad(optimal_transport(cost, gamma=gamma), cost, v))
    assert 0 < used / (4 * cost.numel()) < most


# Clouds


def test_divergence_of_a_cloud_from_itself_is_zero_and_of_others_positive():
    x = torch.randn(2, 6, 3, dtype=DOUBLE)
    assert sinkhorn_divergence(x, x, gamma=3.0).abs().max() < 1e-11
    assert (sinkhorn_divergence(x, x.roll(1, 0), gamma=3.0) > 0).all()
    shifted = sinkhorn_divergence(x, x + 0.5, gamma=1.0)
    torch.testing.assert_close(shifted, torch.full((2,), 0.75, dtype=DOUBLE), rtol=0, atol=1e-10)


@pytest.mark.parametrize("metric", ["squared_euclidean", "euclidean"])
def test_divergence_has_the_derivatives_of_finite_differences(metric):
    x, y = torch.randn(3, 1, dtype=DOUBLE, requires_grad=True), torch.randn(2, 1, dtype=DOUBLE, requires_grad=True)

    def value(x, y):
        return sinkhorn_divergence(x, y, gamma=1.5, metric=metric)

    assert gradcheck(value, (x, y), check_forward_ad=True)
    assert gradgradcheck(value, (x, y))


def test_clouds_without_the_matrix_are_transported_as_with_it():
    x, y = torch.randn(2, 7, 3, dtype=DOUBLE), 1 + torch.randn(2, 5, 3, dtype=DOUBLE)
    _, r, c = data(2, 7, 5)
    r[0, 1] = 0
    r = r / r.sum(1, keepdim=True)
    cost = (x[:, :, None] - y[:, None]).square().sum(-1)
    inputs = [t.requires_grad_() for t in (x, y, r, c, torch.tensor([0.2, 0.4], dtype=DOUBLE))]
    found = transport_between(*inputs, atol=1e-13)
    gamma = inputs[4]
    P = optimal_transport(cost, r, c, gamma)
    torch.testing.assert_close(found.value, transport_cost(cost, r, c, gamma, regularized=True), rtol=0, atol=1e-11)
    torch.testing.assert_close(found.cost, (P * cost).sum((1, 2)), rtol=0, atol=1e-11)
    torch.testing.assert_close(
        r[..., None] * found.transported_x, (P @ y) + (r == 0)[..., None] * 0, rtol=0, atol=1e-11
    )
    torch.testing.assert_close(c[..., None] * found.transported_y, P.mT @ x, rtol=0, atol=1e-11)
    inside = found.u[1, :, None] + found.v[1] - gamma[1] * cost[1]
    torch.testing.assert_close(inside.exp(), P[1], rtol=0, atol=1e-11)


def test_clouds_have_first_derivatives_and_refuse_second_ones():
    x, y = torch.randn(2, 4, 2, dtype=DOUBLE), torch.randn(2, 3, 2, dtype=DOUBLE)
    _, r, c = data(2, 4, 3)
    inputs = [t.requires_grad_() for t in (x, y, r, c, torch.tensor([0.1, 0.2], dtype=DOUBLE))]

    def value(x, y, r, c, gamma):
        return transport_between(x, y, r, c, gamma, normalize=True, atol=1e-13).value

    assert gradcheck(value, inputs, check_forward_ad=True)
    (slope,) = torch.autograd.grad(value(*inputs).sum(), inputs[0], create_graph=True)
    with pytest.raises(InvalidInputError, match="first order only"):
        torch.autograd.grad(slope.sum(), inputs[0])
    mapped = vmap(grad(lambda x, y: transport_between(x, y).value))(x.detach(), y.detach())
    batch = torch.autograd.grad(transport_between(x, y).value.sum(), x)[0]
    torch.testing.assert_close(mapped, batch, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_clouds_of_thousands_of_points_need_no_matrix():
    x, y = torch.randn(5000, 3), torch.randn(5000, 3)
    assert 0 < peak(lambda: transport_between(x, y, gamma=0.5)) < 0.3 * 4 * 5000**2


# Modules and mistakes


def test_the_module_is_the_function():
    cost, r, c = data()
    layer = OptimalTransport(gamma=3.0)
    torch.testing.assert_close(layer(cost, r, c), optimal_transport(cost, r, c, 3.0))
    learned = OptimalTransport(gamma=3.0, learnable_gamma=True)
    learned(cost, r, c).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in learned.parameters())
    assert learned.solve(cost, r, c).y.shape == cost.shape and "gamma" in repr(learned)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"r": torch.tensor([0.5, 0.6])}, "must have the same sum"),
        ({"r": torch.tensor([-0.5, 1.5])}, "must be non-negative"),
        ({"r": torch.ones(3) / 3}, "broadcasts to"),
        ({"r": torch.zeros(2), "normalize": True}, "must not be all zero"),
        ({"gamma": 0.0}, "must be positive"),
        ({"mass": 2.0}, "must not exceed"),
        ({"mass": 0.5, "marginal_penalty": 1.0}, "together"),
        ({"marginal_penalty": (None, None)}, "at most one None"),
    ],
)
def test_mistakes_are_told(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        optimal_transport(torch.rand(2, 3), **arguments)
