"""The single-level reformulation finds what the hypergradients find."""

import pytest
import torch

import torchddn as ddn
from torchddn.bilevel import Box, Positive, Simplex, minimize_bilevel, single_level


class Seller(ddn.Problem):
    """Sells at the price 10 - leader - q, at a cost of its own and up to a capacity."""

    def objective(self, q, leader, cost):
        return -(q * (10 - leader.sum() - q) - cost * q).sum()

    def bounds(self, leader, cost):
        return 0.0, 2.0

    def initial(self, leader, cost):
        return 0.5 + 0 * leader


class RisingCapacity(Seller):
    """A capacity that follows the leader's."""

    def bounds(self, leader, cost):
        return None, 0.25 * leader


class Row(Seller):
    """The same capacity as an inequality."""

    bounds = ddn.Problem.bounds

    def inequality(self, q, leader, cost):
        return torch.cat([q - 2.0, -q])


class Share(ddn.Problem):
    """The nearest point to a demand with the sum that theta says."""

    def objective(self, y, theta, demand):
        return 0.5 * (y - demand).square().sum() + 0.25 * y.pow(4).sum()

    def equality(self, y, theta, demand):
        return y.sum() - theta.sum()

    def initial(self, theta, demand):
        return demand


def profit(leader, q):
    return -(leader.sum() * (10 - leader.sum() - q.sum()) - leader.sum())


COSTS = torch.tensor([1.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("solver", ["InteriorPoint", "SQP"])
@pytest.mark.parametrize("kind", [Seller, Row, RisingCapacity])
def test_sellers_with_a_capacity(kind, solver):
    start = torch.tensor([4.0]).double()
    once = single_level(profit, kind(), start, data=(COSTS,), constraint=Positive(), solver=solver)
    steps = minimize_bilevel(profit, kind(), start, data=(COSTS,), constraint=Positive())
    assert once.status is ddn.Status.CONVERGED
    torch.testing.assert_close(once.theta, steps.theta, rtol=1e-6, atol=0)
    torch.testing.assert_close(once.y, steps.y, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(once.value, steps.value, rtol=1e-9, atol=0)


def test_multipliers_are_those_of_the_lower_problem():
    start = torch.tensor([2.0]).double()
    found = single_level(profit, Row(), start, data=(COSTS,), constraint=Positive())
    lower = ddn.DeclarativeNode(Row()).solve(found.theta.expand(2, 1), COSTS)
    torch.testing.assert_close(found.inequality_multipliers, lower.inequality_multipliers, rtol=1e-6, atol=1e-8)


def test_equalities_and_an_upper_simplex():
    demand = torch.tensor([[1.0, 2.0], [0.5, -1.0]]).double()
    weights = torch.tensor([0.2, 1.5]).double()

    def upper(theta, y):
        return (y - 0.7).square().sum() + (weights * theta).square().sum()

    start = torch.tensor([0.9, 0.1]).double()
    once = single_level(upper, Share(), start, data=(demand,), constraint=Simplex())
    steps = minimize_bilevel(upper, Share(), start, data=(demand,), constraint=Simplex())
    torch.testing.assert_close(once.theta, steps.theta, rtol=1e-6, atol=1e-7)
    lower = ddn.DeclarativeNode(Share()).solve(once.theta.expand(2, 2), demand)
    torch.testing.assert_close(once.equality_multipliers, lower.equality_multipliers, rtol=1e-6, atol=1e-8)


def test_a_lower_root():
    cube_root = ddn.problem.Root(lambda y, theta: y**3 - theta, torch.ones(1, 1, dtype=torch.float64))
    found = single_level(lambda theta, y: (y - 2).square().sum(), cube_root, torch.ones(1).double())
    torch.testing.assert_close(found.theta, torch.tensor([8.0]).double(), rtol=1e-6, atol=0)


def test_trees():
    problem = ddn.Problem.from_functions(
        lambda y, theta: (y["a"] - theta["u"]).square().sum() + (y["b"] - theta["v"]).square(),
        initial=lambda theta: {"a": theta["u"], "b": theta["v"]},
    )
    theta = {"u": torch.zeros(2).double(), "v": torch.zeros(()).double()}
    upper = lambda theta, y: (y["a"] - 1).square().sum() + (y["b"] + 2).square().sum()  # noqa: E731
    found = single_level(upper, problem, theta, constraint=Box(upper=0.5))
    torch.testing.assert_close(found.theta, {"u": torch.full((2,), 0.5).double(), "v": torch.tensor(-2.0).double()})
    assert found.y["a"].shape == (1, 2)


def test_a_failed_solve_is_told():
    arguments = (profit, Seller(), torch.tensor([4.0]).double())
    options = {"data": (COSTS,), "solver": ddn.solvers.InteriorPoint(max_steps=1)}
    with pytest.warns(ddn.ConvergenceWarning, match="single_level"):
        single_level(*arguments, **options)
    with pytest.raises(ddn.SolveError, match="single_level"):
        single_level(*arguments, **options, on_failure="raise")
    assert single_level(*arguments, **options, on_failure="nan").theta.isnan().all()


@pytest.mark.parametrize(
    "options",
    [
        {"lower": lambda theta, cost: theta},
        {"solver": "Simplex"},
        {"solver": "LBFGS"},
        {"theta0": 1.0},
        {"on_failure": "shout"},
        {"constraint": "positive"},
        {"data": COSTS},
    ],
)
def test_wrong_arguments_say_what_to_do(options):
    arguments = {"upper": profit, "lower": Seller(), "theta0": torch.ones(1).double(), "data": (COSTS,), **options}
    with pytest.raises(ddn.InvalidInputError):
        single_level(**arguments)
