"""Hypergradients: exact by every route, certified, and refused where they are worth nothing."""

import math
import warnings

import pytest
import torch

import torchddn as ddn
from torchddn.bilevel import Bilevel, hypergradient
from torchddn.solvers import LBFGS, GradientDescent

NUM_FOLDS, NUM_ROWS, NUM_FEATURES = 3, 12, 4


class Ridge(ddn.Problem):
    """Of one fold, with one penalty or one for each feature, in log scale."""

    def objective(self, y, theta, X, t):
        return 0.5 * (X @ y - t).square().sum() + 0.5 * (theta.exp() * y.square()).sum()

    def initial(self, theta, X, t):
        return X.new_zeros(X.shape[1])


class ClosedRidge(Ridge):
    def solve(self, theta, X, t):
        penalty = torch.diag_embed(theta.exp().expand(X.shape[0], X.shape[-1]))
        return torch.linalg.solve(X.mT @ X + penalty, (X.mT @ t[..., None]))[..., 0]


class Capped(ddn.Problem):
    """The nearest point to theta that is at most ``cap``."""

    def objective(self, y, theta, cap):
        return 0.5 * (y - theta).square().sum()

    def inequality(self, y, theta, cap):
        return y - cap

    def initial(self, theta, cap):
        return torch.zeros_like(theta)


def folds():
    X, t = torch.randn(NUM_FOLDS, NUM_ROWS, NUM_FEATURES).double(), torch.randn(NUM_FOLDS, NUM_ROWS).double()
    X_val, t_val = torch.randn(NUM_FOLDS, 7, NUM_FEATURES).double(), torch.randn(NUM_FOLDS, 7).double()

    def upper(theta, y):
        return 0.5 * ((X_val @ y[..., None])[..., 0] - t_val).square().sum() + 0.1 * theta.square().sum()

    return upper, (X, t)


def exact(upper, theta, data):
    return torch.func.jacrev(lambda theta: upper(theta, ClosedRidge().solve(theta.expand(NUM_FOLDS, -1), *data)))(theta)


def test_the_derivative_of_ridge_regression_is_that_of_the_report():
    X, t = torch.randn(1, 30, 5).double(), torch.randn(1, 30).double()
    v = torch.randn(5).double()
    for mu in (0.1, 3.0, 800.0):
        theta = torch.tensor([mu]).double()
        problem = ddn.Problem.from_functions(
            lambda y, mu, X, t: 0.5 * (X @ y - t).square().sum() + 0.5 * mu.sum() * y.square().sum(),
            initial=torch.zeros(1, 5).double(),
        )
        found = hypergradient(lambda _, y: (y @ v).sum(), problem, theta, data=(X, t))
        inverse = torch.linalg.inv(X[0].T @ X[0] + mu * torch.eye(5).double())
        beta = inverse @ X[0].T @ t[0]
        torch.testing.assert_close(found.gradient, -(v @ inverse @ beta)[None], rtol=1e-9, atol=1e-14)
        assert found.certificate < 1e-10


@pytest.mark.parametrize("method", ["implicit", "cg", "unrolled", "one_step", "substitution"])
def test_every_method_agrees_with_the_direct_solve(method):
    upper, data = folds()
    theta = torch.linspace(-1, 1, NUM_FEATURES).double()
    lower = ClosedRidge() if method == "substitution" else Ridge()
    found = hypergradient(upper, lower, theta, data=data, method=method)
    torch.testing.assert_close(found.gradient, exact(upper, theta, data), rtol=1e-8, atol=1e-10)
    assert found.method == method
    assert not found.objection
    assert found.y.shape == (NUM_FOLDS, NUM_FEATURES)


def test_hypergradients_agree_with_finite_differences():
    upper, data = folds()
    pair = Bilevel(upper, Ridge(), data=data)
    theta, d = torch.zeros(NUM_FEATURES).double(), torch.randn(NUM_FEATURES).double()
    slope = (pair.value(theta + 1e-5 * d) - pair.value(theta - 1e-5 * d)) / 2e-5
    torch.testing.assert_close(hypergradient(pair, None, theta).gradient @ d, slope, rtol=1e-8, atol=1e-8)


