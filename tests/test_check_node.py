"""``check_node`` passes what is right, and names what is wrong."""

import dataclasses
import re
from functools import partial

import pytest
import torch
from problems import ALL, LinearOnEllipse, SmoothBowl, randn
from torch import Tensor, nn

import torchddn as ddn
from torchddn import functional
from torchddn.testing.conformance import Conformance, ConformanceError, check_node

X = randn(4, 3, seed=11)


def failures(node, *x: Tensor, **options) -> dict[str, str]:
    report = check_node(node, *(x or (X,)), raise_on_failure=False, **options)
    return {check.name: check.sentence for check in report.failures}


# Left out where a test is about something else: most of the time.
COSTLY = ("second derivative", "vmap")

# Each takes seconds; `make test-all` has the others.
QUICK = ("unconstrained", "two equalities", "root", "fixed point")
CASES = [pytest.param(case, id=case.name, marks=[] if case.name in QUICK else pytest.mark.slow) for case in ALL]


@pytest.mark.parametrize("case", CASES)
def test_good_nodes_pass(case):
    report = check_node(case.node(), *case.make(3))
    assert report.passed
    assert [check.name for check in report.checks if check.outcome == "skipped"] == skipped(case.node(), report)


def skipped(node: nn.Module, report: Conformance) -> list[str]:
    problem = ["optimality", "feasibility"] if not isinstance(node, ddn.DeclarativeNode) else []
    free = ["feasibility"] if "no constraints" in report["feasibility"].sentence else []
    return (problem or free) + ([] if torch.cuda.is_available() else ["device"])


PENALTIES = ("quadratic", "pseudo_huber", "huber", "welsch", "truncated_quadratic")
NORMS = (1, 1.5, 2, float("inf"))
WITH_OUTLIERS = torch.cat([X, 6 + randn(4, 2, seed=1)], dim=1)
POINTS = torch.cat([randn(4, 5, 2), 6 + randn(4, 1, 2, seed=1)], dim=1)
READY = {
    **{f"pool {name}": (partial(functional.robust_pool, penalty=name), WITH_OUTLIERS) for name in PENALTIES},
    **{f"vector pool {name}": (partial(functional.robust_vector_pool, penalty=name), POINTS) for name in PENALTIES},
    **{f"sphere {p}": (partial(functional.project_sphere, p=p), 2 * X) for p in NORMS},
    **{f"ball {p}": (partial(functional.project_ball, p=p), 2 * X) for p in NORMS},
    "RobustPool": (ddn.nn.RobustPool("welsch", 2.0, learnable_alpha=True), WITH_OUTLIERS),
    "RobustPool2d": (ddn.nn.RobustPool2d("pseudo_huber", kernel_size=2), randn(2, 2, 3, 4)),
    "RobustVectorPool": (ddn.nn.RobustVectorPool("huber", 2.0, learnable_alpha=True), POINTS),
    "RobustVectorPool2d": (ddn.nn.RobustVectorPool2d("pseudo_huber"), randn(2, 2, 3, 3)),
    "ProjectSphere": (ddn.nn.ProjectSphere(), 2 * X),
    "ProjectBall": (ddn.nn.ProjectBall(p=3, radius=0.5), X),
}


def projector(eigenvectors):
    """Onto their span: the vectors themselves are one basis of many."""
    return lambda X: eigenvectors(X) @ eigenvectors(X).mT


