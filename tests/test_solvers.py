"""What every solver must do on every problem that it is for."""

import copy
import dataclasses
import pickle

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from solver_cases import CASES, CONVERGED, IDS, PAIRS, Residuals, bound, run
from torch import Tensor

import torchddn as ddn
from torchddn import solvers
from torchddn.problem import FixedPoint, LeastSquares, Problem, Root

pairs = pytest.mark.parametrize("solver, name, accuracy", PAIRS, ids=IDS)
# Those with steps of their own, each once, on the problem that says most about it.
STEPPING = {
    "Newton": "rosenbrock",
    "SQP": "sphere and plane",
    "GaussNewton": "exponential",
    "LevenbergMarquardt": "exponential",
    "LBFGS": "rosenbrock",
    "GradientDescent": "quadratic",
    "AugmentedLagrangian": "circle",
    "Anderson": "kepler",
    "Broyden": "circle and line",
    "Bisection": "square root",
}
stepping = pytest.mark.parametrize("word, name", STEPPING.items(), ids=STEPPING)


@pairs
def test_known_answer_is_found(solver, name, accuracy, device):
    case = CASES[name].on(device)
    result = run(solver, case.problem(), case.x, case.y_0)
    assert result.status.tolist() == [CONVERGED] * 8
    torch.testing.assert_close(result.y, case.answer, rtol=accuracy, atol=accuracy)
    assert result.y.dtype == torch.float64 and result.num_steps.min() >= 1


@pairs
def test_float32_works_to_its_precision(solver, name, accuracy, device):
    case = CASES[name].on(device, torch.float32)
    if isinstance(solver, solvers.WarmStart):
        solver.reset()
    result = run(solver, case.problem(), case.x, case.y_0)
    assert result.y.dtype == torch.float32
    assert result.status.tolist() == [CONVERGED] * 8
    torch.testing.assert_close(result.y, case.answer, rtol=1e-3, atol=1e-3)


@pairs
def test_an_item_alone_is_solved_as_in_a_batch(solver, name, accuracy, device):
    case = CASES[name].on(device)
    forget = solver.reset if isinstance(solver, solvers.WarmStart) else lambda: None
    forget()
    together = run(solver, case.problem(), case.x, case.y_0)
    for i in range(8):
        x = tuple(tensor[i : i + 1] for tensor in case.x)
        forget()
        alone = run(solver, case.problem(), x, case.y_0[i : i + 1])
        assert alone.status[0] == together.status[i]
        assert alone.num_steps[0] == together.num_steps[i]
        torch.testing.assert_close(alone.y[0], together.y[i], rtol=accuracy, atol=accuracy)


@stepping
def test_permuting_the_batch_permutes_the_answer(word, name, device):
    case, order = CASES[name].on(device), torch.tensor([3, 0, 7, 1, 6, 2, 5, 4], device=device)
    there = run(solvers.get(word), case.problem(), case.x, case.y_0)
    back = run(solvers.get(word), case.problem(), tuple(tensor[order] for tensor in case.x), case.y_0[order])
    assert torch.equal(there.status[order], back.status) and torch.equal(there.num_steps[order], back.num_steps)
    torch.testing.assert_close(there.y[order], back.y, rtol=1e-11, atol=1e-11)


@stepping
def test_nan_item_spoils_only_itself(word, name, device):
    case = CASES[name].on(device)
    sound = run(solvers.get(word), case.problem(), case.x, case.y_0)
    x = tuple(tensor.clone() for tensor in case.x)
    x[0][2] = torch.nan
    result = run(solvers.get(word), case.problem(), x, case.y_0)
    others = [0, 1, 3, 4, 5, 6, 7]
    assert result.status[2] == ddn.Status.NON_FINITE and result.num_steps[2] == 0
    assert result.status[others].tolist() == [CONVERGED] * 7
    assert torch.equal(result.num_steps[others], sound.num_steps[others])
    torch.testing.assert_close(result.y[others], sound.y[others], rtol=1e-11, atol=1e-11)


