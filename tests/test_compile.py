"""Ready nodes in graphs of ``torch.compile``: the values, gradients, reports and errors of eager, and one graph.

A ready node joins by a row in ``CASES``.
"""

import dataclasses
import subprocess
import sys
import warnings
from collections.abc import Callable, Container
from typing import Any

import pytest
import torch
import torch._dynamo
from problems import randn
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import torchddn as ddn
from torchddn import functional, penalties
from torchddn.functional import project_ball, project_sphere, robust_pool, robust_vector_pool
from torchddn.functional.nodes import operations as _operations
from torchddn.functional.pooling.scalar import ScalarPooling
from torchddn.functional.projection.lp import LpSphere

# The compiler hides these warnings of its own, but not from a filter that turns warnings into errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]

X = torch.cat([randn(3, 5), 4 + randn(3, 2, seed=1)], dim=1)
POINTS = torch.cat([randn(3, 6, 2), 4 + randn(3, 2, 2, seed=1)], dim=1)
SCALES = torch.tensor([0.8, 1.0, 1.5], dtype=torch.float64)


def pooled_with_its_objective(x: Tensor, alpha: Tensor) -> tuple[Tensor, ...]:
    found = robust_pool(x, "welsch", alpha, solution=True)
    return found.y, found.objective, found.status


def projected_with_its_multiplier(x: Tensor, radius: Tensor) -> tuple[Tensor, ...]:
    found = project_ball(x, 3, radius, solution=True)
    return found.y, found.inequality_multipliers, found.feasibility


