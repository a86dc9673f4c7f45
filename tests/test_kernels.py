"""Compiled nodes: that they are the same functions, for every kind of problem and after every change.

Most tests replay what was recorded, operation by operation, and leave out the C++ compiler, which takes seconds for
each kernel.
"""

import copy
import dataclasses
import pickle
import shutil
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import pad
from torch.utils import _pytree as pytree

import torchddn as ddn
from torchddn import kernels
from torchddn.capture import fingerprint, live_tensors
from torchddn.kernel_layout import lay_out
from torchddn.linear import declarations
from torchddn.small_matrices import write_out
from torchddn.structure import forget
from torchddn.testing import collection

D = torch.float64
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")


@pytest.fixture
def replayed(monkeypatch):
    """What is recorded is replayed and not compiled; the list is of the graphs."""
    graphs: list[torch.fx.GraphModule] = []

    def replay(graph, tensors):
        graph = write_out(graph, tensors)
        lay_out(graph, tensors)
        graphs.append(graph)
        return graph

    monkeypatch.setattr(kernels, "_compile", replay)
    monkeypatch.setattr(kernels, "_REPLAYS", 0)
    forget()
    return graphs


@pytest.fixture
def at_once(monkeypatch):
    """The compiler is asked at the first call."""
    monkeypatch.setattr(kernels, "_REPLAYS", 0)
    forget()


class Curved(ddn.Problem):
    """A strictly convex objective on a plane and in a ball."""

    def objective(self, y, x):
        return 0.5 * (y - x).square().sum() + 0.1 * y.pow(4).sum() + 0.3 * y.exp().sum().log()

    def equality(self, y, x):
        return y.sum() - 1.0

    def inequality(self, y, x):
        return y.square().sum() - 1.5

    def initial(self, x):
        return torch.zeros_like(x)


class Boxed(Curved):
    def bounds(self, x):
        return -0.5, 0.8


class Fit(ddn.LeastSquares):
    def residual(self, y, x):
        return torch.cat([y[:1].exp() - x[:1].exp(), y[1:] - x[1:] * y[0]])

    def initial(self, x):
        return torch.zeros_like(x)


class Saddle(ddn.Problem):
    """Not convex: the start is close to a saddle, and Newton's method alone would go there."""

    def objective(self, y, x):
        return (y[0] ** 2 - 1 - x[0].square()).square() + (y[1] - x[1]).square()

    def initial(self, x):
        return torch.stack([0.01 + 0 * x[0], x[1]])


class Diagonal(ddn.Problem):
    """More variables than are looked at as dense ones; its multipliers are wanted too."""

    def objective(self, y, x):
        return -(x * y).sum() + (y * y.log() + (1 - y) * (1 - y).log()).sum()

    def equality(self, y, x):
        return y.sum() - 3.0

    def bounds(self, x):
        return 1e-6, 1 - 1e-6

    def initial(self, x):
        return torch.full_like(x, 3 / len(x))


PROBLEMS = {
    "equality and inequality": (Curved(), 5),
    "bounds": (Boxed(), 5),
    "least squares": (Fit(), 3),
    "not convex": (Saddle(), 2),
    "structured": (Diagonal(), 40),
}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = D) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def assert_same(problem: ddn.Problem, x: Tensor, rtol: float = 1e-11, **options) -> ddn.DeclarativeNode:
    """That the compiled node has the eager one's answers and gradients, also when its kernels are used again."""
    plain = ddn.DeclarativeNode(problem, **options)
    compiled = ddn.DeclarativeNode(problem, compile=True, **options)
    for seed in range(3):
        x = (x.detach() + 0.01 * seed).requires_grad_()
        expected, found = plain.solve(x), compiled.solve(x)
        assert torch.equal(found.status, expected.status)
        torch.testing.assert_close(found.y, expected.y, rtol=rtol, atol=rtol)
        torch.testing.assert_close(found.objective, expected.objective, rtol=rtol, atol=rtol)
        v = randn(*found.y.shape, seed=seed, dtype=x.dtype)
        sums = [(v * each.y).sum() + each.y.square().sum() for each in (expected, found)]
        if found.equality_multipliers is not None:
            sums = [s + each.equality_multipliers.sum() for s, each in zip(sums, (expected, found), strict=True)]
        grads = [torch.autograd.grad(s, x)[0] for s in sums]
        torch.testing.assert_close(grads[1], grads[0], rtol=100 * rtol, atol=100 * rtol)
    return compiled


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_compiled_node_is_the_same_function(name, replayed):
    problem, n = PROBLEMS[name]
    assert_same(problem, randn(6, n))
    assert replayed


