"""What ``explain`` says is true: each finding on a problem made to have it, and on one without it."""

import dataclasses
import re

import pytest
import torch
from problems import ALL, LinearOnEllipse, SmoothBowl, randn
from torch import Tensor, nn

import torchddn as ddn
from torchddn.explain import Explanation, explain

X = torch.tensor([[1.2, 0.9], [0.8, 0.6], [0.1, 0.2]], dtype=torch.float64)


def distance(y: Tensor, x: Tensor) -> Tensor:
    return 0.5 * (y - x).square().sum()


def problem(objective=distance, initial=lambda x: 0.5 * x, **constraints) -> ddn.Problem:
    return ddn.Problem.from_functions(objective, initial=initial, **constraints)


def disc(y: Tensor, x: Tensor) -> Tensor:
    return y @ y - 1.0


def advice(report: Explanation) -> str:
    return "\n".join(report.advice)


nodes = [case for case in ALL if isinstance(case.node(), ddn.DeclarativeNode)]


@pytest.mark.parametrize("case", nodes, ids=lambda case: case.name)
def test_a_healthy_node_gets_no_advice(case):
    report = explain(case.node(), *case.make(3), item=1)
    assert report.advice == () and report.warned == ()
    assert report.status == ddn.Status.CONVERGED and report.kkt_error < 1e-12
    assert report.error < 1e-8 and report.certificate < 1e-9
    assert report.curvature is None or report.curvature > 1e-3
    assert all(effect.enters and effect.gradient > 0 for effect in report.effects)


def test_sizes_solver_and_answer_are_those_of_the_item():
    node = ddn.DeclarativeNode(LinearOnEllipse())
    c, a = randn(3, 3, seed=1), 0.3 * randn(3, 3)
    report, solution = explain(node, c, a, item=2), node.solve(c, a)
    assert (report.n, report.m, report.p, report.q, report.num_bounds) == (6, 3, 1, 0, 0)
    assert (report.solver, report.num_steps) == (solution.solver, int(solution.num_steps[2]))
    assert report.objective == pytest.approx(float(solution.objective[2]))
    assert report.active[0].name == "equality[0]"
    assert report.active[0].multiplier == pytest.approx(float(solution.equality_multipliers[2, 0]))
    assert report.freedom == 2


def test_the_active_set_is_named_with_its_multipliers():
    report = explain(problem(bounds=(0.0, 1.0)), torch.tensor([[2.0, -3.0, 0.4]], dtype=torch.float64))
    assert [(c.name, c.weak, c.dependent) for c in report.active] == [
        ("lower[1]", False, False),
        ("upper[0]", False, False),
    ]
    assert [c.multiplier for c in report.active] == pytest.approx([3.0, 1.0])
    assert report.freedom == 1 and report.num_bounds == 6


def test_an_inactive_inequality_is_not_listed():
    assert explain(problem(inequality=disc), X, item=2).active == ()


def test_a_weakly_active_constraint_is_named_and_its_kink_measured():
    report = explain(problem(inequality=disc), X, item=1)
    assert [(c.name, c.weak) for c in report.active] == [("inequality[0]", True)]
    assert report.kink > 0.05
    assert "Active without a multiplier: inequality[0]. The solution has a kink" in advice(report)
    assert "one-sided" in report.warned[0]


def test_dependent_constraints_are_named_and_others_are_not():
    def h(y, x):
        return torch.stack([y[0] + y[1] - 1, y[2] - 0.3, 2 * y[0] + 2 * y[1] - 2])

    report = explain(problem(equality=h), randn(1, 4))
    assert [c.name for c in report.active if c.dependent] == ["equality[0]", "equality[2]"]
    assert report.singular_values[-1] < 1e-12 and report.freedom == 2
    assert "LICQ fails" in str(report)
    assert "depend on each other (equality[0], equality[2])" in advice(report)
    assert report.error < 1e-8  # y is still differentiable


def test_a_flat_direction_is_reported_with_its_curvature():
    report = explain(problem(lambda y, x: (y.sum() - x.sum()).square()), X)
    assert abs(report.curvature) < 1e-12
    assert "f is flat along the constraints" in advice(report)
    assert "one of many" in report.warned[0]
    curved = explain(problem(lambda y, x: (y.sum() - x.sum()).square() + 0.1 * y @ y), X)
    assert curved.curvature == pytest.approx(0.2 / 2.2)


def test_a_constraint_can_supply_the_curvature():
    report = explain(problem(lambda y, x: x @ y, equality=disc, initial=lambda x: -x), X)
    assert report.curvature == pytest.approx(1.0)


def test_an_ill_conditioned_system_is_reported():
    scale = torch.tensor([1.0, 1e-13], dtype=torch.float64)

    def tilted(y, x):
        u, v = y[0] + y[1], y[0] - y[1]
        return scale[0] * (u - x[0]).square() + scale[1] * (v - x[1]).square()

    report = explain(problem(tilted), X)
    assert report.condition > 1e12
    assert report.advice