SHAPES = randn(4, 3, 3, seed=2)
GENERAL = SHAPES + 3 * torch.eye(3, dtype=torch.float64)
DEFINITE = GENERAL @ GENERAL.mT
BAND = torch.stack([randn(4, 3, seed=3), 4 + randn(4, 3, seed=4).abs(), randn(4, 3, seed=5)], dim=1)
OUTSIDE = randn(4, 3, seed=6) + torch.tensor([0.5, 0.0, -0.5], dtype=torch.float64)
NORMAL = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
ROW, ONE = torch.ones(1, 3, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
LABELS, BESIDE = torch.tensor([0, 1, 0]), torch.rand(4, 4, generator=torch.Generator().manual_seed(0)).double()


def bounded(G):
    """With one more face, which closes the set."""
    return torch.cat([G, -G.sum(-2, keepdim=True)], dim=-2)


MORE_READY = {
    "project_simplex": (functional.project_simplex, OUTSIDE),
    "sparsemax": (functional.sparsemax, OUTSIDE),
    "entmax15": (functional.entmax15, OUTSIDE),
    "project_capped_simplex": (partial(functional.project_capped_simplex, upper=0.6), OUTSIDE),
    "soft_top_k": (partial(functional.soft_top_k, k=1.5), OUTSIDE),
    "project_box": (partial(functional.project_box, lower=-0.4, upper=0.4), OUTSIDE),
    "project_weighted_l1_ball": (partial(functional.project_weighted_l1_ball, weights=NORMAL.abs()), 2 * OUTSIDE),
    "project_l21_ball": (functional.project_l21_ball, SHAPES),
    "project_halfspace": (partial(functional.project_halfspace, normal=NORMAL, offset=-1.0), OUTSIDE),
    "project_affine": (partial(functional.project_affine, A=ROW, b=ONE), OUTSIDE),
    "project_monotone": (functional.project_monotone, OUTSIDE),
    "isotonic_regression": (partial(functional.isotonic_regression, weights=NORMAL.abs()), OUTSIDE),
    "total_variation": (partial(functional.total_variation, strength=0.2), OUTSIDE),
    "project_second_order_cone": (functional.project_second_order_cone, OUTSIDE),
    "project_psd": (functional.project_psd, SHAPES),
    "project_birkhoff": (functional.project_birkhoff, SHAPES),
    "project_polyhedron": (functional.project_polyhedron, OUTSIDE, SHAPES[:, :2], BAND[:, 0, :2]),
    "project_orthogonal": (functional.project_orthogonal, GENERAL),
    "project_rotation": (functional.project_rotation, GENERAL),
    "weighted_least_squares": (partial(functional.weighted_least_squares, ridge=0.1), GENERAL, OUTSIDE),
    "total_least_squares": (functional.total_least_squares, torch.cat([GENERAL, SHAPES], 1), randn(4, 6, seed=7)),
    "top_eigenvectors": (lambda X: functional.top_eigenvectors(X, solution=True).equality_multipliers, DEFINITE),
    "bottom_eigenvectors": (lambda X: functional.bottom_eigenvectors(X, solution=True).equality_multipliers, DEFINITE),
    "banded_solve": (functional.banded_solve, BAND, OUTSIDE),
    "tridiagonal_solve": (functional.tridiagonal_solve, BAND[:, 0, 1:], BAND[:, 1], BAND[:, 2, :-1], OUTSIDE),
    "optimal_transport": (functional.optimal_transport, SHAPES),
    "transport_cost": (functional.transport_cost, SHAPES),
    "sinkhorn_divergence": (functional.sinkhorn_divergence, SHAPES, GENERAL),
    "transport_between": (lambda x, y: functional.transport_between(x, y, gamma=0.3).value, SHAPES, SHAPES + 0.5),
    "quadratic_program": (partial(functional.quadratic_program, check=False, lower=-0.3, upper=0.4), DEFINITE, OUTSIDE),
    "support_vector_machine": (lambda X: functional.support_vector_machine(X, LABELS).weights, SHAPES),
    "ridge_head": (lambda X, T: functional.ridge_head(X, T).weights, SHAPES, GENERAL),
    "rank_pooling": (functional.rank_pooling, SHAPES),
    "analytic_center": (lambda G: functional.analytic_center(bounded(G), torch.ones(4).to(G)), GENERAL),
    "SupportVectorMachine": (lambda X: ddn.nn.SupportVectorMachine(1.0)(X, LABELS, X), SHAPES),
    "RidgeHead": (ddn.nn.RidgeHead(0.5), SHAPES, GENERAL, SHAPES),
    "RankPooling": (ddn.nn.RankPooling(frames="unit mean"), SHAPES),
    "AnalyticCenter": (ddn.nn.AnalyticCenter(torch.cat([torch.eye(3), -torch.ones(1, 3)])), 2 + BESIDE),
    "ProjectSimplex": (ddn.nn.ProjectSimplex(), OUTSIDE),
    "Sparsemax": (ddn.nn.Sparsemax(), OUTSIDE),
    "Entmax15": (ddn.nn.Entmax15(), OUTSIDE),
    "ProjectCappedSimplex": (ddn.nn.ProjectCappedSimplex(upper=0.6), OUTSIDE),
    "SoftTopK": (ddn.nn.SoftTopK(1.5, learnable_gamma=True), OUTSIDE),
    "ProjectBox": (ddn.nn.ProjectBox(-0.4, 0.4), OUTSIDE),
    "ProjectWeightedL1Ball": (ddn.nn.ProjectWeightedL1Ball(NORMAL.abs()), 2 * OUTSIDE),
    "ProjectL21Ball": (ddn.nn.ProjectL21Ball(), SHAPES),
    "ProjectHalfspace": (ddn.nn.ProjectHalfspace(NORMAL, -1.0), OUTSIDE),
    "ProjectAffine": (ddn.nn.ProjectAffine(ROW, ONE), OUTSIDE),
    "ProjectMonotone": (ddn.nn.ProjectMonotone(), OUTSIDE),
    "IsotonicRegression": (ddn.nn.IsotonicRegression(), OUTSIDE),
    "TotalVariation": (ddn.nn.TotalVariation(0.2), OUTSIDE),
    "ProjectSecondOrderCone": (ddn.nn.ProjectSecondOrderCone(), OUTSIDE),
    "ProjectPSD": (ddn.nn.ProjectPSD(0.1), SHAPES),
    "ProjectBirkhoff": (ddn.nn.ProjectBirkhoff(), SHAPES),
    "ProjectPolyhedron": (ddn.nn.ProjectPolyhedron(ROW, 0 * ONE, lower=-0.4), OUTSIDE),
    "ProjectOrthogonal": (ddn.nn.ProjectOrthogonal(), GENERAL),
    "ProjectRotation": (ddn.nn.ProjectRotation(), GENERAL),
    "RidgeRegression": (ddn.nn.RidgeRegression(0.5), GENERAL, SHAPES, GENERAL),
    "TopEigenvectors": (projector(ddn.nn.TopEigenvectors(2)), DEFINITE),
    "BottomEigenvectors": (projector(ddn.nn.BottomEigenvectors(2)), DEFINITE),
    "OptimalTransport": (ddn.nn.OptimalTransport(), SHAPES),
    "QuadraticProgram": (ddn.nn.QuadraticProgram(lower=-0.3, upper=0.4, check=False), DEFINITE, OUTSIDE),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_READY)
def test_more_ready_nodes_pass(name):
    node, *x = MORE_READY[name]
    # Without the plan there is no second derivative, and an error says so.
    assert check_node(node, *x, skip=["second derivative"] if name == "transport_between" else ()).passed


@pytest.mark.parametrize("name", READY)
def test_ready_nodes_pass(name):
    node, x = READY[name]
    assert check_node(node, x).passed


def test_every_ready_node_is_checked():
    checked = {type(node).__name__ if isinstance(node, nn.Module) else node.func.__name__ for node, _ in READY.values()}
    answers = {"KernelMachine", "CloudSolution", "LinearFit"}
    convex = {"ConvexProgram"}  # whose calls return tuples, and which has tests of its own
    assert checked | set(MORE_READY) == {*functional.__all__, *ddn.nn.__all__} - answers - convex


def test_an_input_beside_the_first_is_checked_too():
    def pool(x, alpha):
        return functional.robust_pool(x, "pseudo_huber", alpha)

    alpha = torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=torch.float64)
    # A scale that is NaN is a mistake, and raises.
    report = check_node(pool, WITH_OUTLIERS, alpha, skip=["NaN isolation"])
    assert report["gradient"].sentence == "Agrees with finite differences in `x[0]`, `x[1]`."


