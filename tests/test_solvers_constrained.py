"""Problems with inequalities and bounds: each solver that takes them finds the known answer, or says why there is none.

The problems are in ``constrained_cases``. Solvers are called as the node calls them, but what they return is not
polished: it is their own.
"""

import dataclasses
import functools
import re
import sys
import types

import pytest
import scipy.optimize
import torch
from constrained_cases import BOUNDS_ONLY, CASES, Case, case, tensor
from torch import Tensor

import torchddn as ddn
from torchddn import Status, solvers
from torchddn.derivatives import gradient
from torchddn.optimality import lagrangian

f64 = torch.float64

# Accuracy of y in float64.
SECOND_ORDER = {"SQP": (solvers.SQP(), 1e-13), "InteriorPoint": (solvers.InteriorPoint(), 1e-13)}
EVERYWHERE = {
    **SECOND_ORDER,
    "AugmentedLagrangian": (solvers.AugmentedLagrangian(), 2e-11),
    "SLSQP": (solvers.SciPy("SLSQP"), 1e-4),
}
WITH_BOUNDS = {"L-BFGS-B": (solvers.SciPy("L-BFGS-B"), 1e-4), "TNC": (solvers.SciPy("TNC"), 1e-4)}
TABLE = [
    *((word, name) for word in EVERYWHERE for name in CASES),
    *((word, name) for word in WITH_BOUNDS for name in BOUNDS_ONLY),
    *(("trust-constr", name) for name in ("simplex", "ball")),
]
SOLVERS = {**EVERYWHERE, **WITH_BOUNDS, "trust-constr": (solvers.SciPy("trust-constr"), 1e-8)}
OWN = ("SQP", "InteriorPoint", "AugmentedLagrangian")

own = pytest.mark.parametrize("word", OWN)


@functools.cache
def solved(word: str, name: str, device: torch.device) -> solvers.Result:
    return CASES[name].on(device).run(SOLVERS[word][0])


def names(result: solvers.Result) -> set[str]:
    return {Status(code).name for code in result.status.tolist()}


@pytest.mark.parametrize("word, name", TABLE)
def test_known_answer_is_found(word, name, device):
    example, result, accuracy = CASES[name].on(device), solved(word, name, device), SOLVERS[word][1]
    assert names(result) == {"CONVERGED"}
    torch.testing.assert_close(result.y, example.answer, rtol=0, atol=accuracy)
    if example.dual is not None:
        torch.testing.assert_close(result.dual, example.dual, rtol=0, atol=20 * accuracy)


@pytest.mark.parametrize("word, name", [pair for pair in TABLE if pair[0] in OWN])
def test_answers_satisfy_the_optimality_conditions(word, name, device):
    problem, x = CASES[name].on(device).bound()
    result, tolerance = solved(word, name, device), 10 * SOLVERS[word][1]
    lower, upper = problem.bounds(x)
    nu_lam, y = result.dual, result.y
    lam, g = nu_lam[:, problem.p :], problem.inequality(y, x)
    slope = gradient(lambda y: lagrangian(problem, y, nu_lam, x), y)
    assert (y >= lower).all() and (y <= upper).all() and (lam >= 0).all()
    assert (problem.equality(y, x).abs() <= tolerance).all() and (g <= tolerance).all()
    assert ((lam * g).abs() <= tolerance).all()
    torch.testing.assert_close(y, (y - slope).clamp(lower, upper), rtol=0, atol=tolerance)


@own
@pytest.mark.parametrize("name", ["simplex", "saddle in a disk", "HS71"])
def test_an_item_alone_is_solved_as_in_a_batch(word, name, device):
    together = solved(word, name, device)
    for i in (0, 3, 5):
        alone = CASES[name].on(device).items([i]).run(SOLVERS[word][0])
        assert alone.status[0] == together.status[i] and alone.num_steps[0] == together.num_steps[i]
        torch.testing.assert_close(alone.y[0], together.y[i], rtol=0, atol=1e-11)