@stepping
def test_nan_start_is_reported_at_once(word, name, device):
    case = CASES[name].on(device)
    y_0 = case.y_0.clone()
    y_0[5] = torch.nan
    result = run(solvers.get(word), case.problem(), case.x, y_0)
    assert result.status[5] == ddn.Status.NON_FINITE and result.num_steps[5] == 0
    assert result.status[:5].tolist() == [CONVERGED] * 5


@stepping
def test_empty_batch_is_solved(word, name, device):
    case = CASES[name].on(device)
    batched, x = bound(case.problem(), case.x, case.y_0)
    batched, x = batched.select(x, torch.zeros(0, dtype=torch.int64, device=device))
    result = solvers.solve(solvers.get(word), batched, x, case.y_0[:0])
    assert result.y.shape == case.y_0[:0].shape and result.status.shape == (0,)


@stepping
def test_solvers_copy_pickle_and_compare(word, name):
    solver = solvers.get(word)
    assert pickle.loads(pickle.dumps(solver)) == solver
    assert copy.deepcopy(solver) == solver
    with pytest.raises(dataclasses.FrozenInstanceError):
        solver.max_steps = 3


@stepping
def test_steps_that_run_out_are_reported(word, name, device):
    case = CASES[name].on(device)
    enough = run(solvers.get(word), case.problem(), case.x, case.y_0).num_steps
    most = int(enough.max())
    result = run(dataclasses.replace(solvers.get(word), max_steps=most - 1), case.problem(), case.x, case.y_0)
    assert torch.equal(result.status == ddn.Status.MAX_STEPS, enough == most)
    assert torch.equal(result.num_steps, enough.clamp(max=most - 1))


@stepping
def test_rtol_decides_when_to_stop(word, name, device):
    case = CASES[name].on(device)
    tight = run(solvers.get(word), case.problem(), case.x, case.y_0)
    loose = run(dataclasses.replace(solvers.get(word), rtol=1e-2), case.problem(), case.x, case.y_0)
    assert loose.status.tolist() == [CONVERGED] * 8
    assert (loose.num_steps <= tight.num_steps).all() and loose.num_steps.sum() < tight.num_steps.sum()


@stepping
def test_atol_decides_when_to_stop(word, name, device):
    case = CASES[name].on(device)
    tight = run(solvers.get(word), case.problem(), case.x, case.y_0)
    loose = run(dataclasses.replace(solvers.get(word), atol=1e-2), case.problem(), case.x, case.y_0)
    assert loose.status.tolist() == [CONVERGED] * 8
    assert (loose.num_steps <= tight.num_steps).all() and loose.num_steps.sum() < tight.num_steps.sum()