def test_the_value_is_differentiable_twice():
    upper, data = folds()
    pair = Bilevel(upper, Ridge(), data=data)
    theta = (0.3 * torch.randn(NUM_FEATURES)).double().requires_grad_()
    assert torch.autograd.gradcheck(pair.value, (theta,))
    assert torch.autograd.gradgradcheck(pair.value, (theta,))


def test_trees_and_float32():
    _, (X, t) = folds()
    X, t = X.float(), t.float()
    problem = ddn.Problem.from_functions(
        lambda y, theta, X, t: (
            0.5 * (X @ y["w"] + y["b"] - t).square().sum() + theta["slope"].exp() * y["w"].square().sum()
        ),
        initial=lambda theta, X, t: {"w": torch.zeros(NUM_FEATURES), "b": torch.zeros(())},
    )
    theta = {"slope": torch.zeros(()), "unused": torch.ones(2)}
    found = hypergradient(lambda theta, y: y["w"].square().sum() + theta["unused"].sum(), problem, theta, data=(X, t))
    assert set(found.gradient) == {"slope", "unused"}
    assert found.gradient["slope"].dtype == torch.float32
    assert found.gradient["slope"] < 0
    torch.testing.assert_close(found.gradient["unused"], torch.ones(2))


def test_constraints_of_the_lower_problem_count():
    theta = torch.tensor([0.5, 3.0, -1.0]).double()
    cap = torch.tensor([[1.0], [2.0]]).double()
    weights = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).double()
    found = hypergradient(lambda _, y: (weights * y).sum(), Capped(), theta, data=(cap,))
    torch.testing.assert_close(found.y, torch.minimum(theta.expand(2, 3), cap))
    torch.testing.assert_close(found.gradient, torch.tensor([5.0, 0.0, 9.0]).double())
    assert not found.one_sided


def test_a_kink_is_told():
    theta, cap = torch.tensor([1.0]).double(), torch.tensor([[1.0]]).double()
    with pytest.warns(ddn.DegenerateGradientWarning, match="one-sided"):
        found = hypergradient(lambda _, y: y.sum(), Capped(), theta, data=(cap,))
    assert found.one_sided
    assert not found.objection


def test_the_adjoint_of_the_node_is_used():
    theta, cap = torch.tensor([1.0]).double(), torch.tensor([[1.0]]).double()
    node = ddn.DeclarativeNode(Capped(), adjoint=ddn.Implicit(weakly_active="inactive"))
    with pytest.warns(ddn.DegenerateGradientWarning, match="one-sided"):
        assert float(hypergradient(lambda _, y: y.sum(), node, theta, data=(cap,)).gradient) == 1.0
    upper, data = folds()
    node = ddn.DeclarativeNode(Ridge(), adjoint=ddn.OneStep())
    found = hypergradient(upper, node, torch.zeros(NUM_FEATURES).double(), data=data)
    assert math.isnan(found.certificate)
    assert not found.objection


def test_a_root_and_a_function_are_lower_levels_too():
    theta = torch.tensor([8.0]).double()
    upper = lambda theta, y: y.sum()  # noqa: E731
    cube_root = ddn.DeclarativeNode(
        ddn.problem.Root(lambda y, theta: y**3 - theta, torch.ones(1, 1, dtype=torch.float64))
    )
    expected = torch.tensor([8.0 ** (-2 / 3) / 3]).double()
    torch.testing.assert_close(hypergradient(upper, cube_root, theta).gradient, expected)
    found = hypergradient(upper, lambda theta: theta ** (1 / 3), theta)
    torch.testing.assert_close(found.gradient, expected)
    assert found.method == "substitution"


