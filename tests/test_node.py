"""Nodes as layers: structure in and out, parameters, statuses, policies, surroundings."""

import threading

import pytest
import torch
from problems import Curve, Matrix, SmoothBowl, randn
from test_known_answers import Sphere
from torch import nn

import torchddn as ddn


def square(y, x):
    return 0.5 * (y - x).square().sum()


def test_nested_inputs_and_outputs_keep_their_structure():
    x = {"left": randn(4, 2), "right": randn(4, 3)}
    solution = ddn.DeclarativeNode(Matrix()).solve(x)
    assert set(solution.y) == {"matrix", "scale"}
    assert solution.y["matrix"].shape == (4, 2, 3) and solution.y["scale"].shape == (4,)
    assert solution.status.tolist() == [ddn.Status.CONVERGED] * 4


def test_a_tuple_decision_comes_back_as_a_tuple():
    start = (torch.zeros(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64))
    y = ddn.argmin(lambda y, x: square(y[0], x) + square(y[1], torch.outer(x, x)), start, randn(3, 2))
    assert isinstance(y, tuple) and y[0].shape == (3, 2) and y[1].shape == (3, 2, 2)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_start_of_one_item_and_one_per_item_mean_the_same(size):
    x = randn(size, 3)
    item = ddn.argmin(square, torch.zeros(3, dtype=torch.float64), x)
    batch = ddn.argmin(square, torch.zeros(size, 3, dtype=torch.float64), x)
    assert item.shape == batch.shape == (size, 3)
    torch.testing.assert_close(item, batch)


def test_scalar_decisions_may_start_from_a_batch_of_scalars():
    x = randn(4).exp()
    y = ddn.argmin(lambda y, x: (y**2 - x) ** 2, torch.ones(4, dtype=torch.float64), x)
    torch.testing.assert_close(y, x.sqrt(), rtol=1e-9, atol=1e-9)


def test_start_says_how_to_read_an_ambiguous_start():
    x, y0 = randn(3, 3), torch.zeros(3, dtype=torch.float64)
    assert ddn.argmin(square, y0, x).shape == (3, 3)
    assert ddn.argmin(square, y0, x, start="batch").shape == (3,)
    wide = torch.zeros(3, 3, dtype=torch.float64)
    assert ddn.argmin(square, wide, x).shape == (3, 3)
    assert ddn.argmin(square, wide, x, start="item").shape == (3, 3, 3)


def test_the_start_decides_which_minimum_is_found():
    def f(y, x):
        return (y.square() - 1).square().sum() + 0.1 * (x * y).sum()

    x = torch.zeros(1, 1, dtype=torch.float64)
    assert ddn.argmin(f, torch.tensor([2.0]).double(), x) > 0 > ddn.argmin(f, torch.tensor([-2.0]).double(), x)


def test_a_start_made_by_the_problem_takes_the_dtype_of_the_inputs():
    problem = ddn.Problem.from_functions(square, initial=lambda x: torch.zeros(3))
    y = ddn.DeclarativeNode(problem)(randn(2, 3))
    assert y.dtype == torch.float64


def test_no_gradient_reaches_a_start():
    x, y0 = randn(2, 3), torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert not ddn.argmin(square, y0, x).requires_grad


def test_without_inputs_the_start_gives_the_batch():
    weight = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    y = ddn.argmin(lambda y: square(y, weight), torch.zeros(4, 2, dtype=torch.float64))
    assert y.shape == (4, 2)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), weight)[0], torch.full_like(weight, 4.0))


def test_parameters_of_a_problem_get_the_gradient_of_the_whole_batch():
    problem, x = SmoothBowl(), randn(5, 3)
    node = ddn.DeclarativeNode(problem)
    assert dict(node.named_parameters()).keys() == {"problem.weight"}
    node(x).sum().backward()
    step = 1e-6
    numeric = []
    for i in range(3):
        values = []
        for sign in (1, -1):
            moved = SmoothBowl()
            moved.weight.data[i] += sign * step
            values.append(ddn.DeclarativeNode(moved)(x).sum().item())
        numeric.append((values[0] - values[1]) / (2 * step))
    torch.testing.assert_close(problem.weight.grad, torch.tensor(numeric, dtype=torch.float64), rtol=1e-7, atol=1e-8)


def test_a_network_inside_a_fixed_point_is_trained_without_being_passed():
    layer = nn.Linear(3, 3).double()
    with torch.no_grad():
        layer.weight.mul_(0.3)
    x = randn(4, 3).requires_grad_()
    y = ddn.fixed_point(lambda y, x: torch.tanh(layer(y) + x), torch.zeros(3, dtype=torch.float64), x)
    grads = torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))
    for _ in range(1):
        z = torch.zeros(4, 3, dtype=torch.float64)
        for _ in range(200):
            z = torch.tanh(layer(z) + x)
    expected = torch.autograd.grad(z.square().sum(), (x, *layer.parameters()))
    torch.testing.assert_close(grads, expected, rtol=1e-9, atol=1e-10)


