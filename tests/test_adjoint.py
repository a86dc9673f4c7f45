"""Adjoints: which gradient each gives, what singular systems get, and what it all costs."""

import pytest
import torch
from problems import CurvedAndFlat, LinearOnEllipse, SmoothBowl, randn
from test_known_answers import Sphere
from torch.autograd import gradcheck

import torchddn as ddn


def gradient(node, *x, seed=9):
    x = tuple(t.detach().requires_grad_() for t in x)
    y = node(*x)
    return torch.autograd.grad(y, x, randn(*y.shape, seed=seed).to(y.dtype))


@pytest.mark.parametrize("linear", ["auto", "lu", "cholesky", "schur", "least_squares", "minres", "gmres", "cg"])
@pytest.mark.parametrize("problem", [SmoothBowl, LinearOnEllipse, CurvedAndFlat])
def test_every_linear_method_gives_the_same_gradient(problem, linear):
    x = (
        (randn(4, 3, seed=1), 0.3 * randn(4, 3))
        if problem is LinearOnEllipse
        else (randn(4, 3 + (problem is CurvedAndFlat)),)
    )
    expected = gradient(ddn.DeclarativeNode(problem(), adjoint=ddn.Implicit(linear="least_squares")), *x)
    actual = gradient(ddn.DeclarativeNode(problem(), adjoint=ddn.Implicit(linear=linear)), *x)
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-8)


def test_the_method_asked_for_is_the_method_used():
    x = randn(4, 3).requires_grad_()
    for linear in ("lu", "cholesky", "minres"):
        node = ddn.DeclarativeNode(SmoothBowl(), adjoint=ddn.Implicit(linear=linear))
        with ddn.diagnostics() as seen:
            node(x).sum().backward()
        assert seen.records[-1].method == linear


def test_many_variables_are_differentiated_without_their_hessian():
    x = randn(2, 400).requires_grad_()
    y = ddn.argmin(lambda y, x: square_with_sums(y, x), torch.zeros(400, dtype=torch.float64), x)
    with ddn.diagnostics() as seen:
        (g,) = torch.autograd.grad(y.square().sum(), x)
    assert seen.records[0].method == "minres" and seen.records[0].residual < 1e-8
    H = torch.func.hessian(square_with_sums)(y[0].detach(), x[0].detach())
    torch.testing.assert_close(g[0], torch.linalg.solve(H, 2 * y[0].detach()), rtol=1e-7, atol=1e-8)


def square_with_sums(y, x):
    return 0.5 * (y - x).square().sum() + 0.3 * y.cumsum(0).square().mean()


def test_a_jacobian_factors_each_system_once():
    x = randn(4, 4, seed=2)
    node = ddn.DeclarativeNode(CurvedAndFlat())
    with ddn.diagnostics() as seen:
        J = torch.func.jacrev(node)(x)
    backward = [record for record in seen.records if record.stage == "backward"]
    assert [record.num_items for record in backward] == [4]
    rows = torch.stack([gradient_row(node, x, i) for i in range(4)])
    torch.testing.assert_close(torch.stack([J[b, :, b] for b in range(4)]).transpose(0, 1), rows)


def gradient_row(node, x, i):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(node(x)[:, i].sum(), x)[0]


def flat_valley(y, x):
    return 0.5 * (y.sum() - x.sum()).square()


def test_a_singular_hessian_gets_the_minimum_norm_gradient_and_a_warning():
    x = randn(3, 2).requires_grad_()
    y = ddn.argmin(flat_valley, torch.zeros(4, dtype=torch.float64), x)
    v = torch.ones_like(y)
    with pytest.warns(ddn.DegenerateGradientWarning, match=r"of 3 of 3 items is one of many.*items 0, 1, 2"):
        (g,) = torch.autograd.grad(y, x, v)
    torch.testing.assert_close(g, torch.ones_like(g), rtol=1e-10, atol=1e-10)  # y = mean of x's sum, four times


def test_raise_on_singular_names_the_items():
    x = randn(3, 2).requires_grad_()
    adjoint = ddn.Implicit(on_singular="raise")
    y = ddn.argmin(flat_valley, torch.zeros(4, dtype=torch.float64), x, adjoint=adjoint)
    with pytest.raises(ddn.SingularError, match="0, 1, 2"):
        y.sum().backward()