def test_a_function_may_return_a_solution_whose_status_counts():
    def lower(theta):
        eye = torch.eye(2).double()[None]
        rows = {"G": torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]).double(), "h": -torch.ones(1, 2).double()}
        return ddn.functional.quadratic_program(eye, theta[None], **rows, infeasible="closest", solution=True)

    found = hypergradient(lambda theta, y: y.nan_to_num().sum() + theta.sum(), lower, torch.ones(2).double())
    assert found.status.tolist() == [ddn.Status.INFEASIBLE]
    assert "INFEASIBLE" in found.objection


def test_the_shortcut_is_taken_where_the_lower_objective_is_the_only_term():
    _, data = folds()
    theta = torch.linspace(-1, 1, NUM_FEATURES).double()
    value = torch.func.vmap(Ridge().objective, (0, None, 0, 0))
    weights = torch.tensor([1.0, -2.0, 3.0]).double()

    def only(theta, y):
        return (weights * value(y, theta, *data)).sum().square() + theta.sum()

    found = hypergradient(only, Ridge(), theta, data=data, estimate_error=True)
    assert (found.method, found.certificate, found.error) == ("shortcut", 0.0, 0.0)
    y = ClosedRidge().solve(theta.expand(NUM_FOLDS, -1), *data)
    torch.testing.assert_close(found.gradient, torch.func.jacrev(lambda theta: only(theta, y))(theta))
    torch.testing.assert_close(found.gradient, exact(only, theta, data), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "more",
    [
        lambda y: 1e-3 * y.sum(),  # another term
        lambda y: (y.sum() - 3.0).square(),
    ],
)
def test_the_shortcut_is_not_taken_where_there_is_another_term(more):
    _, data = folds()
    theta = torch.zeros(NUM_FEATURES).double()
    value = torch.func.vmap(Ridge().objective, (0, None, 0, 0))

    def upper(theta, y):
        return value(y, theta, *data).sum() + more(y)

    found = hypergradient(upper, Ridge(), theta, data=data)
    assert found.method == "implicit"
    torch.testing.assert_close(found.gradient, exact(upper, theta, data), rtol=1e-8, atol=1e-9)


def test_the_shortcut_is_not_taken_by_one_variable_or_with_constraints():
    scalar = ddn.Problem.from_functions(lambda y, theta: (y - theta).square().sum(), initial=lambda theta: theta)
    theta = torch.tensor([2.0]).double()
    assert hypergradient(lambda theta, y: (y - 1).square().sum(), scalar, theta).method == "implicit"
    upper = lambda theta, y: 0.5 * (y - theta).square().sum()  # noqa: E731
    assert hypergradient(upper, scalar, theta).method == "shortcut"
    assert hypergradient(upper, Capped(), theta, data=(torch.ones(1, 1).double(),)).method == "implicit"


def test_a_known_solution_is_not_solved_for_again():
    upper, data = folds()
    theta = torch.zeros(NUM_FEATURES).double()
    first = hypergradient(upper, Ridge(), theta, data=data)
    again = hypergradient(upper, Ridge(), theta, first.y, data=data)
    torch.testing.assert_close(again.gradient, first.gradient)
    assert again.num_steps.tolist() == [0] * NUM_FOLDS


def test_a_wrong_solution_is_reported():
    f = lambda y, theta: (y**4).sum() - (theta * y).sum()  # noqa: E731
    problem = ddn.Problem.from_functions(f, initial=lambda theta: theta)
    wrong = torch.tensor([[1e3]]).double()
    found = hypergradient(lambda _, y: y.sum(), problem, torch.ones(1).double(), wrong, on_failure="ignore")
    assert found.status.tolist() == [ddn.Status.STALLED]
    assert "STALLED" in found.objection


