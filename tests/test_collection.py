"""The public set of test problems: that what it states is true, and that the library solves it.

Nothing here trusts the library's own measures: claims are judged by ``testing.judge``, which works in NumPy and SciPy
on the functions that a problem states; that the judge is right is tested first.
"""

import functools

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import torchddn as ddn
from torchddn import Status
from torchddn.testing import Item, RandomFamily, ReferenceProblem, Verdict, collection, families, judge, tags

ALL = collection()
SOLVABLE = collection("solvable")
# What `make test` solves; the slow tests solve all.
SAMPLE = 3
SIZE = 4

named = functools.partial(pytest.mark.parametrize, "example", ids=lambda example: example.name)


def item(example: ReferenceProblem) -> Item:
    return Item(example.problem, example.x()[0])


def batch(example: ReferenceProblem) -> Tensor:
    """The standard data and perturbed ones."""
    return torch.cat((example.x(), example.perturb(SIZE - 1, torch.Generator().manual_seed(1))))


def solved(example: ReferenceProblem, x: Tensor) -> ddn.Solution:
    with torch.no_grad():
        return ddn.DeclarativeNode(example.problem, solver="auto", on_failure="ignore").solve(x)


@functools.cache
def solved_batch(example: ReferenceProblem) -> ddn.Solution:
    return solved(example, batch(example))


# The judge


def verdict_of(y, objective, **constraints) -> Verdict:
    start = torch.full((len(y),), 0.5, dtype=torch.float64)
    problem = ddn.Problem.from_functions(objective, initial=lambda x: start, **constraints)
    return judge(Item(problem, torch.ones(1, dtype=torch.float64)), np.array(y, dtype=float))


def test_judge_accepts_a_minimum_and_finds_its_multipliers():
    verdict = verdict_of(
        (0.25, 0.75),
        lambda y, x: y.square().sum(),
        equality=lambda y, x: y.sum() - x,
        inequality=lambda y, x: torch.stack((y[0] - 0.25, y[1] - 3)),
    )
    assert verdict.is_minimum(1e-12)
    assert verdict.objective == 0.625
    np.testing.assert_allclose(verdict.equality_multipliers, [-1.5])
    np.testing.assert_allclose(verdict.inequality_multipliers, [1.0, 0.0])


@pytest.mark.parametrize(
    "y, objective, constraints",
    [
        ((1.0, 1e-6), lambda y, x: y[1] ** 2 + y[0] * 0.0, {}),
        ((0.0, 0.0), lambda y, x: y[0] ** 2 - y[1] ** 2, {}),
        ((0.0, 1.0), lambda y, x: y[1], {"equality": lambda y, x: y.square().sum() - x}),
        ((0.0, 0.0), lambda y, x: -y[0] + y[1] ** 2, {"inequality": lambda y, x: -y[0]}),
        ((0.0, 0.0), lambda y, x: y.square().sum(), {"inequality": lambda y, x: 1e-6 * (1e-3 - y[0])}),
        ((0.0, 0.0), lambda y, x: y.square().sum(), {"equality": lambda y, x: y.sum() - 1e-7 * x}),
        ((0.0, 0.0), lambda y, x: y.sum(), {"bounds": lambda x: (y_limit(x, -1e-6), y_limit(x, 1.0))}),
        ((0.0, 0.0), lambda y, x: -y.square().sum(), {"inequality": lambda y, x: y.square().sum() - x}),
        ((0.0, 2.0), lambda y, x: y.square().sum(), {"bounds": lambda x: (y_limit(x, 2.0), y_limit(x, 0.0))}),
        ((np.nan, 0.0), lambda y, x: y.square().sum(), {}),
        ((0.0, 0.0), lambda y, x: y.square().sum() + y[0].log(), {}),
    ],
    ids=[
        "not stationary",
        "saddle",
        "maximum on the circle",
        "wrong sign of the multiplier",
        "infeasible in a row of small scale",
        "infeasible equality",
        "a bound that is only near",
        "interior maximum",
        "crossing bounds",
        "NaN",
        "outside of the domain",
    ],
)
def test_judge_refuses_what_is_no_minimum(y, objective, constraints):
    assert not verdict_of(y, objective, **constraints).is_minimum(1e-8)


