"""The examples of the papers, exactly."""

import pytest
import torch
from problems import randn
from test_known_answers import Sphere
from torch import nn

import torchddn as ddn


def test_babylonian_square_root_with_a_declarative_backward_pass():
    class SquareRoot(ddn.Problem):
        def objective(self, y, x):
            return (y.square() - x).square().sum()

        def solve(self, x):
            y = torch.ones_like(x)
            for _ in range(60):
                y = 0.5 * (y + x / y)
            return y

    x = torch.tensor([[4.0], [2.0], [0.25]], dtype=torch.float64, requires_grad=True)
    y = ddn.DeclarativeNode(SquareRoot())(x)
    torch.testing.assert_close(y, x.sqrt(), rtol=1e-14, atol=1e-14)
    (g,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(g, 0.5 / x.detach().sqrt(), rtol=1e-12, atol=1e-12)


def test_mean_pooling_as_argmin():
    x = randn(4, 7).requires_grad_()
    y = ddn.argmin(lambda y, x: 0.5 * (y - x).square().sum(), torch.zeros((), dtype=torch.float64), x)
    torch.testing.assert_close(y, x.mean(1))
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], torch.full((4, 7), 1 / 7, dtype=torch.float64))


def test_relu_as_argmin():
    # y >= 0 written as y = s^2: the decision is s, and relu(x) = s^2.
    x = torch.tensor([-2.0, -0.5, 0.3, 4.0], dtype=torch.float64, requires_grad=True)
    s = ddn.argmin(lambda s, x: 0.5 * (s.square() - x).square(), torch.ones((), dtype=torch.float64), x)
    torch.testing.assert_close(s.square(), x.relu(), rtol=1e-9, atol=1e-9)
    (g,) = torch.autograd.grad(s.square().sum(), x)
    torch.testing.assert_close(g, torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_an_imperative_layer_as_argmin_has_the_layers_own_gradient():
    layer = nn.Sequential(nn.Linear(3, 5), nn.Tanh()).double()
    x = randn(4, 3).requires_grad_()
    y = ddn.argmin(lambda u, x: 0.5 * (u - layer(x)).square().sum(), torch.zeros(5, dtype=torch.float64), x)
    torch.testing.assert_close(y, layer(x))
    v = randn(4, 5, seed=1)
    ours = torch.autograd.grad(y, (x, *layer.parameters()), v)
    theirs = torch.autograd.grad(layer(x), (x, *layer.parameters()), v)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def dense_parts(f, h, y, x, lam):
    """``H, A, B, C`` of propositions 4.4 and 4.5 for one item, with the paper's sign of the multipliers."""
    from torch.autograd.functional import hessian, jacobian

    def lagrangian(y, x):
        return f(y, x) - (lam * h(y, x)).sum()

    (H, B), _ = hessian(lagrangian, (y, x))
    A, C = jacobian(h, (y, x))
    return H, A, B, C


def test_proposition_4_4_unconstrained():
    Q = randn(4, 4)

    def f(y, x):
        return 0.5 * y @ (Q.T @ Q) @ y + (x.sin() * y[:3]).sum() + (y * x.sum()).exp().sum() * 0.1

    x = randn(2, 3, seed=1)
    y = ddn.argmin(f, torch.zeros(4, dtype=torch.float64), x)
    J = torch.autograd.functional.jacobian(lambda x: ddn.argmin(f, torch.zeros(4, dtype=torch.float64), x), x)
    for i in range(2):
        (H, B), _ = torch.autograd.functional.hessian(f, (y[i], x[i]))
        torch.testing.assert_close(J[i, :, i], -torch.linalg.solve(H, B), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("linear", ["auto", "lu", "schur", "least_squares", "minres", "gmres"])
def test_proposition_4_5_equality_constrained(linear):
    Q, R = randn(4, 4), randn(2, 4, seed=3)

    def f(y, x):
        return 0.5 * y @ (Q.T @ Q + torch.eye(4)) @ y + (x.sin() * y[:3]).sum() + 0.1 * y.exp().sum()

    def h(y, x):
        return R @ y + 0.1 * y[:2].square() - x[:2].cos() * x[2]

    def node(x):
        start = torch.zeros(4, dtype=torch.float64)
        return ddn.argmin(f, start, x, equality=h, adjoint=ddn.Implicit(linear=linear), solution=True)

    x = randn(2, 3, seed=1)
    solution = node(x)
    J = torch.autograd.functional.jacobian(lambda x: node(x).y, x)
    D = torch.autograd.functional.jacobian(lambda x: node(x).equality_multipliers, x)
    for i in range(2):
        lam = -solution.equality_multipliers[i]
        H, A, B, C = dense_parts(f, h, solution.y[i], x[i], lam)
        HA, HB = torch.linalg.solve(H, A.T), torch.linalg.solve(H, B)
        price = torch.linalg.solve(A @ HA, A @ HB - C)
        torch.testing.assert_close(J[i, :, i], HA @ price - HB, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(-D[i, :, i], price, rtol=1e-8, atol=1e-9)


def test_unnormalized_quaternion_has_the_minimum_norm_gradient():
    x = randn(1, 4).requires_grad_()
    alpha = 1.7

    class Align(ddn.Problem):
        def objective(self, u, x):
            return -(x * u).sum() / u.norm()

        def solve(self, x):
            return alpha * x

    y = ddn.DeclarativeNode(Align())(x)
    expected = alpha * (torch.eye(4, dtype=torch.float64) - torch.outer(x[0], x[0]) / x[0].square().sum())
    rows = []
    for i in range(4):
        with pytest.warns(ddn.DegenerateGradientWarning):
            rows.append(torch.autograd.grad(y[0, i], x, retain_graph=True)[0][0])
    torch.testing.assert_close(torch.stack(rows), expected.detach(), rtol=1e-10, atol=1e-10)


class TwoBranches(ddn.Problem):
    def __init__(self, start):
        super().__init__()
        self.start = start

    def objective(self, y, x):
        return torch.zeros_like(y)

    def equality(self, y, x):
        return (y - 1) ** 2 - x**2

    def initial(self, x):
        return torch.full_like(x, self.start)


@pytest.mark.parametrize("start, slope", [(-3.0, -1.0), (5.0, 1.0)])
def test_the_gradient_belongs_to_the_branch_that_was_returned(start, slope):
    x = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    y = ddn.DeclarativeNode(TwoBranches(start))(x)
    torch.testing.assert_close(y, 1 + slope * x)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], torch.full_like(x, slope))


def test_warm_start_stays_on_its_branch():
    node = ddn.DeclarativeNode(TwoBranches(-3.0), solver=ddn.solvers.WarmStart(ddn.solvers.SQP()))
    for step in range(5):
        x = torch.tensor([0.5 + 0.1 * step], dtype=torch.float64, requires_grad=True)
        y = node(x)
        torch.testing.assert_close(y, 1 - x)
        torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], -torch.ones_like(x))
        node.problem.start = 5.0  # from now on only the memory keeps it on the left