def large(num_variables, loose):
    """A logistic regression with too many variables to be polished, solved only so far."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(60, num_variables, generator=generator, dtype=torch.float64) / num_variables**0.5
    t = torch.sign(torch.randn(60, generator=generator, dtype=torch.float64))
    problem = ddn.Problem.from_functions(
        lambda y, theta: (
            torch.nn.functional.softplus(-t * (X @ y)).sum() + 0.5 * (theta.exp() * y.square().view(2, -1)).sum()
        ),
        initial=lambda theta: theta.new_zeros(num_variables),
    )
    X_val = torch.randn(30, num_variables, generator=generator, dtype=torch.float64)
    upper = lambda theta, y: torch.nn.functional.softplus(-(X_val @ y[0])).sum()  # noqa: E731
    return Bilevel(upper, ddn.DeclarativeNode(problem, solver=LBFGS(rtol=loose))), torch.zeros(2, 1).double()


def test_the_error_of_an_inexact_lower_solution_is_estimated():
    truth = hypergradient(*swap(large(400, 1e-13)), method="cg", rtol=1e-12).gradient
    errors = []
    for loose in (1e-2, 1e-4):
        found = hypergradient(
            *swap(large(400, loose)), method="cg", rtol=1e-10, estimate_error=True, on_failure="ignore"
        )
        error = float((found.gradient - truth).abs().max())
        assert error / 2 < found.error < 2 * error
        errors.append(error)
    assert errors[1] < 0.1 * errors[0]


def swap(case):
    pair, theta = case
    return pair, None, theta


def test_the_certificate_is_within_the_tolerance_that_was_asked_for():
    for rtol in (1e-2, 1e-6, 1e-10):
        found = hypergradient(*swap(large(400, 1e-12)), method="cg", rtol=rtol)
        assert 0 < found.certificate <= rtol


def test_conjugate_gradients_never_form_the_hessian():
    # A dense matrix would take 80 GB.
    m = 100_000
    d = torch.linspace(1, 3, m).double()
    problem = ddn.Problem.from_functions(
        lambda y, theta: 0.5 * (d * theta.exp() * y.square()).sum() - y.sum() + 0.5 * y.sum().square() / m,
        initial=lambda theta: theta.new_zeros(m),
    )
    theta = torch.zeros(1).double()
    found = hypergradient(lambda _, y: y.sum() / m, problem, theta, method="cg")
    mean = (1 / d).mean()  # y = s / (d e^theta) with s = 1 - mean(y), so that mean(y) = mean / (e^theta + mean)
    torch.testing.assert_close(found.value, mean / (1 + mean), rtol=1e-8, atol=0)
    torch.testing.assert_close(found.gradient[0], -mean / (1 + mean) ** 2, rtol=1e-7, atol=0)


def test_one_step_and_unrolled_are_as_good_as_the_step_contracts():
    upper, data = folds()
    theta = torch.zeros(NUM_FEATURES).double()
    truth = exact(upper, theta, data)
    node = ddn.DeclarativeNode(Ridge(), solver=GradientDescent(step_size=0.02, max_steps=2000, rtol=1e-10))

    def error(**options):
        return float((hypergradient(upper, node, theta, data=data, **options).gradient - truth).abs().max())

    one, ten, many = (error(method="unrolled", num_steps=k) for k in (1, 10, 300))
    assert abs(error(method="one_step") - one) < 1e-12
    assert one > ten > many
    assert many < 1e-6 < ten


def test_an_item_that_fails_is_an_objection_and_leaves_the_others_alone():
    _, (X, t) = folds()
    t = t.clone()
    t[1] = torch.nan
    with pytest.warns(ddn.ConvergenceWarning, match="1 of 3"):
        found = hypergradient(lambda _, y: y.nan_to_num().sum(), Ridge(), torch.zeros(4).double(), data=(X, t))
    assert found.status.tolist() == [0, int(ddn.Status.NON_FINITE), 0]
    assert "1 of 3 lower problems ended as NON_FINITE" in found.objection
    assert found.gradient.isfinite().all()


def test_a_solution_that_is_not_isolated_is_an_objection():
    flat = ddn.Problem.from_functions(
        lambda y, theta: (y.sum() - theta.sum()).square(), initial=torch.zeros(1, 2).double()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ddn.DegenerateGradientWarning)
        found = hypergradient(lambda _, y: y[:, 0].sum(), flat, torch.ones(1).double())
    assert "not isolated" in found.objection


def quadratic(y, theta):
    return (y - theta).square().sum()


PROBLEM = ddn.Problem.from_functions(quadratic, initial=lambda theta: theta)
THETA = torch.ones(2)
WRONG = {
    "upper": (lambda: hypergradient(3, PROBLEM, THETA), "upper"),
    "lower": (lambda: hypergradient(quadratic, 3, THETA), "lower"),
    "lower class": (lambda: hypergradient(quadratic, Ridge, THETA), "lower"),
    "no lower": (lambda: hypergradient(quadratic, None, THETA), "lower"),
    "theta": (lambda: hypergradient(quadratic, PROBLEM, 1.0), "theta"),
    "integer theta": (lambda: hypergradient(quadratic, PROBLEM, torch.ones(2, dtype=torch.int64)), "theta"),
    "empty theta": (lambda: hypergradient(quadratic, PROBLEM, ()), "theta"),
    "data": (lambda: hypergradient(quadratic, PROBLEM, THETA, data=THETA), "data"),
    "data item": (lambda: hypergradient(quadratic, PROBLEM, THETA, data=(3,)), "data"),
    "method": (lambda: hypergradient(quadratic, PROBLEM, THETA, method="exact"), "'implicit', 'cg'"),
    "rtol": (lambda: hypergradient(quadratic, PROBLEM, THETA, rtol=-1.0), "rtol"),
    "rtol word": (lambda: hypergradient(quadratic, PROBLEM, THETA, rtol="small"), "rtol"),
    "num_steps": (lambda: hypergradient(quadratic, PROBLEM, THETA, num_steps=3), "num_steps"),
    "num_steps 0": (lambda: hypergradient(quadratic, PROBLEM, THETA, method="unrolled", num_steps=0), "num_steps"),
    "on_failure": (lambda: hypergradient(quadratic, PROBLEM, THETA, on_failure="shout"), "on_failure"),
    "no closed form": (lambda: hypergradient(quadratic, PROBLEM, THETA, method="substitution"), "solve"),
    "cg of a function": (lambda: hypergradient(quadratic, lambda theta: theta, THETA, method="cg"), "cg"),
    "cg with constraints": (
        lambda: hypergradient(quadratic, Capped(), THETA, data=(torch.ones(1, 1),), method="cg"),
        "cg",
    ),
    "error of a kind that has none": (
        lambda: hypergradient(quadratic, PROBLEM, THETA, method="one_step", estimate_error=True),
        "estimate_error",
    ),
    "y of a kind that is solved": (
        lambda: hypergradient(quadratic, PROBLEM, THETA, THETA[None], method="one_step"),
        "y=",
    ),
    "y": (lambda: hypergradient(quadratic, PROBLEM, THETA, 3.0), "y"),
    "y of another shape": (lambda: hypergradient(quadratic, PROBLEM, THETA, torch.ones(3, 5)), "solve"),
    "upper with two values": (lambda: hypergradient(lambda theta, y: y[0], PROBLEM, THETA), "scalar"),
    "upper without a graph": (lambda: hypergradient(lambda theta, y: torch.ones(()), PROBLEM, THETA), "upper"),
    "pair and lower": (lambda: hypergradient(Bilevel(quadratic, PROBLEM), PROBLEM, THETA), "None for `lower`"),
    "constraint": (lambda: Bilevel(quadratic, PROBLEM, constraint="positive"), "constraint"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_say_what_to_do(case):
    call, word = WRONG[case]
    with pytest.raises(ddn.InvalidInputError, match=r"`[\w.]+(\(|`)") as raised:
        call()
    assert word in str(raised.value)
