"""Upper-level minimization: exact minima, sets, optimizers, schedules, and lower problems that fail."""

import math
import warnings

import pytest
import torch

import torchddn as ddn
from torchddn.bilevel import BFGS, Bilevel, Box, Positive, Simplex, hypergradient, minimize_bilevel
from torchddn.solvers import LBFGS

# Price 10 - q1 - q2, unit costs 1 and 2: q2 = (8 - q1) / 2, and the leader earns q1 (5 - q1 / 2).
LEADER, FOLLOWER = 5.0, 1.5


class Follower(ddn.Problem):
    def objective(self, q, leader, cost):
        return -(q * (10 - leader.sum() - q) - cost * q).sum()

    def initial(self, leader, cost):
        return 0 * leader


def profit(leader, q):
    return -(leader * (10 - leader - q.sum()) - leader).sum()


COST = torch.tensor([2.0], dtype=torch.float64)


def identity(theta):
    """The lower level that answers what it was asked."""
    return theta


@pytest.mark.parametrize("start", [0.0, 1.0, 7.0, 30.0])
@pytest.mark.parametrize("method", ["implicit", "cg", "unrolled", "one_step"])
def test_the_duopoly_has_its_closed_form(start, method):
    found = minimize_bilevel(profit, Follower(), torch.tensor([start]).double(), data=(COST,), method=method)
    torch.testing.assert_close(found.theta, torch.tensor([LEADER]).double(), rtol=1e-7, atol=0)
    torch.testing.assert_close(found.y, torch.tensor([[FOLLOWER]]).double(), rtol=1e-7, atol=0)
    assert found.status is ddn.Status.CONVERGED
    assert found.num_steps <= 3


def test_history_tells_every_step():
    found = minimize_bilevel(profit, Follower(), torch.zeros(1).double(), data=(COST,))
    assert len(found.history) == found.num_steps + 1
    assert sum(step.num_lower_solves for step in found.history) == found.num_lower_solves
    values = [step.value for step in found.history]
    assert values == sorted(values, reverse=True)
    assert values[-1] == float(found.value)
    assert found.history[-1].projected_gradient < 1e-7 < found.history[0].projected_gradient
    assert all(step.certificate < 1e-9 and math.isnan(step.lower_tolerance) for step in found.history)
    seconds = [step.seconds for step in found.history]
    assert seconds == sorted(seconds)
    torch.testing.assert_close(
        found.gradient, hypergradient(profit, Follower(), found.theta, data=(COST,)).gradient, atol=1e-7, rtol=0
    )


TARGET = torch.tensor([0.9, -0.3, 0.2, 2.0], dtype=torch.float64)
SETS = {
    "none": (None, TARGET),
    "positive": (Positive(), TARGET.clamp(min=0)),
    "positive, above": (Positive(0.25), TARGET.clamp(min=0.25)),
    "box": (Box(-0.1, 1.0), TARGET.clamp(-0.1, 1.0)),
    "box of tensors": (
        Box(torch.tensor([1.0, -1, -1, -1]).double(), None),
        TARGET.maximum(torch.tensor([1.0, -1, -1, -1])),
    ),
    "fixed": (Box(0.5, 0.5), torch.full((4,), 0.5).double()),
    "simplex": (Simplex(), ddn.functional.project_simplex(TARGET)),
}


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("optimizer", ["default", "sgd"])
def test_the_nearest_point_of_a_set_is_found(kind, optimizer):
    constraint, expected = SETS[kind]
    made = None if optimizer == "default" else lambda params: torch.optim.SGD(params, lr=0.4)
    upper = lambda theta, y: (y - TARGET).square().sum()  # noqa: E731
    found = minimize_bilevel(upper, identity, torch.full((4,), 0.3).double(), constraint=constraint, optimizer=made)
    torch.testing.assert_close(found.theta, expected, rtol=1e-7, atol=1e-7)
    assert found.status is ddn.Status.CONVERGED


def test_a_tree_has_a_set_for_each_tensor():
    theta = {"a": torch.ones(2).double(), "b": torch.full((2, 2), 0.5).double()}
    target = {"a": torch.tensor([-1.0, 3.0]).double(), "b": torch.tensor([[0.9, -0.3], [2.0, 2.0]]).double()}
    upper = lambda theta, y: sum((y[k] - target[k]).square().sum() for k in target)  # noqa: E731
    found = minimize_bilevel(upper, identity, theta, constraint={"b": Simplex(), "a": Box(upper=2.0)})
    torch.testing.assert_close(found.theta["a"], torch.tensor([-1.0, 2.0]).double())
    torch.testing.assert_close(found.theta["b"], ddn.functional.project_simplex(target["b"]))