def test_a_node_of_float32_is_checked_in_float64_and_left_alone():
    node = ddn.DeclarativeNode(SmoothBowl().float())
    x = X.float().requires_grad_()
    report = check_node(node, x, skip=COSTLY)
    assert report["gradient"].sentence == "Agrees with finite differences in `x[0]`, `problem.weight`."
    assert {p.dtype for p in node.parameters()} == {torch.float32}
    assert x.grad is None and node.problem.weight.grad is None


def test_constants_and_starts_follow_the_dtype():
    weights = torch.tensor([1.0, 2.0, 3.0])
    problem = ddn.Problem.from_functions(lambda y, x: (weights * (y - x).cosh()).sum(), initial=torch.zeros(3))
    assert check_node(ddn.DeclarativeNode(problem), X.float(), skip=COSTLY).passed
    assert check_node(lambda x: torch.sin(weights * x), X.float()).passed
    assert weights.dtype == torch.float32


def test_only_inputs_that_require_grad_are_differentiated_in():
    c, a = randn(2, 3, seed=1), 0.3 * randn(2, 3)
    report = check_node(ddn.DeclarativeNode(LinearOnEllipse()), c, a.requires_grad_(), skip=COSTLY)
    assert report["gradient"].sentence == "Agrees with finite differences in `x[1]`."


