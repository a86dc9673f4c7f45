"""How solves end where problems are hard: saddles, singular Hessians, conflicting constraints, no minimum, no root."""

import pytest
import torch
from solver_cases import CONVERGED, Residuals, bound, run

import torchddn as ddn
from torchddn import solvers
from torchddn.derivatives import gradient, hessian, jacobian
from torchddn.optimality import lagrangian, measure
from torchddn.problem import FixedPoint, Problem, Root

f64 = torch.float64
functions = Problem.from_functions
Status = ddn.Status
ONE = (torch.ones(1, 1, dtype=f64),)


def tensor(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=f64)


def statuses(result) -> set[str]:
    return {Status(code).name for code in result.status.tolist()}


# Minima, and not saddles or maxima.


@pytest.mark.parametrize("start", [(0.0, 0.0), (0.0, 1.0), (1e-9, 0.0), (0.0, -3.0)])
@pytest.mark.parametrize("solver", [solvers.Newton(), solvers.SQP()], ids=lambda s: type(s).__name__)
def test_newton_leaves_a_saddle(solver, start):
    double_well = functions(lambda y, x: (y[0] ** 2 - x[0]) ** 2 + y[1] ** 2)
    result = run(solver, double_well, ONE, tensor(start))
    assert statuses(result) == {"CONVERGED"} and result.num_steps[0] < 20
    torch.testing.assert_close(result.y.abs(), tensor((1.0, 0.0)), rtol=0, atol=1e-12)


def test_newton_leaves_a_maximum():
    sombrero = functions(lambda y, x: (y.square().sum() - x[0]) ** 2)
    result = run(solvers.Newton(), sombrero, ONE, tensor((0.0, 0.0, 0.0)))
    assert statuses(result) == {"CONVERGED"}
    torch.testing.assert_close(result.y.norm(), tensor(1.0)[0])


def test_newton_leaves_a_saddle_whose_way_out_is_hidden():
    """One slightly negative curvature among many large ones, in a direction that no coordinate has."""
    basis = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(0), dtype=f64))[0]
    curvature = torch.linspace(1, 50, 20, dtype=f64)
    curvature[0] = -0.1
    A = basis @ curvature.diag() @ basis.T
    problem = functions(lambda y, x: 0.5 * y @ A @ y + 0.25 * x[0] * y.square().sum() ** 2)
    result = run(solvers.Newton(), problem, ONE, torch.zeros(1, 20, dtype=f64))
    assert statuses(result) == {"CONVERGED"}
    torch.testing.assert_close(result.y.square().sum(), tensor(0.1)[0])


@pytest.mark.parametrize("solver", [solvers.SQP()], ids=lambda s: type(s).__name__)
def test_sqp_leaves_the_maximum_on_the_circle(solver):
    circle = functions(lambda y, x: y.sum(), lambda y, x: y.square().sum() - x[0] ** 2)
    result = run(solver, circle, ONE, tensor((0.5**0.5, 0.5**0.5)))
    assert statuses(result) == {"CONVERGED"}
    torch.testing.assert_close(result.y, tensor((-(0.5**0.5), -(0.5**0.5))), rtol=0, atol=1e-12)


def test_smallest_eigenvector_is_found_from_the_largest():
    """Known answer 8's kind: indefinite on the sphere, with a saddle at every other eigenvector."""
    A = torch.diag(torch.arange(1.0, 6.0, dtype=f64))
    problem = functions(lambda y, x: y @ A @ y * x[0], lambda y, x: y.square().sum() - 1)
    starts = torch.eye(5, dtype=f64)
    result = run(solvers.SQP(), problem, (ONE[0].expand(5, 1),), starts)
    assert statuses(result) == {"CONVERGED"}
    torch.testing.assert_close(result.y.abs(), starts[0].expand(5, 5), rtol=0, atol=1e-10)