@pytest.mark.parametrize("constraint", [None, Box(-1.0, 1.0), Simplex(5.0)])
def test_hundreds_of_upper_variables(constraint):
    n = 400
    scale = torch.linspace(1, 20, n).double()
    target = torch.linspace(-1.5, 1.5, n).double()
    upper = lambda theta, y: (scale * (y - target).square()).sum()  # noqa: E731
    found = minimize_bilevel(
        upper, identity, torch.full((n,), 5.0 / n).double(), constraint=constraint, rtol=1e-9, max_steps=500
    )
    if constraint is None:
        expected = target
    elif isinstance(constraint, Box):
        expected = target.clamp(-1, 1)
    else:
        Q, q = torch.diag(2 * scale)[None], (-2 * scale * target)[None]
        ones, total = torch.ones(1, 1, n).double(), torch.full((1, 1), 5.0).double()
        expected = ddn.functional.quadratic_program(Q, q, ones, total, lower=0.0)[0]
    torch.testing.assert_close(found.theta, expected, rtol=1e-6, atol=1e-6)


def test_quasi_newton_steps_are_few_where_the_scales_are_far_apart():
    scale = torch.logspace(0, 4, 8).double()
    upper = lambda theta, y: (scale * (y.cosh() - 0.3 * y)).sum()  # noqa: E731
    found = minimize_bilevel(upper, identity, torch.ones(8).double(), rtol=1e-10)
    torch.testing.assert_close(found.theta, torch.full((8,), math.asinh(0.3)).double(), rtol=1e-5, atol=0)
    assert found.num_lower_solves < 80


def test_plain_gradient_descent_takes_the_very_steps_of_the_report():
    theta, lr = torch.tensor([1.0]).double(), 0.05
    found = minimize_bilevel(
        profit,
        Follower(),
        theta,
        data=(COST,),
        optimizer=lambda params: torch.optim.SGD(params, lr=lr),
        max_steps=7,
        on_failure="ignore",
    )
    for _ in range(7):
        theta = theta - lr * hypergradient(profit, Follower(), theta, data=(COST,)).gradient
    torch.testing.assert_close(found.theta, theta)
    assert (found.num_steps, found.num_lower_solves) == (7, 8)
    assert found.status is ddn.Status.MAX_STEPS


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda params: torch.optim.Adam(params, lr=0.5),
        lambda params: torch.optim.LBFGS(params, line_search_fn="strong_wolfe"),
        BFGS(history=3),
    ],
)
def test_any_optimizer_of_torch_gets_there(optimizer):
    found = minimize_bilevel(
        profit, Follower(), torch.ones(1).double(), data=(COST,), optimizer=optimizer, constraint=Positive(), rtol=1e-4
    )
    torch.testing.assert_close(found.theta, torch.tensor([LEADER]).double(), rtol=1e-3, atol=0)


def test_followers_are_one_batch():
    costs = torch.tensor([2.0, 3.0, 4.0]).double()
    upper = lambda leader, q: (q.sum() - 4.0).square() + 0.1 * leader.square().sum()  # noqa: E731
    found = minimize_bilevel(upper, Follower(), torch.zeros(1).double(), data=(costs,))
    # q_i = (10 - leader - cost_i) / 2, so that sum(q) - 4 = 6.5 - 1.5 leader.
    torch.testing.assert_close(found.theta, torch.tensor([1.5 * 6.5 / (1.5**2 + 0.1)]).double(), rtol=1e-7, atol=0)
    assert found.y.shape == (3, 1)


def test_float32():
    found = minimize_bilevel(profit, Follower(), torch.ones(1), data=(COST.float(),))
    assert found.theta.dtype == torch.float32
    torch.testing.assert_close(found.theta, torch.tensor([LEADER]), rtol=1e-3, atol=0)


def test_a_minimum_at_the_start_needs_no_step():
    found = minimize_bilevel(profit, Follower(), torch.tensor([0.0]).double(), data=(COST,), constraint=Box(0.0, 0.0))
    assert (found.num_steps, found.num_lower_solves) == (0, 1)
    assert found.status is ddn.Status.CONVERGED


# A follower who is unbounded as soon as theta is not positive: f = theta y^2 / 2 - y, y = 1 / theta.
STEEP = ddn.Problem.from_functions(
    lambda y, theta: (0.5 * theta * y.square() - y).sum(), initial=torch.ones(1, 1, dtype=torch.float64)
)


def toward_zero(theta, y):
    return (theta - 0.01).square().sum() + 1e-6 * y.square().sum()