def test_damping_shortens_the_gradient_by_its_weight():
    x = randn(1, 2).requires_grad_()
    for damping in (1e-1, 1e-3):
        adjoint = ddn.Implicit(on_singular="damp", damping=damping)
        y = ddn.argmin(flat_valley, torch.zeros(4, dtype=torch.float64), x, adjoint=adjoint)
        with pytest.warns(ddn.DegenerateGradientWarning):
            (g,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(g, torch.full_like(g, 4 / (4 + damping)), rtol=1e-9, atol=1e-9)


def test_one_singular_item_leaves_the_gradient_of_its_mates_exact():
    def f(y, x):
        return 0.5 * x[2] * (y - x[:2]).square().sum() + 0.5 * (y.sum() - x[:2].sum()).square()

    x = torch.cat([randn(3, 2), torch.tensor([[1.0], [0.0], [2.0]], dtype=torch.float64)], dim=1).requires_grad_()
    y = ddn.argmin(f, torch.zeros(2, dtype=torch.float64), x)
    with pytest.warns(ddn.DegenerateGradientWarning, match=r"1 of 3 items is one of many.*\(items 1;"):
        (g,) = torch.autograd.grad(y[:, 0].sum(), x)
    expected = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(g[[0, 2]], expected.expand(2, 3), rtol=1e-9, atol=1e-9)


def test_redundant_constraints_leave_the_gradient_exact():
    def twice(y, x):
        h = y.sum() - x[0]
        return torch.stack([h, 3 * h, y[0] - y[1]])

    def once(y, x):
        return torch.stack([y.sum() - x[0], y[0] - y[1]])

    def node(equality):
        start = torch.zeros(3, dtype=torch.float64)
        return lambda x: ddn.argmin(lambda y, x: 0.5 * (y - x).square().sum(), start, x, equality=equality)

    x = randn(2, 3)
    torch.testing.assert_close(gradient(node(twice), x), gradient(node(once), x), rtol=1e-9, atol=1e-10)


def test_rtol_decides_what_is_certified():
    x = randn(5, 4, seed=2).requires_grad_()
    y = ddn.DeclarativeNode(CurvedAndFlat(), adjoint=ddn.Implicit(rtol=1e-30))(x)
    with pytest.warns(ddn.DegenerateGradientWarning, match="could not be certified"):
        torch.autograd.grad(y, x, randn(5, 4))


@pytest.mark.parametrize("linear", ["cg", "minres", "cholesky", "schur"])
def test_methods_for_symmetric_systems_are_refused_for_roots(linear):
    with pytest.raises(ddn.InvalidInputError, match=rf"is not symmetric, which '{linear}' needs. Use 'auto'"):
        ddn.root(lambda y, x: y - x, torch.zeros(2).double(), randn(3, 2), adjoint=ddn.Implicit(linear=linear))


def test_ignoring_constraints_is_the_gradient_of_the_lagrangian_alone():
    x = randn(3, 4)
    (g,) = gradient(ddn.DeclarativeNode(Sphere(), adjoint=ddn.IgnoreConstraints()), x)
    # L_yy = (1 + 2 nu) I with 1 + 2 nu = |x|, and L_xy = -I.
    torch.testing.assert_close(g, randn(3, 4, seed=9) / x.norm(dim=1, keepdim=True), rtol=1e-10, atol=1e-10)


def test_ignoring_constraints_changes_nothing_where_there_are_none():
    x = randn(3, 3)
    exact, approximate = (
        gradient(ddn.DeclarativeNode(SmoothBowl(), adjoint=a), x) for a in (ddn.Implicit(), ddn.IgnoreConstraints())
    )
    torch.testing.assert_close(approximate, exact)


@pytest.mark.parametrize("problem, size", [(SmoothBowl, 3), (CurvedAndFlat, 4)])
@pytest.mark.parametrize("adjoint", [ddn.Unrolled(), ddn.Unrolled(num_steps=2), ddn.OneStep()], ids=str)
def test_unrolling_and_one_step_agree_with_the_implicit_gradient_for_newton_steps(problem, size, adjoint):
    x = randn(3, size)
    node, reference = ddn.DeclarativeNode(problem(), adjoint=adjoint), ddn.DeclarativeNode(problem())
    torch.testing.assert_close(node(x), reference(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient(node, x), gradient(reference, x), rtol=1e-7, atol=1e-8)


def test_one_first_order_step_is_only_as_exact_as_it_contracts():
    x = randn(3, 3)
    solver = ddn.solvers.GradientDescent(step_size=0.1, max_steps=5000)
    exact = gradient(ddn.DeclarativeNode(SmoothBowl(), solver=solver), x)[0]
    errors = [
        (gradient(ddn.DeclarativeNode(SmoothBowl(), solver=solver, adjoint=a), x)[0] - exact).norm() / exact.norm()
        for a in (ddn.OneStep(), ddn.Unrolled(num_steps=30), ddn.Unrolled(num_steps=300))
    ]
    assert errors[0] > 0.3 > errors[1] > 1e-4 > errors[2]


def test_an_unrolled_parameter_gets_its_gradient():
    problem, x = SmoothBowl(), randn(3, 3)
    grads = []
    for adjoint in (ddn.Unrolled(), ddn.Implicit()):
        y = ddn.DeclarativeNode(problem, adjoint=adjoint)(x)
        grads.append(torch.autograd.grad(y.square().sum(), problem.weight)[0])
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-9)


def test_unrolled_runs_under_transforms():
    node = ddn.DeclarativeNode(SmoothBowl(), adjoint=ddn.Unrolled(num_steps=2))
    x = randn(2, 2, 3)
    mapped = torch.func.vmap(torch.func.grad(lambda x: node(x).square().sum()))(x)
    looped = torch.stack([torch.func.grad(lambda x: node(x).square().sum())(t) for t in x])
    torch.testing.assert_close(mapped, looped, rtol=1e-8, atol=1e-9)


def test_multipliers_are_differentiable_outputs():
    def price(x):
        return ddn.DeclarativeNode(CurvedAndFlat()).solve(x).equality_multipliers

    assert gradcheck(price, randn(2, 4, seed=2).requires_grad_(), check_forward_ad=True)


class Many(ddn.Problem):
    """n numbers pooled into m by a smooth coupling of each number with every output."""

    def __init__(self, m):
        super().__init__()
        self.m = m

    def objective(self, y, x):
        fit = 0.5 * (y.sum() - x).square().mean()
        return fit + 0.5 * y.square().sum() + 1e-3 * (x.tanh() * y.prod()).mean()

    def initial(self, x):
        return x.new_zeros(self.m)


def test_the_backward_pass_stays_under_ten_times_the_memory_of_its_input():
    from torch.profiler import ProfilerActivity, profile

    n, m = 100_000, 10
    x = torch.randn(1, n).requires_grad_()
    y = ddn.DeclarativeNode(Many(m))(x)
    v = torch.ones_like(y)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        torch.autograd.grad(y, x, v)
    live = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert 0 < peak < 10 * x.numel() * x.element_size()