def test_a_compiled_node_is_the_same_function_in_single_precision(replayed):
    assert_same(Curved(), randn(6, 5, dtype=torch.float32), rtol=2e-5)


@pytest.mark.parametrize("linear", ["minres", "gmres", "cg", "lu"])
def test_the_adjoint_may_be_solved_as_one_wants(linear, replayed):
    problem, n = PROBLEMS["least squares"] if linear == "cg" else PROBLEMS["equality and inequality"]
    tight = ddn.Implicit(linear=linear, rtol=1e-13)
    assert_same(problem, randn(6, n), rtol=1e-11 if linear == "lu" else 1e-9, adjoint=tight)


@pytest.mark.parametrize("linear", ["auto", "lu"])
@pytest.mark.parametrize(
    "structure",
    [
        declarations.Diagonal(),
        declarations.Banded(1),
        declarations.BlockDiagonal(4),
        declarations.LowRank(1),
        declarations.Sparse(torch.eye(40, dtype=torch.bool)),
        declarations.Dense(),
        "dense",
    ],
    ids=lambda structure: getattr(structure, "name", structure),
)
def test_every_structure_that_may_be_declared_is_recorded(structure, linear, replayed):
    def objective(y, x):
        return 0.5 * (y - x).square().sum() + 0.1 * y.pow(4).sum()

    problem = ddn.Problem.from_functions(objective, initial=torch.zeros_like)
    adjoint = ddn.Implicit(structure=structure, linear=linear)
    node = ddn.DeclarativeNode(problem, adjoint=adjoint, compile=True)
    x = randn(3, 40).requires_grad_()
    for _ in range(4):
        y = node(x)
        (grad,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(grad, 1 / (1 + 1.2 * y.detach().square()))
    assert any("_first_rung" in str(key) for key in node._kernels._known)


def test_a_gradient_of_many_variables_by_products_alone(replayed):
    class Center(ddn.Problem):
        """Products with its dense Hessian are cheaper than the Hessian."""

        def objective(self, y, x):
            return (1 + (y - x).square().sum(-1)).sqrt().sum()

        def initial(self, x):
            return x.mean(0)

    plain, compiled = ddn.DeclarativeNode(Center()), ddn.DeclarativeNode(Center(), compile=True)
    x = randn(2, 200, 140).requires_grad_()
    for _ in range(2):
        with ddn.diagnostics() as seen:
            grads = [torch.autograd.grad(node(x).square().sum(), x)[0] for node in (plain, compiled)]
        torch.testing.assert_close(grads[1], grads[0], rtol=1e-8, atol=1e-10)
    methods = [record.method for record in seen.records if record.stage == "backward"]
    assert methods == ["minres", "minres"]
    assert any("_product" in str(key) for key in compiled._kernels._known)


def test_roots_and_fixed_points_of_problems_are_compiled_too(replayed):
    class Cubic(ddn.Problem):
        kind = "root"

        def residual(self, y, x):
            return y**3 + y - x + 0.1 * y.roll(1)

        def initial(self, x):
            return torch.zeros_like(x)

    plain, compiled = ddn.DeclarativeNode(Cubic()), ddn.DeclarativeNode(Cubic(), compile=True)
    x = randn(4, 3).requires_grad_()
    for node in (plain, compiled):
        node(x)
    torch.testing.assert_close(compiled(x), plain(x))
    torch.testing.assert_close(*(torch.autograd.grad(node(x).exp().sum(), x)[0] for node in (compiled, plain)))


@pytest.mark.slow
@pytest.mark.parametrize("example", collection(), ids=lambda example: example.name)
def test_problems_of_the_collection_are_solved_and_differentiated_as_without(example, replayed):
    x = torch.cat((example.x(), example.perturb(3, torch.Generator().manual_seed(1)))).requires_grad_()
    found = []
    for compiled in (False, True):
        node = ddn.DeclarativeNode(example.problem, on_failure="ignore", compile=compiled)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ddn.DegenerateGradientWarning)
            solution = node.solve(x)
            y = torch.cat([leaf.flatten(1) for leaf in pytree.tree_leaves(solution.y)], dim=1)
            (grad,) = torch.autograd.grad((y @ randn(y.shape[1])).nan_to_num().sum(), x, materialize_grads=True)
        found.append((solution.status, y.detach(), grad))
    (status, y, grad), (status_compiled, y_compiled, grad_compiled) = found
    assert torch.equal(status_compiled, status)
    solved = status == ddn.Status.CONVERGED
    torch.testing.assert_close(y_compiled[solved], y[solved], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grad_compiled[solved], grad[solved], rtol=1e-7, atol=1e-7)