def test_two_nodes_compose_by_the_chain_rule():
    def g(z, x):
        return (z - x.sin()).square().sum() + 0.1 * z.pow(4).sum()

    def f(y, z):
        return (y - z.flip(0)).square().sum() + y.exp().sum()

    start = torch.zeros(3, dtype=torch.float64)
    x = randn(1, 3)
    z = ddn.argmin(g, start, x)
    whole = torch.autograd.functional.jacobian(lambda x: ddn.argmin(f, start, ddn.argmin(g, start, x)), x)[0, :, 0]
    outer = torch.autograd.functional.jacobian(lambda z: ddn.argmin(f, start, z), z)[0, :, 0]
    inner = torch.autograd.functional.jacobian(lambda x: ddn.argmin(g, start, x), x)[0, :, 0]
    torch.testing.assert_close(whole, outer @ inner, rtol=1e-11, atol=1e-12)


def test_a_node_inside_the_objective_of_a_node_is_differentiated_through():
    start = torch.zeros(2, dtype=torch.float64)

    def inner(z, y):
        return 0.5 * (z - y.sin()).square().sum()

    def nested(y, x):
        z = ddn.argmin(inner, start, y[None], start="item")[0]
        return 0.5 * (y - x).square().sum() + z.square().sum()

    def flat(y, x):
        return 0.5 * (y - x).square().sum() + y.sin().square().sum()

    x = randn(2, 2).requires_grad_()
    results = []
    for objective in (nested, flat):
        y = ddn.argmin(objective, start, x)
        (g,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        results.append((y, g, *torch.autograd.grad(g.square().sum(), x)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


def test_a_loss_that_is_the_nodes_own_objective_gets_nothing_through_the_node():
    def f(y, x):
        return 0.5 * (y - x).square().sum() + 0.1 * y.pow(4).sum()

    x = randn(3, 4).requires_grad_()
    y = ddn.argmin(f, torch.zeros(4, dtype=torch.float64), x)
    through = torch.func.vmap(f)(y, x).sum()
    around = torch.func.vmap(f)(y.detach(), x).sum()
    with_node, without = (torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in (through, around))
    torch.testing.assert_close(with_node, without, rtol=1e-10, atol=1e-10)


def test_a_network_of_two_declarative_and_three_imperative_layers_learns():
    class Shrink(ddn.Problem):
        def __init__(self):
            super().__init__()
            self.strength = nn.Parameter(torch.tensor(0.5))

        def objective(self, y, x):
            smooth_l1 = (y.square() + 1e-2).sqrt().sum()
            return 0.5 * (y - x).square().sum() + self.strength.exp() * 0.1 * smooth_l1

        def initial(self, x):
            return x

    torch.manual_seed(0)
    shrink = Shrink()
    network = nn.Sequential(
        nn.Linear(6, 8), ddn.DeclarativeNode(shrink), nn.Linear(8, 4), ddn.DeclarativeNode(Sphere()), nn.Linear(4, 1)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    x = torch.randn(32, 6)
    target = torch.sin(x[:, :1]) + 0.3 * x[:, 1:2]
    before, losses = shrink.strength.item(), []
    for _ in range(100):
        optimizer.zero_grad()
        loss = (network(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]
    assert shrink.strength.item() != before