def test_a_module_given_as_function_belongs_to_the_node():
    class Energy(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))

        def forward(self, y, x):
            return (self.w.exp() * (y - x).square()).sum()

    node = ddn.DeclarativeNode(ddn.Problem.from_functions(Energy(), initial=lambda x: x))
    assert [tuple(p.shape) for p in node.parameters()] == [(3,)]
    assert node.to(torch.float64)(randn(2, 3)).dtype == torch.float64


def test_state_dict_round_trip():
    node, other = ddn.DeclarativeNode(SmoothBowl()), ddn.DeclarativeNode(SmoothBowl())
    with torch.no_grad():
        node.problem.weight.mul_(2)
    other.load_state_dict(node.state_dict())
    torch.testing.assert_close(other(randn(2, 3)), node(randn(2, 3)))


def test_inputs_that_need_no_gradient_get_none():
    x, target = randn(3, 3), randn(3, 3, seed=1).requires_grad_()
    y = ddn.argmin(lambda y, x, t: square(y, x) + square(y, t), torch.zeros(3, dtype=torch.float64), x, target)
    y.sum().backward()
    assert x.grad is None
    torch.testing.assert_close(target.grad, torch.full_like(target, 0.5))


def test_solution_tells_everything():
    solution = ddn.DeclarativeNode(Sphere()).solve(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    torch.testing.assert_close(solution.objective, torch.tensor([8.0], dtype=torch.float64))
    assert solution.solver == "ActiveSetNewton, SQP"
    assert solution.stationarity.item() < 1e-10 and solution.feasibility.item() < 1e-10
    assert solution.complementarity.item() == 0 and solution.num_steps.item() > 0
    assert solution.inequality_multipliers is None and solution.lower_multipliers is None
    torch.testing.assert_close(solution.equality_multipliers, torch.tensor([[2.0]], dtype=torch.float64))


def slow(**options):
    solver = ddn.solvers.Newton(max_steps=1)
    return ddn.DeclarativeNode(SmoothBowl(), solver=solver, **options)


def test_failure_warns_raises_marks_or_keeps_silent():
    x = 5 * randn(3, 3).requires_grad_()
    with pytest.warns(ddn.ConvergenceWarning, match=r"3 of 3 items did not converge \(items 0, 1, 2; worst residual"):
        slow()(x)
    with pytest.raises(ddn.SolveError, match="3 x MAX_STEPS: Raise max_steps"):
        slow(on_failure="raise")(x)
    y = slow(on_failure="nan")(x)
    assert y.isnan().all()
    assert torch.autograd.grad(y.sum(), x)[0].isnan().all()
    assert slow(on_failure="ignore").solve(x).status.tolist() == [ddn.Status.MAX_STEPS] * 3


def test_infeasible_and_unbounded_items_raise_their_own_errors():
    def infeasible(y, x):
        return torch.stack([y.sum() - 1, y.sum() - 2])

    start = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(ddn.InfeasibleError, match="INFEASIBLE"):
        ddn.argmin(square, start, randn(1, 2), equality=infeasible, on_failure="raise")
    with pytest.raises(ddn.UnboundedError, match="UNBOUNDED"):
        ddn.argmin(lambda y, x: (x * y).sum(), start, randn(1, 2), on_failure="raise")


def test_one_failing_item_leaves_its_mates_alone():
    def f(y, x):
        return torch.where(x[0] > 100, y.sum(), 0.5 * (y - x).square().sum())

    x = randn(4, 2)
    x[2] = 200.0
    x.requires_grad_()
    solution = ddn.argmin(f, torch.zeros(2, dtype=torch.float64), x, on_failure="ignore", solution=True)
    assert solution.status.tolist() == [0, 0, ddn.Status.UNBOUNDED, 0]
    torch.testing.assert_close(solution.y[[0, 1, 3]], x[[0, 1, 3]])


def test_two_hundred_items_with_one_nan():
    x = randn(200, 5)
    x[123, 2] = torch.nan
    x.requires_grad_()
    node = ddn.DeclarativeNode(Sphere())
    with pytest.warns(ddn.ConvergenceWarning, match=r"1 of 200 items did not converge \(items 123; .*NON_FINITE"):
        solution = node.solve(x)
    good = [i for i in range(200) if i != 123]
    clean = x.detach()[good].requires_grad_()
    (g,) = torch.autograd.grad(solution.y[good].pow(3).sum(), x)
    (expected,) = torch.autograd.grad(node(clean).pow(3).sum(), clean)
    assert solution.y[123].isnan().all() and solution.status[123] == ddn.Status.NON_FINITE
    torch.testing.assert_close(solution.y[good], clean / clean.norm(dim=1, keepdim=True), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(g[good], expected, rtol=1e-11, atol=1e-12)
    assert not g[123].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_inside_in_float32(dtype):
    x = randn(3, 4).to(dtype).requires_grad_()
    y = ddn.DeclarativeNode(Sphere())(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float().norm(dim=1), torch.ones(3), rtol=1e-2, atol=1e-2)
    assert torch.autograd.grad(y.sum(), x)[0].dtype == dtype


def test_autocast_does_not_reach_the_solver():
    A = randn(4, 4).float() + 4 * torch.eye(4)

    def f(y, x):
        return 0.5 * (A @ y - x).square().sum()

    x = randn(3, 4).float()
    expected = torch.linalg.solve(A, x[..., None])[..., 0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ddn.argmin(f, torch.zeros(4), x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def test_hooks_on_saved_tensors_see_what_a_node_saves_and_not_what_its_solver_does():
    seen = []

    def pack(tensor):
        seen.append(tensor.shape)
        return tensor

    node, x = ddn.DeclarativeNode(SmoothBowl()), randn(4, 3).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = node(x)
    assert 0 < len(seen) < 10
    expected = torch.autograd.grad(node(x).square().sum(), x)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), x), expected)


def test_threads_share_a_node():
    node = ddn.DeclarativeNode(SmoothBowl())
    batches = [randn(4, 3, seed=i) for i in range(8)]
    expected = [torch.autograd.grad(node(x.requires_grad_()).square().sum(), (x, *node.parameters())) for x in batches]
    results = [None] * 8

    def work(i):
        results[i] = torch.autograd.grad(node(batches[i]).square().sum(), (batches[i], *node.parameters()))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(results, expected)


def test_a_replica_of_the_module_computes_the_same():
    # What nn.DataParallel makes of a module on each device: shallow copies that hold tensors with a graph.
    node = ddn.DeclarativeNode(SmoothBowl())
    replica = node._replicate_for_data_parallel()
    replica.problem = node.problem._replicate_for_data_parallel()
    replica.problem.weight = node.problem.weight * 1.0
    x = randn(3, 3)
    y = replica(x)
    torch.testing.assert_close(y, node(x))
    y.sum().backward()
    assert node.problem.weight.grad.abs().min() > 0


def test_a_stack_of_parameters_is_vmapped_as_an_ensemble():
    nodes = [ddn.DeclarativeNode(SmoothBowl()) for _ in range(3)]
    for scale, node in enumerate(nodes, start=1):
        node.problem.weight.data.mul_(scale)
    stacked, buffers = torch.func.stack_module_state(nodes)
    x = randn(4, 3)

    def call(parameters, buffers):
        return torch.func.functional_call(nodes[0], (parameters, buffers), (x,))

    torch.testing.assert_close(torch.func.vmap(call)(stacked, buffers), torch.stack([node(x) for node in nodes]))
    torch.testing.assert_close(nodes[0].problem.weight.data, SmoothBowl().weight.data)


# The compiler hides this warning of its own, but not from a filter that turns warnings into errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiling_the_network_around_a_node_changes_nothing():
    network = nn.Sequential(nn.Linear(3, 3), ddn.DeclarativeNode(Sphere()), nn.Linear(3, 2))
    x = torch.randn(4, 3)
    compiled = torch.compile(network, backend="eager")
    torch.testing.assert_close(compiled(x), network(x))
    expected = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    actual = torch.autograd.grad(compiled(x).square().sum(), list(network.parameters()))
    torch.testing.assert_close(actual, expected)


def test_batched_functions_may_do_what_vmap_cannot():
    class Branching(ddn.Problem):
        batched = True

        def objective(self, y, x):
            scale = 2.0 if bool(x.sum() > 0) else 3.0  # reads a value
            return scale * (y - x).square().sum(-1)

        def equality(self, y, x):
            return y.sum(-1) - 1.0

        def initial(self, x):
            return torch.zeros_like(x)

    x = randn(3, 4).requires_grad_()
    y = ddn.DeclarativeNode(Branching())(x)
    expected = x - (x.sum(1, keepdim=True) - 1) / 4
    torch.testing.assert_close(y, expected)
    v = randn(3, 4, seed=1)
    torch.testing.assert_close(torch.autograd.grad(y, x, v)[0], v - v.mean(1, keepdim=True))


def test_least_squares_problems_are_solved_by_their_residual():
    t = torch.linspace(0, 2, 6, dtype=torch.float64).expand(2, 6)
    solution = ddn.DeclarativeNode(Curve()).solve(t, 1.5 * torch.exp(-0.8 * t))
    assert solution.solver == "LevenbergMarquardt"
    expected = torch.tensor([1.5, 0.8], dtype=torch.float64).expand(2, 2)
    torch.testing.assert_close(solution.y, expected, rtol=1e-8, atol=1e-8)


def test_diagnostics_record_forward_and_backward():
    x = randn(5, 3).requires_grad_()
    node = ddn.DeclarativeNode(Sphere())
    with ddn.diagnostics() as seen:
        node(x).sum().backward()
    forward, backward = seen.records
    assert (forward.stage, forward.method, forward.statuses) == ("forward", "ActiveSetNewton, SQP", {"CONVERGED": 5})
    assert backward.stage == "backward" and backward.residual < 1e-10 and backward.degenerate == ()
    assert forward.seconds > 0 and "DeclarativeNode(Sphere)" in str(seen)
    node(x)
    assert len(seen.records) == 2