@needs_compiler
def test_the_compiler_makes_the_same_function(at_once, monkeypatch):
    made, compile = [], kernels._compile

    def watch(graph, tensors):
        made.append(compile(graph, tensors))
        return made[-1]

    monkeypatch.setattr(kernels, "_compile", watch)
    assert_same(Fit(), randn(2, 2))
    assert made
    assert not any(isinstance(kernel, torch.fx.GraphModule) for kernel in made)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_compiler_makes_the_same_function_of_every_problem(name, at_once):
    problem, n = PROBLEMS[name]
    assert_same(problem, randn(6, n))


def _changed_margins(y):
    wide = pad(y, (0, 0, 1, -2), value=2.0)
    wide.mul_(3.0)  # is no other tensor
    return wide + y[:, :1].sum()


LAYOUTS = {
    "flattened": lambda y: (y.unsqueeze(2) * y.unsqueeze(1)).flatten(1) + 1,
    "flattened, of a broadcast": lambda y: y.unsqueeze(2).expand(-1, -1, 7).flatten(1) * 2,
    "flattened but for the batch": lambda y: (y.unsqueeze(2) * y.unsqueeze(1)).unflatten(0, (2, -1)).flatten(2, 3),
    "margins": lambda y: pad(y, (1, 0)) - pad(y, (0, 1)),
    "margins of some number": lambda y: pad(y * 2, (2, 3, 1, 0), value=-1.0),
    "negative margins": lambda y: pad(y * 2, (-1, 2)) + pad(y, (2, -1)),
    "negative margins alone": lambda y: pad(y, (-3, -1)),
    "changed in place": _changed_margins,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_graph_that_is_laid_out_for_the_compiler_stays_equal(name):
    function = LAYOUTS[name]
    y, other = torch.randn(2, 12, 60, dtype=D)
    graph = make_fx(lambda y: [function(y)])(y)
    before = graph.code
    lay_out(graph, [y])
    assert graph.code != before
    kept = other.clone()
    (found,) = graph(other)
    assert torch.equal(found, function(other.clone()))
    assert torch.equal(other, kept)
    assert found.is_contiguous()


def _square(y: Tensor, size: int) -> Tensor:
    """Positive definite matrices, but for two of them."""
    rows = y[:, : size * size].unflatten(1, (size, size))
    matrix = rows @ rows.mT + 0.1 * torch.eye(size, dtype=y.dtype)
    matrix[1, -1, -1] = -1.0
    matrix[2, 0, 0] = torch.nan
    return matrix


def _factor_and_solve(y: Tensor, size: int, columns: int) -> list[Tensor]:
    matrix, right = _square(y, size), y[:, : size * columns].unflatten(1, (size, columns))
    L, info = torch.linalg.cholesky_ex(matrix)
    L = torch.where((info == 0)[:, None, None], L, torch.eye(size, dtype=y.dtype))
    lower = torch.linalg.solve_triangular(L, right, upper=False)
    upper = torch.linalg.solve_triangular(L.mT, right, upper=True)
    ones = torch.linalg.solve_triangular(L, right, upper=False, unitriangular=True)
    return [L, info, lower, upper, ones, torch.cholesky_solve(right, L), lower.mT @ upper]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "columns"), [(1, 1), (2, 3), (5, 1), (7, 2)])
