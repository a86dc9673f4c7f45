"""The active set: decided by comparison, free of scales; multipliers and answers of a user's own solver."""

import pytest
import torch
from torch import Tensor

import torchddn as ddn


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def project(x, scale_f=1.0, scale_g=1.0, **options):
    return ddn.argmin(
        lambda y, x: scale_f * 0.5 * (y - x).square().sum(),
        torch.full((x.shape[1],), 0.1, dtype=x.dtype),
        x,
        inequality=lambda y, x: scale_g * (y.square().sum() - 1.0),
        start="item",
        **options,
    )


def expected(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True).clamp(min=1)


@pytest.mark.parametrize("scale_f", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("scale_g", [1e-6, 1.0, 1e6])
def test_no_scale_of_objective_or_row_changes_what_is_active(scale_f, scale_g, randn):
    x = (2 * randn(20, 3)).requires_grad_()
    y = project(x, scale_f, scale_g)
    torch.testing.assert_close(y, expected(x), rtol=1e-9, atol=1e-9)
    v = randn(20, 3)
    (g,) = torch.autograd.grad(y, x, v)
    torch.testing.assert_close(g, torch.autograd.grad(expected(x), x, v)[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("error", [0.0, 1e-13, 1e-10, 1e-8, 1e-6])
def test_error_of_a_users_own_solver_does_not_decide_what_is_active(error, randn):
    class Ball(ddn.Problem):
        def objective(self, y, x):
            return 0.5 * (y - x).square().sum()

        def inequality(self, y, x):
            return y.square().sum() - 1.0

        def initial(self, x):
            return torch.zeros_like(x)

        def solve(self, x):
            noise = torch.sin(torch.arange(x.numel(), dtype=x.dtype) ** 2).reshape(x.shape)
            return expected(x) + error * noise

    x = (2 * randn(50, 3)).requires_grad_()
    y = ddn.DeclarativeNode(Ball())(x)
    torch.testing.assert_close(y, expected(x), rtol=1e-11, atol=1e-11)  # polished
    v = randn(50, 3)
    (g,) = torch.autograd.grad(y, x, v)
    torch.testing.assert_close(g, torch.autograd.grad(expected(x), x, v)[0], rtol=1e-9, atol=1e-9)


def test_float32_gets_every_active_set_right():
    x = (2 * torch.randn(200, 3)).requires_grad_()
    y = project(x)
    v = torch.randn(200, 3)
    (g,) = torch.autograd.grad(y, x, v)
    torch.testing.assert_close(y, expected(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(g, torch.autograd.grad(expected(x), x, v)[0], rtol=1e-3, atol=1e-4)


def test_multipliers_solve_the_stationarity_condition(randn):
    x = randn(10, 4)
    solution = ddn.argmin(
        lambda y, x: 0.5 * (y - x).square().sum(),
        torch.full((4,), 0.25, dtype=x.dtype),
        x,
        equality=lambda y, x: y.sum() - 1.0,
        inequality=lambda y, x: torch.stack([y[0] - 0.3, y[1] - y[2] - 0.1]),
        bounds=(0.0, 0.5),
        start="item",
        solution=True,
    )
    assert (solution.status == ddn.Status.CONVERGED).all()
    nu, lam = solution.equality_multipliers, solution.inequality_multipliers
    lower, upper = solution.lower_multipliers, solution.upper_multipliers
    assert min(part.min() for part in (lam, lower, upper)) >= 0
    g_y = tensor([1.0, 0.0, 0.0, 0.0], [0.0, 1.0, -1.0, 0.0])
    stationary = solution.y - x + nu + lam @ g_y - lower + upper
    assert stationary.abs().max() < 1e-11
    assert torch.maximum(solution.stationarity, solution.feasibility).max() < 1e-11
    assert solution.complementarity.max() < 1e-11
    assert (lower * solution.y).abs().max() < 1e-11 and (upper * (0.5 - solution.y)).abs().max() < 1e-11


def test_shadow_price_is_the_derivative_of_the_optimal_value(randn):
    # d f* / d(right-hand side) = -lam, and the price itself has a derivative: that of the value of second order.
    x, limit = randn(5, 3) + 1.0, torch.full((5,), 0.5, dtype=torch.float64, requires_grad=True)

    def node(limit):
        f = lambda y, x, limit: 0.5 * (y - x).square().sum() + 0.1 * y.pow(4).sum()  # noqa: E731
        g = lambda y, x, limit: y.sum() - limit  # noqa: E731
        start = torch.zeros(3, dtype=x.dtype)
        return ddn.argmin(f, start, x, limit, inequality=g, start="item", solution=True)

    solution = node(limit)
    value = (0.5 * (solution.y - x).square() + 0.1 * solution.y.pow(4)).sum()
    (slope,) = torch.autograd.grad(value, limit, create_graph=True)
    torch.testing.assert_close(slope, -solution.inequality_multipliers[:, 0])
    (second,) = torch.autograd.grad(slope.sum(), limit)
    (price,) = torch.autograd.grad(-node(limit).inequality_multipliers.sum(), limit)
    torch.testing.assert_close(second, price, rtol=1e-8, atol=1e-9)


class OwnBall(ddn.Problem):
    """Projection onto the ball whose ``solve`` returns what the test says."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def objective(self, y, x):
        return 0.5 * (y - x).square().sum()

    def inequality(self, y, x):
        return y.square().sum() - 1.0

    def initial(self, x):
        return torch.zeros_like(x)

    def solve(self, x):
        return self.answer(x)


def multiplier(x):
    return 0.5 * (x.norm(dim=1, keepdim=True) - 1)


def test_own_solver_may_hand_over_its_multipliers():
    x = tensor([3.0, 4.0], [0.0, 2.0])
    node = ddn.DeclarativeNode(OwnBall(lambda x: ddn.PrimalDual(expected(x), inequality_multipliers=multiplier(x))))
    solution = node.solve(x)
    assert solution.status.eq(0).all()
    torch.testing.assert_close(solution.inequality_multipliers, multiplier(x))


@pytest.mark.parametrize(
    "answer, status",
    [
        (lambda x: -expected(x), "STALLED"),  # the farthest point: stationary, but the multiplier has the wrong sign
        (lambda x: ddn.PrimalDual(expected(x), inequality_multipliers=-multiplier(x)), "STALLED"),
        (lambda x: 1.5 * expected(x), "INFEASIBLE"),
        (lambda x: 0.5 * expected(x), "STALLED"),
        (lambda x: torch.full_like(x, torch.nan), "NON_FINITE"),
    ],
)
def test_wrong_answer_of_an_own_solver_is_reported(answer, status):
    x = tensor([3.0, 4.0], [0.0, 2.0])
    with pytest.warns(ddn.ConvergenceWarning, match="2 of 2 items did not converge"):
        solution = ddn.DeclarativeNode(OwnBall(answer)).solve(x)
    assert [ddn.Status(code).name for code in solution.status.tolist()] == [status] * 2


def test_multipliers_of_another_shape_are_refused():
    node = ddn.DeclarativeNode(OwnBall(lambda x: ddn.PrimalDual(expected(x), inequality_multipliers=x)))
    with pytest.raises(ddn.InvalidInputError, match=r"`inequality_multipliers` of shape \(2, 2\), expected \(2, 1\)"):
        node(tensor([3.0, 4.0], [0.0, 2.0]))


def test_polishing_that_moves_an_answer_far_is_reported():
    x = tensor([3.0, 4.0], [0.2, 0.1])

    sloppy = ddn.solvers.GradientDescent(rtol=0.05)
    f = lambda y, x: 0.5 * ((y - x) * tensor(1.0, 5.0)).square().sum()  # noqa: E731
    with ddn.diagnostics() as seen, pytest.warns(ddn.ConvergenceWarning, match="polishing moved"):
        y = ddn.argmin(f, torch.zeros(2, dtype=x.dtype), x, solver=sloppy, start="item")
    torch.testing.assert_close(y, x)
    assert "polishing moved" in seen.records[0].notes[0]


@pytest.mark.parametrize(
    "bounds",
    [
        (0.0, 1.0),
        (torch.zeros(3, dtype=torch.float64), None),
        (torch.zeros(5, 3, dtype=torch.float64), torch.ones(5, 1, dtype=torch.float64)),
        (torch.zeros(3), torch.ones(1, dtype=torch.int64)),
        lambda x: (torch.zeros_like(x), x.new_ones(())),
        lambda x: (None, 1.0),
        (None, None),
        (-torch.inf, torch.inf),
    ],
    ids=["numbers", "item", "batch", "float32 and int", "function", "one side", "none", "infinite"],
)
def test_bounds_may_be_stated_in_many_ways(bounds, randn):
    x = randn(5, 3)
    y = ddn.argmin(lambda y, x: (y - x).square().sum(), torch.full((3,), 0.5, dtype=x.dtype), x, bounds=bounds)
    low, high = bounds(x[0]) if callable(bounds) else bounds
    expected = x if low is None else torch.maximum(x, torch.as_tensor(low))
    expected = expected if high is None else torch.minimum(expected, torch.as_tensor(high))
    torch.testing.assert_close(y, expected, atol=1e-10, rtol=0)


def test_bounds_of_nested_decisions(randn):
    x = randn(4, 3)
    y = ddn.argmin(
        lambda y, x: (y["a"] - x).square().sum() + (y["b"] - x.sum()).square(),
        {"a": torch.zeros(3, dtype=x.dtype), "b": torch.zeros((), dtype=x.dtype)},
        x,
        bounds=({"a": -0.5, "b": None}, {"a": torch.full((3,), 0.2, dtype=x.dtype), "b": 0.1}),
    )
    torch.testing.assert_close(y["a"], x.clamp(-0.5, 0.2), atol=1e-10, rtol=0)
    torch.testing.assert_close(y["b"], x.sum(1).clamp(max=0.1), atol=1e-10, rtol=0)


def test_gradient_reaches_tensors_that_bounds_are_made_of(randn):
    x, limit = randn(6, 3), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    y = ddn.argmin(lambda y, x: (y - x).square().sum(), torch.zeros(3, dtype=x.dtype), x, bounds=(-limit, limit))
    (g,) = torch.autograd.grad(y.sum(), limit)
    torch.testing.assert_close(g, ((x > 0.3).sum() - (x < -0.3).sum()).double())


def test_equal_bounds_fix_a_variable(randn):
    x = randn(4, 2)
    solution = ddn.argmin(
        lambda y, x: 0.5 * (y - x).square().sum() + y.prod(),
        torch.zeros(2, dtype=x.dtype),
        x,
        bounds=lambda x: (torch.stack([x[1], -x.new_ones(()) * 9]), torch.stack([x[1], x.new_ones(()) * 9])),
        solution=True,
    )
    torch.testing.assert_close(solution.y, torch.stack([x[:, 1], torch.zeros(4, dtype=x.dtype)], 1), atol=1e-10, rtol=0)
    force = x[:, 1] - x[:, 0]  # of the objective along the fixed variable: a price of one sign or the other
    torch.testing.assert_close(solution.lower_multipliers[:, 0], force.clamp(min=0), atol=1e-10, rtol=0)
    torch.testing.assert_close(solution.upper_multipliers[:, 0], (-force).clamp(min=0), atol=1e-10, rtol=0)