def projector(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Onto the span of eigenvectors, whose signs mean nothing."""
    return lambda X: (lambda V: V @ V.mT)(function(X + X.mT))


BAND = torch.stack([randn(3, 6), 6 + randn(3, 6), randn(3, 6)], dim=1)
A, B = randn(3, 6, 2), randn(3, 6, seed=1)
WEIGHTS = 0.2 + randn(3, 7, seed=2).abs()
FEW_LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
MASK = torch.ones(3, 7, dtype=torch.bool).tril(3)

# Name: a function of tensors, which returns one or several, and these tensors.
CASES: dict[str, tuple[Callable[..., Tensor | tuple[Tensor, ...]], tuple[Tensor, ...]]] = {
    "robust_pool quadratic": (lambda x: robust_pool(x, "quadratic"), (X,)),
    "robust_pool huber": (lambda x, a: robust_pool(x, "huber", a), (X, SCALES)),
    "robust_pool welsch": (lambda x, a, w: robust_pool(x, "welsch", a, weights=w), (X, SCALES, WEIGHTS)),
    "robust_pool by kernels": (lambda x, a: robust_pool(x, "huber", a, compile=True), (X, SCALES)),
    "robust_pool over two axes": (lambda x: robust_pool(x, "huber", 0.7, (0, 2), keepdim=True), (POINTS,)),
    "robust_pool solution": (pooled_with_its_objective, (X, SCALES)),
    "robust_vector_pool quadratic": (lambda x: robust_vector_pool(x, "quadratic"), (POINTS,)),
    "robust_vector_pool pseudo_huber": (lambda x, a: robust_vector_pool(x, "pseudo_huber", a), (POINTS, SCALES)),
    "robust_vector_pool by kernels": (
        lambda x: robust_vector_pool(x, "pseudo_huber", 5.0, compile=True),
        (randn(3, 8, 26),),
    ),
    "robust_vector_pool truncated_quadratic": (
        lambda x: robust_vector_pool(x, "truncated_quadratic", 2.0, mask=MASK.new_ones(3, 8)),
        (POINTS,),
    ),
    "project_sphere p=1": (lambda x, r: project_sphere(x, 1, r), (X, SCALES)),
    "project_sphere p=2": (lambda x, r: project_sphere(x, 2, r), (X, SCALES)),
    "project_sphere p=inf": (lambda x, r: project_sphere(x, float("inf"), r), (X, SCALES)),
    "project_sphere p=3": (lambda x, r: project_sphere(x, 3, r), (X, SCALES)),
    "project_sphere dim plateau": (lambda x: project_sphere(x, 1, dim=1, plateau="clarke"), (POINTS,)),
    "project_ball p=1.5": (lambda x, r: project_ball(x, 1.5, r), (X, SCALES)),
    "project_ball p=2": (lambda x, r: project_ball(x, 2, r), (X, SCALES)),
    "project_ball solution": (projected_with_its_multiplier, (X, SCALES)),
    "project_simplex": (functional.project_simplex, (X, SCALES)),
    "project_capped_simplex": (functional.project_capped_simplex, (X, SCALES)),
    "sparsemax": (functional.sparsemax, (X,)),
    "entmax15": (functional.entmax15, (X,)),
    "soft_top_k": (functional.soft_top_k, (X, SCALES, SCALES)),
    "project_box": (lambda x, lower: functional.project_box(x, lower, 1.0), (X, -WEIGHTS)),
    "project_weighted_l1_ball": (functional.project_weighted_l1_ball, (X, WEIGHTS, SCALES)),
    "project_l21_ball": (functional.project_l21_ball, (POINTS, SCALES)),
    "project_halfspace": (functional.project_halfspace, (X, WEIGHTS, SCALES)),
    "project_affine": (functional.project_affine, (X, randn(2, 7, seed=3), randn(2, seed=4))),
    "project_monotone": (functional.project_monotone, (X,)),
    "isotonic_regression": (functional.isotonic_regression, (X, WEIGHTS)),
    "total_variation": (functional.total_variation, (X, WEIGHTS[:, 1:])),
    "project_second_order_cone": (functional.project_second_order_cone, (X,)),
    "project_psd": (functional.project_psd, (randn(3, 4, 4), SCALES)),
    "project_birkhoff": (functional.project_birkhoff, (randn(3, 4, 4),)),
    "project_polyhedron": (functional.project_polyhedron, (X, randn(2, 7, seed=3), randn(2, seed=4))),
    "project_polyhedron limits": (lambda x, low: functional.project_polyhedron(x, lower=low), (X, -WEIGHTS)),
    "project_orthogonal": (functional.project_orthogonal, (randn(3, 4, 2),)),
    "project_rotation": (functional.project_rotation, (randn(3, 3, 3),)),
    "banded_solve": (functional.banded_solve, (BAND, B)),
    "tridiagonal_solve": (functional.tridiagonal_solve, (BAND[:, 0, 1:], BAND[:, 1], BAND[:, 2, :-1], B)),
    "weighted_least_squares": (functional.weighted_least_squares, (A, B, WEIGHTS[:, :6])),
    "total_least_squares": (functional.total_least_squares, (A, B)),
    "top_eigenvectors": (projector(lambda X: functional.top_eigenvectors(X, 2)), (randn(3, 4, 4),)),
    "bottom_eigenvectors": (projector(functional.bottom_eigenvectors), (randn(3, 4, 4),)),
    "optimal_transport": (lambda cost, gamma: functional.optimal_transport(cost, gamma=gamma), (POINTS, SCALES)),
    "optimal_transport unbalanced": (lambda c: functional.optimal_transport(c, marginal_penalty=2.0), (POINTS,)),
    "transport_cost": (functional.transport_cost, (POINTS,)),
    "sinkhorn_divergence": (functional.sinkhorn_divergence, (POINTS, randn(3, 5, 2, seed=6))),
    "support_vector_machine": (
        lambda X: functional.support_vector_machine(X, FEW_LABELS, 1.0, num_classes=3)[:2],
        (randn(3, 6, 2, seed=8),),
    ),
    "ridge_head": (lambda X, T: functional.ridge_head(X, T, 0.5)[:2], (randn(3, 6, 2, seed=8), randn(3, 6, 2, seed=9))),
    "rank_pooling": (lambda X, C: functional.rank_pooling(X, C, mask=MASK[:, :6]), (randn(3, 6, 2, seed=8), SCALES)),
    "analytic_center": (
        functional.analytic_center,
        (torch.tensor([[1.0, 0.2], [-0.5, 1.0], [-0.6, -1.0]]), SCALES.float()),
    ),
    "quadratic_program": (
        lambda q, A, b: functional.quadratic_program(torch.eye(7, dtype=q.dtype), q, A, b, lower=-5.0),
        (X, randn(2, 7, seed=3), randn(2, seed=4)),
    ),
}
# One of each kind: by hand, of ordinary operations, of both, with several outputs, without one axis for all items.
QUICK = {
    "robust_pool huber",
    "robust_pool over two axes",
    "robust_pool solution",
    "robust_vector_pool quadratic",
    "robust_vector_pool pseudo_huber",
    "project_sphere p=2",
    "project_ball solution",
    "project_simplex",
    "banded_solve",
    "weighted_least_squares",
}


def quick_or_slow(name: str, quick: Container[str]) -> Any:
    return name if name in quick else pytest.param(name, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def compiled(function, backend="aot_eager", fullgraph=True, **options):
    return torch.compile(function, backend=backend, fullgraph=fullgraph, **options)


def outputs_and_gradients(function, inputs):
    """What a function returns, and the gradients of a sum of it in all inputs."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    result = function(*leaves)
    outputs = result if isinstance(result, tuple) else (result,)
    differentiable = [output for output in outputs if output.requires_grad]
    gradients = torch.autograd.grad(sum((y * y.detach().cos()).sum() for y in differentiable), leaves)
    return [output.detach() for output in outputs], gradients


def assert_compiled_is_eager(function, inputs, backend):
    expected = outputs_and_gradients(function, inputs)
    torch.testing.assert_close(outputs_and_gradients(compiled(function, backend), inputs), expected)


@pytest.mark.parametrize("name", [quick_or_slow(name, QUICK) for name in CASES])
def test_one_graph_has_the_values_and_gradients_of_eager(name):
    assert_compiled_is_eager(*CASES[name], backend="aot_eager")


@pytest.mark.parametrize("name", ["robust_pool huber", "project_sphere p=1"])
def test_without_anything_to_differentiate_the_graph_is_another_and_the_values_are_the_same(name):
    function, inputs = CASES[name]
    torch.testing.assert_close(compiled(function)(*inputs), function(*inputs))


INDUCED = ["robust_pool huber", "robust_vector_pool pseudo_huber", "project_sphere p=1", "project_ball p=1.5"]


@pytest.mark.slow
@pytest.mark.parametrize("name", INDUCED)
def test_generated_code_has_the_values_and_gradients_of_eager(name):
    assert_compiled_is_eager(*CASES[name], backend="inductor")


@pytest.mark.parametrize("name", ["robust_pool huber", "robust_vector_pool pseudo_huber", "project_ball p=1.5"])
def test_operations_keep_what_they_promise_the_compiler(name):
    """Shapes, strides and memory of results, on a layout that is not in order."""
    function, inputs = CASES[name]
    graphs = []

    def spy(graph, example_inputs):
        graphs.append((graph, example_inputs))
        return graph

    torch.compile(function, backend=spy, fullgraph=True)(*(x.mT.contiguous().mT if x.dim() > 1 else x for x in inputs))
    ((graph, example_inputs),) = graphs
    checked = []

    class Checking(torch.fx.Interpreter):
        def call_function(self, target, args, kwargs):
            if getattr(target, "namespace", None) == "torchddn":
                checked.append(target)
                torch.library.opcheck(target, args, kwargs)
            return super().call_function(target, args, kwargs)

    with torch.no_grad():
        Checking(graph).run(*example_inputs)
    assert torch.ops.torchddn.solve.default in checked
    assert torch.ops.torchddn.look.default in checked


@pytest.mark.parametrize("name", ["robust_pool huber", "project_ball p=1.5"])
def test_a_second_derivative_of_a_graph_is_refused(name):
    function, inputs = CASES[name]
    leaves = [x.clone().requires_grad_() for x in inputs]
    (first, *_) = torch.autograd.grad(compiled(function)(*leaves).sin().sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        torch.autograd.grad(first.sin().sum(), leaves)


def with_a_nan(x):
    x = x.clone()
    x[1, 2] = torch.nan
    return x


NODES = {
    "robust_pool": lambda x, policy: robust_pool(x, "huber", on_failure=policy),
    "project_sphere": lambda x, policy: project_sphere(x, 3, on_failure=policy),
}


@pytest.mark.parametrize("call", NODES)
def test_failures_are_reported_at_every_run(call):
    node = NODES[call]
    warn = compiled(lambda x: node(x, "warn"))
    message = f"`{call}`: 1 of 3 items did not converge .items 1;"
    for _ in range(2):
        with pytest.warns(ddn.ConvergenceWarning, match=message):
            y = warn(with_a_nan(X).requires_grad_())
        torch.testing.assert_close(y, node(with_a_nan(X), "ignore"), equal_nan=True)
        warn(X.clone().requires_grad_())  # a warning would be an error
    raising = compiled(lambda x: node(x, "raise"))
    raising(X)
    with pytest.raises(ddn.SolveError, match=message):
        raising(with_a_nan(X))


@pytest.mark.parametrize("call", NODES)
@pytest.mark.parametrize("policy", ["nan", "ignore"])
def test_nothing_is_read_that_nobody_wants_to_know(call, policy):
    graphs = []

    def spy(graph, _):
        graphs.append(graph)
        return graph

    torch.compile(lambda x: NODES[call](x, policy), backend=spy, fullgraph=True)(with_a_nan(X))
    (graph,) = graphs
    assert torch.ops.torchddn.look.default not in {node.target for node in graph.graph.nodes}


def test_a_gradient_that_is_not_determined_is_reported_in_the_backward_pass():
    x = torch.tensor([[0.0, 10.0]], requires_grad=True)
    y = compiled(lambda x: robust_pool(x, "huber"))(x)
    with pytest.warns(ddn.DegenerateGradientWarning, match="`robust_pool`: the gradient of 1 of 1 items"):
        y.sum().backward()
    assert x.grad is not None and not x.grad.any()


def test_the_order_of_reports_is_that_of_the_calls():
    def both(x):
        return robust_pool(x, "huber") + project_sphere(x, 3).sum(dim=1)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        compiled(both)(with_a_nan(X))
    assert [str(warning.message).split("`")[1] for warning in seen] == ["robust_pool", "project_sphere"]


WRONG = {
    "alpha": (lambda x: robust_pool(x, alpha=-1.0), "must be positive and finite, got -1.0."),
    "shape": (lambda x: robust_pool(x, alpha=x.new_ones(7)), r"broadcasts to \(3,\), got \(7,\)"),
    "penalty": (lambda x: robust_pool(x, "l1"), "must be one of 'quadratic'"),
    "dtype": (lambda x: project_ball(x.int()), "must be a real floating-point tensor, got torch.int32"),
    "dim": (lambda x: project_ball(x, dim=5), "must name axes of a tensor with 2 of them, got 5"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_refused(name):
    function, message = WRONG[name]
    with pytest.raises(ddn.InvalidInputError, match=message):
        compiled(function, "eager", fullgraph=False)(X)
    torch._dynamo.reset()
    # Torch puts any error of Python in a full graph into one of its own.
    with pytest.raises(torch._dynamo.exc.Unsupported, match=message):
        compiled(function, "eager")(X)


def test_a_wrong_number_in_a_tensor_is_refused_at_run_time():
    pool = compiled(lambda x, alpha: robust_pool(x, alpha=alpha))
    for number in (1.0, -1.0, 2.0):
        alpha = torch.tensor(number, requires_grad=True)
        if number > 0:
            pool(X, alpha)
        else:
            with pytest.raises(ddn.InvalidInputError, match="among its entries"):
                pool(X, alpha)


TRANSFORMS = {
    "grad": torch.func.grad(lambda x: robust_pool(x, "welsch").sin().sum()),
    "vmap": torch.func.vmap(lambda x: robust_pool(x, "welsch")),
    "vmap of grad": torch.func.vmap(torch.func.grad(lambda x: robust_pool(x, "huber").sin())),
    "jvp": lambda x: torch.func.jvp(lambda x: project_sphere(x, 3), (x,), (x.cos(),))[1],
    "jacrev": torch.func.jacrev(lambda x: project_ball(x, 1.5)),
}


@pytest.mark.parametrize("name", [quick_or_slow(name, ("grad", "vmap")) for name in TRANSFORMS])
def test_a_transform_is_left_to_eager_or_refused_but_never_wrong(name):
    transformed = TRANSFORMS[name]
    torch.testing.assert_close(compiled(transformed, fullgraph=False)(X), transformed(X))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="a node whose derivative is made by hand"):
        compiled(transformed)(X)


def test_a_transform_of_a_graph_is_refused_by_torch():
    pool = compiled(lambda x: robust_pool(x, "huber"))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="functorch"):
        torch.func.vmap(pool)(X)


@pytest.mark.parametrize(
    "node, shape",
    [
        (lambda x: robust_pool(x, "huber"), (5,)),
        (lambda x: project_sphere(x, 3), (5,)),
    ],
)
def test_a_batch_of_any_size_runs_in_the_same_graph(node, shape):
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(node, backend=counter, fullgraph=True)
    for size in (3, 4, 9):
        x, leaf = (randn(size, *shape).requires_grad_() for _ in range(2))
        torch._dynamo.mark_dynamic(x, 0)
        function(x).sin().sum().backward()
        node(leaf).sin().sum().backward()
        torch.testing.assert_close(x.grad, leaf.grad)
    assert counter.frame_count == 1


def test_a_graph_is_kept_when_a_number_changes():
    """An annealed alpha: one graph for the number, one for its symbol."""
    counter = CompileCounterWithBackend("aot_eager")
    pool = torch.compile(lambda x, alpha: robust_pool(x, "huber", alpha), backend=counter, fullgraph=True)
    for alpha in (1.0, 2.0, 0.5, 0.25, 4.0):
        torch.testing.assert_close(pool(X, alpha), robust_pool(X, "huber", alpha))
    assert counter.frame_count == 2


def test_a_listener_hears_of_graphs_too():
    pool = compiled(lambda x: robust_pool(x, "huber", on_failure="ignore"))
    pool(X)
    with ddn.diagnostics() as seen:
        pool(X)
        pool(X)
    pool(X)
    assert [(record.call, record.method, record.statuses) for record in seen.records] == 2 * [
        ("robust_pool", "Huber", {"CONVERGED": 3})
    ]
    assert seen.to_dict()["records"][0]["seconds"] is None


MODULES = {
    "RobustPool2d": (ddn.nn.RobustPool2d(penalties.Welsch(), SCALES, kernel_size=2), (2, 3, 4, 4)),
    "RobustVectorPool2d": (ddn.nn.RobustVectorPool2d("truncated_quadratic", 1.5, kernel_size=2), (2, 3, 4, 4)),
    "ProjectSphere": (ddn.nn.ProjectSphere(3, learnable_radius=True), (3, 5)),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_compile_too(name):
    module, shape = MODULES[name]
    module.zero_grad()
    outcomes = []
    for run in (module, compiled(module)):
        x = randn(*shape).requires_grad_()
        y = run(x)
        y.sin().sum().backward()
        outcomes.append([y, x.grad, *(parameter.grad.clone() for parameter in module.parameters())])
        module.zero_grad()
    torch.testing.assert_close(*outcomes)


def test_a_whole_training_step_is_compiled_with_a_break_at_the_backward_pass():
    def step(x):
        robust_pool(x, "welsch").sin().sum().backward()
        return x.grad

    x, leaf = X.clone().requires_grad_(), X.clone().requires_grad_()
    torch.testing.assert_close(compiled(step, fullgraph=False)(x), step(leaf))


@pytest.mark.parametrize("strict", [True, False])
def test_a_module_is_exported(strict):
    class Both(torch.nn.Module):
        def forward(self, x):
            return robust_pool(x, "huber") + project_sphere(x, 3).sum(dim=1)

    program = torch.export.export(Both(), (X,), strict=strict)
    torch.testing.assert_close(program.module()(X), Both()(X))
    with pytest.warns(ddn.ConvergenceWarning):
        program.module()(with_a_nan(X))


class Stretched(penalties.Penalty):
    """A user's own, with another alpha, which is written as another is."""

    convex = True
    isotropic = False

    def __init__(self, factor):
        self.factor, self.huber = factor, penalties.Huber()

    def __repr__(self):
        return "Huber()"

    def phi(self, z, alpha):
        return self.huber.phi(z, self.factor * alpha)

    def dphi(self, z, alpha):
        return self.huber.dphi(z, self.factor * alpha)

    def ddphi(self, z, alpha):
        return self.huber.ddphi(z, self.factor * alpha)

    def kappa1(self, z, alpha):
        return self.huber.kappa1(z, self.factor * alpha)

    def kappa2(self, z, alpha):
        return self.huber.kappa2(z, self.factor * alpha)

    def weights(self, z, alpha):
        return self.huber.weights(z, self.factor * alpha)


def test_penalties_of_a_user_are_told_apart():
    for penalty in (Stretched(0.5), Stretched(3.0), penalties.Huber()):
        expected = robust_vector_pool(POINTS, penalty)
        torch.testing.assert_close(compiled(lambda x, p=penalty: robust_vector_pool(x, p))(POINTS), expected)


def test_names_tell_things_apart_and_are_the_same_in_every_process():
    assert _operations.name(ScalarPooling(penalties.Huber())) == "ScalarPooling(penalty=Huber(), compile=False)"
    assert _operations.name(LpSphere(3.0)) != _operations.name(LpSphere(1.5))

    @dataclasses.dataclass(frozen=True)
    class Alike:
        number: int

        def __repr__(self):
            return "Alike()"

    names = {_operations.name(Alike(n)) for n in (1, 2, 3, 1, 2)}
    assert len(names) == 3

    def look_with(word):
        def look(x: Tensor) -> None:
            raise ValueError(word)

        return look

    assert _operations.name(look_with("a")) == _operations.name(look_with("a")) != _operations.name(look_with("b"))
    assert "0x" not in _operations.name(look_with("a"))


def test_nobody_waits_for_a_compiler_without_using_it():
    """Importing it takes longer than importing torch."""
    program = (
        "import sys, torch, torchddn\n"
        "x = torch.ones(2, 3, requires_grad=True)\n"
        "torchddn.functional.robust_pool(x, 'huber').sum().backward()\n"
        "torchddn.functional.project_ball(x).sum().backward()\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