def test_steps_to_lower_problems_that_fail_are_shortened():
    # From 5 the first trial and several more land where there is no lower solution.
    found = minimize_bilevel(
        lambda theta, y: theta.sum() + 1e-4 * y.sum(), STEEP, torch.tensor([5.0]).double(), max_steps=60
    )
    torch.testing.assert_close(found.theta, torch.tensor([0.01]).double(), rtol=1e-5, atol=0)
    assert found.num_refused > 0
    assert found.status is ddn.Status.CONVERGED
    assert all(step.value > 0 for step in found.history)


def test_a_torch_optimizer_is_held_back_too():
    found = minimize_bilevel(
        lambda theta, y: theta.sum() + 1e-4 * y.sum(),
        STEEP,
        torch.tensor([0.5]).double(),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.7),
        max_steps=5,
        on_failure="ignore",
    )
    assert found.num_refused > 0
    assert float(found.theta) > 0


def test_a_bad_point_may_raise():
    with pytest.raises(ddn.SolveError, match="lower problems ended as"):
        minimize_bilevel(
            lambda theta, y: theta.sum() + 1e-4 * y.sum(),
            STEEP,
            torch.tensor([5.0]).double(),
            on_bad_gradient="raise",
        )


def test_a_bad_point_may_be_ignored():
    flat = ddn.Problem.from_functions(
        lambda y, theta: (y.sum() - theta.sum()).square(), initial=torch.zeros(1, 2, dtype=torch.float64)
    )
    upper = lambda theta, y: (y.sum() - 3.0).square()  # noqa: E731
    start = torch.zeros(1).double()
    found = minimize_bilevel(upper, flat, start, on_bad_gradient="ignore")
    torch.testing.assert_close(found.theta, torch.tensor([3.0]).double(), rtol=1e-6, atol=0)
    refused = minimize_bilevel(upper, flat, start, on_failure="ignore")
    assert refused.num_steps == 0
    assert "not isolated" in refused.message
    torch.testing.assert_close(refused.theta, start)


def test_a_bad_start_is_the_result_with_the_status_of_the_lower_problem():
    found = minimize_bilevel(toward_zero, STEEP, torch.tensor([-1.0]).double(), on_failure="ignore")
    assert found.status in (ddn.Status.UNBOUNDED, ddn.Status.STALLED, ddn.Status.NON_FINITE)
    assert "the start is bad" in found.message
    assert found.num_steps == 0


def test_an_upper_objective_that_is_not_finite_is_refused():
    # The minimum is at 1e-3, and below zero the logarithm is NaN.
    upper = lambda theta, y: (y - 1e-3 * y.log()).sum()  # noqa: E731
    found = minimize_bilevel(upper, identity, torch.tensor([2.0]).double())
    torch.testing.assert_close(found.theta, torch.tensor([1e-3]).double(), rtol=1e-5, atol=0)
    assert found.num_refused > 0


def test_a_result_that_is_no_minimum_is_told():
    arguments = (profit, Follower(), torch.ones(1).double())
    with pytest.warns(ddn.ConvergenceWarning, match="MAX_STEPS after 1 steps"):
        minimize_bilevel(*arguments, data=(COST,), max_steps=1)
    with pytest.raises(ddn.SolveError, match="MAX_STEPS"):
        minimize_bilevel(*arguments, data=(COST,), max_steps=1, on_failure="raise")
    lost = minimize_bilevel(*arguments, data=(COST,), max_steps=1, on_failure="nan")
    assert lost.theta.isnan().all()
    assert lost.y.isnan().all()


def test_no_minimum_below_is_told():
    with pytest.warns(ddn.ConvergenceWarning):
        found = minimize_bilevel(lambda theta, y: -y.exp().sum(), identity, torch.zeros(1).double(), max_steps=50)
    assert found.status is not ddn.Status.CONVERGED


def test_lower_solves_start_where_the_last_one_ended():
    class Far(ddn.Problem):
        def objective(self, y, theta):
            return (y - theta).cosh().sum()

        def initial(self, theta):
            return theta + 3.0

    upper = lambda theta, y: (y - 1.0).square().sum()  # noqa: E731
    found = minimize_bilevel(upper, Far(), torch.tensor([1.01]).double())
    cold = hypergradient(upper, Far(), found.theta).num_steps
    assert found.history[0].lower_steps == int(cold)
    assert found.history[-1].lower_steps < found.history[-1].num_lower_solves * int(cold)


