"""Every option of a solver does what it says, and a wrong value is refused with a message that says what to do."""

import copy
import pickle
import re
import sys
import threading

import pytest
import torch
from solver_cases import CASES, CONVERGED, bound, run

import torchddn as ddn
from torchddn import solvers
from torchddn.problem import FixedPoint, Problem, Root

f64 = torch.float64
Status = ddn.Status
WELL = Problem.from_functions(lambda y, x: (y**4 - 3 * y**2 + x * y).sum())
TILT = torch.tensor([[1.0], [-1.0]], dtype=f64)
LEFT, RIGHT = -1.300839565941577, 1.300839565941577


def converged(result) -> bool:
    return result.status.tolist() == [CONVERGED] * len(result.status)


# Options of the methods.


def test_longer_memory_saves_steps():
    case = CASES["rosenbrock"]
    one, ten = (run(solvers.LBFGS(k), case.problem(), case.x, case.y_0) for k in (1, 10))
    assert converged(one) and converged(ten) and one.num_steps.sum() > 1.5 * ten.num_steps.sum()


def test_no_memory_is_gradient_descent():
    case = CASES["quadratic"]
    one = run(solvers.LBFGS(0), case.problem(), case.x, case.y_0)
    other = run(solvers.GradientDescent(), case.problem(), case.x, case.y_0)
    assert torch.equal(one.y, other.y) and torch.equal(one.num_steps, other.num_steps)


def test_an_exact_search_takes_more_evaluations():
    case = CASES["rosenbrock"]
    loose, tight = (
        run(solvers.LBFGS(search=solvers.StrongWolfe(curvature=c)), case.problem(), case.x, case.y_0)
        for c in (0.9, 1e-3)
    )
    assert converged(loose) and converged(tight)
    assert tight.num_steps.sum() > 1.3 * loose.num_steps.sum()


def test_a_demanding_decrease_takes_more_evaluations():
    case = CASES["rosenbrock"]
    lax, strict = (
        run(solvers.LBFGS(search=solvers.StrongWolfe(decrease=d)), case.problem(), case.x, case.y_0)
        for d in (1e-4, 0.45)
    )
    assert converged(lax) and converged(strict) and not torch.equal(lax.num_steps, strict.num_steps)


def test_step_size_and_momentum_are_those_of_the_formula():
    case = CASES["quadratic"]
    A, b = case.x
    batched, x = bound(case.problem(), case.x, case.y_0)
    y, s = case.y_0, torch.zeros_like(case.y_0)
    for _ in range(5):
        s = 0.5 * s - 0.03 * ((A @ y[..., None])[..., 0] - b)
        y = y + s
    solver = solvers.GradientDescent(step_size=0.03, momentum=0.5)
    torch.testing.assert_close(solvers.unroll(solver, batched, x, case.y_0, 5)[0], y)


def test_momentum_speeds_up_an_ill_conditioned_descent():
    problem = Problem.from_functions(lambda y, x: 0.5 * (torch.linspace(0.01, 1, 5).to(y) * (y - x).square()).sum())
    x = torch.ones(1, 5, dtype=f64)
    plain, heavy = (run(solvers.GradientDescent(step_size=1.0, momentum=m), problem, (x,), 0 * x) for m in (0.0, 0.8))
    assert converged(plain) and converged(heavy)
    assert heavy.num_steps[0] < 0.3 * plain.num_steps[0]


def test_augmented_lagrangian_uses_its_memory():
    case = CASES["divergence"]
    one, ten = (run(solvers.AugmentedLagrangian(k), case.problem(), case.x, case.y_0) for k in (0, 10))
    assert converged(one) and converged(ten) and one.num_steps.sum() > ten.num_steps.sum()


def test_acceleration_saves_steps():
    case = CASES["linear map"]
    plain, two, five = (run(solvers.Anderson(k), case.problem(), case.x, case.y_0) for k in (0, 2, 5))
    assert converged(plain) and converged(two) and converged(five)
    assert plain.num_steps.sum() > two.num_steps.sum() > five.num_steps.sum()
    assert five.num_steps.max() <= 6  # linear in three variables