@own
def test_an_item_that_is_not_finite_spoils_only_itself(word, device):
    example = CASES["ball"].on(device)
    (points,) = example.x
    spoiled = dataclasses.replace(example, x=(points.index_fill(0, torch.tensor([2], device=device), torch.nan),))
    result, clean = spoiled.run(SOLVERS[word][0]), solved(word, "ball", device)
    kept = [0, 1, 3, 4, 5]
    assert result.status[2] == Status.NON_FINITE
    assert torch.equal(result.status[kept], clean.status[kept])
    torch.testing.assert_close(result.y[kept], clean.y[kept], rtol=0, atol=1e-11)


@own
@pytest.mark.parametrize("name", ["ball", "simplex", "linear program", "HS43", "logarithm"])
def test_float32_works_to_its_precision(word, name, device):
    example = CASES[name].on(device, torch.float32)
    result = example.run(SOLVERS[word][0])
    assert result.y.dtype == torch.float32 and names(result) == {"CONVERGED"}
    torch.testing.assert_close(result.y, example.answer, rtol=0, atol=2e-4)


# Statuses.


def one(name: str, y_0, **functions) -> Case:
    return case(name, functions, tensor([1.0]), y_0, torch.zeros(len(y_0)))


INFEASIBLE = [
    one("opposite halfspaces", [0.3, 0.4], inequality=lambda y, x: torch.stack([y.sum() + x[0], x[0] - y.sum()])),
    one("a square below zero", [2.0], objective=lambda y, x: y[0], inequality=lambda y, x: y**2 + x),
    one(
        "a sum out of reach of a box",
        [0.5, 0.5],
        objective=lambda y, x: y.square().sum(),
        equality=lambda y, x: y.sum() - 5 * x[0],
        bounds=(0.0, 1.0),
    ),
    one("bounds that cross", [0.0], objective=lambda y, x: y.square().sum(), bounds=(1.0, -1.0)),
]
UNBOUNDED = [
    one("a ray of a box", [1.0, 1.0], objective=lambda y, x: y[1] ** 2 - x[0] * y[0], bounds=(0.0, None)),
    one(
        "between two rays",
        [1.0, 1.0],
        objective=lambda y, x: -x[0] * y.sum(),
        inequality=lambda y, x: torch.stack([y[0] - 2 * y[1] - 1, y[1] - 2 * y[0] - 1]),
    ),
]
UNATTAINED = [
    one("a reciprocal", [2.0], objective=lambda y, x: x[0] / y[0], bounds=(1.0, None)),
    one(
        "an exponential",
        [0.0, 1.0],
        objective=lambda y, x: torch.exp(-y[0]) + y[1] ** 2,
        inequality=lambda y, x: -x - y[:1],
    ),
]
by_name = functools.partial(pytest.mark.parametrize, "example", ids=lambda example: example.name)


@own
@by_name(argvalues=INFEASIBLE)
def test_contradictions_are_infeasible(word, example):
    assert names(example.run(SOLVERS[word][0])) == {"INFEASIBLE"}


@own
@by_name(argvalues=UNBOUNDED)
def test_an_objective_without_limit_is_unbounded(word, example):
    assert names(example.run(SOLVERS[word][0])) == {"UNBOUNDED"}


@pytest.mark.parametrize("word", ["SQP", "InteriorPoint"])
@by_name(argvalues=UNATTAINED)
def test_an_infimum_at_infinity_is_no_minimum(word, example):
    assert "CONVERGED" not in names(example.run(dataclasses.replace(SOLVERS[word][0], max_steps=60)))


def test_newton_takes_no_infimum_at_infinity_for_a_minimum():
    for exponent in (1, 2):
        flat = one("flat", [1.0, 1.0], objective=lambda y, x, k=exponent: torch.exp(-x[0] * y[0] ** k) + y[1] ** 2)
        assert names(flat.run(solvers.Newton())) == {"UNBOUNDED"}


