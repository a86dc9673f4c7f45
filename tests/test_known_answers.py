"""Closed forms that nodes must reproduce."""

import math

import pytest
import torch
from problems import randn

import torchddn as ddn


def jacobian(node, x):
    """``Dy`` of one item, ``(m, n)``."""
    return torch.autograd.functional.jacobian(lambda x: node(x[None])[0], x)


class Quartic(ddn.Problem):
    def objective(self, y, x):
        return x * y**4 + 2 * x**2 * y**3 - 12 * y**2

    def initial(self, x):
        return -4 * torch.ones_like(x)


@pytest.mark.parametrize(
    "x, y, dy", [(1.0, -3.3117376914898995, 0.20150257112481984), (2.0, -3.79128784747792, -0.9136634176769943)]
)
def test_left_minimum_of_a_quartic(x, y, dy):
    x = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    out = ddn.DeclarativeNode(Quartic())(x)
    torch.testing.assert_close(out.item(), y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), x)[0].item(), dy, rtol=1e-12, atol=1e-12)


def test_linear_objective_on_the_circle():
    class Circle(ddn.Problem):
        def objective(self, y, x):
            return y[0] + x * y[1]

        def equality(self, y, x):
            return y.square().sum() - 1

        def initial(self, x):
            return x.new_tensor([-0.5, -0.5])

    x = torch.tensor([-1.5, 0.0, 0.7, 3.0], dtype=torch.float64, requires_grad=True)
    solution = ddn.DeclarativeNode(Circle()).solve(x)
    size = (1 + x.detach().square()).sqrt()
    expected = -torch.stack([torch.ones(4, dtype=torch.float64), x.detach()], 1) / size[:, None]
    torch.testing.assert_close(solution.y, expected, rtol=1e-12, atol=1e-12)
    # The paper's multiplier is -sqrt(1 + x^2) / 2; ours is its negative.
    torch.testing.assert_close(solution.equality_multipliers[:, 0], size / 2, rtol=1e-12, atol=1e-12)
    slope, curve = (torch.autograd.grad(solution.y[:, i].sum(), x, retain_graph=True)[0] for i in range(2))
    torch.testing.assert_close(slope, x.detach() / size**3, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(curve, -1 / size**3, rtol=1e-12, atol=1e-12)
    (price,) = torch.autograd.grad(solution.equality_multipliers.sum(), x)
    torch.testing.assert_close(price, x.detach() / (2 * size), rtol=1e-12, atol=1e-12)


class CircleOfRadius(ddn.Problem):
    def objective(self, y, x):
        return y.sum()

    def equality(self, y, x):
        return y.square().sum() - x**2

    def initial(self, x):
        return x.new_tensor([-1.0, -1.0])


def test_circle_whose_radius_is_the_input():
    x = torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    y = ddn.DeclarativeNode(CircleOfRadius())(x)
    expected = -x.detach().abs()[:, None].expand(3, 2) / math.sqrt(2)
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)
    (g,) = torch.autograd.grad(y[:, 0].sum(), x)
    torch.testing.assert_close(g, -x.detach().sign() / math.sqrt(2), rtol=1e-11, atol=1e-11)


def test_a_circle_of_radius_zero_is_reported():
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    with pytest.warns((ddn.ConvergenceWarning, ddn.DegenerateGradientWarning)):
        torch.autograd.grad(ddn.DeclarativeNode(CircleOfRadius())(x).sum(), x)


class Sphere(ddn.Problem):
    def objective(self, y, x):
        return 0.5 * (y - x).square().sum()

    def equality(self, y, x):
        return y.square().sum() - 1.0

    def initial(self, x):
        return x


def test_projection_onto_the_sphere():
    x = torch.tensor([3.0, 4.0], dtype=torch.float64)
    expected = torch.tensor([[0.128, -0.096], [-0.096, 0.072]], dtype=torch.float64)
    torch.testing.assert_close(jacobian(ddn.DeclarativeNode(Sphere()), x), expected, rtol=1e-12, atol=1e-12)
    x = randn(5)
    y = x / x.norm()
    torch.testing.assert_close(
        jacobian(ddn.DeclarativeNode(Sphere()), x),
        (torch.eye(5, dtype=torch.float64) - torch.outer(y, y)) / x.norm(),
        rtol=1e-11,
        atol=1e-12,
    )