def test_mixing_tames_an_oscillation():
    problem = FixedPoint(lambda y, x: x - 1.5 * y, torch.zeros(1))
    x = torch.ones(1, 1, dtype=f64)
    wild, tame = (run(solvers.Anderson(0, mixing=beta), problem, (x,), 0 * x) for beta in (1.0, 0.5))
    assert not converged(wild) and converged(tame)
    torch.testing.assert_close(tame.y, 0.4 * x)


def test_regularization_holds_the_acceleration_back():
    case = CASES["linear map"]
    little, much = (run(solvers.Anderson(regularization=r), case.problem(), case.x, case.y_0) for r in (1e-12, 100.0))
    assert converged(little) and converged(much) and much.num_steps.sum() > 2 * little.num_steps.sum()


def test_broyden_with_short_memory_takes_longer():
    generator = torch.Generator().manual_seed(0)
    W, x = (torch.randn(8, *size, generator=generator, dtype=f64) for size in ((10, 10), (10,)))
    problem = FixedPoint(lambda y, W, x: torch.tanh(0.25 * W @ y + x), torch.zeros(10))
    short, long = (run(solvers.Broyden(k, max_steps=2000), problem, (W, x), 0 * x) for k in (1, 30))
    assert converged(long) and short.num_steps.sum() > 1.2 * long.num_steps.sum()


def test_bisection_stays_inside_the_ends_that_are_given():
    three = Root(lambda y, x: (y - 1) * (y - 4) * (y + 5) * x, torch.zeros(1))
    x = torch.ones(1, 1, dtype=f64)
    for lower, upper, root in ((0, 2, 1.0), (2, 9, 4.0), (-6.0, -4.5, -5.0), (None, -4.0, -5.0), (3.9, None, 4.0)):
        result = run(solvers.Bisection(lower, upper), three, (x,), 0.9 * x)
        assert converged(result) and result.y.item() == pytest.approx(root, abs=1e-14)


# Starts.


def test_more_starts_find_the_lower_minimum():
    start = torch.zeros(2, 1, dtype=f64) + 1.0
    single = run(solvers.Newton(), WELL, (TILT,), start)
    several = run(solvers.MultiStart(solvers.Newton(), num_starts=16, spread=2.0), WELL, (TILT,), start)
    assert converged(single) and single.y[0] > 0
    assert converged(several)
    torch.testing.assert_close(several.y, torch.tensor([[LEFT], [RIGHT]], dtype=f64))


def test_one_start_is_the_given_one():
    start = torch.ones(2, 1, dtype=f64)
    one = run(solvers.MultiStart(solvers.Newton(), num_starts=1), WELL, (TILT,), start)
    assert torch.equal(one.y, run(solvers.Newton(), WELL, (TILT,), start).y)


def test_spread_is_the_distance_of_the_starts():
    near, far = (
        run(solvers.MultiStart(solvers.Newton(), num_starts=16, spread=s), WELL, (TILT,), torch.ones(2, 1, dtype=f64))
        for s in (1e-3, 3.0)
    )
    assert near.y[0] > 0 > far.y[0]


def test_sampler_draws_the_starts():
    def ends(y, num_starts, generator):
        return torch.linspace(-2, 2, num_starts, dtype=y.dtype)[None, :, None].expand(len(y), -1, 1)

    best = solvers.MultiStart(solvers.Newton(), num_starts=2, sampler=ends)
    result = run(best, WELL, (TILT,), torch.zeros(2, 1, dtype=f64))
    torch.testing.assert_close(result.y, torch.tensor([[LEFT], [RIGHT]], dtype=f64))


def test_the_first_of_equal_minima_is_taken_every_time():
    """Symmetric wells: which one is decided by the order of the starts, and not by rounding."""
    symmetric = Problem.from_functions(lambda y, x: (x * (y**2 - 1) ** 2).sum())
    x = torch.linspace(0.5, 3, 50, dtype=f64)[:, None]
    for sign in (-1.0, 1.0):
        result = run(solvers.MultiStart(solvers.Newton(), 8, 2.0), symmetric, (x,), torch.full_like(x, 0.9 * sign))
        torch.testing.assert_close(result.y, torch.full_like(x, sign))