def test_newton_finds_a_minimum_where_curvatures_are_wide_apart():
    """Powell's badly scaled function: at its minimum they are 2e10 and 1e-8."""
    powell = one(
        "Powell",
        [0.0, 1.0],
        objective=lambda y, x: (1e4 * y[0] * y[1] - x[0]) ** 2 + (torch.exp(-y[0]) + torch.exp(-y[1]) - 1.0001) ** 2,
    )
    result = powell.run(solvers.Newton())
    assert names(result) == {"CONVERGED"}
    torch.testing.assert_close(result.y, tensor([1.0981593296999e-05, 9.106146739867]), rtol=1e-6, atol=0)


def test_sqp_does_not_take_a_detour_for_a_fall():
    """Hock and Schittkowski 39: the merit falls far outside of the constraints, on which f is at least -1."""
    detour = one(
        "HS39",
        [2.0, 2.0, 2.0, 2.0],
        objective=lambda y, x: -x[0] * y[0],
        equality=lambda y, x: torch.stack([y[1] - y[0] ** 3 - y[2] ** 2, y[0] ** 2 - y[1] - y[3] ** 2]),
    )
    result = detour.run(solvers.SQP())
    assert names(result) == {"CONVERGED"}
    torch.testing.assert_close(result.y, tensor([1.0, 1.0, 0.0, 0.0]), rtol=0, atol=1e-7)


# What a weakly active constraint hides.


def test_sqp_leaves_a_saddle_on_a_bound():
    """At zero nothing pushes, and a step inwards goes down."""
    saddle = one("saddle", [0.0, 0.3], objective=lambda y, x: y[1] ** 2 - y[0] ** 2 + y[0] ** 4, bounds=(0.0, None))
    result = saddle.run(solvers.SQP())
    assert names(result) == {"CONVERGED"}
    torch.testing.assert_close(result.y, tensor([0.5**0.5, 0.0]), rtol=0, atol=1e-12)


def test_sqp_stays_where_every_feasible_direction_goes_up():
    """The Hessian at zero is indefinite, and zero is the minimum all the same."""
    corner = one("corner", [0.2, 0.3], objective=lambda y, x: y[0] * y[1] + 0.1 * y.square().sum(), bounds=(0.0, None))
    result = corner.run(solvers.SQP())
    assert names(result) == {"CONVERGED"}
    torch.testing.assert_close(result.y, tensor([0.0, 0.0]), rtol=0, atol=1e-12)


# Options and steps.