@pytest.mark.parametrize("word", ["Newton", "LBFGS", "GradientDescent", "SQP", "AugmentedLagrangian"])
@hypothesis.given(power=st.integers(-30, 30))
@hypothesis.settings(max_examples=5)
def test_scaling_the_objective_changes_nothing_but_multipliers(word, power):
    case, scale = CASES["circle" if word in ("SQP", "AugmentedLagrangian") else "quadratic"], 2.0**power
    plain, scaled = case.problem(), case.problem()
    objective = scaled.function("objective")
    scaled._assign({"objective": lambda y, *x: scale * objective(y, *x), "equality": scaled.function("equality")})
    one = run(solvers.get(word), plain, case.x, case.y_0)
    other = run(solvers.get(word), scaled, case.x, case.y_0)
    assert torch.equal(one.status, other.status) and torch.equal(one.num_steps, other.num_steps)
    torch.testing.assert_close(one.y, other.y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(scale * one.dual, other.dual, rtol=1e-10, atol=1e-10 * scale)


@pytest.mark.parametrize("word", ["SQP", "AugmentedLagrangian"])
@hypothesis.given(power=st.integers(-20, 20))
@hypothesis.settings(max_examples=5)
def test_scaling_a_constraint_scales_its_multiplier_alone(word, power):
    case, scale = CASES["circle"], 2.0**power
    plain, scaled = case.problem(), case.problem()
    equality = scaled.function("equality")
    scaled._assign({"objective": scaled.function("objective"), "equality": lambda y, *x: scale * equality(y, *x)})
    one = run(solvers.get(word), plain, case.x, case.y_0)
    other = run(solvers.get(word), scaled, case.x, case.y_0)
    assert torch.equal(one.status, other.status) and torch.equal(one.num_steps, other.num_steps)
    torch.testing.assert_close(one.y, other.y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.dual, scale * other.dual, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "word", ["Newton", "LBFGS", "GaussNewton", "LevenbergMarquardt", "Broyden", "Anderson", "Bisection"]
)
@hypothesis.given(power=st.integers(-20, 20))
@hypothesis.settings(max_examples=5)
def test_scaling_the_unknowns_scales_the_answer(word, power):
    scale = 2.0**power
    if word in ("Newton", "LBFGS"):
        case, make = CASES["polynomial"], Problem.from_functions
    elif word in ("GaussNewton", "LevenbergMarquardt"):
        case, make = CASES["exponential"], Residuals
    else:
        case = CASES["kepler"]
        make = lambda T: FixedPoint(T, torch.zeros(1))  # noqa: E731
    plain = case.problem()
    if make is Residuals:
        function = plain.residual
    else:
        function = plain.function("objective") or plain.function("residual")
    back = scale if case.name == "kepler" else 1.0
    scaled = make(lambda y, *x: back * function(y / scale, *x))
    one = run(solvers.get(word), plain, case.x, case.y_0)
    other = run(solvers.get(word), scaled, case.x, scale * case.y_0)
    assert torch.equal(one.status, other.status) and torch.equal(one.num_steps, other.num_steps)
    torch.testing.assert_close(scale * one.y, other.y, rtol=1e-11, atol=1e-11 * scale)


# Steps enough for the derivative too; and how well a first-order method's follows.
UNROLLED = {
    "Newton": ("rosenbrock", 60, 1e-9),
    "SQP": ("sphere and plane", 15, 1e-9),
    "GaussNewton": ("exponential", 20, 1e-9),
    "LevenbergMarquardt": ("exponential", 20, 1e-9),
    "LBFGS": ("quadratic", 30, 1e-7),
    "GradientDescent": ("quadratic", 150, 1e-7),
    "AugmentedLagrangian": ("right-hand side", 60, 1e-6),
    "Anderson": ("kepler", 20, 1e-7),
    "Broyden": ("circle and line", 20, 1e-7),
    "Bisection": ("square root", 60, 1e-9),
}


def _unrolled(word: str, name: str, num_steps: int, device: torch.device):
    case = CASES[name].on(device)
    batched, x = bound(case.problem(), case.x, case.y_0)

    def solve(last: Tensor) -> Tensor:
        return solvers.unroll(solvers.get(word), batched, (*x[:-1], last), case.y_0, num_steps)[0]

    return solve, x[-1], case


def _finite_differences(solve, x: Tensor, tangent: Tensor) -> Tensor:
    step = 1e-5
    with torch.no_grad():
        return (solve(x + step * tangent) - solve(x - step * tangent)) / (2 * step)


@pytest.mark.parametrize("word, rest", UNROLLED.items(), ids=UNROLLED)
def test_unrolled_steps_are_differentiable_in_every_mode(word, rest, device):
    name, num_steps, accuracy = rest
    solve, x, case = _unrolled(word, name, num_steps, device)
    torch.testing.assert_close(solve(x), case.answer, rtol=1e-9, atol=1e-9)
    tangent = torch.linspace(-1, 1, x.numel(), device=device, dtype=x.dtype).view_as(x)
    expected = _finite_differences(solve, x, tangent)
    y, forward = torch.func.jvp(solve, (x,), (tangent,))
    torch.testing.assert_close(forward, expected, rtol=1e-5, atol=1e-5)

    v = torch.cos(torch.arange(y.numel(), device=device, dtype=y.dtype)).view_as(y)
    leaf = x.clone().requires_grad_()
    (reverse,) = torch.autograd.grad((solve(leaf) * v).sum(), leaf)
    torch.testing.assert_close((reverse * tangent).sum(), (forward * v).sum(), rtol=accuracy, atol=accuracy)
    functional = torch.func.grad(lambda x: (solve(x) * v).sum())(x)
    torch.testing.assert_close(functional, reverse, rtol=1e-9, atol=1e-9)

    stacked = torch.func.vmap(solve)(torch.stack([x, 1.01 * x]))
    torch.testing.assert_close(stacked[0], y, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("word", ["Newton", "SQP", "GaussNewton", "LevenbergMarquardt", "Broyden"])
def test_one_step_at_the_solution_has_the_exact_derivative(word, device):
    name = STEPPING[word]
    _, x, case = _unrolled(word, name, 1, device)
    batched, tensors = bound(case.problem(), case.x, case.y_0)
    y = run(solvers.get(word), case.problem(), case.x, case.y_0).y
    tangent = torch.linspace(-1, 1, x.numel(), device=device, dtype=x.dtype).view_as(x)
    expected = _finite_differences(
        lambda last: run(solvers.get(word), case.problem(), (*tensors[:-1], last), case.y_0).y, x, tangent
    )
    _, derivative = torch.func.jvp(
        lambda last: solvers.unroll(solvers.get(word), batched, (*tensors[:-1], last), y, 1)[0], (x,), (tangent,)
    )
    torch.testing.assert_close(derivative, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "word, name", [("Newton", "polynomial"), ("SQP", "circle"), ("LevenbergMarquardt", "exponential")]
)
def test_second_derivatives_of_unrolled_newton_steps_are_right(word, name, device):
    solve, x, _ = _unrolled(word, name, 15, device)

    def gradient(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: solve(x).square().sum())(x)

    tangent = torch.linspace(-1, 1, x.numel(), device=device, dtype=x.dtype).view_as(x)
    expected = _finite_differences(gradient, x, tangent)
    _, forward_over_reverse = torch.func.jvp(gradient, (x,), (tangent,))
    torch.testing.assert_close(forward_over_reverse, expected, rtol=1e-5, atol=1e-4)
    leaf = x.clone().requires_grad_()
    (once,) = torch.autograd.grad(solve(leaf).square().sum(), leaf, create_graph=True)
    (twice,) = torch.autograd.grad((once * tangent).sum(), leaf)
    torch.testing.assert_close(twice, expected, rtol=1e-5, atol=1e-4)


def test_solve_is_differentiable_when_grad_mode_is_on():
    case = CASES["circle"]
    x = case.x[0].clone().requires_grad_()
    batched, tensors = bound(case.problem(), (x,), case.y_0)
    result = solvers.solve(solvers.SQP(), batched, tensors, case.y_0)
    (grad,) = torch.autograd.grad(result.y[:, 0].sum(), x)
    torch.testing.assert_close(grad, x.detach() / (1 + x.detach() ** 2) ** 1.5)


def test_unroll_counts_its_own_steps():
    case = CASES["quadratic"]
    batched, x = bound(case.problem(), case.x, case.y_0)
    solver = solvers.GradientDescent(step_size=0.01, max_steps=7)
    seven = solvers.unroll(solver, batched, x, case.y_0)[0]
    assert torch.equal(seven, solvers.unroll(solver, batched, x, case.y_0, 7)[0])
    assert not torch.equal(seven, solvers.unroll(solver, batched, x, case.y_0, 6)[0])


def test_stragglers_go_on_alone(monkeypatch):
    """Once most items have stopped the others are solved without them, and the result is the same."""
    sizes = []
    init, step = solvers.SQP.init, solvers.SQP.step

    def spy(self, problem, x, state):
        sizes.append(problem.size)
        return step(self, problem, x, state)

    monkeypatch.setattr(solvers.SQP, "step", spy)
    x = torch.tensor([[1e-3], [1.0], [1e3], [1.0], [1.0], [1.0], [1.0]], dtype=torch.float64)
    problem = Problem.from_functions(lambda y, x: (x * y**4 / 4 + y**2 / 2 - y).sum())
    y_0 = torch.full((7, 1), 50.0, dtype=torch.float64)
    result = run(solvers.SQP(), problem, (x,), y_0)
    assert init is solvers.SQP.init and sizes[0] == 7 and sizes[-1] < 4
    assert result.status.tolist() == [CONVERGED] * 7
    torch.testing.assert_close(x * result.y**3 + result.y, torch.ones_like(x))
    alone = run(solvers.SQP(), problem, (x[2:3],), y_0[:1])
    assert alone.num_steps[0] == result.num_steps[2]


def test_auto_chooses_by_kind_and_size():
    def chosen(problem: Problem, m: int = 3) -> str:
        batched, _ = bound(problem, (torch.zeros(1, m),), torch.zeros(1, m))
        batched = dataclasses.replace(batched, q=int(problem.function("inequality") is not None))
        solver = solvers.choose(batched)
        return getattr(solver, "name", type(solver).__name__)

    def f(y, x):
        return (y - x).square().sum()

    assert chosen(Problem.from_functions(f)) == "Newton"
    assert chosen(Problem.from_functions(f), 400) == "ActiveSetNewton, LBFGS"
    assert chosen(Problem.from_functions(f, lambda y, x: y.sum())) == "ActiveSetNewton, SQP"
    assert chosen(Problem.from_functions(f, lambda y, x: y.sum()), 400) == "ActiveSetNewton, AugmentedLagrangian"
    assert chosen(Problem.from_functions(f, inequality=lambda y, x: y.sum())) == "ActiveSetNewton, InteriorPoint"
    assert (
        chosen(Problem.from_functions(f, inequality=lambda y, x: y.sum()), 400)
        == "ActiveSetNewton, AugmentedLagrangian"
    )
    assert chosen(Residuals(lambda y, x: y - x)) == "LevenbergMarquardt"
    assert chosen(Residuals(lambda y, x: y - x), 400) == "ActiveSetNewton, LBFGS"
    assert chosen(Root(lambda y, x: y - x, torch.zeros(3))) == "Newton"
    assert chosen(Root(lambda y, x: y - x, torch.zeros(400)), 400) == "Broyden"
    assert chosen(FixedPoint(lambda y, x: x, torch.zeros(3))) == "Anderson"


@pytest.mark.parametrize("m", [400])
@pytest.mark.parametrize("kind", ["minimize", "equality", "root", "fixed_point"])
def test_auto_solves_problems_of_many_variables(kind, m, device):
    x = torch.linspace(-1, 1, 2 * m, dtype=torch.float64, device=device).view(2, m)
    y_0 = torch.zeros_like(x)

    def f(y, x):
        return 0.5 * (y - x).square().sum() + 0.1 * (y[1:] - y[:-1]).square().sum()

    def T(y, x):
        return 0.3 * torch.tanh(y.roll(1)) + x

    problem = {
        "minimize": lambda: Problem.from_functions(f),
        "equality": lambda: Problem.from_functions(f, lambda y, x: y.square().sum() - 1),
        "root": lambda: Root(lambda y, x: 2 * (T(y, x) - y), y_0[0]),
        "fixed_point": lambda: FixedPoint(T, y_0[0]),
    }[kind]()
    batched, tensors = bound(problem, (x,), x if kind == "equality" else y_0)
    with torch.no_grad():
        result = solvers.solve(solvers.choose(batched), batched, tensors, x if kind == "equality" else y_0)
    assert result.status.tolist() == [CONVERGED] * 2
    from torchddn.optimality import measure

    measures = measure(batched, result.y, result.dual, tensors)
    assert measures.stationarity.max() < 1e-8 and measures.feasibility.max() < 1e-10


def test_least_squares_class_is_recognized():
    assert isinstance(Residuals(lambda y: y), LeastSquares)