def test_generator_decides_the_starts_and_none_repeats_them():
    best = lambda **k: solvers.MultiStart(solvers.GradientDescent(0.01, max_steps=1), 4, 2.0, **k)  # noqa: E731
    go = lambda solver: run(solver, WELL, (TILT,), torch.zeros(2, 1, dtype=f64))  # noqa: E731
    assert torch.equal(go(best()).y, go(best()).y)
    flat = Problem.from_functions(lambda y, x: (y * 0).sum())
    starts = [
        run(solvers.MultiStart(solvers.Newton(), 4, generator=generator), flat, (TILT,), torch.zeros(2, 1, dtype=f64)).y
        for generator in (None, torch.Generator().manual_seed(1), torch.Generator().manual_seed(2))
    ]
    assert all(torch.equal(y, torch.zeros_like(y)) for y in starts)  # all equally good: the given start wins
    seeds = [solvers.MultiStart(solvers.Newton(), 4, generator=torch.Generator().manual_seed(k)) for k in (1, 1, 2)]
    noise = [best._noise(torch.zeros(1, 3, dtype=f64)) for best in seeds]
    assert torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])


def test_a_failed_start_does_not_win():
    """From some starts the objective runs away; its value there is lower, and not an answer."""
    cubic = Problem.from_functions(lambda y, x: (y**3 - 3 * x * y).sum())
    x = torch.ones(1, 1, dtype=f64)
    result = run(solvers.MultiStart(solvers.Newton(), 16, 4.0), cubic, (x,), torch.full_like(x, -5.0))
    assert converged(result)
    torch.testing.assert_close(result.y, x)


def test_multi_start_of_a_root_takes_the_first_that_converged():
    problem = Root(lambda y, x: (y**2 - x) * torch.sigmoid(20 * (y + 0.5)) + torch.sigmoid(-20 * y), torch.zeros(1))
    x = torch.ones(1, 1, dtype=f64)
    assert not converged(run(solvers.Newton(), problem, (x,), -3 * x))
    result = run(solvers.MultiStart(solvers.Newton(), 16, 3.0), problem, (x,), -3 * x)
    assert converged(result)
    torch.testing.assert_close(result.y, x, rtol=0, atol=1e-6)


def test_multi_start_can_be_unrolled():
    best = solvers.MultiStart(solvers.Newton(), num_starts=8, spread=2.0)
    batched, (x,) = bound(WELL, (TILT,), torch.ones(2, 1, dtype=f64))
    y, derivative = torch.func.jvp(
        lambda x: solvers.unroll(best, batched, (x,), torch.ones_like(x), 12)[0], (x,), (torch.ones_like(x),)
    )
    torch.testing.assert_close(derivative, -1 / (12 * y**2 - 6))


def test_warm_start_saves_steps_and_keeps_the_branch():
    warm = solvers.WarmStart(solvers.Newton())
    start = torch.full((2, 1), 1.5, dtype=f64)
    cold = run(warm, WELL, (TILT,), start)
    again = run(warm, WELL, (1.01 * TILT,), -start)  # this start alone would lead to the other well
    assert again.num_steps.max() < cold.num_steps.min()
    assert (again.y > 0).all()
    warm.reset()
    assert (run(warm, WELL, (1.01 * TILT,), -start).y < 0).all()


def test_warm_start_forgets_what_does_not_fit_or_failed():
    warm = solvers.WarmStart(solvers.Newton())
    run(warm, WELL, (TILT,), torch.full((2, 1), 1.5, dtype=f64))
    assert (run(warm, WELL, (TILT[:1],), torch.full((1, 1), -1.5, dtype=f64)).y < 0).all()  # other size
    assert (run(warm, WELL, (TILT[:1].float(),), torch.full((1, 1), 1.5)).y > 0).all()  # other dtype
    x = torch.tensor([[torch.nan], [1.0]], dtype=f64)
    run(warm, WELL, (x,), torch.full((2, 1), 1.5, dtype=f64))
    healed = run(warm, WELL, (TILT,), torch.full((2, 1), -1.5, dtype=f64))
    assert converged(healed) and healed.y[0] < 0 < healed.y[1]