def test_a_vertex_explains_a_zero_gradient():
    report = explain(problem(bounds=(0.0, 1.0)), torch.tensor([[2.0, -3.0]], dtype=torch.float64))
    (effect,) = report.effects
    assert effect.gradient == 0.0 and effect.enters == ("f", "L_y")
    assert effect.reason == "the active constraints alone determine y, and do not depend on it"
    assert report.freedom == 0 and report.curvature is None


def test_a_vertex_that_moves_with_its_bounds_is_no_reason():
    moving = problem(lambda y, x: y.sum(), bounds=lambda x: (x, None), initial=lambda x: x + 1)
    report = explain(moving, X)
    assert report.effects[0].enters == ("bounds",) and report.effects[0].reason == ""
    assert report.advice == ()


def test_a_parameter_of_the_bounds_is_seen():
    class Clipped(ddn.Problem):
        def __init__(self):
            super().__init__()
            self.limit = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

        def objective(self, y, x):
            return distance(y, x)

        def bounds(self, x):
            return -self.limit, self.limit

        def initial(self, x):
            return 0 * x

    report = explain(Clipped(), X)
    assert {effect.name: effect.enters for effect in report.effects} == {"x[0]": ("f", "L_y"), "limit": ("bounds",)}
    assert report.effects[1].gradient > 0 and report.error < 1e-8


def test_an_input_that_only_pulls_against_the_constraint_is_explained():
    # y on a line; x pulls along its normal only.
    report = explain(problem(lambda y, x: 0.5 * y @ y - x.sum() * y.sum(), equality=lambda y, x: y.sum() - 1.0), X)
    assert report.effects[0].reason == "it only pulls against active constraints, which hold y"


def test_an_input_that_does_not_move_the_minimum_is_explained():
    report = explain(problem(lambda y, x: (y - 1).square().sum() + x.sum()), X)
    assert report.effects[0].enters == ("f",)
    assert report.effects[0].reason == "it changes the value of f, but not where its minimum is"


def test_an_input_that_is_not_used_is_explained():
    report = explain(problem(lambda y, x, unused: distance(y, x), initial=lambda x, unused: x), X, 2 * X)
    assert report.effects[0].reason == ""
    assert report.effects[1].reason == "no active part of the problem depends on it"


def test_a_detached_input_is_found():
    report = explain(problem(lambda y, x: distance(y, x.detach()) + 0 * x.sum()), X)
    assert "torch sees no derivative: it is detached" in report.effects[0].reason
    assert report.error > 0.1


def test_a_saturated_input_is_explained():
    report = explain(problem(lambda y, x: distance(y, 1 + torch.tanh(10 * x))), torch.ones(1, 2, dtype=torch.float64))
    assert report.effects[0].reason == "y hardly reacts to it here: it is saturated"


def test_a_detached_bound_is_found_although_the_input_is_used_elsewhere():
    report = explain(problem(bounds=lambda x: (None, 0.5 * x.detach()), initial=lambda x: 0 * x), X)
    assert report.effects[0].enters == ("f", "L_y")
    assert "torch sees no derivative: it is detached" in report.effects[0].reason


def test_a_gradient_that_leaves_a_dependence_out_is_found():
    report = explain(problem(lambda y, x: distance(y, x * x.detach())), X)
    assert report.error > 0.1
    assert re.search(r"differs from finite differences by \d", advice(report))


def test_a_kink_is_found_without_a_constraint():
    report = explain(problem(lambda y, x: distance(y, x.abs())), torch.zeros(1, 2, dtype=torch.float64))
    assert report.effects[0].reason.startswith("the problem has a kink in it here")
    assert "two sides of the derivative differ" in advice(report)


def test_a_jump_is_found():
    # Two wells; the start, and with it the answer, changes sides with x.
    shifted = problem(
        lambda y, x: (y.square() - 1).square().sum() + 0 * x.sum(), initial=lambda x: 0.9 * torch.sign(x - 1.0)
    )
    report = explain(shifted, torch.full((1, 1), 1.0 + 1e-9, dtype=torch.float64))
    assert "The solution jumps for a tiny change of the inputs" in advice(report)


def test_a_failed_neighbor_is_no_kink():
    # It starts at the solution here, and too far away for two steps a little beside it.
    node = ddn.DeclarativeNode(
        problem(lambda y, x: (y - x).cosh().sum(), initial=lambda x: torch.where(x == 1.0, x, x + 3.0)),
        solver=ddn.solvers.GradientDescent(max_steps=2),
    )
    report = explain(node, torch.ones(1, 1, dtype=torch.float64))
    assert report.status == ddn.Status.CONVERGED
    assert report.error is None and report.kink is None
    assert "In 3 of the random directions a neighboring problem was not solved" in advice(report)