def y_limit(x: Tensor, value: float) -> Tensor:
    return x.new_full((2,), value)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_judge_does_not_depend_on_the_scale_of_functions(factor):
    def off_by(distance):
        return verdict_of(
            (0.5 + distance, 0.5 - distance),
            lambda y, x: factor * (y.square().sum() + y[0] * y[1]),
            equality=lambda y, x: (y.sum() - x) / factor,
        ).is_minimum(1e-8)

    assert off_by(1e-10)
    assert not off_by(1e-6)


def test_derivatives_of_an_item_are_those_of_its_functions():
    example = collection("HS 71")[0]
    problem, y = item(example), np.array([1.2, 4.5, 3.7, 1.5])
    dual = np.array([0.3, -0.7])

    def slope(function, y):
        step = 1e-6 * np.eye(len(y))
        return np.stack([(function(y + e) - function(y - e)) / 2e-6 for e in step], axis=-1)

    np.testing.assert_allclose(problem.gradient(y), slope(problem.objective, y), rtol=1e-8)
    np.testing.assert_allclose(problem.jacobian(y), slope(problem.constraints, y), rtol=1e-8)
    lagrangian_slope = functools.partial(slope, lambda y: 2 * problem.gradient(y) + dual @ problem.jacobian(y))
    np.testing.assert_allclose(problem.hessian(y, dual, 2.0), lagrangian_slope(y), rtol=1e-7)


# The set


def test_collection_covers_what_it_should():
    assert len(ALL) >= 190 and len({example.name for example in ALL}) == len(ALL)
    assert sum(example.source.startswith("Hock and Schittkowski") for example in ALL) >= 90
    assert {"unconstrained", "bounds", "equality", "inequality", "mixed"} <= set(tags())
    for tag in (
        "inactive",
        "weakly active",
        "singular Hessian",
        "singular reduced Hessian",
        "non-isolated",
        "redundant",
        "overdetermined",
        "feasibility",
        "nonsmooth",
        "several solutions",
        "LICQ fails",
        "MFCQ fails",
        "saddle start",
        "maximum start",
        "badly scaled",
        "infimum at infinity",
        "infeasible",
        "unbounded",
    ):
        assert collection(tag), tag


def test_collection_filters_by_every_word():
    assert {example.kind for example in collection("mixed", "nonconvex")} == {"mixed"}
    assert all(example.regular for example in collection("regular"))
    with pytest.raises(ddn.InvalidInputError, match="no test problem is called, is of kind or is tagged 'HS 1000'"):
        collection("HS 1000")


@named(argvalues=ALL)
def test_problem_is_well_formed(example):
    problem = item(example)
    values = [problem.objective(problem.start), *problem.gradient(problem.start), *problem.constraints(problem.start)]
    assert np.isfinite(values).all()
    assert tuple(problem.start) == example.start
    x = example.perturb(5, torch.Generator().manual_seed(0))
    assert x.shape == (5, len(example.data)) and x.dtype == torch.float64
    assert torch.equal(x, example.perturb(5, torch.Generator().manual_seed(0)))
    assert bool(((x - example.x(5)).abs() <= example.spread * example.x(5).abs() + 1e-15).all())
    assert example.perturb(2, dtype=torch.float32).dtype == torch.float32
    assert set(example.outcomes) <= set(Status)


@named(argvalues=[example for example in ALL if example.solution is not None])
def test_stated_solution_attains_the_stated_optimum(example):
    problem = item(example)
    y = np.array(example.solution, dtype=float)
    assert abs(problem.objective(y) - example.optimum) <= 1e-8 * max(1.0, abs(example.optimum))
    verdict = judge(problem, y)
    assert verdict.violation <= 1e-8
    if "no multipliers" not in example.tags:
        # Solutions are stated to twelve digits, which the gradient of Powell's badly scaled function multiplies by 1e8.
        assert verdict.is_minimum(1e-6 if example.name == "Powell badly scaled" else 1e-8)
        # Curvature is a matter of degree (it is 1e-18 of the largest entry for Powell's function), rows are not.
        if example.regular:
            assert verdict.independence > 1e-6 and verdict.smallest_multiplier > 1e-7
            assert verdict.curvature >= 0