def test_small_matrices_written_out_have_the_factors_and_solutions_of_the_library(size, columns, dtype):
    y = randn(6, 60, dtype=dtype)
    graph = make_fx(lambda y: _factor_and_solve(y, size, columns))(y)
    written = write_out(graph, [y])
    assert not any("linalg" in str(node.target) or "cholesky" in str(node.target) for node in written.graph.nodes)
    tolerance = 100 * torch.finfo(dtype).eps
    for found, expected in zip(written(y), _factor_and_solve(y, size, columns), strict=True):
        torch.testing.assert_close(found, expected, rtol=30 * tolerance, atol=tolerance)
    assert written(y)[1].tolist() == [0, size, 1, 0, 0, 0]


def test_matrices_written_out_for_one_tensor_given_twice_are_those_of_two():
    y, other = randn(6, 60), randn(6, 60, seed=1)

    def both(a, b):
        return [_factor_and_solve(a, 2, 1)[2] + _factor_and_solve(b, 2, 1)[2]]

    written = write_out(make_fx(both)(y, other), [y, y])
    torch.testing.assert_close(written(y, other), both(y, other))


def test_large_matrices_are_left_to_the_library():
    y = randn(6, 120)
    graph = make_fx(lambda y: _factor_and_solve(y, 10, 1))(y)
    targets = {str(node.target) for node in write_out(graph, [y]).graph.nodes}
    assert {"aten.linalg_cholesky_ex.default", "aten.linalg_solve_triangular.default"} <= targets


