"""The fast solver in front of the robust ones: that it is fast, right, and knows when to resign."""

import pytest
import torch
from problems import randn
from torch import Tensor

import torchddn as ddn
from torchddn import Status, solvers
from torchddn.door import prepare
from torchddn.solvers import active_set_newton
from torchddn.solvers.active_set_newton import ActiveSetNewton


def objective(y, x):
    return 0.5 * (y - x).square().sum() + 0.1 * y.pow(4).sum() + 0.3 * torch.logsumexp(y, 0)


KINDS = {
    "none": {},
    "equality": {"equality": lambda y, x: y.sum() - 1.0},
    "inequality": {"inequality": lambda y, x: y.square().sum() - 0.3 * y.numel()},
    "bounds": {"bounds": (-0.5, 1.0)},
    "all": {
        "equality": lambda y, x: y[0] - y[1] - 0.1,
        "inequality": lambda y, x: torch.stack([y.square().sum() - 0.3 * y.numel(), -y.sum() - 2.0]),
        "bounds": lambda x: (None, 0.2 + x.square()),
    },
}


def problem(kind: str) -> ddn.Problem:
    return ddn.Problem.from_functions(objective, initial=torch.zeros_like, **KINDS[kind])


def run(problem: ddn.Problem, x: Tensor) -> solvers.base.Result:
    batched, x, *_ = prepare("test", problem, (x,), "auto")
    with torch.no_grad():
        return solvers.solve(ActiveSetNewton(), batched, x, x[-1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_finds_what_the_robust_solver_finds(kind, dtype):
    x = randn(32, 6).to(dtype)
    found = run(problem(kind), x)
    expected = ddn.DeclarativeNode(problem(kind), solver="InteriorPoint").solve(x)
    took = found.status == Status.CONVERGED
    assert took.float().mean() > 0.9
    tolerance = torch.finfo(dtype).eps ** 0.7
    torch.testing.assert_close(found.y[took], expected.y[took], atol=tolerance, rtol=tolerance)
    assert found.num_steps[took].max() <= 12


@pytest.mark.parametrize("kind", KINDS)
def test_node_reports_the_same_whichever_solver_did_the_work(kind):
    x = randn(8, 6)
    fast, robust = (ddn.DeclarativeNode(problem(kind), solver=s).solve(x) for s in ("auto", "InteriorPoint"))
    for name in ("y", "equality_multipliers", "inequality_multipliers", "lower_multipliers", "upper_multipliers"):
        a, b = getattr(fast, name), getattr(robust, name)
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(fast.objective, robust.objective, atol=1e-10, rtol=1e-10)
    assert torch.equal(fast.status, robust.status)
    assert torch.stack([fast.stationarity, fast.feasibility, fast.complementarity]).max() < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_factors_that_are_used_twice_save_steps(kind, monkeypatch):
    x = randn(8, 24)
    twice = run(problem(kind), x)
    monkeypatch.setattr(active_set_newton, "_LARGE", 25)
    once = run(problem(kind), x)
    assert (twice.status == Status.CONVERGED).all()
    torch.testing.assert_close(twice.y, once.y, atol=1e-13, rtol=1e-13)
    assert (twice.num_steps <= once.num_steps).all()
    assert twice.num_steps.sum() < once.num_steps.sum()


def test_curvature_that_may_change_its_sign_on_the_way_is_looked_at_again():
    # From (1e-4, 0), where it is convex, one short step leads to the saddle at zero.
    saddle = ddn.Problem.from_functions(
        lambda y, x: 0.5 * y[0] ** 2 + 0.5 * (y[0] - 5e-5) * y[1] ** 2 + y[1] ** 4,
        initial=lambda x: torch.stack([1e-4 * x, 0 * x]),
    )
    x = torch.ones(3, dtype=torch.float64)
    assert (run(saddle, x).status != Status.CONVERGED).all()
    solved = ddn.DeclarativeNode(saddle).solve(x)
    assert (solved.status == Status.CONVERGED).all()
    assert (solved.y[:, 1].abs() > 1e-3).all()


def test_quadratic_program_takes_three_steps_at_most():
    quadratic = ddn.Problem.from_functions(
        lambda y, x: 0.5 * (y - x).square().sum(),
        equality=lambda y, x: y.sum() - 1.0,
        bounds=(-5.0, None),
        initial=torch.zeros_like,
    )
    found = run(quadratic, 0.5 * randn(16, 10))
    assert (found.status == Status.CONVERGED).all() and found.num_steps.max() <= 3
    assert found.proof is not None


def resigns(problem: ddn.Problem, x: Tensor) -> bool:
    return bool((run(problem, x).status != Status.CONVERGED).all())


functions = ddn.Problem.from_functions
HARD = {
    "a maximum": functions(lambda y, x: (y * x).cos().sum(), initial=torch.zeros_like),
    "a saddle": functions(lambda y, x: y[0] ** 2 - y[1] ** 2 + 0 * x.sum(), bounds=(-1, 1), initial=torch.zeros_like),
    "an infimum at infinity": functions(lambda y, x: (-y).exp().sum() + 0 * x.sum(), initial=torch.zeros_like),
    "a slope without end": functions(lambda y, x: (y * x).sum(), initial=torch.zeros_like),
    "contradictory rows": functions(
        lambda y, x: (y - x).square().sum(),
        inequality=lambda y, x: torch.stack([y[0] - 1.0, 2.0 - y[0]]),
        initial=torch.zeros_like,
    ),
    "crossed bounds": functions(lambda y, x: (y - x).square().sum(), bounds=(1.0, -1.0), initial=torch.zeros_like),
    "rows that repeat each other": functions(
        lambda y, x: (y - x).square().sum(),
        lambda y, x: torch.stack([y.sum() - 1, 2 * y.sum() - 2]),
        initial=torch.zeros_like,
    ),
    "a flat valley": functions(lambda y, x: (y.sum() - x.sum()).square(), initial=torch.zeros_like),
    "no objective": functions(None, lambda y, x: y.sum() - x.sum(), initial=torch.zeros_like),
    "NaN": functions(lambda y, x: (y - x).square().sum() * torch.nan, initial=torch.zeros_like),
    "a start outside of the domain": functions(lambda y, x: -y.log().sum() + (y * x).sum(), initial=torch.zeros_like),
}


@pytest.mark.parametrize("name", HARD)
def test_resigns_from_what_is_not_a_strict_minimum_close_by(name):
    assert resigns(HARD[name], 1.0 + randn(4, 2).abs())


def test_resigned_items_are_solved_from_their_start_as_if_alone():
    # Two minima: items between them start at a maximum, the others close to one.
    wells = functions(
        lambda y, x: (y.square().sum() - 1).square() + 0.1 * (x * y).sum(),
        bounds=(-2, 2),
        initial=lambda x: torch.where(x > 0, 0.8, 0.0).to(x),
    )
    x = torch.tensor([[0.3], [-0.3], [0.2], [-0.1]], dtype=torch.float64)
    together = ddn.DeclarativeNode(wells).solve(x)
    assert (together.status == Status.CONVERGED).all()
    alone = [ddn.DeclarativeNode(wells).solve(x[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(together.y, torch.cat([solution.y for solution in alone]), atol=1e-12, rtol=1e-12)
    assert torch.equal(together.num_steps, torch.cat([solution.num_steps for solution in alone]))


def test_weakly_active_constraint_is_left_to_verification():
    ball = functions(
        lambda y, x: 0.5 * (y - x).square().sum(),
        inequality=lambda y, x: y.square().sum() - 1,
        initial=torch.zeros_like,
    )
    x = torch.tensor([[0.6, 0.8], [3.0, 4.0]], dtype=torch.float64)
    found = run(ball, x)
    assert found.proof is None
    solution = ddn.DeclarativeNode(ball).solve(x)
    assert (solution.status == Status.CONVERGED).all()
    torch.testing.assert_close(solution.y, x[:1].expand(2, 2), atol=1e-8, rtol=0)


def test_a_bad_item_does_not_change_its_batch_mates():
    x = randn(4, 6)
    bad = x.clone()
    bad[2] = torch.nan
    fine = [0, 1, 3]
    node = ddn.DeclarativeNode(problem("all"), on_failure="ignore")
    torch.testing.assert_close(node(bad)[fine], node(x)[fine], atol=1e-12, rtol=1e-12)
    assert node.solve(bad).status[2] == Status.NON_FINITE


def test_minimum_above_the_start_is_refused():
    # From the start a Newton step jumps over the near minimum to one with a larger objective.
    waves = functions(lambda y, x: 0.02 * y.square().sum() - (3 * y).cos().sum() + 0 * x.sum(), initial=lambda x: x)
    x = torch.tensor([[0.45], [0.5], [0.51], [0.52]], dtype=torch.float64)
    solution = ddn.DeclarativeNode(waves, solver=solvers.active_set_newton.Hybrid(solvers.Newton())).solve(x)
    start = 0.02 * x.square().sum(1) - (3 * x).cos().sum(1)
    assert (solution.status == Status.CONVERGED).all() and (solution.objective <= start).all()