def large_pair(num_variables=400):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(60, num_variables, generator=generator, dtype=torch.float64) / num_variables**0.5
    w = torch.randn(num_variables, generator=generator, dtype=torch.float64)
    w[num_variables // 2 :] = 0
    t = torch.sign(X @ w)
    X_val = torch.randn(60, num_variables, generator=generator, dtype=torch.float64) / num_variables**0.5
    t_val = torch.sign(X_val @ w)
    problem = ddn.Problem.from_functions(
        lambda y, theta: (
            torch.nn.functional.softplus(-t * (X @ y)).sum()
            + 0.5 * (theta.exp()[:, None] * y.square().view(2, -1)).sum()
        ),
        initial=lambda theta: theta.new_zeros(num_variables),
    )
    upper = lambda theta, y: torch.nn.functional.softplus(-t_val * (X_val @ y[0])).sum()  # noqa: E731
    return Bilevel(upper, ddn.DeclarativeNode(problem, solver=LBFGS()), constraint=Box(-6.0, 6.0))


def test_lower_solves_are_as_exact_as_the_upper_level_needs():
    pair, start = large_pair(), torch.zeros(2).double()
    inexact = minimize_bilevel(pair, None, start, method="cg", rtol=1e-5)
    at_the_end = hypergradient(pair, None, inexact.theta, method="cg", rtol=1e-8).gradient
    assert abs(float(at_the_end[0])) < 1.2e-5 * max(step.projected_gradient for step in inexact.history)
    assert float(inexact.theta[1]) == 6.0
    assert float(at_the_end[1]) < 0
    tolerances = [step.lower_tolerance for step in inexact.history]
    assert tolerances == sorted(tolerances, reverse=True)
    assert tolerances[0] > 1e3 * tolerances[-1]
    assert all(step.error <= 0.1 * step.projected_gradient or step.error < 1e-8 for step in inexact.history)
    exact = minimize_bilevel(pair, None, start, method="cg", lower_rtol=None, max_steps=3, on_failure="ignore")
    steps = [sum(step.lower_steps for step in found.history[:4]) for found in (exact, inexact)]
    assert steps[1] < 0.5 * steps[0]


def test_the_first_lower_tolerance_is_a_choice():
    found = minimize_bilevel(
        large_pair(), None, torch.zeros(2).double(), lower_rtol=1e-6, max_steps=0, on_failure="ignore"
    )
    assert found.history[0].lower_tolerance <= 1e-6


THETA = torch.ones(1).double()
WRONG = {
    "theta0": ({"theta0": 1.0}, "theta"),
    "constraint": ({"constraint": Positive}, "Positive()"),
    "constraint tree": ({"constraint": (Positive(), Positive())}, "constraint"),
    "constraint shape": ({"constraint": Box(torch.zeros(3), None)}, "broadcast"),
    "optimizer": ({"optimizer": "adam"}, "optimizer"),
    "optimizer object": ({"optimizer": torch.optim.SGD([torch.ones(1)], lr=0.1)}, "optimizer"),
    "optimizer that makes none": ({"optimizer": lambda params: params}, "optimizer"),
    "method": ({"method": "newton"}, "method"),
    "max_steps": ({"max_steps": -1}, "max_steps"),
    "max_steps float": ({"max_steps": 3.0}, "max_steps"),
    "rtol": ({"rtol": 0.0}, "rtol"),
    "atol": ({"atol": -1.0}, "atol"),
    "lower_rtol": ({"lower_rtol": "loose"}, "lower_rtol"),
    "lower_rtol number": ({"lower_rtol": 2.0}, "lower_rtol"),
    "on_bad_gradient": ({"on_bad_gradient": "warn"}, "'shorten'"),
    "on_failure": ({"on_failure": "shorten"}, "on_failure"),
    "NaN": ({"theta0": torch.tensor([math.nan])}, "not finite"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_say_what_to_do(case):
    options, word = WRONG[case]
    arguments = {"theta0": THETA, "data": (COST,), **options}
    if case == "NaN":
        arguments["theta0"] = arguments["theta0"].double()
    with pytest.raises(ddn.InvalidInputError, match=r"`\w+") as raised:
        minimize_bilevel(profit, Follower(), **arguments)
    assert word in str(raised.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Positive(-1.0),
        lambda: Positive(math.nan),
        lambda: Positive("0"),
        lambda: Box("0"),
        lambda: Box(math.nan),
        lambda: Box(1.0, 0.0),
        lambda: Box(torch.tensor([math.nan])),
        lambda: Simplex(0.0),
        lambda: Simplex(torch.ones(1)),
        lambda: Simplex().project(torch.ones(())),
        lambda: BFGS(history=0),
        lambda: BFGS(max_trials=0),
        lambda: BFGS(search="wolfe"),
    ],
)
def test_wrong_sets_and_optimizers_say_what_to_do(make):
    with pytest.raises(ddn.InvalidInputError, match=r"`\w+\("):
        make()


def test_nothing_is_warned_of_on_the_way():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = minimize_bilevel(lambda theta, y: theta.sum() + 1e-4 * y.sum(), STEEP, torch.tensor([5.0]).double())
    assert found.status is ddn.Status.CONVERGED