@named(argvalues=collection("infeasible"))
def test_no_point_satisfies_an_infeasible_problem(example):
    problem = item(example)
    if (problem.lower > problem.upper).any():
        return

    def violation(y):
        return np.concatenate((problem.equality(y), problem.inequality(y).clip(0)))

    starts = np.random.default_rng(0).normal(scale=3.0, size=(20, len(problem.start)))
    least = min(
        np.abs(
            scipy.optimize.least_squares(
                violation, y.clip(problem.lower + 1e-9, problem.upper - 1e-9), bounds=(problem.lower, problem.upper)
            ).fun
        ).max()
        for y in (problem.start, *starts)
    )
    assert least > 1e-2


@pytest.mark.parametrize("example", collection("unbounded"), ids=lambda example: example.name)
def test_objective_of_an_unbounded_problem_falls_along_feasible_points(example):
    problem = item(example)
    values = []
    for radius in (1e1, 1e2, 1e3):
        # The least objective in a box, by a search from many points that a projection has made feasible.
        lower, upper = np.maximum(problem.lower, -radius), np.minimum(problem.upper, radius)
        rows = [
            scipy.optimize.NonlinearConstraint(problem.equality, 0, 0),
            scipy.optimize.NonlinearConstraint(problem.inequality, -np.inf, 0),
        ][slice(0 if problem.p else 1, 2 if problem.q else 1)]
        found = [
            scipy.optimize.minimize(
                problem.objective,
                start.clip(lower, upper),
                jac=problem.gradient,
                method="SLSQP",
                bounds=scipy.optimize.Bounds(lower, upper),
                constraints=rows,
            )
            for start in (problem.start, 0.9 * upper.clip(-radius, radius), 0.9 * lower.clip(-radius, radius))
        ]
        values.append(min(result.fun for result in found if np.abs(problem.equality(result.x)).sum() < 1e-4))
    assert values[0] > values[1] > values[2] and values[2] < -100


# Solving it


def check_claims(examples) -> None:
    """At least 95 % of the items right, and no item CONVERGED where a judge says otherwise."""
    wrong, missed, count = [], [], 0
    for example in examples:
        x, solution = batch(example), solved_batch(example)
        for i, (code, y) in enumerate(zip(solution.status.tolist(), solution.y.numpy(), strict=True)):
            converged = code == Status.CONVERGED
            verdict = judge(Item(example.problem, x[i]), y) if converged else None
            if verdict is not None and not verdict.is_minimum(1e-8):
                wrong.append((example.name, i, verdict.residual, verdict.curvature))
            if not converged:
                missed.append((example.name, i, Status(code).name))
            count += 1
    assert not wrong
    assert len(missed) <= 0.05 * count, missed


def test_sample_converges_and_every_claim_is_true():
    check_claims(SOLVABLE[::SAMPLE])


@pytest.mark.slow
def test_whole_collection_converges_and_every_claim_is_true():
    check_claims(SOLVABLE)


@named(argvalues=[example for example in ALL if {Status.CONVERGED, Status.STALLED} <= set(example.outcomes)])
def test_minimum_that_may_not_be_found_is_claimed_only_where_it_is(example):
    solution = solved_batch(example)
    for code, y in zip(solution.status.tolist(), solution.y.numpy(), strict=True):
        assert Status(code) in example.outcomes
        if code == Status.CONVERGED:
            np.testing.assert_allclose(y, example.solution, atol=1e-4)


@named(argvalues=(*collection("infeasible"), *collection("unbounded"), *collection("infimum at infinity")))
def test_problem_without_solution_never_converges(example):
    statuses = {Status(code) for code in solved_batch(example).status.tolist()}
    assert Status.CONVERGED not in statuses
    assert Status.NON_FINITE not in statuses


def test_problems_without_solution_end_in_the_right_status():
    examples = (*collection("infeasible"), *collection("unbounded"))
    found = [
        (example.name, Status(code).name, Status(code) in example.outcomes)
        for example in examples
        for code in solved_batch(example).status.tolist()
    ]
    missed = [case for case in found if not case[-1]]
    assert len(missed) <= 0.05 * len(found), missed


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_random_family_without_solution_gets_its_status(family: RandomFamily):
    inputs = family.make(25, torch.Generator().manual_seed(0))
    status = ddn.DeclarativeNode(family.problem, on_failure="ignore").solve(*inputs).status
    assert not bool((status == Status.CONVERGED).any())
    assert int((status == family.outcome).sum()) >= 24


# Gradients