@pytest.mark.parametrize("error", [1e-13, 1e-10, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_gradient_hardly_notices_what_error_a_solver_left(error, dtype):
    class Careless(Sphere):
        def solve(self, x):
            return x / x.norm(dim=1, keepdim=True) * (1 + error)

    x = torch.tensor([3.0, 4.0], dtype=dtype)
    expected = torch.tensor([[0.128, -0.096], [-0.096, 0.072]], dtype=dtype)
    tolerance = max(10 * error, 1e-12 if dtype == torch.float64 else 1e-5)
    torch.testing.assert_close(jacobian(ddn.DeclarativeNode(Careless()), x), expected, rtol=0, atol=tolerance)


HYPERPLANES = {
    "one row": lambda y, x: y.sum() - 1,
    "a vector of one": lambda y, x: (y.sum() - 1)[None],
    "scaled": lambda y, x: 1e4 * (y.sum() - 1),
    "twice": lambda y, x: torch.stack([y.sum() - 1, 2 * y.sum() - 2]),
    "nonlinear": lambda y, x: y.sum().exp() - math.e,
}


@pytest.mark.parametrize("name", HYPERPLANES)
def test_hyperplane_by_every_way_of_declaring_it(name):
    def node(x):
        start = torch.zeros(4, dtype=torch.float64)
        return ddn.argmin(lambda y, x: 0.5 * (y - x).square().sum(), start, x, equality=HYPERPLANES[name])

    expected = torch.eye(4, dtype=torch.float64) - 0.25
    torch.testing.assert_close(jacobian(node, randn(4)), expected, rtol=1e-11, atol=1e-11)


def test_input_in_the_constraint_only():
    A = randn(2, 4)

    def node(x):
        return ddn.argmin(
            lambda y, x: 0.5 * y.square().sum(), torch.zeros(4, dtype=torch.float64), x, equality=lambda y, x: A @ y - x
        )

    torch.testing.assert_close(jacobian(node, randn(2)), A.T @ torch.inverse(A @ A.T), rtol=1e-11, atol=1e-11)


def test_kullback_leibler_projection_away_from_its_bounds():
    class KL(ddn.Problem):
        def objective(self, y, x):
            return (y * (y / x).log()).sum()

        def equality(self, y, x):
            return y.sum() - 1

        def initial(self, x):
            return torch.full_like(x, 1 / x.numel())

    x = randn(5).exp()
    y = x / x.sum()
    node = ddn.DeclarativeNode(KL())
    torch.testing.assert_close(node(x[None])[0], y, rtol=1e-11, atol=1e-12)
    expected = (torch.eye(5, dtype=torch.float64) - y[:, None]) / x.sum()
    torch.testing.assert_close(jacobian(node, x), expected, rtol=1e-10, atol=1e-11)


def test_smallest_eigenvalue_as_a_constrained_problem():
    x = torch.tensor([[0.50740436, 0.31461995, 0.4479928]], dtype=torch.float64)
    solution = ddn.argmin(
        lambda u, x: (x * u.square()).sum(),
        torch.tensor([0.6, -0.7, 0.1], dtype=torch.float64),
        x,
        equality=lambda u, x: torch.stack([u[0] ** 2 + u[1] ** 2 - 1, u.sum()]),
        solution=True,
    )
    torch.testing.assert_close(solution.objective.item(), 0.4007593810589066, rtol=1e-12, atol=1e-12)
    expected = torch.tensor([0.6283508, -0.7779301, 0.1495793], dtype=torch.float64)
    torch.testing.assert_close(solution.y[0] * solution.y[0, 0].sign(), expected, rtol=0, atol=1e-7)


def test_least_squares_and_ridge():
    A, b = randn(1, 8, 3), randn(1, 8, seed=1)
    A.requires_grad_(), b.requires_grad_()

    def f(y, A, b):
        return 0.5 * (A @ y - b).square().sum()

    y = ddn.argmin(f, torch.zeros(3, dtype=torch.float64), A, b)
    v = randn(1, 3, seed=2)
    dA, db = torch.autograd.grad(y, (A, b), v)
    w = torch.linalg.solve(A.detach()[0].T @ A.detach()[0], v[0])
    r = (b - torch.einsum("bij,bj->bi", A, y)).detach()[0]
    torch.testing.assert_close(dA[0], torch.outer(r, w) - torch.outer(A.detach()[0] @ w, y.detach()[0]))
    torch.testing.assert_close(db[0], A.detach()[0] @ w, rtol=1e-11, atol=1e-12)

    mu = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    X, t = A.detach(), b.detach()
    beta = ddn.argmin(
        lambda y, X, t, mu: f(y, X, t) + 0.5 * mu * y.square().sum(), torch.zeros(3, dtype=torch.float64), X, t, mu
    )
    H = X[0].T @ X[0] + 0.3 * torch.eye(3, dtype=torch.float64)
    rows = torch.stack([torch.autograd.grad(beta[0, i], mu, retain_graph=True)[0][0] for i in range(3)])
    torch.testing.assert_close(rows, -torch.linalg.solve(H, beta.detach()[0]), rtol=1e-11, atol=1e-12)


def test_least_squares_at_condition_1e3_keeps_nine_digits():
    U, _, V = torch.linalg.svd(randn(8, 3), full_matrices=False)
    A = (U * torch.tensor([1.0, 3e-2, 1e-3], dtype=torch.float64)) @ V
    b = randn(1, 8, seed=1).requires_grad_()
    y = ddn.argmin(lambda y, b: 0.5 * (A @ y - b).square().sum(), torch.zeros(3, dtype=torch.float64), b)
    v = randn(1, 3, seed=2)
    (db,) = torch.autograd.grad(y, b, v)
    expected = torch.linalg.pinv(A).T @ v[0]
    assert (db[0] - expected).norm() / expected.norm() < 1e-9


def test_quartic_node_has_its_second_derivative():
    def node(x):
        return ddn.argmin(lambda y, x: y**4 / 4 + y**2 / 2 - x * y, torch.zeros((), dtype=torch.float64), x)

    x = randn(4).requires_grad_()
    y = node(x)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    torch.testing.assert_close(first, 1 / (3 * y**2 + 1), rtol=1e-12, atol=1e-12)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    torch.testing.assert_close(second, -6 * y * first**3, rtol=1e-12, atol=1e-12)
    (third,) = torch.autograd.grad(second.sum(), x)
    torch.testing.assert_close(third, -6 * first**4 + 108 * y**2 * first**5, rtol=1e-10, atol=1e-10)


class HandedOver(ddn.Problem):
    """(y^2 - 1)^2 - x y on the first coordinate; returns whatever its user says."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def objective(self, y, x):
        return (y.square() - 1).square().sum() - 1e-3 * (x * y).sum()

    def solve(self, x):
        return self.answer.expand_as(x).clone()


@pytest.mark.parametrize(
    "answer, status",
    [
        (0.0, ddn.Status.STALLED),  # a maximum, up to the small slope
        (0.5, ddn.Status.STALLED),  # nothing
        (math.nan, ddn.Status.NON_FINITE),
        (1.0, ddn.Status.CONVERGED),
    ],
)
def test_what_a_users_own_solver_hands_over_is_checked(answer, status):
    node = ddn.DeclarativeNode(HandedOver(torch.tensor(answer, dtype=torch.float64)), on_failure="ignore")
    x = torch.zeros(2, 1, dtype=torch.float64)
    assert node.solve(x).status.tolist() == [status] * 2


def test_an_infeasible_point_handed_over_is_reported():
    class Off(Sphere):
        def solve(self, x):
            return x

    with pytest.warns(ddn.ConvergenceWarning, match="INFEASIBLE"):
        ddn.DeclarativeNode(Off())(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