def contradiction(y: Tensor, x: Tensor) -> Tensor:
    return torch.stack([y.sum() - x.sum(), y[0] - y[1], y.sum() - x.sum() - 2])


def test_an_infeasible_item_is_said_first_with_the_constraints_that_are_violated():
    report = explain(problem(equality=contradiction), X)
    assert report.status == ddn.Status.INFEASIBLE
    assert {name for name, size in report.violated if size > 0.1} == {"equality[0]", "equality[2]"}
    assert report.advice[0].startswith("The point is no solution (INFEASIBLE), and has no gradient. The constraints")
    assert "It violates equality[" in report.advice[0]
    assert report.error is None and len(report.advice) == 1


def test_bounds_that_are_violated_are_named():
    report = explain(problem(equality=lambda y, x: y.sum() - 5, bounds=(0.0, 1.0)), X)
    assert report.status == ddn.Status.INFEASIBLE
    assert {name for name, _ in report.violated} <= {"equality[0]", "upper[0]", "upper[1]"}


def test_an_unbounded_item_is_said_first():
    report = explain(problem(lambda y, x: (y * x).sum()), X)
    assert report.status == ddn.Status.UNBOUNDED
    assert report.advice[0].startswith("The point is no solution (UNBOUNDED), and has no gradient. The objective falls")
    assert report.error is None and len(report.advice) == 1


@pytest.mark.parametrize(
    "subject, what",
    [
        ((problem(initial=torch.zeros_like), X / 0), "`x[0]` of this item is"),
        ((problem(initial=lambda x: torch.log(-x)), X), "the start of this item is"),
        ((problem(), X / 0), "`x[0]` and the start of this item are"),
        ((problem(bounds=lambda x: (torch.log(-x), None), initial=lambda x: 0 * x), X), "what `bounds` returns of"),
    ],
    ids=["input", "start", "both", "bounds"],
)
def test_what_is_not_finite_is_named(subject, what):
    report = explain(*subject)
    assert report.status == ddn.Status.NON_FINITE and report.solver == ""
    (sentence,) = report.advice
    assert sentence.startswith(what) and "not finite: the answer is NaN and its gradient zero" in sentence
    assert "NON_FINITE, not solved" in str(report)


def test_a_parameter_that_is_not_finite_is_named():
    bowl = SmoothBowl()
    with torch.no_grad():
        bowl.weight[1] = torch.nan
    assert explain(bowl, randn(2, 3)).advice[0].startswith("`weight` of this item is not finite")


def test_a_function_that_is_not_finite_is_reported():
    report = explain(problem(lambda y, x: torch.log(-1 - y @ y) + distance(y, x)), X)
    assert report.status == ddn.Status.NON_FINITE
    assert report.advice[0].startswith("The point is no solution (NON_FINITE)")


def test_a_feasibility_problem_that_determines_y_is_healthy():
    report = explain(problem(None, equality=lambda y, x: y.square() - x.square()), X)
    assert report.kind == "feasibility" and report.freedom == 0
    assert report.error < 1e-8 and report.advice == ()


def test_a_feasibility_problem_that_leaves_freedom_is_said_to():
    report = explain(problem(None, equality=lambda y, x: y.sum() - x.sum()), X)
    assert report.freedom == 1 and report.curvature == 0.0
    assert report.advice == (
        "The constraints leave y free to move, and there is no objective to choose: the gradient is that of the "
        "shortest movement. Add an objective, such as the distance to a preferred point.",
    )


def test_an_approximate_adjoint_is_mentioned():
    node = ddn.DeclarativeNode(problem(equality=disc), adjoint=ddn.IgnoreConstraints())
    report = explain(node, X)
    assert "The adjoint is IgnoreConstraints, whose gradient may be approximate" in advice(report)
    assert report.error > 0.1


def test_a_refused_gradient_is_passed_on():
    node = ddn.DeclarativeNode(
        problem(lambda y, x: (y.sum() - x.sum()).square()), adjoint=ddn.Implicit(on_singular="raise")
    )
    report = explain(node, X)
    assert "The gradient was refused:" in advice(report)
    assert report.error is None


def test_a_node_that_raises_is_explained_all_the_same():
    node = ddn.DeclarativeNode(
        problem(equality=lambda y, x: torch.stack([y.sum() - 1, y.sum() - 2])), on_failure="raise"
    )
    assert explain(node, X).status == ddn.Status.INFEASIBLE


def test_inputs_without_requires_grad_are_marked():
    report = explain(SmoothBowl(), randn(2, 3))
    assert [effect.requires_grad for effect in report.effects] == [False, True]
    assert "given without requires_grad" in str(report)
    assert "given without requires_grad" not in str(explain(SmoothBowl(), randn(2, 3).requires_grad_()))