def test_warm_start_copies_pickles_and_survives_threads():
    warm = solvers.WarmStart(solvers.Newton())
    start = torch.full((2, 1), 1.5, dtype=f64)
    run(warm, WELL, (TILT,), start)
    for twin in (copy.deepcopy(warm), pickle.loads(pickle.dumps(warm))):
        assert run(twin, WELL, (TILT,), -start).y.min() > 0
        twin.reset()
        assert run(warm, WELL, (TILT,), -start).y.min() > 0
    results = []
    threads = [threading.Thread(target=lambda: results.append(run(warm, WELL, (TILT,), start))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(converged(result) for result in results)


def test_warm_start_inside_a_transform_remembers_nothing():
    warm = solvers.WarmStart(solvers.Newton())
    batched, (x,) = bound(WELL, (TILT,), torch.ones(2, 1, dtype=f64))
    torch.func.vmap(lambda x: solvers.unroll(warm, batched, (x,), torch.full_like(x, 1.5), 8)[0])(x[None])
    assert (run(warm, WELL, (TILT,), torch.full((2, 1), -1.5, dtype=f64)).y < 0).all()


# The bridge.


@pytest.mark.parametrize("method", ["BFGS", "CG", "L-BFGS-B", "TNC", "Newton-CG", "trust-exact", "trust-ncg", "SLSQP"])
def test_scipy_agrees_on_minima(method):
    case = CASES["quadratic"]
    result = run(solvers.SciPy(method), case.problem(), case.x, case.y_0)
    assert converged(result) and result.num_steps.min() >= 1
    torch.testing.assert_close(result.y, case.answer, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["SLSQP", "trust-constr"])
@pytest.mark.parametrize("name", ["circle", "sphere and plane", "right-hand side"])
def test_scipy_agrees_on_constrained_minima_and_multipliers(method, name):
    case = CASES[name]
    ours = run(solvers.SQP(), case.problem(), case.x, case.y_0)
    result = run(solvers.SciPy(method), case.problem(), case.x, case.y_0)
    assert converged(result)
    torch.testing.assert_close(result.y, case.answer, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.dual, ours.dual, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["hybr", "lm", "anderson", "broyden1", "df-sane", "krylov"])
@pytest.mark.parametrize("name", ["square root", "kepler"])
def test_scipy_agrees_on_roots(method, name):
    case = CASES[name]
    result = run(solvers.SciPy(method), case.problem(), case.x, case.y_0)
    assert converged(result)
    torch.testing.assert_close(result.y.abs(), case.answer, rtol=1e-7, atol=1e-7)  # the other root is one too


def test_scipy_options_reach_scipy():
    case = CASES["rosenbrock"]
    go = lambda solver: run(solver, case.problem(), case.x, case.y_0)  # noqa: E731
    assert Status.MAX_STEPS in go(solvers.SciPy("BFGS", max_steps=3)).status.tolist()
    assert go(solvers.SciPy("BFGS", max_steps=3)).num_steps.max() <= 3
    assert Status.MAX_STEPS in go(solvers.SciPy("BFGS", options={"maxiter": 3})).status.tolist()
    loose, tight = go(solvers.SciPy("BFGS", rtol=1e-1)), go(solvers.SciPy("BFGS"))
    assert loose.num_steps.sum() < tight.num_steps.sum()


def test_scipy_reports_item_by_item():
    x = torch.tensor([[1.0], [-1.0], [torch.nan]], dtype=f64)
    problem = Problem.from_functions(lambda y, x: y.square().sum(), lambda y, x: y[0] ** 2 + y[1] ** 2 - x[0])
    result = run(solvers.SciPy("SLSQP"), problem, (x,), torch.tensor([[1.0, 0.5]] * 3, dtype=f64))
    assert [Status(s).name for s in result.status.tolist()] == ["CONVERGED", "INFEASIBLE", "NON_FINITE"]
    float32 = run(solvers.SciPy("BFGS"), CASES["quadratic"].problem(), *_single("quadratic"))
    assert float32.y.dtype == torch.float32 and converged(float32)


def _single(name: str):
    case = CASES[name].on(torch.device("cpu"), torch.float32)
    return case.x, case.y_0


def test_scipy_cannot_be_unrolled():
    case = CASES["quadratic"]
    batched, x = bound(case.problem(), case.x, case.y_0)
    with pytest.raises(ddn.InvalidInputError, match=r"steps of `SciPy` cannot be differentiated. Use `Implicit\(\)`"):
        solvers.unroll(solvers.SciPy(), batched, x, case.y_0, 3)


def test_missing_scipy_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=re.escape("pip install torchddn[convex]")):
        solvers.SciPy()


# What is refused.

TERMINATING = ["Newton", "SQP", "GaussNewton", "LevenbergMarquardt", "LBFGS", "GradientDescent", "AugmentedLagrangian"]
TERMINATING += ["Anderson", "Broyden", "Bisection"]


@pytest.mark.parametrize("word", TERMINATING)
@pytest.mark.parametrize("value", [-1e-3, torch.nan, torch.inf, "tight", True])
@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_tolerances_are_checked(word, name, value):
    message = rf"`{word}\({name}=...\)` must be a finite number at least 0, got {value!r}"
    with pytest.raises(ddn.InvalidInputError, match=message):
        getattr(solvers, word)(**{name: value})


@pytest.mark.parametrize("word", TERMINATING)
@pytest.mark.parametrize("value", [0, -3, 2.5, None, True])
def test_max_steps_is_checked(word, value):
    message = rf"`{word}\(max_steps=...\)` must be an integer, at least 1, got {value!r}"
    with pytest.raises(ddn.InvalidInputError, match=message):
        getattr(solvers, word)(max_steps=value)


NEWTON = solvers.Newton()
WRONG = [
    (lambda: solvers.LBFGS(history=-1), "`LBFGS(history=...)` must be an integer, at least 0, got -1."),
    (lambda: solvers.LBFGS(search="wolfe"), "`LBFGS(search=...)` must be a `StrongWolfe` object, got 'wolfe'."),
    (
        lambda: solvers.StrongWolfe(decrease=0.0),
        "`StrongWolfe(decrease=...)` must be a finite number above 0, got 0.0.",
    ),
    (
        lambda: solvers.StrongWolfe(curvature="c"),
        "`StrongWolfe(curvature=...)` must be a finite number above 0, got 'c'.",
    ),
    (lambda: solvers.StrongWolfe(0.5, 0.4), "must satisfy decrease < curvature < 1, got 0.5 and 0.4."),
    (lambda: solvers.StrongWolfe(curvature=1.0), "must satisfy decrease < curvature < 1, got 0.0001 and 1.0."),
    (
        lambda: solvers.GradientDescent(0.0),
        "`GradientDescent(step_size=...)` must be a finite number above 0, got 0.0.",
    ),
    (
        lambda: solvers.GradientDescent(0.1, momentum=-0.1),
        "`GradientDescent(momentum=...)` must be a finite number at least 0, got -0.1.",
    ),
    (lambda: solvers.GradientDescent(0.1, momentum=1.0), "`GradientDescent(momentum=...)` must be below 1, got 1.0."),
    (lambda: solvers.GradientDescent(momentum=0.9), "`GradientDescent(momentum=0.9)` needs a fixed `step_size`"),
    (lambda: solvers.AugmentedLagrangian(2.0), "`AugmentedLagrangian(history=...)` must be an integer, at least 0"),
    (lambda: solvers.Anderson(-1), "`Anderson(history=...)` must be an integer, at least 0, got -1."),
    (lambda: solvers.Anderson(mixing=0), "`Anderson(mixing=...)` must be a finite number above 0, got 0."),
    (lambda: solvers.Anderson(mixing=1.5), "`Anderson(mixing=...)` must be at most 1, got 1.5."),
    (
        lambda: solvers.Anderson(regularization=-1.0),
        "`Anderson(regularization=...)` must be a finite number at least 0, got -1.0.",
    ),
    (lambda: solvers.Broyden(0), "`Broyden(history=...)` must be an integer, at least 1, got 0."),
    (lambda: solvers.Bisection(lower="a"), "`Bisection(lower=...)` must be a finite number at least -inf, got 'a'."),
    (
        lambda: solvers.Bisection(upper=torch.inf),
        "`Bisection(upper=...)` must be a finite number at least -inf, got inf.",
    ),
    (lambda: solvers.Bisection(2.0, 1), "`Bisection(lower=..., upper=...)` must be in ascending order, got 2.0 and 1."),
    (lambda: solvers.MultiStart("Newton"), "`MultiStart(solver=...)` must be a solver object such as `Newton()`, got"),
    (lambda: solvers.MultiStart(solvers.Newton), "`MultiStart(solver=...)` must be a solver object such as `Newton()`"),
    (lambda: solvers.MultiStart(NEWTON, 0), "`MultiStart(num_starts=...)` must be an integer, at least 1, got 0."),
    (lambda: solvers.MultiStart(NEWTON, spread=0), "`MultiStart(spread=...)` must be a finite number above 0, got 0."),
    (lambda: solvers.MultiStart(NEWTON, sampler=3), "`MultiStart(sampler=...)` must be a function of (y, num_starts"),
    (
        lambda: solvers.MultiStart(NEWTON, generator=0),
        "`MultiStart(generator=...)` must be a `torch.Generator` or None",
    ),
    (lambda: solvers.WarmStart(None), "`WarmStart(solver=...)` must be a solver object such as `Newton()`, got None."),
    (lambda: solvers.SciPy("bfgs"), "`SciPy(method=...)` must be one of 'BFGS', 'CG', 'L-BFGS-B'"),
    (lambda: solvers.SciPy(rtol=-1.0), "`SciPy(rtol=...)` must be a finite number at least 0, got -1.0."),
    (lambda: solvers.SciPy(max_steps=0), "`SciPy(max_steps=...)` must be an integer, at least 1, got 0."),
    (lambda: solvers.SciPy(options=[1]), "`SciPy(options=...)` must be a dict of SciPy's options, got [1]."),
    (
        lambda: solvers.get("Simplex"),
        "`solvers.get(solver=...)` must be 'auto', one of 'Anderson', 'AugmentedLagrangian'",
    ),
    (lambda: solvers.get(solvers.Newton), "or a solver object such as `Newton(rtol=1e-8)`, got <class"),
    (lambda: solvers.get(None), "or a solver object such as `Newton(rtol=1e-8)`, got None."),
]


@pytest.mark.parametrize("make, message", WRONG, ids=[message[:60] for _, message in WRONG])
def test_wrong_options_are_refused(make, message):
    with pytest.raises(ddn.InvalidInputError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("word", [*TERMINATING, "SciPy"])
def test_unknown_options_are_refused(word):
    with pytest.raises(TypeError, match="tolerance"):
        getattr(solvers, word)(tolerance=1e-3)


@pytest.mark.parametrize("word", [*TERMINATING, "SciPy"])
def test_names_stand_for_solvers(word):
    assert type(solvers.get(word)).__name__ == word
    mine = getattr(solvers, word)()
    assert solvers.get(mine) is mine


def test_sampler_of_wrong_shape_is_refused():
    best = solvers.MultiStart(NEWTON, 3, sampler=lambda y, num_starts, generator: y)
    with pytest.raises(ddn.InvalidInputError, match=re.escape("(B, num_starts, m) = (2, 3, 1), got (2, 1).")):
        run(best, WELL, (TILT,), torch.zeros(2, 1, dtype=f64))


def _problem(kind: str, m: int) -> Problem:
    f = lambda y, x: y.square().sum()  # noqa: E731
    return {
        "minimize": lambda: Problem.from_functions(f),
        "equality": lambda: Problem.from_functions(f, lambda y, x: y[:1] - 1),
        "equalities": lambda: Problem.from_functions(f, lambda y, x: y - 1),
        "root": lambda: Root(lambda y, x: y, torch.zeros(m)),
        "fixed_point": lambda: FixedPoint(lambda y, x: y, torch.zeros(m)),
    }[kind]()


REASONS = {
    "equality": "the problem has 1 equality constraint. Use `SQP()`, or `AugmentedLagrangian()` for many variables.",
    "equalities": "the problem has 2 equality constraints. Use `SQP()`, or `AugmentedLagrangian()` for many variables.",
    "root": "the problem is to find a root. Use `Newton()`, or `Broyden()` for many variables.",
    "fixed_point": "the problem is to find a fixed point. Use `Anderson()`.",
}


@pytest.mark.parametrize(
    "solver, kinds",
    [
        (solvers.Newton(), ("equality", "equalities")),
        (solvers.LBFGS(), ("equality", "equalities", "root", "fixed_point")),
        (solvers.GradientDescent(), ("equality", "root", "fixed_point")),
        (solvers.SQP(), ("root", "fixed_point")),
        (solvers.AugmentedLagrangian(), ("root", "fixed_point")),
        (solvers.Broyden(), ("equality",)),
        (solvers.MultiStart(solvers.LBFGS()), ("equalities", "root")),
        (solvers.WarmStart(solvers.LBFGS()), ("equality", "fixed_point")),
        (solvers.SciPy("BFGS"), ("equality", "root")),
        (solvers.SciPy("SLSQP"), ("root",)),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, tuple) else "",
)
def test_a_solver_refuses_what_it_cannot_solve_and_names_one_that_can(solver, kinds):
    for kind in kinds:
        batched, x = bound(_problem(kind, 2), (torch.zeros(1, 1),), torch.zeros(1, 2))
        with pytest.raises(ddn.InvalidInputError, match=r"`node\(solver=...\)`: `\w+` cannot solve this") as caught:
            solvers.solve(solver, batched, x, torch.zeros(1, 2))
        if not isinstance(solver, solvers.Broyden):  # which has a reason of its own
            assert REASONS[kind] in str(caught.value)
        with pytest.raises(ddn.InvalidInputError, match="cannot solve this"):
            solvers.unroll(solver, batched, x, torch.zeros(1, 2), 2)


@pytest.mark.parametrize("word", ["GaussNewton", "LevenbergMarquardt"])
def test_least_squares_methods_want_a_residual(word):
    batched, x = bound(_problem("minimize", 2), (torch.zeros(1, 1),), torch.zeros(1, 2))
    message = "because the objective is not a sum of squares with a `residual`. Use `Newton()`, or `LBFGS()`"
    with pytest.raises(ddn.InvalidInputError, match=re.escape(message)):
        solvers.solve(solvers.get(word), batched, x, torch.zeros(1, 2))


@pytest.mark.parametrize("word", ["Anderson", "Broyden", "Bisection"])
def test_methods_for_roots_do_not_minimize(word):
    batched, x = bound(_problem("minimize", 2), (torch.zeros(1, 1),), torch.zeros(1, 2))
    message = "because the problem is to find a minimum. Use `Newton()`, or `LBFGS()` for many variables."
    with pytest.raises(ddn.InvalidInputError, match=re.escape(message)):
        solvers.solve(solvers.get(word), batched, x, torch.zeros(1, 2))


def test_bisection_wants_one_variable():
    batched, x = bound(_problem("root", 2), (torch.zeros(1, 1),), torch.zeros(1, 2))
    with pytest.raises(ddn.InvalidInputError, match=r"because the problem has 2 variables instead of one. Use `Newton"):
        solvers.solve(solvers.Bisection(), batched, x, torch.zeros(1, 2))