@needs_compiler
def test_small_matrices_written_out_compile_to_the_same_function(at_once):
    y = randn(6, 60)
    function = lambda y: _factor_and_solve(y, 5, 2)  # noqa: E731
    compiled = kernels.Kernels("test").make(function, [y])
    for found, expected in zip(compiled(y), function(y), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


@needs_compiler
def test_graphs_that_are_laid_out_compile_to_the_same_function(at_once):
    y = torch.randn(12, 60, dtype=D)
    functions = list(LAYOUTS.values())
    compiled = kernels.Kernels("test").make(lambda y: [function(y) for function in functions], [y])
    for found, function in zip(compiled(y), functions, strict=True):
        torch.testing.assert_close(found, function(y), atol=1e-14, rtol=1e-14)


def test_a_function_is_compiled_when_it_has_been_called_often(replayed, monkeypatch):
    monkeypatch.setattr(kernels, "_REPLAYS", 3)
    node = ddn.DeclarativeNode(Fit(), compile=True)
    x = randn(2, 2)
    for call in range(5):
        node(x)
        if call == 0:
            few = len(replayed)
    assert len(replayed) > few
    before = len(replayed)
    node(x)
    assert len(replayed) == before


def test_without_a_compiler_a_node_replays_in_silence(at_once, monkeypatch):
    def fail(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch._inductor, "compile", fail)
    assert_same(Curved(), randn(4, 5))


def test_gradients_of_every_order_and_mode_are_those_of_the_function(replayed):
    node = ddn.DeclarativeNode(Curved(), compile=True)
    x = randn(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(node, x)
    assert torch.autograd.gradgradcheck(node, x)
    plain = ddn.DeclarativeNode(Curved())
    t = randn(2, 3, seed=1)
    torch.testing.assert_close(torch.func.jvp(node, (x,), (t,))[1], torch.func.jvp(plain, (x,), (t,))[1])
    stacked = randn(5, 2, 3, seed=2)
    torch.testing.assert_close(torch.func.vmap(node)(stacked), torch.func.vmap(plain)(stacked))
    jacobians = (torch.func.jacrev(lambda x, each=each: each(x).sum(0))(x) for each in (node, plain))
    torch.testing.assert_close(*jacobians)


def test_a_poisoned_item_harms_no_other(replayed):
    x = randn(6, 5)
    node = ddn.DeclarativeNode(Curved(), compile=True, on_failure="ignore")
    for _ in range(3):
        alone = x.clone().requires_grad_()
        y = node(alone)
        (expected,) = torch.autograd.grad(y.square().sum(), alone)
    bad = x.clone()
    bad[2] = torch.nan
    bad.requires_grad_()
    solution = node.solve(bad)
    others = [0, 1, 3, 4, 5]
    assert solution.status[2] == ddn.Status.NON_FINITE
    torch.testing.assert_close(solution.y[others], y[others])
    (grad,) = torch.autograd.grad(solution.y[others].square().sum(), bad)
    torch.testing.assert_close(grad[others], expected[others])
    assert (grad[2] == 0).all()


def test_items_that_are_not_solved_have_the_status_of_the_eager_node(replayed):
    class Apart(ddn.Problem):
        """Infeasible for x > 1."""

        def objective(self, y, x):
            return (y - x).square().sum()

        def inequality(self, y, x):
            return torch.cat([y.square() - 1, x[:1] + 0.5 - y])

        def initial(self, x):
            return torch.zeros_like(x)

    x = torch.tensor([[0.0], [3.0], [-1.0], [0.4]], dtype=D)
    plain, compiled = (ddn.DeclarativeNode(Apart(), compile=c, on_failure="ignore") for c in (False, True))
    for _ in range(2):
        assert torch.equal(compiled.solve(x).status, plain.solve(x).status)
        assert compiled.solve(x).status[1] == ddn.Status.INFEASIBLE


def test_a_changed_number_changes_the_answer(replayed):
    radius = 1.0

    def ball(y, x):
        return y.square().sum() - radius**2

    problem = ddn.Problem.from_functions(lambda y, x: (y - x).square().sum(), ball, initial=lambda x: x)
    node = ddn.DeclarativeNode(problem, compile=True)
    x = torch.tensor([[3.0, 4.0]], dtype=D)
    torch.testing.assert_close(node(x).norm(), torch.tensor(1.0, dtype=D))
    radius = 2.0
    torch.testing.assert_close(node(x).norm(), torch.tensor(2.0, dtype=D))
    made = len(replayed)
    radius = 1.0
    torch.testing.assert_close(node(x).norm(), torch.tensor(1.0, dtype=D))
    assert len(replayed) == made, "what was made is found again"


GLOBAL = 1.0


class Bend(nn.Module):
    """A layer of a problem, whose method names a number too."""

    strength = 0.5

    def forward(self, y):
        return GLOBAL * self.strength * y.pow(4).sum()


class NamesGlobal(ddn.Problem):
    offset = 0.0

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0, dtype=D))
        self.register_buffer("shift", torch.tensor(0.0, dtype=D))
        self.power = 2
        self.bend = Bend()

    def objective(self, y, x):
        distance = (y - x - self.shift - self.offset).pow(self.power).sum()
        return self.weight * distance + self.penalty(y) + self.bend(y)

    def penalty(self, y):
        return GLOBAL * y.square().sum()

    def initial(self, x):
        return torch.zeros_like(x)