def test_a_large_node_is_checked_along_random_directions():
    layer = nn.Linear(200, 150, dtype=torch.float64)
    assert check_node(nn.Sequential(layer, nn.Tanh()), randn(5, 200)).passed


class WrongGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, v):
        (x,) = ctx.saved_tensors
        return v * x  # half of what it should be


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, v):
        (x,) = ctx.saved_tensors
        return 3 * v * x**2


class ForgetsGraph(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, v):
        (x,) = ctx.saved_tensors
        return 3 * v * x.detach() ** 2


class WrongTangent(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x**2

    @staticmethod
    def backward(ctx, v):
        return 2 * v * ctx.saved_tensors[0]

    @staticmethod
    def jvp(ctx, tangent):
        return 3 * tangent * ctx.saved_tensors[0]


def test_a_wrong_gradient_is_shown_beside_the_right_one():
    found = failures(WrongGradient.apply, torch.tensor([[1.0, 3.0]]))
    assert found["gradient"] == (
        "The derivative of output 1 with respect to `x[0]`[0, 1] is 3 by the node and 6 by finite differences."
    )


def test_a_wrong_gradient_in_a_parameter_is_found():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return x * (self.weight.detach() + 0.5 * (self.weight - self.weight.detach()))

    (sentence,) = failures(Scale()).values()
    assert "with respect to `weight` is" in sentence


def test_a_second_derivative_that_does_not_exist_is_found():
    found = failures(Once.apply)
    assert "gradient" not in found
    assert re.search(r"is 0 by the node and -?[\d.]+ by finite differences", found["second derivative"])


def test_a_second_derivative_that_is_silently_zero_is_shown_beside_the_right_one():
    sentence = failures(ForgetsGraph.apply, torch.tensor([[2.0]]))["second derivative"]
    assert re.search(r"is 0 by the node and -?[\d.]+ by finite differences", sentence)


def test_a_forward_mode_that_disagrees_is_found():
    found = failures(WrongTangent.apply)
    assert "gradient" not in found
    assert re.search(r"forward mode gives \S+ and reverse mode \S+\.$", found["forward mode"])


def test_items_that_see_each_other_are_found():
    found = failures(lambda x: torch.sin(x) - 0.1 * x.mean(0, keepdim=True))
    assert set(found) == {"batch independence", "NaN isolation"}
    assert re.match(r"Item 0 depends on its batch mates: alone it is different by \d", found["batch independence"])
    assert found["NaN isolation"].startswith("With NaN in item 2, the other items change by inf")


def test_a_node_that_is_random_is_found_and_nothing_else_is_said():
    found = failures(lambda x: x.square() + 1e-4 * torch.randn_like(x))
    assert set(found) == {"determinism"}
    assert re.match(r"A second call on the same inputs differs by [\d.]+e-0\d", found["determinism"])


class Solved(ddn.Problem):
    """Nearest point of a sphere, answered by ``answer``."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def objective(self, y, x):
        return 0.5 * (y - x).square().sum()

    def equality(self, y, x):
        return torch.stack([y.square().sum() - 1.0, 0.0 * y[0]])[:1]

    def initial(self, x):
        return x

    def solve(self, x):
        return self.answer(x)


def test_an_answer_that_is_not_optimal_is_found():
    node = ddn.DeclarativeNode(Solved(lambda x: -x / x.norm(dim=1, keepdim=True)))  # the farthest point
    found = failures(node, skip=COSTLY)
    assert "4 of 4 items are not solutions (items 0, 1, 2, 3: 4 x STALLED" in found["optimality"]
    assert "feasibility" not in found


def test_an_answer_that_is_not_feasible_is_found_by_row():
    node = ddn.DeclarativeNode(Solved(lambda x: 1.5 * x / x.norm(dim=1, keepdim=True)))
    found = failures(node, skip=COSTLY)
    assert "4 x INFEASIBLE" in found["optimality"]
    assert re.match(r"Item \d violates `equality\[0\]` by \d", found["feasibility"])


def test_float32_for_float64_is_found_and_finite_differences_are_not_tried():
    report = check_node(lambda x: torch.sin(x.float()), X, raise_on_failure=False)
    assert "Output 0 is torch.float32 for torch.float64 inputs" in report["dtype"].sentence
    assert report["gradient"].outcome == "skipped"


def test_a_constant_of_another_dtype_is_found():
    constant = torch.ones(3, dtype=torch.float64)
    assert failures(lambda x: torch.sin(x) + constant) == {
        "dtype": "Output 0 is torch.float64 for torch.float32 inputs."
    }


def test_a_node_that_vmap_cannot_map_is_found():
    def branches(x):
        return x.square() if x.sum().item() > 0 else x.square() + 0.0

    found = failures(branches)
    assert set(found) == {"vmap"}
    assert found["vmap"].startswith("`torch.func.vmap` cannot map it: RuntimeError: vmap: It looks like")


def test_a_node_that_is_wrong_under_vmap_is_found():
    class Misled(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x * 1.0

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, v):
            return v

        @staticmethod
        def jvp(ctx, tangent):
            return tangent

        @staticmethod
        def vmap(info, in_dims, x):
            return x * 2.0, in_dims[0]

    assert re.match(r"`torch.func.vmap` of it differs from a loop by 1.0e\+00", failures(Misled.apply)["vmap"])


def test_a_finite_answer_to_nan_is_found():
    found = failures(lambda x: torch.sin(x.nan_to_num()))
    assert found == {"NaN isolation": "Item 2 is NaN, and its answer is finite: a number that nobody computed."}


@pytest.mark.parametrize(
    "node, sentence",
    [
        (lambda x: x.sum(), "Output 0 has shape (): its first axis is not the batch of 4 items."),
        (lambda x: x / 0.0, "Output 0 is not finite for items 0, 1, 2, 3."),
        (lambda x: x.mul_(2.0), "Changes its input `x[0]` in place. Work on a `.clone()`."),
        (lambda x: None, "Returns no floating-point tensor."),
        (lambda x: x @ x, "Raises RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x3 and 4x3)"),
    ],
    ids=["no batch axis", "infinite", "in place", "nothing", "error"],
)
def test_a_call_that_goes_wrong_is_said_once(node, sentence):
    report = check_node(node, X, raise_on_failure=False)
    assert [str(check) for check in report.failures] == [f"failed   call: {sentence}"]
    assert {check.outcome for check in report.checks[1:]} == {"skipped"}


def test_an_answer_without_a_graph_is_found():
    assert failures(lambda x: torch.sin(x.detach()))["gradient"].startswith("Output 0 carries no graph")


def test_failures_raise_an_assertion_that_lists_them_all():
    with pytest.raises(AssertionError) as caught:
        check_node(lambda x: torch.sin(x.nan_to_num()) - 0.1 * x.nan_to_num().mean(0), X)
    assert isinstance(caught.value, ConformanceError) and isinstance(caught.value, ddn.DDNError)
    lines = str(caught.value).splitlines()
    assert re.fullmatch(r"`<lambda>` fails \d of \d+ checks:", lines[0])
    assert [line.split(":")[0].strip() for line in lines[1:]] == [c.name for c in caught.value.report.failures]


def test_checks_can_be_left_out():
    report = check_node(lambda x: torch.sin(x.nan_to_num()), X, skip=["NaN isolation", "vmap"])
    assert report["NaN isolation"].outcome == report["vmap"].outcome == "skipped"


def test_tolerances_are_those_of_the_finite_differences():
    def rough(x):
        return torch.sin(x) + 1e-7 * torch.sin(1e5 * x).detach()  # off by at most 0.01

    assert "gradient" in failures(rough)
    assert "gradient" not in failures(rough, atol=2e-2)
    assert "gradient" not in failures(rough, rtol=1.0)


def test_the_seed_chooses_the_directions():
    def report(seed):
        return check_node(ForgetsGraph.apply, X, seed=seed, raise_on_failure=False)["second derivative"].sentence

    assert report(0) == report(0) != report(1)


def test_a_node_that_raises_on_failure_is_not_blamed_for_raising_at_nan():
    node = ddn.DeclarativeNode(SmoothBowl(), on_failure="raise")
    report = check_node(node, X, skip=(*COSTLY, "gradient"))
    assert report["NaN isolation"].outcome == "skipped"


def test_a_degenerate_gradient_is_mentioned_where_it_fails():
    def ridge(y, x):
        return (y.sum() - x.sum()).square() + 0.0 * y.sum()

    node = ddn.DeclarativeNode(
        ddn.Problem.from_functions(ridge, initial=lambda x: x.sin()), solver=ddn.solvers.GradientDescent()
    )
    found = failures(node, X[:2], skip=["dtype", *COSTLY])
    assert re.search(r"It also warned: .*is one of many, because the solution is not isolated", found["gradient"])


def test_the_report_reads_as_lines():
    text = str(check_node(lambda x: x.sin(), X))
    head, *lines = text.splitlines()
    assert re.fullmatch(r"<lambda>: \d+ passed, \d+ skipped", head)
    assert lines[0] == "  passed   call: (4, 3) -> (4, 3)."


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"node": 3}, "`check_node(node=...)` must be a node, a module or a function, got 3."),
        ({"x": (3,)}, "`x[0]` must be a tensor"),
        ({"x": ()}, "must be tensors with one common batch axis"),
        ({"x": (torch.zeros(0, 3),)}, "at least one item, got shapes [(0, 3)]"),
        ({"x": (torch.zeros(2, 3), torch.zeros(3))}, "one common batch axis first"),
        ({"x": (torch.zeros(2, dtype=torch.int64),)}, "must have a floating-point tensor"),
        ({"skip": ["gradients"]}, "got 'gradients'"),
        ({"skip": "gradient"}, "must be a list of names"),
        ({"rtol": -1.0}, "`check_node(rtol=...)` must be a non-negative number, got -1.0."),
        ({"atol": "low"}, "`check_node(atol=...)`"),
        ({"seed": -1}, "`check_node(seed=...)` must be a non-negative integer, got -1."),
        ({"raise_on_failure": "yes"}, "must be True or False, got 'yes'."),
    ],
    ids=lambda part: next(iter(part)) if isinstance(part, dict) else "",
)
def test_a_wrong_argument_is_refused(changes, message):
    given = {"node": torch.sin, "x": (X,), **changes}
    node, x = given.pop("node"), given.pop("x")
    with pytest.raises(ddn.InvalidInputError, match=re.escape(message)):
        check_node(node, *x, **given)


def test_a_report_is_plain_data():
    report = check_node(torch.sin, X)
    assert dataclasses.asdict(report)["checks"][0]["name"] == "call"