def gradient_errors(example: ReferenceProblem) -> tuple[float, float]:
    """Errors of ``Dy`` against differences of re-solved problems, in a random direction, and the dense formula.

    Both are relative. Everything happens at the stated solution, where there is one, so that the gradient of that
    solution is judged and not which of several a solver goes to. Two step sizes make the error of the differences of
    fourth order.
    """
    generator = torch.Generator().manual_seed(3)
    x = example.perturb(1, generator)
    y = torch.tensor(example.solution, dtype=x.dtype) if example.solution else solved(example, x).y[0]
    functions = {name: example.problem.function(name) for name in ("equality", "inequality", "bounds")}

    def from_there(x: Tensor) -> Tensor:
        solution = ddn.argmin(
            example.problem.function("objective"), y, x, **functions, start="item", solution=True, on_failure="raise"
        )
        return solution.y

    inputs = x.expand(len(y), -1).clone().requires_grad_()
    answers = from_there(inputs)
    (Dy,) = torch.autograd.grad(answers, inputs, torch.eye(len(y), dtype=y.dtype))
    direction = x[0] * (2 * torch.randint(0, 2, x[0].shape, generator=generator) - 1)
    step = 0.1 * example.spread
    moved = from_there(x + step * torch.tensor([[-2.0], [-1.0], [1.0], [2.0]], dtype=y.dtype) * direction)
    by_differences = (moved[0] - 8 * moved[1] + 8 * moved[2] - moved[3]) / (12 * step)
    # Some solutions do not move at all: rounding is then compared with the size of the problem.
    size = max(*y.abs(), *map(abs, example.start), 1e-9)
    exact = dense_gradient(example, x[0], answers[0].detach())
    return (
        float((Dy @ direction - by_differences).abs().max() / max(by_differences.abs().max(), 1e-3 * size)),
        float(((Dy - exact) * x).abs().max() / max((exact * x).abs().max(), 1e-3 * size)),
    )


def dense_gradient(example: ReferenceProblem, x: Tensor, y: Tensor) -> Tensor:
    """``Dy``, ``(m, n)``, by the saddle-point system of all active rows, bounds among them, every matrix formed."""
    problem = example.problem

    def all_rows(y: Tensor, x: Tensor) -> Tensor:
        parts = [problem.function(name)(y, x).reshape(-1) for name in kinds]
        if bounds is not None:
            lower, upper = bounds(x)
            parts += [lower - y, torch.where(lower == upper, -torch.inf, y - upper)]
        return torch.cat(parts) if parts else y.new_zeros(0)

    bounds = problem.function("bounds")
    kinds = [name for name in ("equality", "inequality") if problem.function(name) is not None]
    lengths = torch.func.jacrev(all_rows)(y, x).norm(dim=1)
    active = all_rows(y, x) > -1e-6 * (1 + y.abs().max()) * lengths

    def rows(y: Tensor, x: Tensor) -> Tensor:
        return all_rows(y, x)[active] / lengths[active]

    def f(y: Tensor, x: Tensor) -> Tensor:
        return problem.function("objective")(y, x) if problem.function("objective") is not None else 0.0 * y.sum()

    if not active.any():
        H, B = torch.func.jacfwd(torch.func.grad(f), (0, 1))(y, x)
        return -torch.linalg.solve(H, B)
    A, C = torch.func.jacrev(rows, (0, 1))(y, x)
    dual = -torch.linalg.lstsq(A.mT, torch.func.grad(f)(y, x)[:, None], driver="gelsd").solution[:, 0]
    L_y = torch.func.grad(lambda y, x: f(y, x) + dual @ rows(y, x))
    H, B = torch.func.jacfwd(L_y, (0, 1))(y, x)
    K = torch.cat((torch.cat((H, A.mT), 1), torch.cat((A, A.new_zeros(len(A), len(A))), 1)))
    return -torch.linalg.solve(K, torch.cat((B, C)))[: len(y)]


@named(argvalues=collection("regular")[:: 2 * SAMPLE])
def test_gradient_is_that_of_the_solution(example):
    by_differences, by_formula = gradient_errors(example)
    assert by_differences < 1e-6
    assert by_formula < 1e-9


@pytest.mark.slow
@named(argvalues=collection("regular"))
def test_every_gradient_is_that_of_the_solution(example):
    by_differences, by_formula = gradient_errors(example)
    assert by_differences < 1e-6
    assert by_formula < 1e-9