def test_float32_is_explained_in_float32():
    report = explain(problem(inequality=disc), X.float())
    assert report.dtype == torch.float32
    assert [c.name for c in report.active] == ["inequality[0]"]
    assert report.advice == ()


def test_a_large_problem_is_explained_without_its_matrices():
    report = explain(problem(lambda y, x: 0.5 * (y - x.sin()).square().sum()), randn(1, 600))
    assert report.singular_values is None and report.condition is None
    assert report.error < 1e-8


def test_trees_and_constants_of_other_types_are_taken():
    tree = problem(
        lambda y, x: (y["a"] - x["b"]).square() + (x["k"] * y["a"]).square(), initial=lambda x: {"a": 0.5 * x["b"]}
    )
    report = explain(tree, {"b": X[:, 0], "k": X[:, 1]})
    assert [effect.name for effect in report.effects] == ["x[0]['b']", "x[0]['k']"]
    assert report.advice == ()


def test_a_captured_tensor_is_seen():
    weight = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    report = explain(problem(lambda y, x: (weight * (y - x).square()).sum() + y.pow(4).sum()), X)
    assert [effect.name for effect in report.effects] == ["x[0]", "captured[0]"]
    assert report.effects[1].gradient > 0 and report.error < 1e-8
    assert weight.grad is None


def test_a_start_and_limits_of_a_batch_are_those_of_the_item():
    given = problem(bounds=(X - 0.1, X + 0.1), initial=X.clone())
    report = explain(given, 2 * X, item=1)
    solution = ddn.DeclarativeNode(given).solve(2 * X)
    assert [c.multiplier for c in report.active] == pytest.approx(solution.upper_multipliers[1].tolist())
    assert report.objective == pytest.approx(float(solution.objective[1]))


def test_a_problem_without_inputs_is_explained():
    report = explain(problem(lambda y: (y - 3).square().sum(), initial=torch.zeros(1, 2)))
    assert (report.n, report.m, report.effects, report.error) == (0, 2, (), None)
    assert report.curvature == pytest.approx(1.0)


def test_a_warm_start_is_left_as_it_was():
    node = ddn.DeclarativeNode(problem(), solver=ddn.solvers.WarmStart(ddn.solvers.Newton()))
    node(X)
    last = node.solver._last
    explain(node, X[:1] + 1)
    assert node.solver._last is last


def test_what_the_diagnostics_say_of_the_backward_pass_is_passed_on():
    def h(y, x):
        return torch.stack([y[0] + y[1] - 1, 2 * y[0] + 2 * y[1] - 2])

    with ddn.diagnostics() as seen:
        report = explain(problem(equality=h), randn(1, 2))
    backward = next(record for record in seen.records if record.stage == "backward")
    assert (report.structure, report.method, report.notes) == (backward.structure, backward.method, backward.notes)
    assert report.notes and report.notes[0] in str(report)


def test_the_seed_and_the_number_of_directions_are_used():
    def error(**options):
        return explain(SmoothBowl(), randn(1, 3), **options).error

    first = error(seed=1, num_directions=1)
    assert first == error(seed=1, num_directions=1) != error(seed=2, num_directions=1)
    assert first < error(seed=1, num_directions=4)


def test_the_report_reads_as_lines():
    lines = str(explain(problem(inequality=disc), X)).splitlines()
    assert lines[0] == "DeclarativeNode(Problem), item 0"
    assert lines[1].split(None, 1) == ["problem", "minimize, n = 2, m = 2, 1 inequality, torch.float64"]
    assert lines[3].split(None, 1) == ["active", "1: inequality[0] (multiplier 0.25)"]
    assert lines[4].split(None, 1)[1].startswith("LICQ holds")


def test_explaining_changes_nothing():
    bowl, x = SmoothBowl(), randn(2, 3).requires_grad_()
    explain(bowl, x)
    assert x.grad is None and bowl.weight.grad is None
    assert dataclasses.asdict(explain(bowl, x))["m"] == 3


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: explain(SmoothBowl, X), "`explain(problem=...)` must be a Problem or a DeclarativeNode"),
        (lambda: explain(problem(), X, item=3), "`explain(item=...)` must be an item of the batch, 0 to 2, got 3."),
        (lambda: explain(problem(), X, num_directions=0), "`explain(num_directions=...)`"),
        (lambda: explain(problem(), X, seed=-1), "`explain(seed=...)`"),
        (lambda: explain(problem(), 3.0), "`x[0]` must be a tensor"),
        (lambda: explain(problem(), X[:0]), "`explain(x=...)` must have at least one item, got an empty batch."),
    ],
)
def test_a_wrong_argument_is_refused(call, message):
    with pytest.raises(ddn.InvalidInputError, match=re.escape(message)):
        call()