@pytest.mark.parametrize(
    "f, c, y", [(2.0**30, 1, 1), (2.0**-30, 1, 1), (1, 2.0**20, 1), (1, 1, 2.0**20), (1, 1, 2.0**-20)]
)
@pytest.mark.parametrize("name", ["HS71", "linear program", "saddle in a disk"])
def test_units_change_nothing_of_sqp(name, f, c, y):
    """Powers of two, so that rounding is the same: ``f``, the rows or ``y`` in other units."""
    example, answer = CASES[name], solved("SQP", name, torch.device("cpu"))
    given = dict(example.problem(example.y_0)._functions)
    changed = {"objective": lambda z, *x: f * given["objective"](z / y, *x)}
    for kind in {"equality", "inequality"} & set(given):
        changed[kind] = lambda z, *x, kind=kind: c * given[kind](z / y, *x)
    if "bounds" in given:
        changed["bounds"] = tuple(None if limit is None else y * limit for limit in given["bounds"])
    scaled = dataclasses.replace(
        example, problem=lambda y_0: ddn.Problem.from_functions(**changed, initial=y_0), y_0=y * example.y_0
    )
    result = scaled.run(solvers.SQP())
    assert torch.equal(result.num_steps, answer.num_steps) and torch.equal(result.status, answer.status)
    torch.testing.assert_close(result.y / y, answer.y, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(result.dual * c / f, answer.dual, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("word", ["SQP", "AugmentedLagrangian"])
def test_options_of_termination_are_respected(word):
    example, solver = CASES["HS43"], SOLVERS[word][0]
    tight = solved(word, "HS43", torch.device("cpu"))
    loose = example.run(dataclasses.replace(solver, rtol=1e-2))
    looser = example.run(dataclasses.replace(solver, rtol=0.0, atol=1e-2))
    few = example.run(dataclasses.replace(solver, max_steps=2))
    assert loose.num_steps.sum() < tight.num_steps.sum() and looser.num_steps.sum() < tight.num_steps.sum()
    assert names(loose) == names(looser) == {"CONVERGED"} and names(few) == {"MAX_STEPS"}


@pytest.mark.parametrize("name", ["ball", "simplex", "box", "saddle in a disk"])
def test_derivatives_of_unrolled_sqp_are_those_of_the_solution(name):
    example = CASES[name]
    problem, x = example.bound()
    inputs = [tensor.clone().requires_grad_() for tensor in example.x]
    weights = torch.linspace(-1, 1, example.answer.shape[1], dtype=f64)
    y, _ = solvers.unroll(solvers.SQP(), problem, (*inputs, *x[len(inputs) :]), x[-1], 14)
    torch.testing.assert_close(y.detach(), example.answer, rtol=0, atol=1e-11)
    unrolled = torch.autograd.grad((y * weights).sum(), inputs)
    node = ddn.DeclarativeNode(example.problem(example.y_0), solver="SQP")
    implicit = torch.autograd.grad((node(*inputs) * weights).sum(), inputs)
    torch.testing.assert_close(unrolled, implicit, rtol=1e-6, atol=1e-8)


def test_augmented_lagrangian_needs_no_matrix():
    """2000 variables and as many inequalities."""
    x = torch.linspace(-2, 2, 2000, dtype=f64)[None]
    ball = case(
        "many",
        {
            "objective": lambda y, x: 0.5 * (y - x).square().sum(),
            "inequality": lambda y, x: y - 1,
            "bounds": (0.0, None),
        },
        x,
        torch.full((2000,), 0.5),
        x.clamp(0, 1),
    )
    result = ball.run(solvers.AugmentedLagrangian())
    assert names(result) == {"CONVERGED"}
    torch.testing.assert_close(result.y, ball.answer, rtol=0, atol=1e-9)


def test_restarts_compare_only_what_converged():
    well = one(
        "well",
        [0.5],
        objective=lambda y, x: (y[0] ** 2 - x[0]) ** 2 + 0.3 * y[0],
        inequality=lambda y, x: y - 1.5,
    )
    low = well.run(solvers.MultiStart(solvers.SQP(), num_starts=8, spread=1.0))
    high = well.run(solvers.SQP())
    assert names(low) == names(high) == {"CONVERGED"}
    assert low.y[0, 0] < -0.9 < 0.9 < high.y[0, 0]
    assert names(well.run(solvers.WarmStart(solvers.SQP()))) == {"CONVERGED"}


# The bridges.


def test_items_in_threads_are_solved_as_one_by_one():
    example = CASES["HS71"]
    alone, threads = (example.run(solvers.SciPy("SLSQP", num_workers=n)) for n in (1, 3))
    assert torch.equal(alone.status, threads.status) and torch.equal(alone.y, threads.y)
    assert torch.equal(alone.dual, threads.dual)


@pytest.mark.parametrize("word", ["SLSQP", "L-BFGS-B"])
def test_scipy_reports_crossed_bounds(word):
    assert names(INFEASIBLE[-1].run(SOLVERS[word][0])) == {"INFEASIBLE"}


class FakeProgram:
    """Stands for ``cyipopt.Problem``: checks what it is given, and lets SLSQP do the work."""

    def __init__(self, n, m, problem_obj, lb, ub, cl, cu):
        self.n, self.m, self.callbacks, self.limits, self.rows = n, m, problem_obj, (lb, ub), (cl, cu)
        self.options = {}

    def add_option(self, name, value):
        self.options[name] = value

    def solve(self, start):
        call, rows = self.callbacks, scipy.optimize.NonlinearConstraint
        i, j = call.hessianstructure()
        values = call.hessian(start, torch.ones(self.m).numpy(), 2.0)
        assert values.shape == i.shape == j.shape == (self.n * (self.n + 1) // 2,)
        assert call.jacobian(start).shape == (self.m, self.n) and self.options["tol"] > 0
        found = scipy.optimize.minimize(
            call.objective,
            start,
            jac=call.gradient,
            method="SLSQP",
            bounds=scipy.optimize.Bounds(*self.limits),
            constraints=rows(call.constraints, *self.rows, jac=call.jacobian),
            tol=self.options["tol"],
        )
        call.intermediate(0, found.nit, *[0.0] * 9)
        limit = found.nit > self.options.get("max_iter", 3000)
        return found.x, {"status": -1 if limit else 0, "mult_g": torch.full((self.m,), 0.5).numpy()}


@pytest.fixture
def ipopt(monkeypatch):
    module = types.ModuleType("cyipopt")
    module.Problem = FakeProgram
    monkeypatch.setitem(sys.modules, "cyipopt", module)
    return solvers.Ipopt


@pytest.mark.parametrize("name", ["simplex", "HS71", "ball"])
def test_ipopt_is_called_as_it_wants_to_be(ipopt, name):
    example = CASES[name]
    result = example.run(ipopt())
    assert names(result) == {"CONVERGED"} and (result.num_steps > 0).all()
    torch.testing.assert_close(result.y, example.answer, rtol=0, atol=1e-5)
    if example.dual is not None:
        assert (result.dual == 0.5).all()


def test_options_reach_ipopt(ipopt, monkeypatch):
    seen = {}
    solve = FakeProgram.solve
    monkeypatch.setattr(FakeProgram, "solve", lambda self, start: (seen.update(self.options), solve(self, start))[1])
    CASES["simplex"].items([0]).run(ipopt(rtol=1e-6, max_steps=50, options={"mu_strategy": "adaptive"}))
    assert seen["tol"] == 1e-6 and seen["max_iter"] == 50 and seen["mu_strategy"] == "adaptive"


def test_missing_cyipopt_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cyipopt", None)
    with pytest.raises(ImportError, match=re.escape("pip install cyipopt")):
        solvers.Ipopt()


# What is refused.


@pytest.mark.parametrize(
    "solver",
    [solvers.Newton(), solvers.LBFGS(), solvers.GradientDescent(), solvers.SciPy("BFGS")],
    ids=lambda solver: type(solver).__name__,
)
@pytest.mark.parametrize("name, reason", [("ball", "the problem has 1 inequality constraint"), ("box", "has bounds")])
def test_a_solver_for_other_problems_is_refused(solver, name, reason):
    with pytest.raises(ddn.InvalidInputError, match=reason + r"\. Use `InteriorPoint\(\)`, or `AugmentedLagrangian"):
        CASES[name].run(solver)


def test_bounds_alone_suit_more_methods_than_constraints():
    with pytest.raises(ddn.InvalidInputError, match=r"`SciPy` cannot solve this, because the problem has 3 inequality"):
        CASES["HS43"].run(solvers.SciPy("L-BFGS-B"))


def test_a_multiplier_has_the_sign_of_a_price(device):
    """The objective falls by ``lam`` for each unit by which a constraint is relaxed."""

    def value(room: Tensor) -> tuple[Tensor, Tensor]:
        relaxed = case(
            "relaxed",
            {"objective": lambda y, x: (y - 2).square().sum(), "inequality": lambda y, x: y.sum() - x[0]},
            room,
            [0.0, 0.0],
            torch.zeros(2),
        ).on(device)
        result = relaxed.run(solvers.SQP())
        return (result.y - 2).square().sum(1), result.dual[:, 0]

    (f, lam), (f_next, _) = value(tensor([1.0])), value(tensor([1.0 + 1e-6]))
    torch.testing.assert_close((f - f_next) / 1e-6, lam, rtol=1e-5, atol=0)