def test_whatever_a_problem_names_may_change(replayed, monkeypatch):
    problem = NamesGlobal()
    plain, compiled = ddn.DeclarativeNode(problem), ddn.DeclarativeNode(problem, compile=True)
    x = randn(3, 2)

    def check() -> list[Tensor]:
        ys = [node(x) for node in (compiled, plain)]
        torch.testing.assert_close(*ys)
        grads = [torch.autograd.grad(y.square().sum(), problem.weight)[0] for y in ys]
        torch.testing.assert_close(*grads)
        return ys

    before = check()[0]
    made = len(replayed)
    with torch.no_grad():
        problem.weight.mul_(3.0)
    assert not torch.allclose(check()[0], before)
    assert len(replayed) == made, "parameters are arguments"
    problem.shift.add_(1.0)
    check()
    problem.shift = torch.tensor(-1.0, dtype=D)
    check()
    for change in (
        lambda: monkeypatch.setitem(globals(), "GLOBAL", 0.1),
        lambda: monkeypatch.setattr(NamesGlobal, "offset", 1.5),
        lambda: monkeypatch.setattr(Bend, "strength", 3.0),
        lambda: monkeypatch.setattr(Bend, "forward", lambda self, y: y.exp().sum()),
    ):
        before = check()[0]
        change()
        assert not torch.allclose(check()[0], before)
    problem.power = 4
    check()


HIDDEN = torch.tensor(1.0, dtype=D, requires_grad=True)


def test_a_tensor_that_only_a_method_names_is_no_argument_and_may_change(replayed):
    class Pulls(ddn.Problem):
        def objective(self, y, x):
            return (y - HIDDEN.detach() * x).square().sum()

        def initial(self, x):
            return torch.zeros_like(x)

    node, x = ddn.DeclarativeNode(Pulls(), compile=True), randn(2, 3)
    for factor in (1.0, 3.0):
        with torch.no_grad():
            HIDDEN.fill_(factor)
        torch.testing.assert_close(node(x), factor * x)


def test_every_shape_and_dtype_has_kernels_of_its_own(replayed):
    node, plain = ddn.DeclarativeNode(Curved(), compile=True), ddn.DeclarativeNode(Curved())
    for shape in ((3, 4), (2, 4), (3, 6), (1, 4), (0, 4)):
        torch.testing.assert_close(node(randn(*shape)), plain(randn(*shape)))
    x = randn(3, 4, dtype=torch.float32)
    assert node(x).dtype == torch.float32
    strided = randn(4, 3).T
    torch.testing.assert_close(node(strided), plain(strided))


def test_one_tensor_may_be_two_arguments():
    bound = kernels.BoundKernels(kernels.Kernels("node", least=0), state=0)
    one, two = randn(4), randn(4, seed=1)
    for args in ((one, one), (one, two), (two, one)):
        torch.testing.assert_close(bound.call("difference", torch.sub, args), args[0] - args[1])


def test_too_many_shapes_run_without_kernels(replayed, monkeypatch):
    monkeypatch.setattr(kernels, "_MOST", 4)
    node, plain = ddn.DeclarativeNode(Curved(), compile=True), ddn.DeclarativeNode(Curved())
    with pytest.warns(ddn.CompileWarning, match="have changed 4 times"):
        node(randn(2, 3))
    assert len(node._kernels) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(node(randn(3, 4)), plain(randn(3, 4)))


def test_what_cannot_be_recorded_runs_as_it_is(replayed):
    class Branches(ddn.Problem):
        batched = True

        def objective(self, y, x):
            scale = 2.0 if bool((x > 0).all()) else 1.0
            return (scale * y - x).square().sum(1)

        def initial(self, x):
            return torch.zeros_like(x)

    node = ddn.DeclarativeNode(Branches(), compile=True)
    x = torch.ones(2, 3, dtype=D, requires_grad=True)
    with pytest.warns(ddn.CompileWarning, match="cannot be recorded"):
        y = node(x)
    torch.testing.assert_close(y, x / 2)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], torch.full_like(x, 0.5))