def test_known_answer_8_to_all_digits():
    x = tensor((0.50740436, 0.31461995, 0.4479928))
    problem = functions(lambda u, x: (x * u**2).sum(), lambda u, x: torch.stack([u[0] ** 2 + u[1] ** 2 - 1, u.sum()]))
    result = run(solvers.SQP(), problem, (x,), tensor((1.0, 0.0, 0.0)))
    objective = (x * result.y**2).sum()
    torch.testing.assert_close(objective, torch.tensor(0.4007593810589066, dtype=f64), rtol=0, atol=1e-14)
    torch.testing.assert_close(result.y, tensor((0.6283508, -0.7779301, 0.1495793)), rtol=0, atol=5e-8)


@pytest.mark.parametrize("m", [2, 5, 10])
def test_random_non_convex_problems_end_in_minima(m):
    generator = torch.Generator().manual_seed(m)
    A, b, y_0 = (torch.randn(100, *size, generator=generator, dtype=f64) for size in ((m, m), (m,), (m,)))
    problem = functions(lambda y, A, b: (y**4).sum() / 4 + y @ A @ y + b @ y + torch.sin(A @ y).sum())
    result = run(solvers.Newton(), problem, (A, b), 2 * y_0)
    assert statuses(result) == {"CONVERGED"} and result.num_steps.max() < 60
    batched, x = bound(problem, (A, b), y_0)
    assert measure(batched, result.y, result.dual, x).stationarity.max() < 1e-11
    f_yy = hessian(lambda y: batched.objective(y, x), result.y)
    assert torch.linalg.eigvalsh(f_yy).min() > 0


@pytest.mark.parametrize("m", [3, 6, 10])
@pytest.mark.parametrize("kind", ["projection", "no objective", "sphere"])
def test_random_non_convex_constraints_are_met_at_minima(m, kind):
    generator = torch.Generator().manual_seed(m)
    p = m // 2
    b, y_0 = (torch.randn(100, m, generator=generator, dtype=f64) for _ in range(2))
    C, c = (torch.randn(100, p, *size, generator=generator, dtype=f64) for size in ((m,), ()))

    def h(y, b, C, c):
        if kind == "sphere":
            return torch.cat([y.square().sum()[None] - 1, (C @ y)[1:]])
        return torch.tanh(C @ y) + 0.3 * y[:p] ** 3 - 0.5 * torch.tanh(c)

    objectives = {
        "projection": lambda y, b, C, c: (y - b).square().sum(),
        "no objective": None,
        "sphere": lambda y, b, C, c: y @ (b.outer(b) - 2 * C.mT @ C) @ y,
    }
    problem = functions(objectives[kind], h)
    result = run(solvers.SQP(), problem, (b, C, c), 2 * y_0)
    solved = result.status == CONVERGED
    assert solved.sum() >= 98  # a local minimum of |h| may be in the way
    assert statuses(result) <= {"CONVERGED", "INFEASIBLE"}
    batched, x = bound(problem, (b, C, c), y_0)
    measures = measure(batched, result.y, result.dual, x)
    assert measures.feasibility[solved].max() < 1e-11
    scale = 1 + gradient(lambda y: batched.objective(y, x), result.y).norm(dim=1)
    assert (measures.stationarity / scale)[solved].max() < 1e-10
    L_yy = hessian(lambda y: lagrangian(batched, y, result.dual, x), result.y)[solved]
    h_y = jacobian(lambda y: batched.equality(y, x), result.y)[solved]
    tangent = torch.linalg.svd(h_y, full_matrices=True)[2][:, p:]
    reduced = torch.linalg.eigvalsh(tangent @ L_yy @ tangent.mT)[:, 0]
    assert (reduced >= -1e-8 * L_yy.abs().amax((1, 2))).all()


# Solutions that are not isolated, redundant and overdetermined constraints.


@pytest.mark.parametrize(
    "solver",
    [solvers.Newton(), solvers.SQP(), solvers.LBFGS(), solvers.GradientDescent()],
    ids=lambda s: type(s).__name__,
)
def test_a_line_of_minima_is_reached(solver):
    problem = functions(lambda y, x: (y.sum() - x[0]) ** 2)
    result = run(solver, problem, ONE, tensor((0.0, 0.0, 3.0)))
    assert statuses(result) == {"CONVERGED"} and result.num_steps[0] < 10
    torch.testing.assert_close(result.y.sum(), tensor(1.0)[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(result.y, tensor((0.0, 0.0, 3.0)) - 2 / 3, rtol=0, atol=1e-6)  # the nearest, almost


@pytest.mark.parametrize(
    "solver", [solvers.GaussNewton(), solvers.LevenbergMarquardt()], ids=lambda s: type(s).__name__
)
def test_rank_deficient_least_squares_are_solved(solver):
    residual = lambda y, x: torch.stack([y.sum() - x[0], 2 * y.sum() - 3 * x[0]])  # noqa: E731
    result = run(solver, Residuals(residual), ONE, tensor((0.0, 0.0)))
    assert statuses(result) == {"CONVERGED"}
    torch.testing.assert_close(result.y, tensor((0.7, 0.7)), rtol=0, atol=1e-7)
    torch.testing.assert_close(result.y.sum(), tensor(1.4)[0], rtol=0, atol=1e-12)


def test_degenerate_minimum_is_approached():
    result = run(solvers.Newton(), functions(lambda y, x: (x * y**4).sum()), ONE, tensor((2.0,)))
    assert statuses(result) == {"CONVERGED"} and result.y.abs().max() < 1e-11


@pytest.mark.parametrize("word", ["SQP", "AugmentedLagrangian"])
def test_redundant_rows_get_the_shortest_multipliers(word):
    problem = functions(
        lambda y, x: 0.5 * (y - x).square().sum(), lambda y, x: torch.stack([y.sum() - 1, 2 * y.sum() - 2])
    )
    x = tensor((0.3, 2.0, -0.8), (1.0, 1.0, 1.0))
    result = run(solvers.get(word), problem, (x,), torch.zeros(2, 3, dtype=f64))
    assert statuses(result) == {"CONVERGED"}
    shift = (x.sum(1, keepdim=True) - 1) / 3
    torch.testing.assert_close(result.y, x - shift, rtol=0, atol=1e-10)
    # Rows a and 2 a share the multiplier s of a as (s, 2 s) / 5 if they are scaled alike, (s, s / 2) / 2 if not.
    torch.testing.assert_close(result.dual[:, :1] + 2 * result.dual[:, 1:], shift, rtol=0, atol=1e-9)


def test_more_constraints_than_variables_are_met_if_they_can_be():
    """Known answer 9 with its rows active: three rows in the plane, one point."""
    h = lambda y, x: torch.stack([y.square().sum() - 1, y.sum() - 1, y[0] - y[1] - 1])  # noqa: E731
    problem = functions(lambda y, x: 0.5 * (y - x).square().sum(), h)
    result = run(solvers.SQP(), problem, (tensor((2.0, 0.0)),), tensor((2.0, 0.5)))
    assert statuses(result) == {"CONVERGED"}
    torch.testing.assert_close(result.y, tensor((1.0, 0.0)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("word", ["SQP", "AugmentedLagrangian"])
@pytest.mark.parametrize("start, branch", [(-0.3, -1), (0.9, -1), (1.1, 1), (4.0, 1)])
def test_the_start_decides_between_the_two_branches(word, start, branch):
    """Equation 33 of the first paper."""
    problem = functions(None, lambda y, x: (y - 1) ** 2 - x**2)
    result = run(solvers.get(word), problem, (tensor((0.5,)),), tensor((start,)))
    assert statuses(result) == {"CONVERGED"}
    torch.testing.assert_close(result.y, tensor((1 + branch * 0.5,)), rtol=0, atol=1e-10)


def test_a_large_constant_in_the_objective_does_no_harm():
    problem = functions(lambda y, x: 1e8 + (y - x).square().sum() + (y**4).sum())
    result = run(solvers.Newton(), problem, ONE, tensor((5.0,)))
    assert statuses(result) == {"CONVERGED"}
    torch.testing.assert_close(2 * (result.y - 1) + 4 * result.y**3, tensor((0.0,)), rtol=0, atol=1e-12)


def test_badly_scaled_variables_converge_like_well_scaled_ones():
    units = 10.0 ** torch.linspace(-3, 3, 5, dtype=f64)
    problem = functions(lambda y, x: ((y / units - x[0]) ** 2).sum() + ((y / units) ** 4).sum())
    result = run(solvers.Newton(), problem, ONE, torch.zeros(1, 5, dtype=f64))
    assert statuses(result) == {"CONVERGED"} and result.num_steps[0] < 10
    torch.testing.assert_close(result.y / units, (result.y / units)[:, 2:3].expand(1, 5), rtol=1e-9, atol=0)


# Failures, each with its name.


@pytest.mark.parametrize("word", ["SQP", "AugmentedLagrangian"])
@pytest.mark.parametrize(
    "h",
    [
        lambda y, x: torch.stack([y[0] - x[0], y[0] - x[0] - 1]),
        lambda y, x: y[0] ** 2 + x[0],
        lambda y, x: torch.stack([y.square().sum() - 1, y[0] - 3 * x[0]]),
    ],
    ids=["parallel planes", "no real root", "sphere beside a plane"],
)
def test_conflicting_constraints_are_infeasible(word, h):
    problem = functions(lambda y, x: y.square().sum(), h)
    result = run(solvers.get(word), problem, (ONE[0].expand(3, 1),), tensor((1.0, 0.5), (3.0, 1.0), (0.2, -2.0)))
    assert statuses(result) == {"INFEASIBLE"}
    assert result.y.isfinite().all()


def test_constraints_without_a_solution_are_infeasible_also_without_an_objective():
    result = run(solvers.SQP(), functions(None, lambda y, x: y.square().sum() + x[0]), ONE, tensor((1.0, 2.0)))
    assert statuses(result) == {"INFEASIBLE"}


@pytest.mark.parametrize("word", ["Newton", "SQP", "LBFGS", "GradientDescent"])
@pytest.mark.parametrize(
    "f",
    [
        lambda y, x: -y[0] * x[0],
        lambda y, x: -y[0].square() * x[0] + y[1].square(),
        lambda y, x: y[0] ** 3 * x[0] + y[1].square(),
    ],
    ids=["linear", "concave", "cubic"],
)
def test_an_objective_without_limit_is_unbounded(word, f):
    result = run(solvers.get(word), functions(f), ONE, tensor((-0.5, 1.0)))
    assert statuses(result) == {"UNBOUNDED"} and result.num_steps[0] < 100


@pytest.mark.parametrize("word", ["SQP", "AugmentedLagrangian"])
def test_an_objective_without_limit_along_the_constraints_is_unbounded(word):
    result = run(solvers.get(word), functions(lambda y, x: -y[0], lambda y, x: y[1] - x[0]), ONE, tensor((0.0, 0.0)))
    assert statuses(result) == {"UNBOUNDED"}


@pytest.mark.parametrize("word", ["Newton", "LBFGS", "GradientDescent"])
def test_a_pole_of_minus_infinity_is_unbounded(word):
    problem = functions(lambda y, x: torch.where(y.abs().sum() < 0.1, -torch.inf, y.abs().sqrt().sum() * x[0]))
    result = run(solvers.get(word), problem, ONE, tensor((1.0,)))
    assert statuses(result) <= {"UNBOUNDED", "STALLED"}


@pytest.mark.parametrize("word", ["Newton", "SQP", "LBFGS"])
def test_steps_out_of_the_domain_are_taken_back(word):
    problem = functions(lambda y, x: (x * y - y.log()).sum())
    x = tensor((1.0, 1e-3), (1e3, 10.0))
    result = run(solvers.get(word), problem, (x,), torch.full((2, 2), 1.9, dtype=f64))
    assert statuses(result) == {"CONVERGED"}
    torch.testing.assert_close(result.y, 1 / x, rtol=1e-8, atol=0)


@pytest.mark.parametrize("word", ["Newton", "GaussNewton", "LevenbergMarquardt"])
def test_no_root_is_no_convergence(word):
    result = run(solvers.get(word), Root(lambda y, x: y**2 + x, torch.zeros(1)), ONE, tensor((3.0,)))
    assert statuses(result) == {"STALLED"}


@pytest.mark.parametrize("word", ["Newton", "GaussNewton", "LevenbergMarquardt", "Broyden"])
def test_a_root_at_infinity_is_no_root(word):
    result = run(solvers.get(word), Root(lambda y, x: x / y, torch.zeros(1)), ONE, tensor((3.0,)))
    assert statuses(result) == {"UNBOUNDED"}


@pytest.mark.parametrize("word", ["Newton", "GaussNewton", "LevenbergMarquardt", "Broyden"])
def test_roots_are_found_where_full_newton_steps_diverge(word):
    result = run(solvers.get(word), Root(lambda y, x: (y * x).atan(), torch.zeros(1)), ONE, tensor((10.0,)))
    assert statuses(result) == {"CONVERGED"} and result.y.abs().max() < 1e-10


def test_broyden_stops_where_there_is_no_root():
    result = run(solvers.Broyden(), Root(lambda y, x: y**2 + x, torch.zeros(1)), ONE, tensor((3.0,)))
    assert statuses(result) <= {"STALLED", "MAX_STEPS"}


def test_large_residuals_do_not_stop_least_squares():
    residual = lambda y, x: torch.stack([y[0] + 3, y[0] * y[1] - 1, y[0] ** 2 + y[1]]) * x[0]  # noqa: E731
    for solver in (solvers.GaussNewton(), solvers.LevenbergMarquardt(), solvers.Newton()):
        result = run(solver, Residuals(residual), ONE, tensor((-1.2, 1.0)))
        assert statuses(result) == {"CONVERGED"}
        torch.testing.assert_close(result.y, tensor((-1.26926183643, -1.10312493124)), rtol=0, atol=1e-10)


def test_bisection_reports_what_it_finds():
    one = lambda F, solver, start=3.0: run(solver, Root(F, torch.zeros(1)), ONE, tensor((start,)))  # noqa: E731
    bracket = solvers.Bisection(-1.0, 2.0)
    assert statuses(one(lambda y, x: y**3 - x, bracket)) == {"CONVERGED"}
    assert statuses(one(lambda y, x: y**2 + x, bracket)) == {"INFEASIBLE"}
    assert one(lambda y, x: y**2 + x, bracket).num_steps[0] == 0
    assert statuses(one(lambda y, x: y**2 + x, solvers.Bisection())) == {"INFEASIBLE"}
    assert statuses(one(lambda y, x: x / y, bracket)) == {"STALLED"}  # a pole
    assert statuses(one(lambda y, x: torch.sign(y - 0.3 * x), bracket)) == {"STALLED"}  # a jump
    exact = one(lambda y, x: y - 0.5 * x, bracket)
    assert statuses(exact) == {"CONVERGED"} and exact.y.item() == 0.5


@pytest.mark.parametrize("root", [-7.25, -1e-6, 0.0, 3e-5, 0.4, 1e4])
@pytest.mark.parametrize("start", [-50.0, 0.0, 1.3])
def test_bisection_finds_its_own_bracket(root, start):
    problem = Root(lambda y, x: torch.expm1((y - x) / (1 + x.abs())), torch.zeros(1))
    result = run(solvers.Bisection(), problem, (tensor((root,)),), tensor((start,)))
    assert statuses(result) == {"CONVERGED"}
    torch.testing.assert_close(result.y, tensor((root,)), rtol=1e-14, atol=1e-15)


def test_anderson_solves_what_the_plain_iteration_cannot():
    """The eigenvalues of T reach -3: plain iteration diverges."""
    scale = tensor((-3.0, 0.5, -1.5))[0]
    problem = FixedPoint(lambda y, x: scale * y + x, torch.zeros(3))
    x = tensor((1.0, 1.0, 1.0))
    assert statuses(run(solvers.Anderson(), problem, (x,), 0 * x)) == {"CONVERGED"}
    assert statuses(run(solvers.Anderson(history=0), problem, (x,), 0 * x)) <= {"NON_FINITE", "MAX_STEPS"}


@pytest.mark.parametrize("dtype", [torch.float32, f64])
@pytest.mark.parametrize("history", [5, 20])
@pytest.mark.parametrize("m", [1, 2, 3])
def test_anderson_may_remember_more_changes_than_there_are_variables(m, history, dtype):
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(200, m, m, generator=generator, dtype=f64)
    A = (0.9 * A / torch.linalg.matrix_norm(A, 2, keepdim=True)).to(dtype)
    x = torch.randn(200, m, generator=generator, dtype=f64).to(dtype)
    problem = FixedPoint(lambda y, A, x: torch.sin(A @ y) + x, torch.zeros(m, dtype=dtype))
    result = run(solvers.Anderson(history, regularization=0.0), problem, (A, x), 0 * x)
    assert statuses(result) == {"CONVERGED"}


def test_anderson_takes_plain_steps_where_its_history_cannot_be_factored(monkeypatch):
    problem = FixedPoint(lambda y, x: 0.5 * torch.cos(y) + x, torch.zeros(2))
    x = tensor((1.0, 2.0), (0.3, -0.4))
    plain = run(solvers.Anderson(history=0), problem, (x,), 0 * x)

    def fail(K):
        return torch.full_like(K, torch.nan), torch.ones(K.shape[:-2], dtype=torch.int32)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", fail)
    result = run(solvers.Anderson(), problem, (x,), 0 * x)
    assert statuses(result) == {"CONVERGED"} and torch.equal(result.y, plain.y)
    assert torch.equal(result.num_steps, plain.num_steps)


def test_gradient_descent_with_too_long_a_step_is_reported():
    problem = functions(lambda y, x: 0.5 * (y - x).square().sum())
    result = run(solvers.GradientDescent(step_size=3.0), problem, ONE, tensor((0.0,)))
    assert statuses(result) == {"NON_FINITE"}


@pytest.mark.parametrize("word", ["Newton", "LBFGS"])
def test_kinks_do_not_run_forever(word):
    result = run(solvers.get(word), functions(lambda y, x: (y - x).abs().sum()), ONE, tensor((5.0, -0.3)))
    assert statuses(result) <= {"STALLED", "MAX_STEPS", "CONVERGED"}


def test_batch_of_mixed_fates_is_told_apart():
    """Each item its own status in one batch: convergence, no minimum, a start that is not finite."""
    problem = functions(lambda y, x: (x * y**2 / 2 - y).sum())
    x = tensor((1.0,), (-1.0,), (2.0,), (1.0,))
    y_0 = tensor((0.0,), (0.0,), (0.0,), (torch.inf,))
    result = run(solvers.Newton(), problem, (x,), y_0)
    assert [Status(s).name for s in result.status.tolist()] == ["CONVERGED", "UNBOUNDED", "CONVERGED", "NON_FINITE"]
    torch.testing.assert_close(result.y[[0, 2]], tensor((1.0,), (0.5,)))