def test_an_error_of_a_function_is_the_users_own(replayed):
    class Wrong(ddn.Problem):
        def objective(self, y, x):
            return y.sum() + torch.ones(3, dtype=D) @ torch.ones(4, dtype=D)

        def initial(self, x):
            return torch.zeros_like(x)

    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        ddn.DeclarativeNode(Wrong(), compile=True)(randn(2, 3))


def test_copies_and_files_of_a_compiled_node_begin_anew(replayed):
    node = ddn.DeclarativeNode(Curved(), compile=True)
    x = randn(2, 3)
    y = node(x)
    assert len(node._kernels)
    for other in (copy.deepcopy(node), pickle.loads(pickle.dumps(node))):
        assert not len(other._kernels)
        torch.testing.assert_close(other(x), y)
    assert "compile=True" in repr(node)
    assert "compile" not in repr(ddn.DeclarativeNode(Curved()))


def test_diagnostics_tell_the_same_of_a_compiled_node(replayed):
    records = {}
    for compiled in (False, True):
        node = ddn.DeclarativeNode(Curved(), compile=compiled)
        for _ in range(2):
            with ddn.diagnostics() as seen:
                x = randn(3, 4).requires_grad_()
                node(x).square().sum().backward()
        records[compiled] = [dataclasses.replace(record, seconds=0.0, residual=0.0) for record in seen.records]
    assert records[True] == records[False]


def test_a_wrong_word_is_refused():
    with pytest.raises(ddn.InvalidInputError, match=r"compile=.*must be True or False, got 'yes'"):
        ddn.DeclarativeNode(Curved(), compile="yes")


def test_a_fingerprint_is_one_of_values_and_not_of_places():
    def make(factor, *, power=2):
        return lambda y: factor * y**power

    assert fingerprint(make(2.0))[0] == fingerprint(make(2.0))[0]
    assert fingerprint(make(2.0))[0] != fingerprint(make(2))[0]
    assert fingerprint(make(2.0))[0] != fingerprint(make(2.0, power=3))[0]
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    # Live tensors are arguments: which is which matters, their numbers do not.
    assert fingerprint((a, b, a))[0] == fingerprint((b, a, b))[0] != fingerprint((a, b, b))[0]
    assert [id(t) for t in fingerprint((a, [b, a])).live] == [id(t) for t in live_tensors((a, [b, a]))]
    constant = torch.ones(2)
    before = fingerprint([constant])[0]
    constant += 1
    assert fingerprint([constant])[0] != before


_SHARED = torch.ones(2, dtype=D, requires_grad=True)


class _NamesATensor(nn.Module):
    def forward(self, y):
        return y * _SHARED


def test_a_tensor_that_only_a_method_names_counts_by_identity_and_one_that_is_held_too_as_an_argument():
    module = _NamesATensor()
    assert fingerprint(module).live == []
    before = fingerprint(module).state
    with torch.no_grad():
        _SHARED.add_(1)
    assert fingerprint(module).state != before
    both = [module, _SHARED]
    before = fingerprint(both)
    assert before.live[0] is _SHARED
    with torch.no_grad():
        _SHARED.add_(1)
    assert fingerprint(both).state == before.state


def test_items_that_are_far_from_a_minimum_do_not_take_the_trusting_step(replayed):
    # The first item is close to a saddle, the others are not: every one ends in a minimum, as without kernels.
    x = torch.tensor([[0.0, 0.0], [1.0, 2.0], [-2.0, 1.0]], dtype=D)
    assert_same(Saddle(), x)
    assert_same(Saddle(), x[1:])
